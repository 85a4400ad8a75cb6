//! Debian's `etcdctl` against three members: what an operator's hands know works here.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::support::{Cluster, PATIENCE};

fn command(endpoints: &str, args: &[&str]) -> Command {
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3").arg("--endpoints").arg(endpoints).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

async fn etcdctl(endpoints: &str, args: &[&str]) -> String {
    etcdctl_fed(endpoints, args, "").await
}

async fn etcdctl_fed(endpoints: &str, args: &[&str], input: &str) -> String {
    use tokio::io::AsyncWriteExt;
    let mut child = command(endpoints, args).stdin(Stdio::piped()).spawn().unwrap_or_else(|error| {
        panic!("cannot run etcdctl ({error}); install Debian's package etcd-client, which brings it")
    });
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).await.unwrap();
    drop(stdin);
    let done = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("etcdctl ends in time").unwrap();
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "etcdctl {args:?}: {out}{err}");
    out.trim_end().to_owned()
}

/// An etcdctl that goes on printing.
struct Printing {
    _child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Printing {
    fn start(endpoints: &str, args: &[&str]) -> Self {
        let mut child = command(endpoints, args).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { _child: child, lines }
    }

    async fn next(&mut self) -> String {
        tokio::time::timeout(PATIENCE, self.lines.next_line()).await.expect("a line in time").unwrap().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_of_debian_works() {
    let mut cluster = Cluster::start(3).await;
    cluster.leader().await;
    let all = cluster.endpoints();

    assert_eq!(etcdctl(&all, &["put", "a/1", "one"]).await, "OK");
    assert_eq!(etcdctl(&all, &["put", "a/2", "two"]).await, "OK");
    assert_eq!(etcdctl(&all, &["get", "--prefix", "a/"]).await, "a/1\none\na/2\ntwo");
    assert_eq!(etcdctl(&all, &["get", "--prefix", "a/", "--order", "DESCEND", "--limit", "1"]).await, "a/2\ntwo");
    assert_eq!(etcdctl(&all, &["del", "a/1", "--prev-kv"]).await, "1\na/1\none");

    let txn = "value(\"a/2\") = \"two\"\n\nput a/2 second\n\nput a/2 never\n\n";
    let swapped = etcdctl_fed(&all, &["txn"], txn).await;
    assert!(swapped.starts_with("SUCCESS"), "{swapped}");
    let swapped = etcdctl_fed(&all, &["txn"], txn).await;
    assert!(swapped.starts_with("FAILURE"), "{swapped}");

    let mut watch = Printing::start(&all, &["watch", "--prefix", "a/", "--rev", "2"]);
    let mut heard = Vec::new();
    for _ in 0..3 {
        heard.push(watch.next().await);
    }
    assert_eq!(heard, ["PUT", "a/1", "one"], "history first");
    etcdctl(&all, &["put", "a/3", "live"]).await;
    while watch.next().await != "a/3" {}
    assert_eq!(watch.next().await, "live");

    let granted = etcdctl(&all, &["lease", "grant", "300"]).await;
    let id = granted.split_whitespace().nth(1).unwrap().to_owned();
    assert!(granted.contains("granted with TTL(300s)"), "{granted}");
    etcdctl(&all, &["put", "leased", "x", "--lease", &id]).await;
    let alive = etcdctl(&all, &["lease", "keep-alive", "--once", &id]).await;
    assert!(alive.contains("keepalived with TTL(300)"), "{alive}");
    let left = etcdctl(&all, &["lease", "timetolive", &id, "--keys"]).await;
    assert!(left.contains("leased"), "{left}");
    assert!(etcdctl(&all, &["lease", "revoke", &id]).await.contains("revoked"));
    assert_eq!(etcdctl(&all, &["get", "leased"]).await, "");

    assert_eq!(etcdctl(&all, &["compaction", "5"]).await, "compacted revision 5");
    let status = etcdctl(&all, &["endpoint", "status"]).await;
    assert_eq!(status.lines().count(), 3, "{status}");
    assert_eq!(status.matches("true").count(), 1, "one of them leads: {status}");
    let members = etcdctl(&all, &["member", "list"]).await;
    assert!(members.lines().count() == 3 && members.contains("member-2"), "{members}");
    assert!(etcdctl(&all, &["endpoint", "health"]).await.lines().all(|line| line.contains("is healthy")));
    cluster.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_changes_members() {
    let mut cluster = Cluster::start(3).await;
    cluster.leader().await;
    let all = cluster.endpoints();
    let added = etcdctl(&all, &["member", "add", "four", "--learner", "--peer-urls", "http://127.0.0.1:9"]).await;
    assert!(added.starts_with("Member") && added.contains("added"), "{added}");
    let members = etcdctl(&all, &["member", "list"]).await;
    let four = members.lines().find(|line| line.contains("member-4")).expect("it is listed");
    assert!(four.contains("http://127.0.0.1:9") && four.ends_with("true"), "a learner: {four}");
    let updated = etcdctl(&all, &["member", "update", "4", "--peer-urls", "http://127.0.0.1:10"]).await;
    assert!(updated.contains("updated"), "{updated}");
    assert!(etcdctl(&all, &["member", "list"]).await.contains("http://127.0.0.1:10"));
    let mut promote = command(&all, &["member", "promote", "4"]);
    let refused = promote.output().await.unwrap();
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && words.contains("has not caught up"), "{words}");
    assert!(etcdctl(&all, &["member", "remove", "4"]).await.contains("removed"));
    assert_eq!(etcdctl(&all, &["member", "list"]).await.lines().count(), 3);
    cluster.stop_all().await;
}
