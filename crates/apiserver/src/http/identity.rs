//! Who is at the other end: the subject of the client's certificate, CN the user, each O a group.
//!
//! The certificate has been verified by then; this only reads names out of it.

/// A verified client.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct User {
    /// Common name.
    pub(crate) name: String,
    /// Organizations.
    pub(crate) groups: Vec<String>,
}

const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const ORGANIZATION: &[u8] = &[0x55, 0x04, 0x0a];

/// The subject of a DER certificate; `None` if it has no common name.
pub(crate) fn subject(certificate: &[u8]) -> Option<User> {
    let (_, certificate, _) = element(certificate)?;
    let (_, mut fields, _) = element(certificate)?;
    // version [0] is optional; then serial, algorithm, issuer, validity, subject.
    let (tag, _, rest) = element(fields)?;
    if tag == 0xa0 {
        fields = rest;
    }
    for _ in 0..4 {
        (_, _, fields) = element(fields)?;
    }
    let (_, mut names, _) = element(fields)?;
    let mut user = User::default();
    while !names.is_empty() {
        let (_, set, rest) = element(names)?;
        names = rest;
        let (_, pair, _) = element(set)?;
        let (_, oid, value) = element(pair)?;
        let (_, text, _) = element(value)?;
        let text = String::from_utf8_lossy(text).into_owned();
        match oid {
            COMMON_NAME => user.name = text,
            ORGANIZATION => user.groups.push(text),
            _ => {}
        }
    }
    (!user.name.is_empty()).then_some(user)
}

/// Tag, contents and what follows.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f)).filter(|(bytes, _)| bytes.len() <= 4)?;
        (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
    };
    let (contents, after) = rest.split_at_checked(length)?;
    Some((tag, contents, after))
}

#[cfg(test)]
mod tests {
    use super::{User, subject};

    #[test]
    fn names_are_read() {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "admin");
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:masters");
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let expect = User { name: "admin".into(), groups: vec!["system:masters".into()] };
        assert_eq!(subject(certificate.der()), Some(expect));
        for cut in 0..certificate.der().len() {
            let _ = subject(&certificate.der()[..cut]);
        }
    }
}
