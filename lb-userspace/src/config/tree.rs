//! A YAML document as a tree whose nodes know their path and their place in the file, so that every error can name
//! both and none hides another.

use std::fmt::{self, Write as _};

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Error as YamlError, Location, MessageFormatter as _, Spanned, UserMessageFormatter};

use super::error::{ConfigError, Position};

/// Longest value that an error repeats, in characters.
const MAX_SHOWN: usize = 80;

/// A document.
pub(super) struct Tree<'t> {
    text: &'t str,
    nodes: Vec<Entry>,
}

struct Entry {
    parent: u32,
    step: Step,
    position: Option<Position>,
    /// The bytes of the value in the text; empty where they are not known.
    bytes: (usize, usize),
    value: Value<u32>,
}

/// How a node is reached from its parent.
enum Step {
    Root,
    Key(String, Option<Position>),
    Index(usize),
}

/// A value; `N` stands for a value inside it.
pub(super) enum Value<N> {
    Null,
    Flag(bool),
    Number(i128),
    /// A number with a fraction or an exponent: no field has one.
    Fraction,
    Text(String),
    List(Vec<N>),
    Mapping(Vec<N>),
}

/// One node of a tree.
#[derive(Clone, Copy)]
pub(super) struct Node<'t> {
    tree: &'t Tree<'t>,
    id: u32,
}

impl<'t> Tree<'t> {
    /// Reads a document.
    ///
    /// # Errors
    /// The first thing that is wrong with its syntax: YAML cannot be read past it.
    pub(super) fn read(text: &'t str) -> Result<Self, ConfigError> {
        let Parsed(root) = serde_saphyr::from_str_with_options(text, options()).map_err(|error| syntax(&error))?;
        let mut tree = Self { text, nodes: Vec::new() };
        tree.add(0, Step::Root, root);
        Ok(tree)
    }

    fn add(&mut self, parent: u32, step: Step, parsed: Spanned<Value<Member>>) -> u32 {
        let id = u32::try_from(self.nodes.len()).expect("options() bounds the number of nodes");
        let span = parsed.defined.span();
        let bytes = match (span.byte_offset(), span.byte_len()) {
            (Some(offset), Some(length)) => (offset as usize, (offset + length) as usize),
            _ => (0, 0),
        };
        let position = position(parsed.referenced);
        self.nodes.push(Entry { parent, step, position, bytes, value: Value::Null });
        let mut members = |members: Vec<Member>| -> Vec<u32> {
            members.into_iter().map(|Member { step, value: Parsed(value) }| self.add(id, step, value)).collect()
        };
        let value = match parsed.value {
            Value::Null => Value::Null,
            Value::Flag(flag) => Value::Flag(flag),
            Value::Number(number) => Value::Number(number),
            Value::Fraction => Value::Fraction,
            Value::Text(text) => Value::Text(text),
            Value::List(list) => Value::List(members(list)),
            Value::Mapping(mapping) => Value::Mapping(members(mapping)),
        };
        self.nodes[id as usize].value = value;
        id
    }

    /// The whole document.
    pub(super) fn root(&'t self) -> Node<'t> {
        Node { tree: self, id: 0 }
    }
}

impl<'t> Node<'t> {
    fn entry(self) -> &'t Entry {
        &self.tree.nodes[self.id as usize]
    }

    /// Its value.
    pub(super) fn value(self) -> &'t Value<u32> {
        &self.entry().value
    }

    /// The nodes of a list or of a mapping; none of anything else.
    pub(super) fn members(self) -> impl Iterator<Item = Node<'t>> + Clone {
        let members = match self.value() {
            Value::List(members) | Value::Mapping(members) => members.as_slice(),
            _ => &[],
        };
        members.iter().map(move |&id| Node { tree: self.tree, id })
    }

    /// The key that a mapping has it under.
    pub(super) fn key(self) -> Option<&'t str> {
        match &self.entry().step {
            Step::Key(key, _) => Some(key),
            Step::Root | Step::Index(_) => None,
        }
    }

    /// The field of a mapping that has this key.
    pub(super) fn get(self, key: &str) -> Option<Node<'t>> {
        self.members().find(|member| member.key() == Some(key))
    }

    /// Where it stands in the file: a value that is empty, where its key does.
    pub(super) fn position(self) -> Option<Position> {
        match self.entry() {
            Entry { step: Step::Key(_, position @ Some(_)), value: Value::Null, .. } => *position,
            entry => entry.position,
        }
    }

    /// Where its key stands, or itself if it has none.
    pub(super) fn key_position(self) -> Option<Position> {
        match self.entry().step {
            Step::Key(_, Some(position)) => Some(position),
            _ => self.position(),
        }
    }

    /// Its path from the root: `services[2].name`; empty for the root.
    pub(super) fn path(self) -> String {
        let mut steps = Vec::new();
        let mut entry = self.entry();
        while !matches!(entry.step, Step::Root) {
            steps.push(&entry.step);
            entry = &self.tree.nodes[entry.parent as usize];
        }
        let mut path = String::new();
        for step in steps.into_iter().rev() {
            match step {
                Step::Root => {}
                Step::Key(key, _) => push_key(&mut path, key),
                Step::Index(index) => write!(path, "[{index}]").expect("a String takes all that is written to it"),
            }
        }
        path
    }

    /// Its path with a key that is not there.
    pub(super) fn path_of(self, key: &str) -> String {
        let mut path = self.path();
        push_key(&mut path, key);
        path
    }

    /// A scalar as it stands in the file.
    pub(super) fn raw(self) -> Option<&'t str> {
        match self.value() {
            Value::Text(text) => Some(text),
            Value::Flag(_) | Value::Number(_) | Value::Fraction => {
                let (start, end) = self.entry().bytes;
                self.tree.text.get(start..end)
            }
            Value::Null | Value::List(_) | Value::Mapping(_) => None,
        }
    }

    /// How an error shows it.
    pub(super) fn shown(self) -> String {
        match self.value() {
            Value::Text(text) => shown(text),
            Value::Null => "an empty value".into(),
            Value::Number(number) => number.to_string(),
            Value::Flag(_) | Value::Fraction => self.raw().unwrap_or("a number").to_owned(),
            Value::List(_) => "a list".into(),
            Value::Mapping(_) => "a mapping".into(),
        }
    }
}

/// Text in quotes, cut where it is long.
pub(super) fn shown(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

fn push_key(path: &mut String, key: &str) {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if key.is_empty() || !key.chars().all(plain) {
        write!(path, "[{}]", shown(key)).expect("a String takes all that is written to it");
    } else {
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(key);
    }
}

fn position(location: Location) -> Option<Position> {
    let (line, column) = (u32::try_from(location.line()).ok()?, u32::try_from(location.column()).ok()?);
    (location != Location::UNKNOWN).then_some(Position { line, column })
}

fn syntax(error: &YamlError) -> ConfigError {
    let error = error.without_snippet();
    let message = match error {
        YamlError::DuplicateMappingKey { key: Some(key), .. } => {
            format!("{}: the key stands here twice; keep one", key)
        }
        YamlError::MultipleDocuments { .. } => "a second document (---) begins here; a configuration is one".into(),
        _ => UserMessageFormatter.format_message(error).replace('\n', " "),
    };
    ConfigError { path: String::new(), message, line: error.location().and_then(position) }
}

/// One spelling for each value, and room for 100,000 backends.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 32_000_000,
            max_nodes: 16_000_000,
            max_aliases: 1_000_000,
            max_merge_keys: 1_000_000,
            max_depth: 32,
            // One anchor for what all services share is good use; the number of replayed events stays bounded.
            enforce_alias_anchor_ratio: false,
        },
        strict_booleans: true,
        reject_unsupported_tags: true,
        emit_comments: false,
        with_snippet: false,
    }
}

/// A value with its place, before it is put into a tree.
struct Parsed(Spanned<Value<Member>>);

struct Member {
    step: Step,
    value: Parsed,
}

impl<'de> Deserialize<'de> for Parsed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Spanned::deserialize(deserializer).map(Self)
    }
}

impl<'de> Deserialize<'de> for Value<Member> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value<Member>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Self::Value, E> {
        Ok(Value::Flag(flag))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Value::Number(number.into()))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Value::Fraction)
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Self::Value, E> {
        Ok(Value::Text(text))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = access.next_element()? {
            list.push(Member { step: Step::Index(list.len()), value });
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut mapping = Vec::new();
        while let Some(key) = access.next_key::<Spanned<String>>()? {
            let step = Step::Key(key.value, position(key.referenced));
            mapping.push(Member { step, value: access.next_value()? });
        }
        Ok(Value::Mapping(mapping))
    }
}
