//! Reads one YAML document into a type, and reports every mistake at once, each with its field and line.
//!
//! serde stops at the first mistake: so each one is noted, its field is taken out, and the rest is read again.

use std::fmt;

use adit_objects::problem::{FieldPath, Segment};
use adit_objects::yaml::{self, Position};
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::Segment as Step;

/// More mistakes than this in one file are not looked for.
const MISTAKES_MAX: usize = 50;

/// One thing that is wrong with a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mistake {
    /// Where it stands.
    pub at: Position,
    /// The field, as `dataplane.buffer-budget`.
    pub field: FieldPath,
    /// What is wrong with it.
    pub what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.segments().is_empty() {
            write!(f, "{}: {}", self.at, self.what)
        } else {
            write!(f, "{}: {}: {}", self.at, self.field, self.what)
        }
    }
}

/// Reads `text`; every field of `C` must have a default. An empty text is all defaults.
pub fn read<C: DeserializeOwned>(text: &str) -> Result<C, Vec<Mistake>> {
    let whole = |at, what: String| vec![Mistake { at, field: FieldPath::ROOT, what }];
    let documents = yaml::read(text).map_err(|error| whole(error.at, error.message))?;
    let (mut value, document) = match documents.as_slice() {
        [] => (Value::Object(serde_json::Map::new()), None),
        [document] => (document.value.clone(), Some(document)),
        [_, second, ..] => return Err(whole(second.at, "a second document: there must be one".into())),
    };
    let mut mistakes = Vec::new();
    loop {
        let error = match serde_path_to_error::deserialize::<_, C>(&value) {
            Ok(config) if mistakes.is_empty() => return Ok(config),
            Ok(_) => break,
            Err(error) => error,
        };
        let what = error.inner().to_string();
        let field = culprit(&path(error.path()), &what, &value);
        let at = document.map(|document| document.locate(&field)).unwrap_or_default();
        let removed = remove(&mut value, field.segments());
        mistakes.push(Mistake { at, field, what });
        if !removed || mistakes.len() >= MISTAKES_MAX {
            break;
        }
    }
    mistakes.sort_by_key(|mistake| mistake.at);
    Err(mistakes)
}

fn path(path: &serde_path_to_error::Path) -> FieldPath {
    path.iter().fold(FieldPath::ROOT, |field, step| match step {
        Step::Seq { index } => field.index(*index),
        Step::Map { key } => field.key(key),
        Step::Enum { .. } | Step::Unknown => field,
    })
}

/// The field to blame: of an unknown field serde names the object that holds it, and the field in its message.
fn culprit(field: &FieldPath, what: &str, value: &Value) -> FieldPath {
    let unknown =
        what.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`')).map(|(name, _)| name);
    match unknown {
        Some(name) if at(value, field.segments()).is_some_and(|object| object.get(name).is_some()) => {
            field.key(name)
        }
        Some(_) | None => field.clone(),
    }
}

fn at<'v>(value: &'v Value, path: &[Segment]) -> Option<&'v Value> {
    path.iter().try_fold(value, |value, segment| match segment {
        Segment::Key(key) => value.get(key),
        Segment::Index(index) => value.get(index),
    })
}

/// Takes the value at `path` out of its parent; false where there is none.
fn remove(value: &mut Value, path: &[Segment]) -> bool {
    let Some((last, parents)) = path.split_last() else { return false };
    let parent = parents.iter().try_fold(value, |value, segment| match segment {
        Segment::Key(key) => value.get_mut(key),
        Segment::Index(index) => value.get_mut(index),
    });
    match (parent, last) {
        (Some(Value::Object(fields)), Segment::Key(key)) => fields.remove(key).is_some(),
        (Some(Value::Array(values)), Segment::Index(index)) if *index < values.len() => {
            values.remove(*index);
            true
        }
        (Some(_) | None, _) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
    struct Outer {
        inner: Inner,
        list: Vec<u16>,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
    struct Inner {
        count: u16,
        flag: bool,
    }

    fn said(text: &str) -> Vec<String> {
        read::<Outer>(text).unwrap_err().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn nothing_is_all_defaults_and_good_values_are_taken() {
        assert_eq!(read::<Outer>("").unwrap(), Outer::default());
        assert_eq!(read::<Outer>("inner: {count: 3}\nlist: [1, 2]\n").unwrap().inner.count, 3);
    }

    #[test]
    fn every_mistake_is_reported_with_its_line_in_one_go() {
        let said = said("inner:\n  count: many\n  flg: true\nlist:\n  - 1\n  - 70000\nunknown: 1\n");
        assert_eq!(said.len(), 4, "{said:#?}");
        for (line, start) in said.iter().zip(["2:", "3:", "6:", "7:"]) {
            assert!(line.starts_with(start), "{line}");
        }
        assert!(said[1].contains("inner.flg") && said[1].contains("unknown field `flg`"), "{}", said[1]);
        assert!(said[2].contains("list[1]"), "{}", said[2]);
    }

    #[test]
    fn what_is_no_yaml_is_said_with_its_place() {
        assert!(said("a: [")[0].starts_with(['1', '2']));
        assert_eq!(said("a: 1\n---\nb: 1\n").len(), 1);
        assert_eq!(said("- 1\n").len(), 1);
    }
}
