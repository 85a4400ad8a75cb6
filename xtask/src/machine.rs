//! What the machine must have: Debian packages, installed when missing, and said out loud.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// One Debian package and a file that shows it is there.
pub(crate) struct Package {
    name: &'static str,
    shown_by: &'static [&'static str],
    purpose: &'static str,
}

const BUILD: &[Package] = &[
    Package { name: "build-essential", shown_by: &["/usr/bin/g++"], purpose: "compiles RocksDB" },
    Package {
        name: "libclang-dev",
        shown_by: &[
            "/usr/lib/llvm-14/lib/libclang.so",
            "/usr/lib/llvm-19/lib/libclang.so",
            "/usr/lib/llvm-16/lib/libclang.so",
        ],
        purpose: "bindings of RocksDB",
    },
    Package { name: "clang", shown_by: &["/usr/bin/clang"], purpose: "the headers that libclang reads" },
];

const RUN: &[Package] = &[
    Package { name: "containerd", shown_by: &["/usr/bin/containerd"], purpose: "runs the pods' containers" },
    Package { name: "runc", shown_by: &["/usr/sbin/runc", "/usr/bin/runc"], purpose: "starts containers" },
    Package { name: "containernetworking-plugins", shown_by: &["/usr/lib/cni/bridge"], purpose: "the pods' network" },
    Package { name: "iptables", shown_by: &["/usr/sbin/iptables"], purpose: "used by the pods' network" },
    Package { name: "iproute2", shown_by: &["/usr/sbin/ip", "/sbin/ip", "/bin/ip"], purpose: "network namespaces" },
    Package {
        name: "busybox-static",
        shown_by: &["/bin/busybox", "/usr/bin/busybox"],
        purpose: "the demo's container image",
    },
    Package { name: "e2fsprogs", shown_by: &["/sbin/mkfs.ext4", "/usr/sbin/mkfs.ext4"], purpose: "ext4 on volumes" },
];

const TEST: &[Package] = &[
    Package { name: "etcd-client", shown_by: &["/usr/bin/etcdctl"], purpose: "drives the etcd API" },
    Package {
        name: "etcd-server",
        shown_by: &["/usr/bin/etcd"],
        purpose: "the API server is tested on a real etcd too",
    },
    Package { name: "fio", shown_by: &["/usr/bin/fio"], purpose: "verifies block devices" },
    Package { name: "libnbd-bin", shown_by: &["/usr/bin/nbdinfo"], purpose: "drives the NBD server" },
    Package { name: "nftables", shown_by: &["/usr/sbin/nft"], purpose: "cuts hosts off in fault tests" },
    Package { name: "btrfs-progs", shown_by: &["/usr/bin/btrfs", "/sbin/mkfs.btrfs"], purpose: "btrfs on volumes" },
    Package { name: "xfsprogs", shown_by: &["/usr/sbin/mkfs.xfs", "/sbin/mkfs.xfs"], purpose: "xfs on volumes" },
    Package { name: "qemu-utils", shown_by: &["/usr/bin/qemu-img"], purpose: "drives the NBD server" },
];

/// Only where csi-sanity has to be built.
pub(crate) const GO: Package = Package { name: "golang-go", shown_by: &["/usr/bin/go"], purpose: "builds csi-sanity" };

/// What a task needs beyond the compiler.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// To build and run a cluster.
    Run,
    /// To run a cluster and the tests.
    Test,
}

/// Makes sure that every needed package is installed; installs what is missing through apt-get.
pub(crate) fn prepare(need: Need) -> Result<()> {
    let mut wanted: Vec<&Package> = BUILD.iter().chain(RUN).collect();
    if need == Need::Test {
        wanted.extend(TEST);
    }
    install(&wanted)
}

/// Installs those of these packages that are missing, saying so.
pub(crate) fn install(wanted: &[&Package]) -> Result<()> {
    let missing: Vec<&Package> = wanted.iter().copied().filter(|package| !is_there(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("This machine lacks some Debian packages; installing them with apt-get:");
    for package in &missing {
        println!("  {:<28} {}", package.name, package.purpose);
    }
    if cairn_tests::find_program("apt-get").is_none() {
        bail!("apt-get is not here: install the packages above by hand, then run the command again");
    }
    cairn_tests::run(Command::new("apt-get").args(["update", "-qq"]).env("DEBIAN_FRONTEND", "noninteractive"))
        .context("apt-get cannot reach the package lists; check the network and /etc/apt")?;
    let names = missing.iter().map(|package| package.name);
    cairn_tests::run(
        Command::new("apt-get")
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(names)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

fn is_there(package: &Package) -> bool {
    package.shown_by.iter().any(|file| Path::new(file).exists()) || dpkg_says_installed(package.name)
}

fn dpkg_says_installed(name: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status}", name])
        .output()
        .is_ok_and(|output| output.status.success() && output.stdout == b"installed")
}

/// The kernel and the rights a cluster with pods needs; one sentence for each that is missing.
pub(crate) fn check_host() -> Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:")).and_then(|ids| ids.split_whitespace().nth(1));
    if uid != Some("0") {
        bail!("mounting volumes and running containers needs root: run the command again as root");
    }
    for (device, why) in [("/dev/fuse", "FUSE, which carries the block device"), ("/dev/loop-control", "loop devices")]
    {
        if !Path::new(device).exists() {
            bail!("{device} is missing: this kernel lacks {why}");
        }
    }
    Ok(())
}
