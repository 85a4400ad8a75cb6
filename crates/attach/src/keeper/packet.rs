//! The keeper's packets <-> bytes. A descriptor travels beside its packet as SCM_RIGHTS.
//!
//! Layout, little-endian: version u16, kind u8, then per kind: strings as length u16 and bytes.

use super::{KeeperError, Kept, MAX_ENTRIES, MAX_METADATA, MAX_NAME};

/// Written into every packet; a packet of another version is refused in words.
pub(super) const VERSION: u16 = 1;
/// The longest packet: a full list.
pub(super) const MAX_PACKET: usize = 16 + MAX_ENTRIES * (4 + MAX_NAME + MAX_METADATA);

/// What `attach` asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Keep the descriptor that comes with this packet; an entry of that name is replaced.
    Put(Kept),
    /// Send a duplicate of the descriptor.
    Fetch(String),
    /// Close it.
    Release(String),
    /// Names and metadata of all.
    List,
}

/// What the keeper answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// It is done.
    Done,
    /// The entry; its descriptor comes with this packet.
    Entry(Kept),
    /// No entry has that name.
    Absent,
    /// All of them, in order of their names.
    Entries(Vec<Kept>),
    /// All places are taken.
    Full,
    /// The request could not be understood.
    Refused,
}

impl Request {
    pub(super) fn encode(&self) -> Result<Vec<u8>, KeeperError> {
        let mut out = Writer::new(match self {
            Self::Put(_) => 1,
            Self::Fetch(_) => 2,
            Self::Release(_) => 3,
            Self::List => 4,
        });
        match self {
            Self::Put(kept) => out.kept(kept)?,
            Self::Fetch(name) | Self::Release(name) => out.bytes(name.as_bytes(), MAX_NAME)?,
            Self::List => {}
        }
        Ok(out.0)
    }

    pub(super) fn decode(packet: &[u8]) -> Result<Self, KeeperError> {
        let (kind, mut input) = Reader::open(packet)?;
        let request = match kind {
            1 => Self::Put(input.kept()?),
            2 => Self::Fetch(input.text()?),
            3 => Self::Release(input.text()?),
            4 => Self::List,
            _ => return Err(KeeperError::Corrupt("unknown kind of request")),
        };
        input.end()?;
        Ok(request)
    }
}

impl Reply {
    pub(super) fn encode(&self) -> Result<Vec<u8>, KeeperError> {
        let mut out = Writer::new(match self {
            Self::Done => 1,
            Self::Entry(_) => 2,
            Self::Absent => 3,
            Self::Entries(_) => 4,
            Self::Full => 5,
            Self::Refused => 6,
        });
        match self {
            Self::Entry(kept) => out.kept(kept)?,
            Self::Entries(all) => {
                let count = u16::try_from(all.len()).map_err(|_| KeeperError::TooLong)?;
                out.0.extend_from_slice(&count.to_le_bytes());
                all.iter().try_for_each(|kept| out.kept(kept))?;
            }
            Self::Done | Self::Absent | Self::Full | Self::Refused => {}
        }
        Ok(out.0)
    }

    pub(super) fn decode(packet: &[u8]) -> Result<Self, KeeperError> {
        let (kind, mut input) = Reader::open(packet)?;
        let reply = match kind {
            1 => Self::Done,
            2 => Self::Entry(input.kept()?),
            3 => Self::Absent,
            4 => {
                let count = input.number()?;
                Self::Entries((0..count).map(|_| input.kept()).collect::<Result<_, _>>()?)
            }
            5 => Self::Full,
            6 => Self::Refused,
            _ => return Err(KeeperError::Corrupt("unknown kind of reply")),
        };
        input.end()?;
        Ok(reply)
    }
}

struct Writer(Vec<u8>);

impl Writer {
    fn new(kind: u8) -> Self {
        let [low, high] = VERSION.to_le_bytes();
        Self(vec![low, high, kind])
    }

    fn bytes(&mut self, bytes: &[u8], limit: usize) -> Result<(), KeeperError> {
        if bytes.len() > limit {
            return Err(KeeperError::TooLong);
        }
        self.0.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn kept(&mut self, kept: &Kept) -> Result<(), KeeperError> {
        self.bytes(kept.name.as_bytes(), MAX_NAME)?;
        self.bytes(&kept.metadata, MAX_METADATA)
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn open(packet: &'a [u8]) -> Result<(u8, Self), KeeperError> {
        let [low, high, kind, rest @ ..] = packet else { return Err(KeeperError::Corrupt("shorter than its header")) };
        let found = u16::from_le_bytes([*low, *high]);
        if found != VERSION {
            return Err(KeeperError::Version { found, expected: VERSION });
        }
        Ok((*kind, Self(rest)))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], KeeperError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(KeeperError::Corrupt("shorter than it says"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u16, KeeperError> {
        let bytes = self.take(2)?;
        Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    fn text(&mut self) -> Result<String, KeeperError> {
        let len = self.number()?;
        let bytes = self.take(usize::from(len))?.to_vec();
        String::from_utf8(bytes).map_err(|_| KeeperError::Corrupt("a name that is not UTF-8"))
    }

    fn kept(&mut self) -> Result<Kept, KeeperError> {
        let name = self.text()?;
        let len = self.number()?;
        Ok(Kept { name, metadata: self.take(usize::from(len))?.to_vec() })
    }

    fn end(&self) -> Result<(), KeeperError> {
        if self.0.is_empty() { Ok(()) } else { Err(KeeperError::Corrupt("longer than it says")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(name: &str) -> Kept {
        Kept { name: name.into(), metadata: vec![1, 2, 3] }
    }

    #[test]
    fn packets_round_trip() {
        let requests =
            [Request::Put(kept("a")), Request::Fetch("b".into()), Request::Release(String::new()), Request::List];
        for request in requests {
            assert_eq!(Request::decode(&request.encode().unwrap()).unwrap(), request);
        }
        for reply in [Reply::Done, Reply::Entry(kept("a")), Reply::Entries(vec![kept("a"), kept("b")]), Reply::Full] {
            assert_eq!(Reply::decode(&reply.encode().unwrap()).unwrap(), reply);
        }
    }

    #[test]
    fn every_cut_and_a_foreign_version_are_refused() {
        let packet = Request::Put(kept("volume")).encode().unwrap();
        for len in 0..packet.len() {
            assert!(Request::decode(&packet[..len]).is_err(), "cut at {len}");
        }
        let mut foreign = packet.clone();
        foreign[0] = 9;
        assert!(matches!(Request::decode(&foreign), Err(KeeperError::Version { found: 9, expected: VERSION })));
        let mut longer = packet;
        longer.push(0);
        assert!(Request::decode(&longer).is_err());
    }

    #[test]
    fn a_full_list_fits_into_one_packet() {
        let longest = Kept { name: "n".repeat(MAX_NAME), metadata: vec![0; MAX_METADATA] };
        let packet = Reply::Entries(vec![longest; MAX_ENTRIES]).encode().unwrap();
        assert!(packet.len() <= MAX_PACKET);
        const { assert!(MAX_PACKET < 150_000, "below the kernel's default send buffer") };
    }
}
