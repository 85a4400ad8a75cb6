//! What a pod's resolv.conf and hosts file say. Pure.

use cairn_proto::cri::DnsConfig;
use k8s_openapi::api::core::v1::{Pod, PodSpec};

/// The cluster's name service, where there is one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClusterDns {
    pub(crate) servers: Vec<String>,
    pub(crate) domain: String,
}

/// Limits of resolv.conf(5) as Kubernetes enforces them.
const SERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;

/// The resolver configuration by the pod's policy. `node` is the node's own resolv.conf.
pub(crate) fn resolver(namespace: &str, spec: &PodSpec, cluster: &ClusterDns, node: &str) -> DnsConfig {
    let host_network = spec.host_network.unwrap_or(false);
    let in_cluster = match spec.dns_policy.as_deref() {
        Some("None" | "Default") => false,
        Some("ClusterFirstWithHostNet") => true,
        _ => !host_network,
    };
    let mut config = match spec.dns_policy.as_deref() {
        Some("None") => DnsConfig::default(),
        _ if in_cluster && !cluster.servers.is_empty() => {
            let domain = &cluster.domain;
            DnsConfig {
                servers: cluster.servers.clone(),
                searches: vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()],
                options: vec!["ndots:5".into()],
            }
        }
        // Without a name service of the cluster its policies mean the node's.
        _ => parse(node),
    };
    if let Some(own) = &spec.dns_config {
        merge(&mut config.servers, own.nameservers.iter().flatten());
        merge(&mut config.searches, own.searches.iter().flatten());
        for option in own.options.iter().flatten() {
            let Some(name) = option.name.as_deref() else { continue };
            config.options.retain(|old| old.split(':').next() != Some(name));
            config.options.push(option.value.as_ref().map_or(name.to_owned(), |value| format!("{name}:{value}")));
        }
    }
    config.servers.truncate(SERVERS_MAX);
    config.searches.truncate(SEARCHES_MAX);
    config
}

fn merge<'a>(list: &mut Vec<String>, more: impl Iterator<Item = &'a String>) {
    for entry in more {
        if !list.contains(entry) {
            list.push(entry.clone());
        }
    }
}

fn parse(resolv_conf: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in resolv_conf.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => config.servers.extend(words.next()),
            Some("search") => config.searches = words.collect(),
            Some("options") => config.options.extend(words),
            _ => {}
        }
    }
    config
}

/// The hosts file of a pod with its own network.
pub(crate) fn hosts(pod: &Pod, hostname: &str, addresses: &[String]) -> String {
    let mut text = String::from(
        "# Written by the node agent: the pod's own name, and spec.hostAliases.\n\
         127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
    );
    for address in addresses {
        text.push_str(&format!("{address}\t{hostname}\n"));
    }
    for alias in pod.spec.iter().flat_map(|spec| spec.host_aliases.iter().flatten()) {
        let names = alias.hostnames.as_deref().unwrap_or_default();
        text.push_str(&format!("{}\t{}\n", alias.ip, names.join("\t")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{ClusterDns, resolver};
    use serde_json::json;

    const NODE: &str = "# c\nnameserver 10.0.0.1\nsearch example.org\noptions edns0\n";

    fn check(spec: serde_json::Value, servers: &[&str], searches: &[&str], options: &[&str]) {
        let mut spec = spec;
        spec["containers"] = json!([]);
        let spec = serde_json::from_value(spec).expect("a spec");
        let cluster = ClusterDns { servers: vec!["10.96.0.10".into()], domain: "cluster.local".into() };
        let config = resolver("n", &spec, &cluster, NODE);
        assert_eq!(config.servers, servers);
        assert_eq!(config.searches, searches);
        assert_eq!(config.options, options);
    }

    #[test]
    fn policies() {
        let cluster = ["n.svc.cluster.local", "svc.cluster.local", "cluster.local"];
        check(json!({}), &["10.96.0.10"], &cluster, &["ndots:5"]);
        check(json!({"dnsPolicy": "Default"}), &["10.0.0.1"], &["example.org"], &["edns0"]);
        check(json!({"hostNetwork": true}), &["10.0.0.1"], &["example.org"], &["edns0"]);
        check(
            json!({"hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}),
            &["10.96.0.10"],
            &cluster,
            &["ndots:5"],
        );
        check(
            json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"], "options": [{"name": "ndots", "value": "2"}]}}),
            &["1.1.1.1"],
            &[],
            &["ndots:2"],
        );
        check(
            json!({"dnsConfig": {"searches": ["x.y"], "options": [{"name": "ndots", "value": "2"}]}}),
            &["10.96.0.10"],
            &["n.svc.cluster.local", "svc.cluster.local", "cluster.local", "x.y"],
            &["ndots:2"],
        );
    }
}
