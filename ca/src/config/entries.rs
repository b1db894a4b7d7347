//! A YAML map whose values are read one by one, so that one mistake does not hide the next.

use std::fmt;

use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;

use super::Mistake;

/// What is left to read of a configuration, and what was found wrong so far.
pub(super) struct Entries {
    left: Vec<(Spanned<String>, Spanned<Node>)>,
    mistakes: Vec<Mistake>,
    /// Where the map is in the whole, with a dot at its end; empty for the whole.
    within: String,
}

impl Entries {
    /// Reads the map. Only what is no YAML, or no map, ends the reading here.
    pub(super) fn parse(text: &str) -> Result<Self, Vec<Mistake>> {
        match serde_saphyr::from_str::<Map>(text) {
            Ok(map) => Ok(Self { left: map.0, mistakes: Vec::new(), within: String::new() }),
            Err(error) => {
                let (line, what) = crate::yaml_mistake(&error);
                Err(vec![Mistake { line, at: String::new(), what }])
            }
        }
    }

    /// Takes `key`, which must be there.
    pub(super) fn needed<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&str) -> Result<T, String>,
        set: impl FnOnce(T),
    ) {
        if self.left.iter().any(|(found, _)| found.value == key) {
            self.optional(key, read, set);
        } else {
            self.mistake(0, key.to_owned(), "is missing".to_owned());
        }
    }

    /// Takes `key` if it is there.
    pub(super) fn optional<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&str) -> Result<T, String>,
        set: impl FnOnce(T),
    ) {
        let Some(value) = self.take(key) else {
            return;
        };
        match value.value.text().and_then(read) {
            Ok(read) => set(read),
            Err(what) => self.mistake(value.referenced.line(), key.to_owned(), what),
        }
    }

    /// Notes it if `key` is missing; [`Entries::inside`] then reads it.
    pub(super) fn needed_map(&mut self, key: &str) {
        if !self.left.iter().any(|(found, _)| found.value == key) {
            self.mistake(0, key.to_owned(), "is missing".to_owned());
        }
    }

    /// Whether `key` is there and is a map, not one value.
    pub(super) fn is_map(&self, key: &str) -> bool {
        let found = self.left.iter().find(|(found, _)| found.value == key);
        found.is_some_and(|(_, value)| matches!(value.value, Node::Map(_)))
    }

    /// Reads what is inside the map `key`, if it is there; one without a value is an empty one.
    pub(super) fn inside(&mut self, key: &str, read: impl FnOnce(&mut Self)) {
        let Some(value) = self.take(key) else {
            return;
        };
        let left = match value.value {
            Node::Map(map) => map.0,
            Node::Nothing => Vec::new(),
            Node::Text(_) | Node::List(_) | Node::Fraction => {
                return self.mistake(value.referenced.line(), key.to_owned(), "must be a map".to_owned());
            }
        };
        let mut inner = Self { left, mistakes: Vec::new(), within: format!("{}{key}.", self.within) };
        read(&mut inner);
        inner.note_unknown();
        self.mistakes.append(&mut inner.mistakes);
    }

    /// Takes `key`, which contradicts another, and says why it may not be there.
    pub(super) fn never(&mut self, key: &str, why: &str) {
        if let Some(value) = self.take(key) {
            self.mistake(value.referenced.line(), key.to_owned(), why.to_owned());
        }
    }

    /// Takes every element of the list `key` if it is there.
    pub(super) fn each<T>(
        &mut self,
        key: &str,
        read: impl Fn(&str) -> Result<T, String>,
        mut set: impl FnMut(T),
    ) {
        let Some(value) = self.take(key) else {
            return;
        };
        let Node::List(elements) = value.value else {
            return self.mistake(value.referenced.line(), key.to_owned(), "must be a list".to_owned());
        };
        for (index, element) in elements.into_iter().enumerate() {
            match element.value.text().and_then(&read) {
                Ok(read) => set(read),
                Err(what) => self.mistake(element.referenced.line(), format!("{key}[{index}]"), what),
            }
        }
    }

    /// All mistakes, if there were any; what was not taken is one each.
    pub(super) fn finish(mut self) -> Result<(), Vec<Mistake>> {
        self.note_unknown();
        if self.mistakes.is_empty() {
            return Ok(());
        }
        self.mistakes.sort_by_key(|mistake| mistake.line);
        Err(self.mistakes)
    }

    fn note_unknown(&mut self) {
        for (key, _) in std::mem::take(&mut self.left) {
            self.mistake(key.referenced.line(), key.value, "there is no such key".to_owned());
        }
    }

    fn take(&mut self, key: &str) -> Option<Spanned<Node>> {
        let at = self.left.iter().position(|(found, _)| found.value == key)?;
        Some(self.left.remove(at).1)
    }

    fn mistake(&mut self, line: u64, at: String, what: String) {
        let at = format!("{}{at}", self.within);
        self.mistakes.push(Mistake { line, at, what });
    }
}

/// A value, as far as a configuration has them.
#[derive(Debug)]
enum Node {
    Text(String),
    List(Vec<Spanned<Self>>),
    /// A number with a fraction: its text is lost, so it is not guessed at.
    Fraction,
    Nothing,
    Map(Map),
}

impl Node {
    fn text(&self) -> Result<&str, String> {
        match self {
            Self::Text(text) => Ok(text),
            Self::List(_) => Err("must be one value, not a list".to_owned()),
            Self::Fraction => Err("is read as a number: put it in quotes".to_owned()),
            Self::Nothing => Err("has no value".to_owned()),
            Self::Map(_) => Err("must be one value, not a map".to_owned()),
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value, a list of values or a map")
    }

    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        Ok(Node::Text(text.to_owned()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Text(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Text(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Text(value.to_string()))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Fraction)
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Nothing)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Nothing)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = seq.next_element()? {
            elements.push(element);
        }
        Ok(Node::List(elements))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Node, A::Error> {
        MapVisitor.visit_map(map).map(Node::Map)
    }
}

/// The whole file, or a map in it.
#[derive(Debug)]
struct Map(Vec<(Spanned<String>, Spanned<Node>)>);

impl<'de> Deserialize<'de> for Map {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MapVisitor)
    }
}

struct MapVisitor;

impl<'de> Visitor<'de> for MapVisitor {
    type Value = Map;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of settings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Map, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Map(entries))
    }
}
