//! Metadata members of a cluster that `cairn up` made, changed by the commands an administrator types while clients
//! write: one whose directory is lost is replaced, the cluster grows to five and shrinks to three, and after the loss of
//! all members a backup becomes the cluster again, with the data that the OSDs kept.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cairn_tests::{Cluster, UpOptions, capture, run, until};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 4096;

/// The members that vote, and who leads.
fn voters(cluster: &Cluster) -> Result<(Vec<u64>, Option<u64>)> {
    let members = cluster.cairn_json(&["meta", "ls"])?;
    let members = members.as_array().context("no list of members")?;
    let id = |member: &serde_json::Value| member["id"].as_u64();
    let votes = members.iter().filter(|m| m["learner"] == false).filter_map(id).collect();
    Ok((votes, members.iter().find(|m| m["leader"] == true).and_then(id)))
}

fn become_voters(cluster: &Cluster, expected: &[u64]) -> Result<u64> {
    until(&format!("the voters {expected:?}"), 30, || {
        // Between two leaders nobody answers for a moment.
        Ok(voters(cluster).ok().and_then(|(found, leader)| leader.filter(|_| found == expected)))
    })
}

fn volumes(cluster: &Cluster) -> Result<Vec<String>> {
    let list = cluster.cairn_json(&["volume", "ls"])?;
    let names = list.as_array().context("no list of volumes")?.iter().filter_map(|v| v["name"].as_str());
    Ok(names.map(str::to_owned).collect())
}

/// Clients at work: one writes blocks of a device and flushes them, one makes volumes.
struct Clients {
    stop: Arc<AtomicBool>,
    /// How many blocks were written and flushed.
    blocks: JoinHandle<Result<u64>>,
    /// The volumes that were made.
    made: JoinHandle<Result<Vec<String>>>,
}

fn block(number: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    for (at, word) in block.chunks_mut(8).enumerate() {
        word.copy_from_slice(&(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ at as u64).to_le_bytes());
    }
    block
}

impl Clients {
    fn start(cluster: &Cluster, device: &str) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (file, stopped) = (File::options().write(true).open(device)?, Arc::clone(&stop));
        let blocks = std::thread::spawn(move || {
            let mut number = 0;
            while number < BLOCKS && !stopped.load(Ordering::SeqCst) {
                file.write_all_at(&block(number), number * BLOCK as u64)?;
                file.sync_data()?;
                number += 1;
            }
            Ok(number)
        });
        let (command, stopped) = (cluster.cairn(&["volume", "create"]), Arc::clone(&stop));
        let program = command.get_program().to_owned();
        let args: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        let made = std::thread::spawn(move || {
            let mut made = Vec::new();
            while !stopped.load(Ordering::SeqCst) {
                let name = format!("made-{}", made.len());
                capture(Command::new(&program).args(&args).args([name.as_str(), "--size", "1Mi"]))?;
                made.push(name);
                std::thread::sleep(Duration::from_millis(100));
            }
            Ok(made)
        });
        Ok(Self { stop, blocks, made })
    }

    fn finish(self) -> Result<(u64, Vec<String>)> {
        self.stop.store(true, Ordering::SeqCst);
        let blocks = self.blocks.join().expect("the writer does not panic")?;
        Ok((blocks, self.made.join().expect("the client does not panic")?))
    }
}

/// Every daemon has a page, and what an alert would look at stands on it.
fn check_pages(cluster: &Cluster, member: u64) -> Result<()> {
    let meta = format!("meta-{member}");
    let main: [(&str, &[&str]); 5] = [
        (&meta, &["cairn_meta_raft_leader", "cairn_meta_raft_commit_index", "cairn_meta_members_reachable"]),
        ("osd-0", &["cairn_osd_disk_operations_total", "cairn_osd_pgs", "cairn_osd_disk_oldest_ms"]),
        ("attach", &["cairn_attach_calls_total"]),
        ("csi", &[]),
        ("keeper", &[]),
    ];
    for (role, lines) in main {
        let text = cluster.metrics(role)?;
        for name in lines.iter().chain(&["process_cpu_seconds_total", "process_resident_memory_bytes"]) {
            let has = |line: &str| line.starts_with(*name) && line.contains("role=\"");
            ensure!(text.lines().any(has), "{role} does not tell {name}: {text}");
        }
    }
    // A client speaks to the primaries of its blocks only.
    let served =
        (0..3).any(|osd| cluster.metrics(&format!("osd-{osd}")).is_ok_and(|t| t.contains("cairn_osd_requests_total{")));
    ensure!(served, "somebody served the writes");
    let reachable = cluster
        .metrics(&meta)?
        .lines()
        .any(|line| line.starts_with("cairn_meta_members_reachable") && line.rsplit(' ').next() == Some("3"));
    ensure!(reachable, "three members reach each other");
    Ok(())
}

fn attach(cluster: &Cluster) -> Result<String> {
    Ok(capture(&mut cluster.cairn(&["volume", "attach", "v"]))?.trim().to_owned())
}

fn check_blocks(device: &str, count: u64) -> Result<()> {
    let file = File::open(device)?;
    for number in 0..count {
        let mut found = [0; BLOCK];
        file.read_exact_at(&mut found, number * BLOCK as u64)?;
        ensure!(found == block(number), "block {number} of {count} is not what was written");
    }
    Ok(())
}

fn delete(dir: &Path) -> Result<()> {
    std::fs::remove_dir_all(dir).with_context(|| format!("cannot delete {}", dir.display()))
}

#[test]
fn members_are_replaced_added_removed_and_restored_under_writes() -> Result<()> {
    let mut cluster = Cluster::up(UpOptions { storage_only: true, ..UpOptions::default() })?;
    run(&mut cluster.cairn(&["volume", "create", "v", "--size", "64Mi"]))?;
    let device = attach(&cluster)?;
    let clients = Clients::start(&cluster, &device)?;
    let meta = |id: u64| cluster.dir().join(format!("meta-{id}"));

    // One loses its directory: its process finds nothing that it could be, and never begins a second cluster.
    let leader = become_voters(&cluster, &[1, 2, 3])?;
    until("the host knows that the cluster has begun", 20, || {
        let description = std::fs::read_to_string(cluster.dir().join("cluster.json"))?;
        Ok(description.contains("\"formed\"").then_some(()))
    })?;
    let lost = leader % 3 + 1;
    cluster.kill(&format!("meta-{lost}"))?;
    delete(&meta(lost))?;
    until("the loss is told", 20, || {
        let log = std::fs::read_to_string(cluster.dir().join(format!("log/meta-{lost}.log")))?;
        Ok(log.contains("cairn meta replace").then_some(()))
    })?;
    run(&mut cluster.cairn(&["meta", "replace", &lost.to_string()]))?;
    let mut now: Vec<u64> = (1..=4).filter(|id| *id != lost).collect();
    become_voters(&cluster, &now)?;

    // To five and back to three; the one that leads goes too.
    for id in [5, 6] {
        run(&mut cluster.cairn(&["meta", "add"]))?;
        now.push(id);
        become_voters(&cluster, &now)?;
    }
    for _ in 0..2 {
        let gone = become_voters(&cluster, &now)?;
        run(&mut cluster.cairn(&["meta", "remove", &gone.to_string()]))?;
        now.retain(|id| *id != gone);
        become_voters(&cluster, &now)?;
        until("its process is not started again", 20, || {
            Ok(cluster.pid(&format!("meta-{gone}"))?.is_none().then_some(()))
        })?;
    }
    let (blocks, made) = clients.finish()?;
    assert!(blocks > 20 && made.len() > 5, "the clients got on: {blocks} blocks, {} volumes", made.len());
    let listed = volumes(&cluster)?;
    assert!(made.iter().all(|name| listed.contains(name)), "{made:?} were made, {listed:?} are there");
    check_blocks(&device, blocks)?;
    check_pages(&cluster, now[0])?;

    // All members are lost; their backup and the OSDs' disks are not.
    let folder = tempfile::tempdir()?;
    let backup = folder.path().join("backup").display().to_string();
    run(&mut cluster.cairn(&["meta", "backup", &backup]))?;
    run(&mut cluster.cairn(&["volume", "create", "later", "--size", "1Mi"]))?;
    let refused = cluster.cairn(&["meta", "restore", &backup]).output()?;
    assert!(!refused.status.success(), "a cluster that runs is not restored over");
    run(&mut cluster.cairn(&["volume", "detach", "v"]))?;
    run(&mut cluster.cairn(&["down"]))?;
    for id in &now {
        delete(&meta(*id))?;
    }
    run(&mut cluster.cairn(&["meta", "restore", &backup]))?;
    cluster.start(true)?;
    become_voters(&cluster, &now)?;
    let listed = volumes(&cluster)?;
    assert!(made.iter().all(|name| listed.contains(name)) && !listed.contains(&"later".to_owned()), "{listed:?}");
    let device = attach(&cluster)?;
    check_blocks(&device, blocks)?;
    run(&mut cluster.cairn(&["volume", "detach", "v"]))?;
    cluster.reset()
}
