//! Reads YAML with several documents, and remembers where each value stands.
//!
//! Does not open files: it is given a text. What the documents mean is [`crate::object`]'s.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use crate::problem::{FieldPath, Segment};

#[cfg(test)]
mod tests;

/// The longest text that is read. A pod as the API server dumps it has up to 15 KB, so this is a dump of 1,000 pods; a
/// directory has as many files as it likes.
pub const TEXT_LEN_MAX: usize = 16 * 1024 * 1024;

/// Where something stands in its text, both counted from 1.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Position {
    /// The line.
    pub line: u64,
    /// The column, in characters.
    pub column: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// A text that is no YAML, or has a document that is none.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{at}: {message}")]
pub struct YamlError {
    /// Where.
    pub at: Position,
    /// What the parser says, on one line.
    pub message: String,
}

/// One document of a text; an element of a `List` is one of its own.
#[derive(Clone, Debug)]
pub struct Document {
    /// What it says.
    pub value: serde_json::Value,
    /// Where it begins.
    pub at: Position,
    tree: Node,
}

impl Document {
    /// Where a field stands, or the nearest of its parents that is there.
    pub fn locate(&self, field: &FieldPath) -> Position {
        let mut at = self.at;
        let mut tree = &self.tree;
        for segment in field.segments() {
            let next = match (segment, tree) {
                (Segment::Key(key), Node::Map(pairs)) => {
                    pairs.iter().find(|(name, _)| name == key).map(|(_, value)| value)
                }
                (Segment::Index(index), Node::List(values)) => values.get(*index),
                (Segment::Key(_), Node::Leaf(_) | Node::List(_))
                | (Segment::Index(_), Node::Leaf(_) | Node::Map(_)) => None,
            };
            let Some(next) = next else { break };
            at = next.at;
            tree = &next.node;
        }
        at
    }
}

/// Reads every document of a text, in order; empty ones are left out, those of a `List` come one by one.
///
/// Fails as a whole: what stands behind an error cannot be told from what belongs to it.
pub fn read(text: &str) -> Result<Vec<Document>, YamlError> {
    let mut all = Vec::new();
    read_each(text, |document| all.push(document))?;
    Ok(all)
}

/// Like [`read`], but gives each document as it is read, and keeps none: a text of 20,000 pods would be 200 MiB of them.
///
/// After an error the documents that were given are not to be used.
pub fn read_each(text: &str, mut give: impl FnMut(Document)) -> Result<(), YamlError> {
    if text.len() > TEXT_LEN_MAX {
        return Err(YamlError {
            at: Position::default(),
            message: format!("is {} bytes long; at most {TEXT_LEN_MAX} are read", text.len()),
        });
    }
    let mut bytes = text.as_bytes();
    for placed in serde_saphyr::read_with_options::<_, Placed>(&mut bytes, options()) {
        let placed = placed.map_err(|error| YamlError {
            at: error.location().map(position).unwrap_or_default(),
            message: message(&error.without_snippet().to_string()),
        })?;
        documents(placed).into_iter().for_each(&mut give);
    }
    Ok(())
}

/// Kubernetes' YAML: no key twice, and `yes` is a string. A document may be as long as a text: a `List` of 5,000 pods
/// has two million nodes. What aliases may multiply is bounded by the library's own limits.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::Error,
        strict_booleans: true,
        emit_comments: false,
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_nodes: TEXT_LEN_MAX,
            max_events: TEXT_LEN_MAX,
        },
    }
}

fn position(location: serde_saphyr::Location) -> Position {
    Position { line: location.line(), column: location.column() }
}

/// What the parser says, on one line, without the place (which is told apart) and its hints to programmers.
fn message(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let said = line.rsplit_once(" at line ").map_or(&*line, |(said, _)| said);
    said.split_once(", set DuplicateKeyPolicy").map_or(said, |(said, _)| said).to_owned()
}

fn documents(placed: Placed) -> Vec<Document> {
    let Placed { node, at } = placed;
    let field = |pairs: &[(String, Placed)], name: &str| {
        pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.node.to_json())
    };
    match node {
        Node::Map(mut pairs)
            if field(&pairs, "kind").as_ref().and_then(|kind| kind.as_str()) == Some("List")
                && field(&pairs, "apiVersion").as_ref().and_then(|version| version.as_str())
                    == Some("v1") =>
        {
            let items =
                pairs.iter().position(|(key, _)| key == "items").map(|at| pairs.swap_remove(at).1.node);
            match items {
                Some(Node::List(items)) => items.into_iter().map(document).collect(),
                Some(Node::Leaf(_) | Node::Map(_)) | None => Vec::new(),
            }
        }
        node @ (Node::Leaf(_) | Node::List(_) | Node::Map(_)) => vec![document(Placed { node, at })],
    }
}

fn document(placed: Placed) -> Document {
    Document { value: placed.node.to_json(), at: placed.at, tree: placed.node }
}

/// A value and where it stands.
#[derive(Clone, Debug)]
struct Placed {
    node: Node,
    at: Position,
}

#[derive(Clone, Debug)]
enum Node {
    Leaf(serde_json::Value),
    List(Vec<Placed>),
    Map(Vec<(String, Placed)>),
}

impl Node {
    fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Leaf(value) => value.clone(),
            Self::List(values) => values.iter().map(|value| value.node.to_json()).collect(),
            Self::Map(pairs) => pairs
                .iter()
                .map(|(key, value)| (key.clone(), value.node.to_json()))
                .collect::<serde_json::Map<_, _>>()
                .into(),
        }
    }
}

impl<'de> Deserialize<'de> for Placed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Node>::deserialize(deserializer)?;
        Ok(Self { at: position(spanned.referenced), node: spanned.value })
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
        f.write_str("a YAML value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Leaf(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Leaf(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Leaf(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Leaf(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Leaf(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Node, E> {
        Ok(Node::Leaf(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf(serde_json::Value::Null))
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Leaf(serde_json::Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element()? {
            values.push(value);
        }
        Ok(Node::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut pairs = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            pairs.push((key, map.next_value()?));
        }
        Ok(Node::Map(pairs))
    }
}
