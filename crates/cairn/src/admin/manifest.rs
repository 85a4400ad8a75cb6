//! A volume as Kubernetes is told of it by hand: a PersistentVolume that names it by its number, and the claim that this
//! one volume is for.

use cairn_csi::DRIVER;
use cairn_proto::meta;
use serde_json::{Value, json};

/// `NAMESPACE/NAME` of a claim; `NAME` is one of the namespace `default`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    namespace: String,
    name: String,
}

/// # Errors
/// A sentence that shows what would be right.
pub(crate) fn claim(text: &str) -> Result<Claim, String> {
    let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
    let plain = |part: &str| {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
        let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        part.len() <= 253 && part.starts_with(edge) && part.ends_with(edge) && part.chars().all(inner)
    };
    if !plain(namespace) || !plain(name) {
        return Err(format!("`{text}` names no claim; write NAMESPACE/NAME, in small letters, digits and `-`"));
    }
    Ok(Claim { namespace: namespace.to_owned(), name: name.to_owned() })
}

/// Both objects, as YAML documents. The volume stays when the claim is deleted: nothing is to be lost twice.
pub(crate) fn bound(volume: &meta::Volume, claim: &Claim, raw: bool) -> String {
    let (mode, storage) = (if raw { "Block" } else { "Filesystem" }, volume.size.to_string());
    let name = format!("cairn-vol-{}", volume.id);
    let class = "";
    let persistent_volume = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": storage},
            "accessModes": ["ReadWriteOnce"],
            "volumeMode": mode,
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": class,
            "claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": claim.namespace, "name": claim.name,
            },
            "csi": {
                "driver": DRIVER,
                "volumeHandle": volume.id.to_string(),
                "volumeAttributes": {"pool": volume.pool_name},
            },
        },
    });
    let claim = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"namespace": claim.namespace, "name": claim.name},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "volumeMode": mode,
            "storageClassName": class,
            "volumeName": name,
            "resources": {"requests": {"storage": storage}},
        },
    });
    [persistent_volume, claim].iter().map(document).collect()
}

fn document(object: &Value) -> String {
    format!("---\n{}", serde_yaml_ng::to_string(object).expect("JSON is YAML"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_named_with_its_namespace() {
        let named = |namespace: &str, name: &str| Ok(Claim { namespace: namespace.into(), name: name.into() });
        assert_eq!(claim("shop/data"), named("shop", "data"));
        assert_eq!(claim("data"), named("default", "data"));
        for wrong in ["", "a/b/c", "/data", "shop/", "Shop/data", "a b", "-a"] {
            assert!(claim(wrong).unwrap_err().contains("NAMESPACE/NAME"), "{wrong}");
        }
    }

    #[test]
    fn the_claim_and_the_volume_name_each_other_and_the_bytes() {
        let volume = meta::Volume { id: 7, pool_name: "p".into(), size: 1 << 30, ..meta::Volume::default() };
        let text = bound(&volume, &claim("shop/data").unwrap(), false);
        let objects: Vec<Value> = serde_yaml_ng::Deserializer::from_str(&text)
            .map(|document| serde::Deserialize::deserialize(document).unwrap())
            .collect();
        let [volume, claim] = &objects[..] else { panic!("{text}") };
        assert_eq!(volume["spec"]["csi"]["volumeHandle"], "7");
        assert_eq!(volume["spec"]["claimRef"]["name"], claim["metadata"]["name"]);
        assert_eq!(volume["metadata"]["name"], claim["spec"]["volumeName"]);
        assert_eq!(volume["spec"]["capacity"]["storage"], claim["spec"]["resources"]["requests"]["storage"]);
        assert_eq!((&volume["spec"]["storageClassName"], &claim["spec"]["storageClassName"]), (&json!(""), &json!("")));
    }
}
