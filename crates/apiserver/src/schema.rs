//! The shape of every API message, once: names, protobuf numbers, merge keys. Strict decoding, the protobuf
//! transcoder, strategic merge, server-side apply and the OpenAPI document all read this one table.
//!
//! The table is text (`schema/*.txt`): a line without indentation opens a message, each indented line is a field
//! `NAME NUMBER TYPE [FLAG..]`. A type is a scalar or a message; `[]` is a list, `map:` a map with string keys and a
//! leading `*` says that a zero value differs from an absent one. `+ NUMBER MESSAGE` embeds a message whose fields
//! appear in the parent in JSON and under NUMBER in protobuf. Flags: `!` printed even when zero; `merge[=KEY]` merged
//! by strategic patches (by KEY, or as a set of primitives); `keys=A,B` a list keyed by A and B for apply; `set` a set
//! for apply; `atomic` replaced whole by apply.
//!
//! Adding a kind means adding its messages here and one row to the registry's table. Nothing here knows a kind.

use std::collections::HashMap;
use std::sync::LazyLock;

/// The type of one value, without list or map around it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// UTF-8 text.
    String,
    /// true or false.
    Bool,
    /// 32-bit signed integer.
    Int32,
    /// 64-bit signed integer.
    Int64,
    /// Base64 in JSON.
    Bytes,
    /// RFC 3339 to the second.
    Time,
    /// RFC 3339 to the microsecond.
    MicroTime,
    /// A number with a binary or decimal suffix.
    Quantity,
    /// A number or a string.
    IntOrString,
    /// JSON carried inside as it is.
    Json,
    /// Another message of this table.
    Message(&'static Message),
}

/// One value, a list or a map with string keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// A single value.
    One,
    /// An array.
    List,
    /// An object with free keys.
    Map,
}

/// How server-side apply owns a list, map or struct.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ownership {
    /// Element by element for maps and structs, as a whole for lists and scalars.
    Default,
    /// As a whole.
    Atomic,
    /// A list of distinct primitives.
    Set,
    /// A list of objects, each known by these fields.
    Keyed(Vec<&'static str>),
}

/// How a strategic merge patch treats a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Merge {
    /// Replaced.
    Replace,
    /// Elements are matched by this field.
    ByKey(&'static str),
    /// A set of primitives: added to.
    Primitives,
}

/// One field of a message.
#[derive(Debug)]
pub(crate) struct Field {
    /// Its name in JSON.
    pub(crate) name: &'static str,
    /// Its protobuf number.
    pub(crate) number: u32,
    /// List, map or neither.
    pub(crate) shape: Shape,
    /// Whether a zero value differs from an absent one.
    pub(crate) pointer: bool,
    /// Whether it is printed even when zero.
    pub(crate) always: bool,
    /// Whether its message's fields appear in the parent in JSON.
    pub(crate) inline: bool,
    /// Strategic merge.
    pub(crate) merge: Merge,
    /// Server-side apply.
    pub(crate) ownership: Ownership,
    kind: RawKind,
}

#[derive(Debug, Clone, Copy)]
enum RawKind {
    Plain(Kind),
    Message(&'static str),
}

/// One message: its fields in the order of the table.
#[derive(Debug)]
pub(crate) struct Message {
    /// Its name, unique in the table.
    pub(crate) name: &'static str,
    /// Its own fields; embedded messages are one field each.
    pub(crate) fields: Vec<Field>,
}

impl PartialEq for Message {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Message {}

impl Field {
    /// The type of the value, or of each element.
    pub(crate) fn kind(&self) -> Kind {
        match self.kind {
            RawKind::Plain(kind) => kind,
            RawKind::Message(name) => Kind::Message(message(name).expect("the table's test resolves every name")),
        }
    }

    /// The message of the value or of each element, if it is one.
    pub(crate) fn message(&self) -> Option<&'static Message> {
        match self.kind() {
            Kind::Message(message) => Some(message),
            _ => None,
        }
    }
}

impl Message {
    /// The field that JSON calls `name`, looked for in embedded messages too.
    pub(crate) fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find_map(|field| match field.inline {
            false => (field.name == name).then_some(field),
            true => field.message().and_then(|inner| inner.field(name)),
        })
    }

    /// The field numbered `number` in protobuf.
    pub(crate) fn numbered(&self, number: u32) -> Option<&Field> {
        self.fields.iter().find(|field| field.number == number)
    }

    /// Every field as JSON sees it, embedded messages flattened.
    pub(crate) fn flattened(&self) -> Vec<&Field> {
        let mut all = Vec::new();
        for field in &self.fields {
            match field.message().filter(|_| field.inline) {
                Some(inner) => all.extend(inner.flattened()),
                None => all.push(field),
            }
        }
        all
    }
}

const SOURCES: [&str; 7] = [
    include_str!("schema/meta.txt"),
    include_str!("schema/core.txt"),
    include_str!("schema/pod.txt"),
    include_str!("schema/podvolume.txt"),
    include_str!("schema/volume.txt"),
    include_str!("schema/storage.txt"),
    include_str!("schema/review.txt"),
];

static MESSAGES: LazyLock<HashMap<&'static str, Message>> =
    LazyLock::new(|| SOURCES.iter().flat_map(|source| parse(source)).map(|message| (message.name, message)).collect());

/// The message called `name`.
pub(crate) fn message(name: &str) -> Option<&'static Message> {
    let messages: &'static HashMap<&'static str, Message> = &MESSAGES;
    messages.get(name)
}

fn parse(source: &'static str) -> Vec<Message> {
    let mut messages: Vec<Message> = Vec::new();
    for line in source.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match line.strip_prefix("  ") {
            None => messages.push(Message { name: line, fields: Vec::new() }),
            Some(rest) => {
                messages.last_mut().expect("a table opens with a message").fields.push(parse_field(rest));
            }
        }
    }
    messages
}

fn parse_field(line: &'static str) -> Field {
    let mut words = line.split(' ');
    let mut word = || words.next().expect("a field has a name, a number and a type");
    let (name, number, spelled) = (word(), word().parse().expect("a field's number is a number"), word());
    let inline = name == "+";
    let (pointer, spelled) = spelled.strip_prefix('*').map_or((false, spelled), |rest| (true, rest));
    let (shape, spelled) = if let Some(rest) = spelled.strip_prefix("[]") {
        (Shape::List, rest)
    } else if let Some(rest) = spelled.strip_prefix("map:") {
        (Shape::Map, rest)
    } else {
        (Shape::One, spelled)
    };
    let mut field = Field {
        name,
        number,
        shape,
        pointer,
        always: false,
        inline,
        merge: Merge::Replace,
        ownership: Ownership::Default,
        kind: scalar(spelled).map_or(RawKind::Message(spelled), RawKind::Plain),
    };
    for flag in words {
        match flag.split_once('=') {
            None if flag == "!" => field.always = true,
            None if flag == "merge" => field.merge = Merge::Primitives,
            None if flag == "atomic" => field.ownership = Ownership::Atomic,
            None if flag == "set" => field.ownership = Ownership::Set,
            Some(("merge", key)) => field.merge = Merge::ByKey(key),
            Some(("keys", keys)) => field.ownership = Ownership::Keyed(keys.split(',').collect()),
            _ => panic!("unknown flag {flag} on {name}"),
        }
    }
    field
}

fn scalar(name: &str) -> Option<Kind> {
    Some(match name {
        "string" => Kind::String,
        "bool" => Kind::Bool,
        "int32" => Kind::Int32,
        "int64" => Kind::Int64,
        "bytes" => Kind::Bytes,
        "Time" => Kind::Time,
        "MicroTime" => Kind::MicroTime,
        "Quantity" => Kind::Quantity,
        "IntOrString" => Kind::IntOrString,
        "FieldsV1" => Kind::Json,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::{Kind, MESSAGES, Merge, Ownership, Shape, message};
    use std::collections::HashSet;

    #[test]
    fn every_name_resolves_and_numbers_are_distinct() {
        for message in MESSAGES.values() {
            let numbers: HashSet<u32> = message.fields.iter().map(|field| field.number).collect();
            assert_eq!(numbers.len(), message.fields.len(), "{}", message.name);
            for field in &message.fields {
                let _ = field.kind();
            }
            let flat = message.flattened();
            let names: HashSet<&str> = flat.iter().map(|field| field.name).collect();
            assert_eq!(names.len(), flat.len(), "{}", message.name);
        }
    }

    #[test]
    fn no_message_is_declared_twice() {
        let declared = super::SOURCES.iter().flat_map(|source| super::parse(source)).count();
        assert_eq!(declared, MESSAGES.len());
    }

    #[test]
    fn fields_say_what_the_table_says() {
        let spec = message("PodSpec").expect("PodSpec");
        let containers = spec.field("containers").expect("containers");
        assert_eq!((containers.number, containers.shape), (2, Shape::List));
        assert_eq!(containers.merge, Merge::ByKey("name"));
        let ports = containers.message().and_then(|c| c.field("ports")).expect("ports");
        assert_eq!(ports.merge, Merge::ByKey("containerPort"));
        assert_eq!(ports.ownership, Ownership::Keyed(vec!["containerPort", "protocol"]));
        let volume = message("Volume").expect("Volume");
        assert!(volume.field("persistentVolumeClaim").is_some(), "embedded fields are found");
        assert!(spec.field("priority").expect("priority").pointer);
        assert_eq!(
            message("Lease").and_then(|l| l.field("metadata")).map(|f| matches!(f.kind(), Kind::Message(_))),
            Some(true)
        );
    }
}
