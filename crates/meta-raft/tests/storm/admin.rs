//! An administrator who adds, removes and replaces members while the storm goes on: one change at a time, each repeated
//! until it is answered, and now and then a disk is lost and its member replaced.

use cairn_meta_raft::{MemoryStore, Store, membership};
use cairn_proto::meta::change_member_request::Change;
use cairn_proto::meta::command::Payload;
use cairn_proto::meta::command_reply::Result as Answer;
use cairn_proto::meta::{AddMember, ChangeMemberRequest, Command, MemberRecord, PromoteMember};
use prost::Message;

use crate::world::{MEMBERS, World};

/// Stands for the administrator among the clients.
pub(crate) const ADMIN: usize = usize::MAX;
/// The most members at a time.
const MOST: usize = 5;

#[derive(Default)]
pub(crate) struct Admin {
    /// Does anything at all.
    pub(crate) works: bool,
    seq: u64,
    asked: Option<Command>,
    pub(crate) done: u64,
    pub(crate) replaced: u64,
    pub(crate) lost_disks: u64,
}

impl World {
    pub(crate) fn administer(&mut self, storm: bool) {
        if !self.admin.works || self.roll(12) != 0 {
            return;
        }
        self.stop_the_removed();
        let leads = self.nodes.iter().find(|(_, node)| node.leads_surely()).map(|(id, _)| *id);
        let Some(leader) = leads else { return };
        if self.admin.asked.is_none() {
            let Some(change) = self.next_change(leader, storm) else { return };
            self.admin.seq += 1;
            let change = ChangeMemberRequest { change: Some(change), ..ChangeMemberRequest::default() };
            self.admin.asked = Some(Command {
                version: 1,
                session: vec![200; 16].into(),
                seq: self.admin.seq,
                acked_through: self.admin.seq - 1,
                now_s: 1,
                payload: Some(Payload::ChangeMember(change)),
                ..Command::default()
            });
        }
        let command = self.admin.asked.clone().expect("something is asked for");
        let ticket = self.ticket();
        let node = self.nodes.get_mut(&leader).expect("it leads");
        let bytes = command.encode_to_vec();
        let taken = match membership::conf_change(&command) {
            Some(change) => node.propose_change(ticket, &change, bytes),
            None => node.propose(ticket, bytes),
        };
        if taken.is_ok() {
            self.tickets.insert((leader, ticket), ADMIN);
        }
        self.drain(leader, u64::MAX);
    }

    /// What the others would tell a removed member that missed it.
    fn stop_the_removed(&mut self) {
        let newest = self.nodes.values().max_by_key(|node| node.applied().index);
        let Some(members) = newest.map(|node| node.machine().members().clone()) else { return };
        let removed = |id: u64| id < members.next_id && !members.members.iter().any(|m| m.id == id);
        let everybody: Vec<u64> = self.nodes.keys().chain(self.disks.keys()).copied().collect();
        for id in everybody.into_iter().filter(|id| removed(*id)) {
            if self.roll(10) == 0 {
                self.lose(id);
            }
        }
    }

    fn next_change(&mut self, leader: u64, storm: bool) -> Option<Change> {
        let node = &self.nodes[&leader];
        let (members, following) = (node.machine().members().clone(), node.following());
        if node.is_changing() || members.members.is_empty() {
            return None;
        }
        let committed = node.committed();
        let voters: Vec<&MemberRecord> = members.members.iter().filter(|m| !m.learner).collect();
        if let Some(learner) = members.members.iter().find(|m| m.learner) {
            // It was announced; now a directory begins as it, under the number it has.
            if learner.directory.is_empty() {
                let directory = vec![learner.id as u8; 16].into();
                let address = learner.address.clone();
                return Some(Change::Add(AddMember { address, directory, ..AddMember::default() }));
            }
            let matched = following.iter().find(|f| f.id == learner.id).map_or(0, |f| f.matched);
            let instead_of = learner.replaces;
            // A leader does not remove itself.
            return (matched + 5 >= committed && instead_of != leader)
                .then_some(Change::Promote(PromoteMember { id: learner.id, instead_of }));
        }
        let lost = voters.iter().find(|m| self.gone.contains(&m.id)).map(|m| m.id);
        let announced = self.roll(2) == 0;
        let add = |replaces| {
            let id = members.next_id;
            let directory = if announced { Vec::new() } else { vec![id as u8; 16] }.into();
            let address = format!("host-{id}:7400");
            Change::Add(AddMember { id, address, replaces, directory, ..AddMember::default() })
        };
        if let Some(lost) = lost {
            return Some(add(lost));
        }
        if !storm {
            return None;
        }
        let at = self.roll(voters.len() as u64) as usize;
        let victim = voters[at].id;
        match self.roll(8) {
            0..=1 if voters.len() < MOST => Some(add(0)),
            2 if voters.len() > 1 && victim != leader => Some(Change::Remove(victim)),
            3 if victim != leader => Some(add(victim)),
            4 if voters.len() > 2 => {
                self.lose(victim);
                self.admin.lost_disks += 1;
                None
            }
            _ => None,
        }
    }

    pub(crate) fn admin_heard(&mut self, answer: Option<Answer>) {
        let Some(asked) = self.admin.asked.take() else { return };
        let Some(Payload::ChangeMember(request)) = asked.payload else { unreachable!("it asks for nothing else") };
        match (answer, request.change) {
            (Some(Answer::ChangeMember(reply)), Some(Change::Add(add))) => {
                // One that was only announced has not begun.
                let id = reply.member.expect("it was added").id;
                if !add.directory.is_empty() {
                    self.disks.insert(id, MemoryStore::new(&MEMBERS));
                    self.start(id);
                }
            }
            (Some(Answer::ChangeMember(_)), Some(Change::Promote(promote))) if promote.instead_of != 0 => {
                self.admin.replaced += 1;
            }
            (Some(Answer::ChangeMember(_)), _) => {}
            (other, change) => panic!("{change:?} was answered by {other:?}"),
        }
        self.admin.done += 1;
    }

    /// raft's configuration and the written members are the same, at everybody.
    pub(crate) fn judge_members(&self) {
        for (id, node) in &self.nodes {
            let conf_state = node.store().conf_state();
            let members = &node.machine().members().members;
            let of = |learner: bool| members.iter().filter(|m| m.learner == learner).map(|m| m.id).collect::<Vec<_>>();
            assert!(!membership::is_joint(&conf_state), "member {id}: the joint configuration was left");
            assert_eq!((conf_state.voters, conf_state.learners), (of(false), of(true)), "member {id}");
            assert!(node.state().get(b"e").is_some(), "and they are part of the state");
        }
    }
}
