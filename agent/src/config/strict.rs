//! Reads one YAML document into a type, and reports every mistake at once, each with its field and line.
//!
//! serde stops at the first mistake: so each one is noted, its field is taken out, and the rest is read again.

use std::collections::BTreeSet;
use std::fmt;

use adit_objects::problem::{FieldPath, Segment};
use adit_objects::yaml::{self, Document, Position};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
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
    /// `LINE:COLUMN: FIELD: WHAT`, as far as they are known.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.at != Position::default() {
            write!(f, "{}: ", self.at)?;
        }
        if !self.field.segments().is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.what)
    }
}

/// What was read of a text, and what is wrong with it so far.
#[derive(Debug)]
pub struct Reading<C> {
    /// What it says, with the defaults in place of what is wrong; none where nothing can be made of it.
    pub config: Option<C>,
    document: Option<Document>,
    mistakes: Vec<Mistake>,
}

impl<C> Reading<C> {
    fn failed(at: Position, what: String) -> Self {
        Self { config: None, document: None, mistakes: vec![Mistake { at, field: FieldPath::ROOT, what }] }
    }

    /// Adds a mistake that a value alone does not show. A field that is wrong already is not blamed twice.
    pub fn blame(&mut self, field: FieldPath, what: String) {
        if self.mistakes.iter().all(|known| known.field != field) {
            let at = self.locate(&field);
            self.mistakes.push(Mistake { at, field, what });
        }
    }

    /// What was read, if nothing is wrong; else every mistake, in order of lines.
    pub fn finish(mut self) -> Result<C, Vec<Mistake>> {
        match self.config {
            Some(config) if self.mistakes.is_empty() => Ok(config),
            Some(_) | None => {
                self.mistakes.sort_by_key(|mistake| mistake.at);
                Err(self.mistakes)
            }
        }
    }

    fn locate(&self, field: &FieldPath) -> Position {
        self.document.as_ref().map(|document| document.locate(field)).unwrap_or_default()
    }
}

/// Reads `text`; every field of `C` must have a default. An empty text is all defaults.
pub fn read<C: DeserializeOwned>(text: &str) -> Reading<C> {
    let documents = match yaml::read(text) {
        Ok(documents) => documents,
        Err(error) => return Reading::failed(error.at, error.message),
    };
    if let [_, second, ..] = documents.as_slice() {
        return Reading::failed(second.at, "a second document: there must be one".into());
    }
    let document = documents.into_iter().next();
    let mut value =
        document.as_ref().map_or_else(|| Value::Object(Map::new()), |document| document.value.clone());
    let mut reading = Reading { config: None, document, mistakes: Vec::new() };
    let mut removed = Vec::new();
    while reading.mistakes.len() < MISTAKES_MAX {
        let error = match serde_path_to_error::deserialize::<_, C>(&value) {
            Ok(config) => {
                reading.config = Some(config);
                break;
            }
            Err(error) => error,
        };
        let what = error.inner().to_string();
        let left = culprit(&path(error.path()), &what, &value);
        let field = as_written(&left, &removed);
        let at = reading.locate(&field);
        reading.mistakes.push(Mistake { at, field: field.clone(), what });
        if !remove(&mut value, left.segments()) {
            break;
        }
        removed.push(field);
    }
    reading
}

/// The path of a field before what is in `removed` was taken out: elements of a list have moved up.
fn as_written(left: &FieldPath, removed: &[FieldPath]) -> FieldPath {
    left.segments().iter().fold(FieldPath::ROOT, |list, segment| match segment {
        Segment::Key(key) => list.key(key),
        Segment::Index(index) => {
            let gone: BTreeSet<usize> = removed
                .iter()
                .filter_map(|path| match path.segments().split_last() {
                    Some((Segment::Index(gone), parents)) if parents == list.segments() => Some(*gone),
                    Some(_) | None => None,
                })
                .collect();
            let index = gone.into_iter().fold(*index, |index, gone| index + usize::from(gone <= index));
            list.index(index)
        }
    })
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
        read::<Outer>(text).finish().unwrap_err().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn nothing_is_all_defaults_and_good_values_are_taken() {
        assert_eq!(read::<Outer>("").finish().unwrap(), Outer::default());
        assert_eq!(read::<Outer>("inner: {count: 3}\nlist: [1, 2]\n").finish().unwrap().inner.count, 3);
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
    fn every_mistake_in_one_list_has_its_own_place() {
        let said = said("list:\n  - a\n  - 1\n  - b\n  - c\n");
        assert_eq!(said.len(), 3, "{said:#?}");
        for (line, start) in said.iter().zip(["2:5: list[0]", "4:5: list[2]", "5:5: list[3]"]) {
            assert!(line.starts_with(start), "{line}");
        }
    }

    #[test]
    fn what_a_value_alone_does_not_show_is_in_the_same_report_and_no_field_is_blamed_twice() {
        let mut reading = read::<Outer>("list: [1]\ninner:\n  count: many\n  flag: true\n");
        for field in ["flag", "count"] {
            reading.blame(FieldPath::of(["inner", field]), "is not wanted".into());
        }
        let said: Vec<_> = reading.finish().unwrap_err().iter().map(ToString::to_string).collect();
        assert_eq!(said.len(), 2, "{said:#?}");
        assert!(said[0].starts_with("3:") && said[1] == "4:9: inner.flag: is not wanted", "{said:#?}");
    }

    #[test]
    fn what_is_no_yaml_is_said_with_its_place() {
        assert!(said("a: [")[0].starts_with(['1', '2']));
        assert_eq!(said("a: 1\n---\nb: 1\n").len(), 1);
        assert_eq!(said("- 1\n").len(), 1);
    }
}
