//! What is wrong with an object, and where in it.

use std::fmt;

/// A field's place in its object, as `kubectl explain` writes it: `spec.rules[0].to[0].operation.ports[1]`.
#[derive(Clone, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct FieldPath(Vec<Segment>);

/// One step into an object.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Segment {
    /// A field, or a key of a map.
    Key(String),
    /// A place in a list.
    Index(usize),
}

impl FieldPath {
    /// The object itself.
    pub const ROOT: Self = Self(Vec::new());

    /// The path of such steps.
    pub fn of<'a>(keys: impl IntoIterator<Item = &'a str>) -> Self {
        Self(keys.into_iter().map(|key| Segment::Key(key.to_owned())).collect())
    }

    /// This field's field or key.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        self.step(Segment::Key(key.to_owned()))
    }

    /// An element of this list.
    #[must_use]
    pub fn index(&self, at: usize) -> Self {
        self.step(Segment::Index(at))
    }

    /// The steps, outermost first.
    pub fn segments(&self) -> &[Segment] {
        &self.0
    }

    fn step(&self, segment: Segment) -> Self {
        let mut steps = self.0.clone();
        steps.push(segment);
        Self(steps)
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("(object)");
        }
        for (at, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Key(key) if key.contains(['.', '/', '[', ']']) => write!(f, "[{key:?}]")?,
                Segment::Key(key) if at == 0 => f.write_str(key)?,
                Segment::Key(key) => write!(f, ".{key}")?,
                Segment::Index(at) => write!(f, "[{at}]")?,
            }
        }
        Ok(())
    }
}

/// One field that was not understood. The object is used all the same, in the way that its kind defines.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// Which field.
    pub field: FieldPath,
    /// Which rule it breaks.
    pub wrong: Wrong,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.wrong)
    }
}

/// The rules that a field can break.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Wrong {
    /// A field that has no meaning here: a typing error, or one of a newer version.
    #[error("is not a field that adit knows; here it knows {known}")]
    UnknownField {
        /// The fields that have one.
        known: String,
    },
    /// A field that only a proxy which reads HTTP could judge.
    #[error("is decided by what is inside HTTP; adit decides at L4, by identity, address and port")]
    Http,
    /// Another type than the field has.
    #[error("is {found}, not {expected}")]
    Type {
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// Nothing where something is needed.
    #[error("is missing")]
    Missing,
    /// A list or object that has nothing in it, where that could mean all or nothing.
    #[error("is empty: write what it should match, or leave it out")]
    Empty,
    /// A word that is none of those allowed.
    #[error("is {value:?}, not one of {known}")]
    UnknownValue {
        /// The word.
        value: String,
        /// Those allowed.
        known: &'static str,
    },
    /// Not a port number.
    #[error("is {0:?}, not a port (1 to 65535)")]
    Port(String),
    /// Not a list of ports and port ranges.
    #[error("has {0:?}, which is neither a port nor a range of ports like 8000-8999")]
    PortRange(String),
    /// A port name that the container does not declare.
    #[error("names the port {0:?}, which its container does not declare")]
    PortName(String),
    /// Neither an address nor a block of addresses.
    #[error("is {0:?}, neither an address nor a block like 10.0.0.0/8")]
    Cidr(String),
    /// Not an address.
    #[error("is {0:?}, not an IP address")]
    Address(String),
    /// A star elsewhere than at one end, or an empty string.
    #[error("is {0:?}; a star may stand alone, first or last")]
    Pattern(String),
    /// A principal that no identity can equal.
    #[error("is {0:?}, which is no identity; one is written cluster.local/ns/NAMESPACE/sa/ACCOUNT")]
    Principal(String),
    /// Neither an account nor a namespace and an account.
    #[error("is {0:?}, neither ACCOUNT nor NAMESPACE/ACCOUNT")]
    ServiceAccount(String),
    /// No namespace can be named like this.
    #[error("is {0:?}, which no namespace is named like")]
    Namespace(String),
    /// No label can look like this.
    #[error("is {0:?}, which no label can be")]
    Label(String),
    /// Not a duration.
    #[error("is {0:?}, not a duration like 1m30s or 250ms, above zero and up to 1h (GEP-2257)")]
    Duration(String),
    /// A number that is out of bounds.
    #[error("is {value}, not within {least} to {most}")]
    Range {
        /// The number.
        value: i64,
        /// The least allowed.
        least: i64,
        /// The most allowed.
        most: i64,
    },
    /// Another object of the same scope, or for the same target, is older.
    #[error("does not count: {0} is for the same and older")]
    Conflict(String),
}

/// Which object: its kind and, as far as they could be read, its names.
#[derive(Clone, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ObjectRef {
    /// `kind`.
    pub kind: String,
    /// `metadata.namespace`; empty where it has none.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// An object that could not be read at all. What was known of it before still holds.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{object}: {field}: {rule}")]
pub struct Rejected {
    /// Which object. Boxed: a result that is nearly always good should not carry its size.
    pub object: Box<ObjectRef>,
    /// Which field.
    pub field: FieldPath,
    /// Which rule it breaks.
    pub rule: Unreadable,
}

/// Why an object could not be read at all.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unreadable {
    /// Its type is not the field's; the decoder's own words.
    #[error("{0}")]
    Shape(String),
    /// A field breaks a rule without which the object means nothing.
    #[error(transparent)]
    Field(#[from] Wrong),
    /// A kind of ours in an API group or version that is not.
    #[error("is {found:?}; adit reads this kind from {wanted}")]
    ApiVersion {
        /// What it says.
        found: String,
        /// What it should say.
        wanted: &'static str,
    },
    /// A kind that our API group does not have.
    #[error("is {0:?}, which is no kind of policy.adit.dev/v1alpha1")]
    Kind(String),
}
