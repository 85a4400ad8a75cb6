//! The roles of a cluster on one host, as command lines of the `cairn` binary (and of containerd), and the order in
//! which they start.

use std::path::PathBuf;

use crate::cluster::{Member, Orchestrator, OsdDisk};
use crate::{Cluster, Layout, runtime};

/// One process to keep running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    /// Unique on this host: `meta-1`, `osd-0`, `attach`, ...
    pub name: String,
    /// What it is, which decides what its death means.
    pub kind: RoleKind,
    /// The program; `None` is the `cairn` binary itself.
    pub program: Option<PathBuf>,
    /// Its arguments.
    pub args: Vec<String>,
}

/// The kinds of process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RoleKind {
    /// A metadata member.
    Meta,
    /// An object storage daemon: when it exits, its parent's word proves its incarnation dead.
    Osd,
    /// Holds device descriptors and does nothing else.
    Keeper,
    /// Exports volumes.
    Attach,
    /// The CSI driver.
    Csi,
    /// The API server.
    ApiServer,
    /// The container runtime.
    Containerd,
    /// Controllers and scheduler: clients of the API server.
    Client,
    /// The node agent: a client too, and it needs the pods' images.
    Agent,
}

/// All roles of a cluster, in the order of their start.
#[must_use]
pub fn all(layout: &Layout, cluster: &Cluster) -> Vec<Role> {
    let mut roles = Vec::new();
    let own = |member: &&Member| cluster.own_members.contains(&member.id);
    roles.extend(cluster.members.iter().filter(own).map(|member| meta(layout, cluster, member)));
    roles.extend(cluster.disks.iter().map(|disk| osd(layout, cluster, disk)));
    roles.push(keeper(layout));
    roles.push(attach(layout, cluster));
    roles.push(csi(layout, cluster));
    if let Some(orchestrator) = &cluster.orchestrator {
        roles.push(apiserver(layout, cluster, orchestrator));
        roles.push(containerd(layout, orchestrator));
        roles.push(controllers(layout));
        roles.push(scheduler(layout));
        roles.push(agent(layout, cluster, orchestrator));
    }
    roles
}

/// Where a role's metrics are read.
#[must_use]
pub fn metrics_socket(layout: &Layout, role: &str) -> PathBuf {
    layout.socket(&format!("{role}.metrics"))
}

/// The address of an OSD that only this host reaches.
#[must_use]
pub(crate) fn osd_socket(layout: &Layout, slot: u32) -> String {
    format!("unix:{}", layout.socket(&format!("osd-{slot}")).display())
}

fn meta(layout: &Layout, cluster: &Cluster, member: &Member) -> Role {
    let mut args = Args::of("meta")
        .with("--dir", layout.meta(member.id).display())
        .with("--listen", &member.address)
        .insecure_where_asked(cluster);
    if cluster.formed.is_none() {
        let members: Vec<String> =
            cluster.members.iter().map(|member| format!("{}={}", member.id, member.address)).collect();
        args = args.with("--id", member.id).with("--members", members.join(","));
    } else if cluster.joining.contains(&member.id) {
        let others = cluster.members.iter().filter(|other| other.address != member.address);
        args = args.with("--join", others.map(|other| other.address.as_str()).collect::<Vec<_>>().join(","));
    }
    args.measured_role(layout, format!("meta-{}", member.id), RoleKind::Meta)
}

fn osd(layout: &Layout, cluster: &Cluster, disk: &OsdDisk) -> Role {
    let mut args = Args::of("osd")
        .with("--device", disk.device.display())
        .with("--meta", cluster.meta_endpoints().join(","))
        .with("--listen", &disk.listen)
        .with("--host", &cluster.node)
        .with("--rack", &cluster.rack)
        .with("--zone", &cluster.zone)
        .with("--device-class", &disk.device_class)
        .insecure_where_asked(cluster);
    match disk.size {
        Some(size) => args = args.with("--size", size),
        None => args.0.push("--formatted".to_owned()),
    }
    if let Some(file) = &disk.inject_disk_faults {
        args = args.with("--inject-disk-faults", file.display());
    }
    args.measured_role(layout, disk.role_name(), RoleKind::Osd)
}

fn keeper(layout: &Layout) -> Role {
    let args = Args::of("keeper").with("--socket", layout.socket("keeper").display());
    args.measured_role(layout, "keeper".into(), RoleKind::Keeper)
}

fn attach(layout: &Layout, cluster: &Cluster) -> Role {
    let args = Args::of("attach")
        .with("--node", &cluster.node)
        .with("--socket", layout.socket("attach").display())
        .with("--dir", layout.attach().display())
        .with("--keeper-socket", layout.socket("keeper").display())
        .with("--meta", cluster.meta_endpoints().join(","));
    args.measured_role(layout, "attach".into(), RoleKind::Attach)
}

fn csi(layout: &Layout, cluster: &Cluster) -> Role {
    let args = Args::of("csi")
        .with("--endpoint", layout.socket("csi").display())
        .with("--node", &cluster.node)
        .with("--meta", cluster.meta_endpoints().join(","))
        .with("--attach", layout.socket("attach").display())
        .with("--registration-dir", layout.plugin_registry().display());
    args.measured_role(layout, "csi".into(), RoleKind::Csi)
}

fn apiserver(layout: &Layout, cluster: &Cluster, orchestrator: &Orchestrator) -> Role {
    let pki = layout.pki();
    let args = Args::of("apiserver")
        .with("--listen", orchestrator.api_address())
        .with("--etcd", cluster.meta_endpoints().join(","))
        .with("--cert", pki.join("apiserver.crt").display())
        .with("--key", pki.join("apiserver.key").display())
        .with("--client-ca", pki.join("ca.crt").display())
        .with("--agent-ca", pki.join("ca.crt").display())
        .with("--agent-cert", pki.join("apiserver-agent.crt").display())
        .with("--agent-key", pki.join("apiserver-agent.key").display());
    args.measured_role(layout, "apiserver".into(), RoleKind::ApiServer)
}

fn containerd(layout: &Layout, orchestrator: &Orchestrator) -> Role {
    let (program, args) = runtime::settings(layout, orchestrator).command();
    Role { name: "containerd".into(), kind: RoleKind::Containerd, program: Some(program.into()), args }
}

fn controllers(layout: &Layout) -> Role {
    let args = Args::of("controllers")
        .with("--kubeconfig", layout.pki().join("controllers.kubeconfig").display())
        .with("--csi", layout.socket("csi").display());
    args.measured_role(layout, "controllers".into(), RoleKind::Client)
}

fn scheduler(layout: &Layout) -> Role {
    Args::of("scheduler").with("--kubeconfig", layout.pki().join("scheduler.kubeconfig").display()).measured_role(
        layout,
        "scheduler".into(),
        RoleKind::Client,
    )
}

fn agent(layout: &Layout, cluster: &Cluster, orchestrator: &Orchestrator) -> Role {
    let pki = layout.pki();
    let settings = runtime::settings(layout, orchestrator);
    let args = Args::of("agent")
        .with("--node", &cluster.node)
        .with("--kubeconfig", pki.join("node.kubeconfig").display())
        .with("--cri", settings.socket().display())
        .with("--cgroup-parent", &settings.cgroup_parent)
        .with("--root", layout.agent().display())
        .with("--registration-dir", layout.plugin_registry().display())
        .with("--listen", orchestrator.agent_address())
        .with("--cert", pki.join("agent.crt").display())
        .with("--key", pki.join("agent.key").display())
        .with("--client-ca", pki.join("ca.crt").display());
    args.measured_role(layout, "agent".into(), RoleKind::Agent)
}

struct Args(Vec<String>);

impl Args {
    fn of(verb: &str) -> Self {
        Self(vec![verb.to_owned()])
    }

    fn with(mut self, flag: &str, value: impl std::fmt::Display) -> Self {
        self.0.push(flag.to_owned());
        self.0.push(value.to_string());
        self
    }

    /// Every role of ours has a page of metrics on a socket of its own.
    fn measured_role(self, layout: &Layout, name: String, kind: RoleKind) -> Role {
        let socket = metrics_socket(layout, &name);
        self.with("--metrics", format!("unix:{}", socket.display())).role(name, kind)
    }

    fn insecure_where_asked(mut self, cluster: &Cluster) -> Self {
        if cluster.network.as_ref().is_some_and(|network| network.insecure_listen) {
            self.0.push("--insecure-listen".to_owned());
        }
        self
    }

    fn role(self, name: String, kind: RoleKind) -> Role {
        Role { name, kind, program: None, args: self.0 }
    }
}
