//! What this machine is: processors, memory, disk, addresses, names. Reads /proc, /etc and /sys; writes nothing.

use std::net::{IpAddr, UdpSocket};
use std::path::Path;

/// Pods that a node runs at most, as Kubernetes has it by default.
const PODS_MAX: u32 = 110;

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) cpus: usize,
    pub(crate) memory_bytes: i64,
    pub(crate) disk_bytes: u64,
    pub(crate) pods: u32,
    pub(crate) hostname: String,
    pub(crate) machine_id: String,
    pub(crate) system_uuid: String,
    pub(crate) boot_id: String,
    pub(crate) kernel: String,
    pub(crate) os_image: String,
}

impl Machine {
    /// Looks around. `root` is where pods' data will be.
    pub(crate) fn look(root: &Path) -> Machine {
        let text = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
        let system = rustix::system::uname();
        let disk_bytes = rustix::fs::statvfs(root).map_or(0, |stat| stat.f_blocks * stat.f_frsize);
        let machine_id = text("/etc/machine-id");
        let uuid = text("/sys/class/dmi/id/product_uuid");
        Machine {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory(&text("/proc/meminfo")),
            disk_bytes,
            pods: PODS_MAX,
            hostname: system.nodename().to_string_lossy().into_owned(),
            system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
            machine_id,
            boot_id: text("/proc/sys/kernel/random/boot_id"),
            kernel: system.release().to_string_lossy().into_owned(),
            os_image: os_name(&text("/etc/os-release")),
        }
    }
}

fn memory(meminfo: &str) -> i64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<i64>().ok()).map_or(0, |kib| kib * 1024)
}

fn os_name(release: &str) -> String {
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

/// The address by which this machine reaches others; loopback when it reaches none.
pub(crate) fn address() -> IpAddr {
    // Connecting a datagram socket sends nothing: it only makes the kernel choose a route. The address is reserved for
    // documentation.
    let chosen = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    chosen.map_or(IpAddr::from([127, 0, 0, 1]), |address| address.ip())
}

/// The resolver configuration that pods may inherit. A stub resolver on loopback is no use to them, so where
/// systemd-resolved keeps the real servers, those are taken.
pub(crate) fn resolv_conf() -> String {
    let own = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    if own.lines().any(|line| line.trim() == "nameserver 127.0.0.53") {
        return std::fs::read_to_string("/run/systemd/resolve/resolv.conf").unwrap_or(own);
    }
    own
}

#[cfg(test)]
mod tests {
    use super::{Machine, memory, os_name};

    #[test]
    fn the_machine_is_seen() {
        let machine = Machine::look(std::path::Path::new("/tmp"));
        assert!(machine.cpus > 0 && machine.memory_bytes > 0 && machine.disk_bytes > 0);
        assert!(!machine.kernel.is_empty() && !machine.hostname.is_empty());
        assert_eq!(memory("MemTotal:       2048 kB\nMemFree: 1 kB"), 2 << 20);
        assert_eq!(os_name("NAME=x\nPRETTY_NAME=\"Debian 12\"\n"), "Debian 12");
    }
}
