//! Bodies made byte by byte, and what they must become.

use super::{PbError, open, to_json};
use serde_json::json;

/// A length-delimited field.
fn chunk(number: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = body.len();
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(body);
    out
}

fn text(number: u8, body: &str) -> Vec<u8> {
    chunk(number, body.as_bytes())
}

fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let meta = [text(1, api_version), text(2, kind)].concat();
    [b"k8s\0".to_vec(), chunk(1, &meta), chunk(2, raw), text(3, ""), text(4, "")].concat()
}

#[test]
fn a_config_map_as_kubectl_sends_it() {
    // Go writes every non-pointer scalar, also when empty, and an empty creationTimestamp.
    let meta = [text(1, "cm1"), text(2, ""), text(3, "default"), text(5, ""), vec![7 << 3, 0], chunk(8, &[])].concat();
    let data = [text(1, "a"), text(2, "")].concat();
    let body = envelope("v1", "ConfigMap", &[chunk(1, &meta), chunk(2, &data)].concat());
    assert_eq!(
        to_json(&body),
        Ok(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cm1", "namespace": "default"},
                "data": {"a": ""}}))
    );
}

#[test]
fn literal_bytes_of_a_namespace() {
    let body = [
        0x6b, 0x38, 0x73, 0x00, // k8s\0
        0x0a, 0x0f, 0x0a, 0x02, b'v', b'1', 0x12, 0x09, b'N', b'a', b'm', b'e', b's', b'p', b'a', b'c',
        b'e', // TypeMeta
        0x12, 0x09, 0x0a, 0x03, 0x0a, 0x01, b'x', 0x12, 0x00, 0x1a, 0x00, // metadata{name x}, spec{}, status{}
    ];
    assert_eq!(open(&body).map(|e| e.kind), Ok("Namespace".to_owned()));
    assert_eq!(
        to_json(&body),
        Ok(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}, "spec": {}, "status": {}}))
    );
}

#[test]
fn a_lease_keeps_meaningful_zeros_and_micros() {
    let renew = [vec![1 << 3], vec![0x80, 0x94, 0xeb, 0xdc, 0x03], vec![2 << 3], vec![0xc0, 0x84, 0x3d]].concat();
    let spec = [text(1, ""), vec![2 << 3, 15], chunk(3, &[]), chunk(4, &renew), vec![5 << 3, 0]].concat();
    let body = envelope("coordination.k8s.io/v1", "Lease", &[chunk(1, &text(1, "l")), chunk(2, &spec)].concat());
    let value = to_json(&body).expect("a lease");
    assert_eq!(
        value["spec"],
        json!({"holderIdentity": "", "leaseDurationSeconds": 15, "renewTime": "2001-09-09T01:46:40.001000Z",
            "leaseTransitions": 0})
    );
}

#[test]
fn a_volume_flattens_its_source() {
    let csi = [text(1, "csi.cairn.dev"), text(2, "vol-1")].concat();
    let spec = [
        chunk(1, &[text(1, "storage"), chunk(2, &text(1, "1Gi"))].concat()),
        chunk(2, &chunk(22, &csi)),
        text(3, "ReadWriteOnce"),
    ];
    // Field 22 needs a two-byte tag, which `chunk` above does not write: build it by hand.
    let source = [vec![0xb2, 0x01, csi.len() as u8], csi.clone()].concat();
    let spec = [spec[0].clone(), chunk(2, &source), spec[2].clone()].concat();
    let body = envelope("v1", "PersistentVolume", &[chunk(1, &text(1, "pv")), chunk(2, &spec)].concat());
    let value = to_json(&body).expect("a volume");
    assert_eq!(
        value["spec"],
        json!({"capacity": {"storage": "1Gi"}, "csi": {"driver": "csi.cairn.dev", "volumeHandle": "vol-1"},
            "accessModes": ["ReadWriteOnce"]})
    );
}

#[test]
fn options_of_a_deletion() {
    let raw = [vec![1 << 3, 0], text(4, "Background")].concat();
    let value = to_json(&envelope("storage.k8s.io/v1", "DeleteOptions", &raw)).expect("options");
    assert_eq!(value["gracePeriodSeconds"], 0);
    assert_eq!(value["propagationPolicy"], "Background");
}

#[test]
fn negative_numbers_and_unknown_fields() {
    let tolerate = [vec![5 << 3], vec![0xff; 9], vec![0x01]].concat();
    let toleration = [text(1, "k"), tolerate].concat();
    let pod_spec = [[vec![0xb2, 0x01, toleration.len() as u8], toleration].concat(), vec![0xf8, 0x3f, 0x01]].concat();
    let body = envelope("v1", "Pod", &chunk(2, &pod_spec));
    assert_eq!(to_json(&body).expect("a pod")["spec"], json!({"tolerations": [{"key": "k", "tolerationSeconds": -1}]}));
}

#[test]
fn nonsense_is_refused() {
    assert_eq!(to_json(b"{}"), Err(PbError::Magic));
    assert_eq!(to_json(&envelope("v1", "Widget", &[])), Err(PbError::UnknownKind("Widget".into())));
    let good = envelope("v1", "ConfigMap", &chunk(1, &text(1, "cm1")));
    for cut in 5..good.len() - 4 {
        let mut short = good[..cut].to_vec();
        let _ = to_json(&short);
        short.push(0xff);
        let _ = to_json(&short);
    }
    assert!(matches!(to_json(&[b"k8s\0".to_vec(), vec![0x12, 0x7f]].concat()), Err(PbError::Malformed { .. })));
}

#[test]
fn depth_is_bounded() {
    // An ephemeral claim nests no deeper than its schema; only unknown nesting is unbounded, and that is skipped.
    let mut raw = Vec::new();
    for _ in 0..1000 {
        raw = chunk(2, &raw);
    }
    let _ = to_json(&envelope("v1", "Pod", &raw));
}
