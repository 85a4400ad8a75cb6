//! The protocol, byte by byte, from the client's side.

use bytes::{BufMut, Bytes, BytesMut};
use cairn_nbd::{Command, Errno, Event, Export, MAX_DATA, Request, Session, Violation};
use proptest::prelude::{ProptestConfig, any, proptest};

const OPTION: u64 = 0x4948_4156_454f_5054;
const ANSWER: u64 = 0x0003_e889_0455_65a9;
const UNSUPPORTED: u32 = 0x8000_0001;
const INVALID: u32 = 0x8000_0003;
const UNKNOWN: u32 = 0x8000_0006;
const TOO_BIG: u32 = 0x8000_0009;

fn export() -> Export {
    Export { name: "vol".into(), size: 1 << 20, read_only: false }
}

/// A client's end of a session.
struct Client {
    session: Session,
    input: BytesMut,
}

impl Client {
    fn greeted(export: Export) -> Self {
        let mut client = Self { session: Session::new(export), input: BytesMut::new() };
        let greeting = client.sent();
        assert_eq!(greeting[..], *b"NBDMAGICIHAVEOPT\x00\x03");
        client.input.put_u32(3);
        client
    }

    /// After a GO for the default export.
    fn begun(export: Export, structured: bool) -> Self {
        let mut client = Self::greeted(export);
        if structured {
            assert_eq!(client.option(8, &[]), [(1, Bytes::new())]);
        }
        let answers = client.option(7, &query("", &[]));
        assert_eq!(answers.last(), Some(&(1, Bytes::new())));
        assert!(client.session.is_transmitting());
        client
    }

    fn event(&mut self) -> Event {
        self.session.handle_input(&mut self.input).expect("a good client").expect("an event")
    }

    fn sent(&mut self) -> Bytes {
        let Event::Send(bytes) = self.event() else { panic!("something to send was due") };
        bytes
    }

    fn put_option(&mut self, option: u32, data: &[u8]) {
        self.input.put_u64(OPTION);
        self.input.put_u32(option);
        self.input.put_u32(data.len() as u32);
        self.input.put_slice(data);
    }

    /// The answers to an option as (kind, data).
    fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Bytes)> {
        self.put_option(option, data);
        let mut rest = self.sent();
        let mut answers = Vec::new();
        while !rest.is_empty() {
            let mut head = rest.split_to(20);
            assert_eq!(head.split_to(12)[..], [&ANSWER.to_be_bytes()[..], &option.to_be_bytes()].concat());
            let kind = u32::from_be_bytes(head[..4].try_into().unwrap());
            let len = u32::from_be_bytes(head[4..].try_into().unwrap());
            answers.push((kind, rest.split_to(len as usize)));
        }
        answers
    }

    fn refused(&mut self, option: u32, data: &[u8]) -> u32 {
        let answers = self.option(option, data);
        assert_eq!(answers.len(), 1);
        answers[0].0
    }

    fn put_request(&mut self, flags: u16, kind: u16, offset: u64, len: u32) {
        self.input.put_u32(0x2560_9513);
        self.input.put_u16(flags);
        self.input.put_u16(kind);
        self.input.put_u64(0xc00c_1e00);
        self.input.put_u64(offset);
        self.input.put_u32(len);
    }

    fn request(&mut self, flags: u16, kind: u16, offset: u64, len: u32) -> Request {
        self.put_request(flags, kind, offset, len);
        let Event::Request(request) = self.event() else { panic!("a request was due") };
        request
    }

    /// The error of a refused request.
    fn error(&mut self, flags: u16, kind: u16, offset: u64, len: u32) -> u32 {
        self.put_request(flags, kind, offset, len);
        if kind == 1 {
            self.input.put_bytes(7, len as usize);
        }
        let reply = self.sent();
        assert_eq!((reply[..4].to_vec(), reply.len()), (vec![0x67, 0x44, 0x66, 0x98], 16));
        u32::from_be_bytes(reply[4..8].try_into().unwrap())
    }
}

fn query(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = BytesMut::new();
    data.put_u32(name.len() as u32);
    data.put_slice(name.as_bytes());
    data.put_u16(infos.len() as u16);
    infos.iter().for_each(|info| data.put_u16(*info));
    data.to_vec()
}

#[test]
fn go_describes_the_export_and_begins() {
    let mut client = Client::greeted(export());
    let answers = client.option(7, &query("vol", &[1, 3]));
    let kinds: Vec<u32> = answers.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [3, 3, 3, 1]);
    let flags = 1 | 4 | 8 | 32 | 64 | 256 | 1024 | 2048u16;
    assert_eq!(answers[0].1[..], [&[0, 0][..], &(1u64 << 20).to_be_bytes(), &flags.to_be_bytes()].concat());
    let sizes = [1u32, 4096, 32 << 20].map(u32::to_be_bytes).concat();
    assert_eq!(answers[1].1[..], [&[0, 3][..], &sizes].concat());
    assert_eq!(answers[2].1[..], *b"\x00\x01vol");
    assert!(client.session.is_transmitting());
}

#[test]
fn info_describes_without_beginning() {
    let mut client = Client::greeted(Export { read_only: true, ..export() });
    assert_eq!(client.option(8, &[]), [(1, Bytes::new())]);
    let answers = client.option(6, &query("", &[]));
    let flags = 1 | 2 | 4 | 8 | 128 | 256 | 1024u16;
    assert_eq!(answers[0].1[10..], flags.to_be_bytes());
    assert!(!client.session.is_transmitting());
}

#[test]
fn the_old_way_to_begin_works_too() {
    let mut client = Client::greeted(export());
    client.put_option(1, b"vol");
    assert_eq!(client.sent().len(), 10);
    assert!(client.session.is_transmitting());
    let mut ancient = Client { session: Session::new(export()), input: BytesMut::new() };
    ancient.sent();
    ancient.input.put_u32(1);
    ancient.put_option(1, b"");
    assert_eq!(ancient.sent().len(), 134, "with the zeroes it did not ask to be spared");
    let mut lost = Client::greeted(export());
    lost.put_option(1, b"elsewhere");
    let error = lost.session.handle_input(&mut lost.input).unwrap_err();
    assert_eq!(error, Violation::NoSuchExport { name: "elsewhere".into() });
}

#[test]
fn list_and_abort() {
    let mut client = Client::greeted(export());
    let answers = client.option(3, &[]);
    assert_eq!(answers, [(2, Bytes::from_static(b"\0\0\0\x03vol")), (1, Bytes::new())]);
    assert_eq!(client.option(2, &[]), [(1, Bytes::new())]);
    assert_eq!(client.event(), Event::End);
}

#[test]
fn contexts_are_declined_and_unknown_options_refused() {
    let mut client = Client::greeted(export());
    let mut contexts = BytesMut::new();
    contexts.put_slice(b"\0\0\0\0\0\0\0\x01\0\0\0\x0fbase:allocation");
    assert_eq!(client.refused(10, &contexts), INVALID, "structured replies come first");
    client.option(8, &[]);
    assert_eq!(client.option(10, &contexts), [(1, Bytes::new())], "none of them is there");
    assert_eq!(client.refused(10, b"\0\0\0\x01x\0\0\0\0"), UNKNOWN);
    assert_eq!(client.refused(10, b"\0\0\0\0\xff\xff\xff\xff"), INVALID);
    assert_eq!(client.refused(5, &[]), UNSUPPORTED, "TLS");
    assert_eq!(client.refused(11, &[]), UNSUPPORTED, "extended headers");
    assert_eq!(client.refused(7, &query("other", &[])), UNKNOWN);
    assert_eq!(client.refused(7, b"\0\0\0\x09vol\0\0"), INVALID);
    assert_eq!(client.refused(3, b"x"), INVALID);
    assert_eq!(client.refused(7, &[0; 9000]), TOO_BIG);
    assert_eq!(client.option(7, &query("", &[])).len(), 3, "and still it can begin");
}

#[test]
fn commands_are_told_apart() {
    let mut client = Client::begun(export(), false);
    let data = Bytes::from_static(&[9; 512]);
    client.put_request(1, 1, 512, 512);
    assert_eq!(client.session.handle_input(&mut client.input), Ok(None), "the data is still to come");
    client.input.put_slice(&data);
    let Event::Request(write) = client.event() else { panic!("a request was due") };
    assert_eq!(write.command, Command::Write { offset: 512, data, durable: true });
    assert_eq!(client.request(0, 0, 1, 5).command, Command::Read { offset: 1, len: 5 });
    assert_eq!(client.request(0, 3, 0, 0).command, Command::Flush);
    assert_eq!(client.request(1, 4, 7, 1).command, Command::Trim { offset: 7, len: 1, durable: true });
    assert_eq!(client.request(0, 5, 7, 1).command, Command::Cache { offset: 7, len: 1 });
    let zeroes = |may_unmap, only_if_fast| Command::WriteZeroes {
        offset: 0,
        len: 1 << 20,
        may_unmap,
        only_if_fast,
        durable: false,
    };
    assert_eq!(client.request(0, 6, 0, 1 << 20).command, zeroes(true, false));
    assert_eq!(client.request(2, 6, 0, 1 << 20).command, zeroes(false, false));
    assert_eq!(client.request(18, 6, 0, 1 << 20).command, zeroes(false, true));
    client.put_request(0, 2, 0, 0);
    assert_eq!(client.event(), Event::End);
}

#[test]
fn what_makes_no_sense_is_refused_and_the_next_request_is_found() {
    let mut client = Client::begun(export(), false);
    let end = 1 << 20;
    assert_eq!(client.error(0, 0, end, 1), Errno::Invalid.number());
    assert_eq!(client.error(0, 0, u64::MAX, 1), Errno::Invalid.number());
    assert_eq!(client.error(0, 1, end - 1, 2), Errno::NoSpace.number());
    assert_eq!(client.error(0, 6, end, 4096), Errno::NoSpace.number());
    assert_eq!(client.error(0, 4, end, 4096), Errno::Invalid.number());
    assert_eq!(client.error(0, 0, 0, MAX_DATA + 1), Errno::Overflow.number());
    assert_eq!(client.error(0, 1, 0, MAX_DATA + 1), Errno::Overflow.number());
    assert_eq!(client.error(2, 0, 0, 1), Errno::Invalid.number(), "a flag that reads do not have");
    assert_eq!(client.error(0, 3, 0, 1), Errno::Invalid.number(), "a flush has no range");
    assert_eq!(client.error(0, 7, 0, 1), Errno::Invalid.number(), "block status was not negotiated");
    assert_eq!(client.error(0, 99, 0, 1), Errno::Invalid.number());
    assert_eq!(client.request(0, 0, 0, 1).command, Command::Read { offset: 0, len: 1 });
    let mut reader = Client::begun(Export { read_only: true, ..export() }, false);
    for kind in [1, 4, 6] {
        assert_eq!(reader.error(0, kind, 0, 4096), Errno::NotPermitted.number());
    }
}

#[test]
fn replies_are_simple_or_structured_as_agreed() {
    let cookie = 0xc00c_1e00u64.to_be_bytes();
    let mut simple = Client::begun(export(), false);
    let ticket = simple.request(0, 0, 4, 3).ticket;
    let reply = simple.session.reply(ticket, Ok(Bytes::from_static(b"abc")));
    assert_eq!(reply.head[..], [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0][..], &cookie].concat());
    assert_eq!(reply.data[..], *b"abc");

    let mut structured = Client::begun(export(), true);
    let ticket = structured.request(4, 0, 4, 3).ticket;
    let reply = structured.session.reply(ticket, Ok(Bytes::from_static(b"abc")));
    let head = [&[0x66, 0x8e, 0x33, 0xef, 0, 1, 0, 1][..], &cookie, &[0, 0, 0, 11], &4u64.to_be_bytes()].concat();
    assert_eq!((&reply.head[..], &reply.data[..]), (&head[..], &b"abc"[..]));
    let failed = structured.session.reply(ticket, Err(Errno::Io));
    let text = b"input/output error";
    let head = [&[0x66, 0x8e, 0x33, 0xef, 0, 1, 0x80, 1][..], &cookie, &[0, 0, 0, 24, 0, 0, 0, 5, 0, 18], text];
    assert_eq!(failed.head[..], head.concat());
    let flush = structured.request(0, 3, 0, 0).ticket;
    assert_eq!(structured.session.reply(flush, Ok(Bytes::new())).head[..4], [0x67, 0x44, 0x66, 0x98]);
    let nothing = structured.request(0, 0, 0, 0).ticket;
    assert_eq!(structured.session.reply(nothing, Ok(Bytes::new())).head.len(), 20);
}

#[test]
fn who_does_not_speak_the_protocol_is_shown_the_door() {
    let violation = |bytes: &[u8]| {
        let mut client = Client { session: Session::new(export()), input: BytesMut::new() };
        client.sent();
        client.input.put_slice(bytes);
        client.session.handle_input(&mut client.input).unwrap_err()
    };
    assert_eq!(violation(&[0, 0, 0, 0]), Violation::OldClient { flags: 0 });
    assert_eq!(violation(&[0, 0, 0, 7]), Violation::OldClient { flags: 7 });
    assert!(matches!(violation(b"\0\0\0\x03GET / HTTP/1.1\r\n"), Violation::Magic { what: "an option", .. }));
    let huge = [&[0, 0, 0, 3][..], &OPTION.to_be_bytes(), &[0, 0, 0, 7, 0xff, 0xff, 0xff, 0xff]].concat();
    assert_eq!(violation(&huge), Violation::TooLong { len: u32::MAX });
    let mut client = Client::begun(export(), false);
    client.input.put_bytes(0x11, 28);
    let error = client.session.handle_input(&mut client.input).unwrap_err();
    assert_eq!(error, Violation::Magic { what: "a request", found: 0x1111_1111 });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn pieces_of_any_size_mean_the_same(piece in 1usize..600) {
        let mut whole = Client::greeted(export());
        whole.put_option(7, &query("", &[3]));
        for i in 0..3u16 {
            whole.put_request(0, 1, u64::from(i) * 512, 512);
            whole.input.put_bytes(i as u8, 512);
            whole.put_request(0, 0, 0, 77);
        }
        whole.put_request(0, 2, 0, 0);
        let mut session = Session::new(export());
        let mut input = BytesMut::new();
        let mut events = Vec::new();
        for bytes in whole.input.chunks(piece) {
            input.put_slice(bytes);
            while let Some(event) = session.handle_input(&mut input).expect("a good client") {
                if event == Event::End {
                    break;
                }
                events.push(event);
            }
        }
        let requests = events.iter().filter(|event| matches!(event, Event::Request(_))).count();
        assert_eq!((events.len(), requests), (8, 6), "greeting, description, six requests");
    }

    #[test]
    fn noise_never_panics_and_never_grows(noise in any::<Vec<u8>>(), begun in any::<bool>()) {
        let mut client = if begun { Client::begun(export(), true) } else { Client::greeted(export()) };
        client.input.put_slice(&noise);
        while let Ok(Some(event)) = client.session.handle_input(&mut client.input) {
            if event == Event::End {
                break;
            }
        }
        assert!(client.input.capacity() < 64 << 20);
    }
}
