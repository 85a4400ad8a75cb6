//! The metadata members, as the state machine knows them: who they are, where they are reached, what becomes of them.
//! raft's own configuration says who votes; a command that changes it lies in the same log entry as the change, and the
//! two are carried out together or not at all.
//!
//! A number is given once. A member that lost its disk comes back under a new one, so nobody ever votes as its old
//! self; whoever has a number below `next_id` and is not listed was removed, for ever.
//!
//! Whether a majority would be left is not decided here: only the leader knows who can be reached.

use cairn_proto::meta::change_member_request::Change;
use cairn_proto::meta::{
    AddMember, BeginMembers, BeginMembersReply, ChangeMemberReply, ChangeMemberRequest, ErrorCode, Member,
    MemberRecord, MembersRecord, PromoteMember, UpdateMember,
};

use crate::machine::{Event, Machine, Turn};
use crate::refusal::{Outcome, Refusal};
use crate::{keys, record};

/// The most voting members: each write waits for a majority of them.
pub const MOST_VOTERS: usize = 7;
const LONGEST_ADDRESS: usize = 256;

impl Machine {
    /// The metadata members; empty until the first leader has named them.
    #[must_use]
    pub fn members(&self) -> &MembersRecord {
        &self.members
    }

    pub(crate) fn begin_members(&mut self, turn: &mut Turn<'_>, request: BeginMembers) -> Outcome<BeginMembersReply> {
        if !self.members.members.is_empty() {
            return Ok(BeginMembersReply {});
        }
        let mut members: Vec<MemberRecord> = request
            .members
            .into_iter()
            .map(|m| MemberRecord { id: m.id, address: m.address, ..MemberRecord::default() })
            .collect();
        members.sort_by_key(|m| m.id);
        let twice = members.windows(2).any(|pair| pair[0].id == pair[1].id);
        if members.is_empty() || twice || members[0].id == 0 {
            return Err(Refusal::invalid("members are numbered from 1, each once").into());
        }
        let genesis: Vec<u64> = members.iter().map(|m| m.id).collect();
        let next_id = genesis.last().expect("there is one") + 1;
        let record = MembersRecord { members, next_id, genesis, lineage: request.lineage, leaving: Vec::new() };
        self.write_members(turn, record);
        Ok(BeginMembersReply {})
    }

    pub(crate) fn change_member(
        &mut self,
        turn: &mut Turn<'_>,
        request: &ChangeMemberRequest,
    ) -> Outcome<ChangeMemberReply> {
        if self.members.members.is_empty() {
            let words = "the members of this cluster are not written down yet";
            return Err(Refusal::precondition(words).remedy("try again in a moment").into());
        }
        let (member, words) = match &request.change {
            Some(Change::Add(add)) => self.add_member(turn, add)?,
            Some(Change::Remove(id)) => self.drop_member(turn, *id)?,
            Some(Change::Promote(promote)) => self.promote_member(turn, promote)?,
            Some(Change::Update(update)) => self.update_member(turn, update)?,
            None => return Err(Refusal::invalid("the request names no change").into()),
        };
        Ok(ChangeMemberReply {
            member: Some(shown(&member)),
            members: self.members.members.iter().map(shown).collect(),
            words,
            cluster: self.cluster.cluster.clone(),
            genesis: self.members.genesis.clone(),
        })
    }

    /// What a change of members would answer; nothing is changed.
    ///
    /// # Errors
    /// As carrying it out would be refused.
    pub fn rehearse_member(
        &self,
        state: &dyn crate::StateRead,
        request: &ChangeMemberRequest,
    ) -> Result<ChangeMemberReply, crate::Failure> {
        let mut copy = self.clone();
        let mut turn = Turn::on(state);
        copy.change_member(&mut turn, request)
    }

    fn write_members(&mut self, turn: &mut Turn<'_>, members: MembersRecord) {
        record::store(&mut turn.state, keys::MEMBERS.to_vec(), &members);
        self.members = members;
        turn.events.push(Event::Members(self.members.clone()));
    }

    fn member(&self, id: u64) -> Result<&MemberRecord, Refusal> {
        self.members.members.iter().find(|m| m.id == id).ok_or_else(|| {
            let gone = id != 0 && id < self.members.next_id;
            let words = if gone { format!("member {id} was removed") } else { format!("there is no member {id}") };
            Refusal::not_found(words).remedy("cairn meta ls shows the members")
        })
    }

    /// A new member, or one that was announced and begins. A new one has the next number in the request; one that begins
    /// has none, because it has it here: the number is what raft adds, in the same entry.
    fn add_member(&mut self, turn: &mut Turn<'_>, add: &AddMember) -> Result<(MemberRecord, String), Refusal> {
        check_address(&add.address)?;
        let all = &self.members.members;
        if let Some(known) = all.iter().find(|m| !add.directory.is_empty() && m.directory == add.directory) {
            return match known.learner {
                // The answer was lost on the way.
                true => Ok((known.clone(), format!("member {} is there already", known.id))),
                false => Err(votes_already(known)),
            };
        }
        if let Some(expected) = all.iter().find(|m| m.address == add.address && m.learner) {
            // A number would make raft add somebody whom nothing here names.
            if add.id != 0 {
                let words = format!("member {} was announced at {} meanwhile", expected.id, add.address);
                return Err(Refusal::new(ErrorCode::Conflict, words).remedy("try again"));
            }
            return self.claim_member(turn, add, expected.clone());
        }
        if add.replaces != 0 {
            self.member(add.replaces)?;
        }
        if let Some(there) = all.iter().find(|m| m.address == add.address && m.id != add.replaces) {
            let words = format!("member {} has the address {} already", there.id, add.address);
            let remedy = format!("if its directory is lost, replace it: cairn meta replace {} ADDRESS", there.id);
            return Err(Refusal::new(ErrorCode::AlreadyExists, words).remedy(remedy));
        }
        if let Some(other) = all.iter().find(|m| m.learner) {
            let words = format!("member {} is still being added, and members are added one at a time", other.id);
            let remedy = format!("wait until it votes, or take it back: cairn meta remove {}", other.id);
            return Err(Refusal::precondition(words).remedy(remedy));
        }
        let voters = all.len() - usize::from(add.replaces != 0);
        if voters >= MOST_VOTERS {
            let words = format!("there are {} members, and more than {MOST_VOTERS} only make writes slower", all.len());
            return Err(Refusal::precondition(words).remedy("replace one instead: cairn meta replace ID ADDRESS"));
        }
        if add.id != self.members.next_id {
            let words = format!("the next member has the number {}, and not {}", self.members.next_id, add.id);
            return Err(Refusal::new(ErrorCode::Conflict, words).remedy("try again"));
        }
        let added = MemberRecord {
            id: add.id,
            address: add.address.clone(),
            learner: true,
            stay_learner: add.stay_learner,
            replaces: add.replaces,
            directory: add.directory.clone(),
        };
        let mut members = self.members.clone();
        members.members.push(added.clone());
        members.next_id += 1;
        members.leaving.clear();
        self.write_members(turn, members);
        let what = match (add.replaces, add.stay_learner) {
            (0, true) => "and stays a learner until it is promoted".to_owned(),
            (0, false) => "and votes once it has caught up".to_owned(),
            (old, _) => format!("and takes the place of member {old} once it has caught up"),
        };
        Ok((added, format!("member {} at {} is a learner, {what}", add.id, add.address)))
    }

    /// A learner that was announced begins: from now on it is that directory and no other.
    fn claim_member(
        &mut self,
        turn: &mut Turn<'_>,
        add: &AddMember,
        mut expected: MemberRecord,
    ) -> Result<(MemberRecord, String), Refusal> {
        let (id, address) = (expected.id, &expected.address);
        if add.directory.is_empty() || add.replaces != 0 && add.replaces != expected.replaces {
            let words = format!("member {id} is being added at {address} already");
            return Err(Refusal::new(ErrorCode::AlreadyExists, words).remedy(format!("cairn meta remove {id}")));
        }
        if !expected.directory.is_empty() {
            let words = format!("member {id} at {address} began with another directory, and what it promised is lost");
            let remedy = format!("take it back and add it anew: cairn meta remove {id}");
            return Err(Refusal::new(ErrorCode::IdentityMismatch, words).remedy(remedy));
        }
        expected.directory = add.directory.clone();
        let claimed = expected.clone();
        self.rewrite(turn, id, |member| *member = claimed);
        Ok((expected, format!("member {id} has begun")))
    }

    fn drop_member(&mut self, turn: &mut Turn<'_>, id: u64) -> Result<(MemberRecord, String), Refusal> {
        let gone = self.member(id)?.clone();
        let mut members = self.members.clone();
        members.members.retain(|m| m.id != id);
        if !members.members.iter().any(|m| !m.learner) {
            let words = format!("member {id} is the last one that votes, and the service would end with it");
            return Err(Refusal::precondition(words).remedy("add another member first: cairn meta add ADDRESS"));
        }
        settle(&mut members, &gone);
        // One step without a joint configuration: raft has let go of it already.
        members.leaving.clear();
        self.write_members(turn, members);
        let words = format!("member {id} at {} is removed; its number is never used again", gone.address);
        Ok((gone, words))
    }

    fn promote_member(
        &mut self,
        turn: &mut Turn<'_>,
        promote: &PromoteMember,
    ) -> Result<(MemberRecord, String), Refusal> {
        let (id, old) = (promote.id, promote.instead_of);
        let member = self.member(id)?.clone();
        if !member.learner {
            return Err(Refusal::precondition(format!("member {id} votes already")));
        }
        let left = if old == 0 { None } else { Some(self.member(old)?.clone()) };
        if old != 0 && old != member.replaces {
            return Err(Refusal::precondition(format!("member {id} was not added to replace member {old}")));
        }
        let mut members = self.members.clone();
        members.members.retain(|m| m.id != old);
        members.leaving.clear();
        if let Some(left) = &left {
            settle(&mut members, left);
        }
        let promoted = members.members.iter_mut().find(|m| m.id == id).expect("it was found above");
        promoted.learner = false;
        promoted.stay_learner = false;
        let promoted = promoted.clone();
        self.write_members(turn, members);
        let words = match left {
            Some(_) => format!("member {id} votes, and member {old} is removed"),
            None => format!("member {id} votes"),
        };
        Ok((promoted, words))
    }

    fn update_member(&mut self, turn: &mut Turn<'_>, update: &UpdateMember) -> Result<(MemberRecord, String), Refusal> {
        check_address(&update.address)?;
        let mut member = self.member(update.id)?.clone();
        if let Some(there) = self.members.members.iter().find(|m| m.address == update.address && m.id != update.id) {
            let words = format!("member {} has the address {} already", there.id, update.address);
            return Err(Refusal::new(ErrorCode::AlreadyExists, words));
        }
        member.address = update.address.clone();
        self.rewrite(turn, update.id, |m| m.address = update.address.clone());
        let words = format!("member {} is reached at {}", update.id, update.address);
        Ok((member, words))
    }

    fn rewrite(&mut self, turn: &mut Turn<'_>, id: u64, change: impl FnOnce(&mut MemberRecord)) {
        let mut members = self.members.clone();
        if let Some(member) = members.members.iter_mut().find(|m| m.id == id) {
            change(member);
        }
        self.write_members(turn, members);
    }
}

/// A directory asks only before it is made: one that votes and asks has lost what it was.
fn votes_already(known: &MemberRecord) -> Refusal {
    let words = format!(
        "member {} votes already, and its directory begins anew: what it had promised is lost with the old contents",
        known.id
    );
    let remedy =
        format!("start a new member in its place, on an empty directory: --join MEMBERS --replace {}", known.id);
    Refusal::new(ErrorCode::IdentityMismatch, words).remedy(remedy)
}

/// Nobody replaces a member that is gone, and its address is kept until raft has let go of it.
fn settle(members: &mut MembersRecord, gone: &MemberRecord) {
    members.members.iter_mut().filter(|m| m.replaces == gone.id).for_each(|m| m.replaces = 0);
    members.leaving = vec![gone.clone()];
}

fn check_address(address: &str) -> Result<(), Refusal> {
    let sound = address.len() <= LONGEST_ADDRESS
        && address
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0))
        && address.chars().all(|c| c.is_ascii_graphic());
    match sound {
        true => Ok(()),
        false => {
            let words = format!("`{}` is no address of a member", address.escape_debug());
            Err(Refusal::invalid(words).remedy("give host:port, such as 127.0.0.1:7404"))
        }
    }
}

/// As the API shows it.
#[must_use]
pub fn shown(member: &MemberRecord) -> Member {
    Member {
        id: member.id,
        address: member.address.clone(),
        learner: member.learner,
        stay_learner: member.stay_learner,
        replaces: member.replaces,
        ..Member::default()
    }
}
