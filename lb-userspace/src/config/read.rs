//! Typed values out of nodes; what does not fit becomes an error and reading goes on.

use std::ops::RangeInclusive;

use super::error::ConfigError;
use super::tree::{Node, Value, shown};

/// Collects the errors of one reading.
#[derive(Default)]
pub(super) struct Reader {
    pub(super) errors: Vec<ConfigError>,
}

impl Reader {
    /// Notes what is wrong with a node.
    pub(super) fn error(&mut self, node: Node<'_>, message: impl Into<String>) {
        self.errors.push(ConfigError { path: node.path(), message: message.into(), line: node.position() });
    }

    /// Notes what is wrong with a field of a mapping, whether the file has it or not.
    pub(super) fn error_in(&mut self, mapping: Node<'_>, key: &str, message: impl Into<String>) {
        match mapping.get(key) {
            Some(node) => self.error(node, message),
            None => self.errors.push(ConfigError {
                path: mapping.path_of(key),
                message: message.into(),
                line: mapping.position(),
            }),
        }
    }

    /// Whether a node is a mapping; notes the fields that it should not have.
    pub(super) fn fields(&mut self, node: Node<'_>, known: &[&str]) -> bool {
        match node.value() {
            Value::Mapping(_) => {}
            Value::Null => {
                self.error(node, "is empty; leave it out, or give it fields");
                return false;
            }
            _ => {
                let fields = known.join(", ");
                self.error(node, format!("{} is not a mapping; its fields are {fields}", node.shown()));
                return false;
            }
        }
        for member in node.members() {
            if member.key().is_some_and(|key| !known.contains(&key)) {
                self.errors.push(ConfigError {
                    path: member.path(),
                    message: format!("unknown field; the fields here are {}", known.join(", ")),
                    line: member.key_position(),
                });
            }
        }
        true
    }

    /// A field that has to be there; `why` says what it is needed for.
    pub(super) fn required<'t>(&mut self, mapping: Node<'t>, key: &str, why: &str) -> Option<Node<'t>> {
        let node = mapping.get(key);
        if node.is_none() {
            self.error_in(mapping, key, format!("is missing: {why}"));
        }
        node
    }

    /// What `read` makes of a field, or the default where the file leaves it out.
    pub(super) fn optional<'t, T>(
        &mut self,
        mapping: Node<'t>,
        key: &str,
        default: T,
        read: impl FnOnce(&mut Self, Node<'t>) -> Option<T>,
    ) -> Option<T> {
        match mapping.get(key) {
            Some(node) => read(self, node),
            None => Some(default),
        }
    }

    /// The nodes of a list; `None` for what is no list.
    pub(super) fn list<'t>(&mut self, node: Node<'t>) -> Option<impl Iterator<Item = Node<'t>> + Clone + use<'t>> {
        match node.value() {
            Value::List(_) => Some(node.members()),
            Value::Null => {
                self.error(node, "is empty; write [] for an empty list");
                None
            }
            _ => {
                self.error(node, format!("{} is not a list; write it as [...]", node.shown()));
                None
            }
        }
    }

    /// Text. A bare number or true and false are refused: other readers of YAML would not see the same text.
    pub(super) fn text<'t>(&mut self, node: Node<'t>) -> Option<&'t str> {
        if let Value::Text(text) = node.value() {
            return Some(text);
        }
        let way_out = node.raw().map(|raw| format!("; write it in quotes: {raw:?}"));
        self.error(node, format!("{} is not text{}", node.shown(), way_out.unwrap_or_default()));
        None
    }

    /// What `parse` makes of a scalar, its error after the value as it stands in the file.
    pub(super) fn parsed<T>(&mut self, node: Node<'_>, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let Some(raw) = node.raw() else {
            self.text(node);
            return None;
        };
        parse(raw).map_err(|why| self.error(node, format!("{} {why}", shown(raw)))).ok()
    }

    /// A whole number within bounds.
    pub(super) fn number<T>(&mut self, node: Node<'_>, range: RangeInclusive<T>) -> Option<T>
    where
        T: TryFrom<i128> + Into<i128> + Copy,
    {
        let (low, high) = ((*range.start()).into(), (*range.end()).into());
        let within = |number: &i128| (low..=high).contains(number);
        let way_out = match node.value() {
            Value::Number(number) if within(number) => return T::try_from(*number).ok(),
            Value::Text(text) if text.parse().is_ok_and(|number| within(&number)) => "; write it without quotes",
            _ => "",
        };
        self.error(node, format!("{} is not a whole number from {low} to {high}{way_out}", node.shown()));
        None
    }

    /// true or false.
    pub(super) fn flag(&mut self, node: Node<'_>) -> Option<bool> {
        if let Value::Flag(flag) = node.value() {
            return Some(*flag);
        }
        self.error(node, format!("{} is neither true nor false", node.shown()));
        None
    }

    /// One of some words; `None` beside a word that the schema knows and this release does not do.
    pub(super) fn choice<T: Copy>(&mut self, node: Node<'_>, choices: &[(&str, Option<T>)]) -> Option<T> {
        self.parsed(node, |raw| {
            let words: Vec<_> = choices.iter().filter(|(_, value)| value.is_some()).map(|(word, _)| *word).collect();
            match choices.iter().find(|(word, _)| *word == raw) {
                Some((_, Some(value))) => Ok(*value),
                Some((_, None)) => Err(format!("is not supported by this release; write {}", words.join(" or "))),
                None => {
                    let near = words.iter().find(|word| word.eq_ignore_ascii_case(raw));
                    let way_out = near.map(|word| format!("; write {word}")).unwrap_or_default();
                    Err(format!("is not one of {}{way_out}", words.join(", ")))
                }
            }
        })
    }
}
