//! Hosts on one machine: a network namespace for each, joined by a bridge that stands in a namespace of its own, so
//! that the machine's own network sees nothing of it. A namespace lives as long as a process in it; ours is a `sleep`
//! that dies with us, so that nothing can be left behind.

use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::shell::{self, wait_for};

/// The first three octets of every host's address. Nobody else sees these namespaces, so it is the same in each run.
const SUBNET: [u8; 3] = [10, 98, 0];

/// Hosts and the switch between them.
#[derive(Debug)]
pub struct Network {
    hosts: Vec<Namespace>,
    _switch: Namespace,
}

/// One network namespace.
#[derive(Debug)]
struct Namespace {
    holder: Child,
}

/// Which packets of a host are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// It hears nobody and nobody hears it.
    Both,
    /// It hears nobody.
    Incoming,
    /// Nobody hears it.
    Outgoing,
}

impl Network {
    /// So many hosts, each reaching each.
    ///
    /// # Errors
    /// When this kernel or this user cannot make namespaces, bridges or links.
    pub fn of(hosts: usize) -> Result<Self> {
        let switch = Namespace::new()?;
        switch.ip("link add br0 type bridge")?;
        switch.ip("link set br0 up")?;
        let hosts: Vec<Namespace> = (0..hosts).map(|_| Namespace::new()).collect::<Result<_>>()?;
        for (number, host) in hosts.iter().enumerate() {
            let (port, at) = (format!("port{number}"), switch.pid());
            let link = format!("link add {port} netns {at} type veth peer name eth0 netns {}", host.pid());
            shell::capture(Command::new("ip").args(link.split(' ')))?;
            switch.ip(&format!("link set {port} master br0 up"))?;
            host.ip("link set lo up")?;
            host.ip(&format!("addr add {}/24 dev eth0", address(number)))?;
            host.ip("link set eth0 up")?;
        }
        Ok(Self { hosts, _switch: switch })
    }

    /// A program on a host.
    #[must_use]
    pub fn enter(&self, host: usize, program: impl Into<PathBuf>) -> Command {
        self.hosts[host].enter(program)
    }

    /// Loses packets of a host: all of them, or those from and to another.
    ///
    /// # Errors
    /// When nft fails.
    pub fn cut(&self, host: usize, cut: Cut, other: Option<usize>) -> Result<()> {
        let peer = |side: &str| other.map_or(String::new(), |other| format!("ip {side} {} ", address(other)));
        let mut rules = vec![
            "add table ip cut".to_owned(),
            "add chain ip cut in { type filter hook input priority 0; }".to_owned(),
            "add chain ip cut out { type filter hook output priority 0; }".to_owned(),
        ];
        if cut != Cut::Outgoing {
            rules.push(format!("add rule ip cut in iifname eth0 {}counter drop", peer("saddr")));
        }
        if cut != Cut::Incoming {
            rules.push(format!("add rule ip cut out oifname eth0 {}counter drop", peer("daddr")));
        }
        self.nft(host, &rules.join("\n"))
    }

    /// Loses only what a host says to this port of others and hears from it, from one moment to the next; what was lost
    /// before is not.
    ///
    /// # Errors
    /// When nft fails.
    pub fn cut_port(&self, host: usize, port: u16) -> Result<()> {
        let rules = [
            "add table ip cut",
            "delete table ip cut",
            "add table ip cut",
            "add chain ip cut in { type filter hook input priority 0; }",
            "add chain ip cut out { type filter hook output priority 0; }",
            &format!("add rule ip cut in iifname eth0 tcp sport {port} counter drop"),
            &format!("add rule ip cut out oifname eth0 tcp dport {port} counter drop"),
        ];
        self.nft(host, &rules.join("\n"))
    }

    /// How many packets of a host were lost since it was cut.
    ///
    /// # Errors
    /// When nft fails.
    pub fn dropped(&self, host: usize) -> Result<u64> {
        let text = shell::capture(self.enter(host, nft()?).args(["-j", "list", "table", "ip", "cut"]))?;
        let table: serde_json::Value = serde_json::from_str(&text).context("nft printed no JSON")?;
        let rules = table["nftables"].as_array().into_iter().flatten().filter_map(|one| one["rule"]["expr"].as_array());
        Ok(rules.flatten().filter_map(|part| part["counter"]["packets"].as_u64()).sum())
    }

    /// Loses nothing any more.
    ///
    /// # Errors
    /// When nft fails.
    pub fn heal(&self, host: usize) -> Result<()> {
        self.nft(host, "add table ip cut\ndelete table ip cut")
    }

    fn nft(&self, host: usize, rules: &str) -> Result<()> {
        shell::capture(self.enter(host, nft()?).arg(rules)).map(|_| ())
    }
}

fn nft() -> Result<PathBuf> {
    shell::find_program("nft").context("nft is missing; Debian's package nftables has it")
}

/// The address of a host, by its number from 0.
#[must_use]
pub fn address(host: usize) -> Ipv4Addr {
    let [a, b, c] = SUBNET;
    Ipv4Addr::new(a, b, c, host as u8 + 1)
}

impl Namespace {
    fn new() -> Result<Self> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"]);
        // Ctrl-C is for us alone: what runs in the namespace is stopped in order before it goes.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null());
        let holder = command.spawn().context("cannot start `setpriv`; Debian's package util-linux has it")?;
        let namespace = Self { holder };
        let ours = std::fs::read_link("/proc/self/ns/net").context("this kernel has no network namespaces")?;
        let link = format!("/proc/{}/ns/net", namespace.pid());
        wait_for("a network namespace", Duration::from_secs(5), || {
            // Two programs before it was another one, which needs its own look.
            let name = std::fs::read_to_string(format!("/proc/{}/comm", namespace.pid()))?;
            Ok((name.trim() == "sleep" && std::fs::read_link(&link)? != ours).then_some(()))
        })?;
        Ok(namespace)
    }

    fn pid(&self) -> u32 {
        self.holder.id()
    }

    fn enter(&self, program: impl Into<PathBuf>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.pid())).arg("--").arg(program.into());
        command
    }

    fn ip(&self, args: &str) -> Result<()> {
        shell::capture(self.enter("ip").args(args.split(' '))).map(|_| ())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
