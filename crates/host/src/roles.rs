//! The roles of a cluster on one host, as command lines of the `cairn` binary (and of containerd), and the order in
//! which they start.

use std::path::PathBuf;

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
    roles.extend((1..=cluster.meta_ports.len() as u32).map(|id| meta(layout, cluster, id)));
    roles.extend((0..cluster.osds).map(|number| osd(layout, cluster, number)));
    roles.push(keeper(layout));
    roles.push(attach(layout, cluster));
    roles.push(csi(layout, cluster));
    if cluster.orchestrator {
        roles.push(apiserver(layout, cluster));
        roles.push(containerd(layout, cluster));
        roles.push(controllers(layout));
        roles.push(scheduler(layout));
        roles.push(agent(layout, cluster));
    }
    roles
}

/// Where a role's metrics are read.
#[must_use]
pub fn metrics_socket(layout: &Layout, role: &str) -> PathBuf {
    layout.socket(&format!("{role}.metrics"))
}

/// The address by which an OSD is known in the map.
#[must_use]
pub fn osd_address(layout: &Layout, number: u32) -> String {
    format!("unix:{}", layout.socket(&format!("osd-{number}")).display())
}

fn meta(layout: &Layout, cluster: &Cluster, id: u32) -> Role {
    let endpoints = cluster.meta_endpoints();
    let members: Vec<String> = endpoints.iter().zip(1..).map(|(address, id)| format!("{id}={address}")).collect();
    let args = Args::of("meta")
        .with("--id", id)
        .with("--dir", layout.meta(id).display())
        .with("--listen", &endpoints[id as usize - 1])
        .with("--members", members.join(","));
    args.measured_role(layout, format!("meta-{id}"), RoleKind::Meta)
}

fn osd(layout: &Layout, cluster: &Cluster, number: u32) -> Role {
    let args = Args::of("osd")
        .with("--device", layout.osd_device(number).display())
        .with("--size", cluster.osd_size)
        .with("--meta", cluster.meta_endpoints().join(","))
        .with("--listen", osd_address(layout, number))
        .with("--host", &cluster.node);
    args.measured_role(layout, format!("osd-{number}"), RoleKind::Osd)
}

fn keeper(layout: &Layout) -> Role {
    Args::of("keeper").with("--socket", layout.socket("keeper").display()).role("keeper".into(), RoleKind::Keeper)
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

fn apiserver(layout: &Layout, cluster: &Cluster) -> Role {
    let pki = layout.pki();
    let args = Args::of("apiserver")
        .with("--listen", cluster.api_address())
        .with("--etcd", cluster.meta_endpoints().join(","))
        .with("--cert", pki.join("apiserver.crt").display())
        .with("--key", pki.join("apiserver.key").display())
        .with("--client-ca", pki.join("ca.crt").display())
        .with("--agent-ca", pki.join("ca.crt").display())
        .with("--agent-cert", pki.join("apiserver-agent.crt").display())
        .with("--agent-key", pki.join("apiserver-agent.key").display());
    args.measured_role(layout, "apiserver".into(), RoleKind::ApiServer)
}

fn containerd(layout: &Layout, cluster: &Cluster) -> Role {
    let (program, args) = runtime::settings(layout, cluster).command();
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

fn agent(layout: &Layout, cluster: &Cluster) -> Role {
    let pki = layout.pki();
    let settings = runtime::settings(layout, cluster);
    let args = Args::of("agent")
        .with("--node", &cluster.node)
        .with("--kubeconfig", pki.join("node.kubeconfig").display())
        .with("--cri", settings.socket().display())
        .with("--cgroup-parent", &settings.cgroup_parent)
        .with("--root", layout.agent().display())
        .with("--registration-dir", layout.plugin_registry().display())
        .with("--listen", cluster.agent_address())
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

    /// Every role of ours but the keeper, which does nothing else, has a page of metrics on a socket of its own.
    fn measured_role(self, layout: &Layout, name: String, kind: RoleKind) -> Role {
        let socket = metrics_socket(layout, &name);
        self.with("--metrics", format!("unix:{}", socket.display())).role(name, kind)
    }

    fn role(self, name: String, kind: RoleKind) -> Role {
        Role { name, kind, program: None, args: self.0 }
    }
}
