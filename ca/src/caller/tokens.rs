//! The token file: which node has which token, and what it may ask for. Pure.
//!
//! ```yaml
//! nodes:
//!   node-a:
//!     token: 6f1d2c…            # 16 to 4096 visible ASCII characters
//!     identities:
//!       - spiffe://cluster.local/ns/shop/sa/web
//!       - spiffe://cluster.local/ns/cart/*
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use serde::Deserialize;
use serde_saphyr::Spanned;

use crate::attest::{Allowed, Caller};

/// The shortest token. 16 characters of base64 hold 96 bits.
pub const TOKEN_LEN_MIN: usize = 16;
/// The longest token; a ServiceAccount's has about 1 KiB, and all headers of a request together at most 16 KiB.
pub const TOKEN_LEN_MAX: usize = 4096;

/// Known callers by the digest of their token.
#[derive(Debug, Default)]
pub struct Tokens(Vec<([u8; 32], Caller)>);

/// One mistake in the token file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mistake {
    /// Line, from 1; 0 if it is the whole file's.
    pub line: u64,
    /// Where in the structure, as `nodes.node-a.token`; may be empty.
    pub at: String,
    /// What is wrong.
    pub what: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Written {
    nodes: BTreeMap<String, Node>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Node {
    token: Spanned<String>,
    identities: Vec<Spanned<String>>,
}

impl Tokens {
    /// Reads a token file's text; all mistakes of meaning are found in one go, one of YAML ends the reading.
    pub fn parse(text: &[u8]) -> Result<Self, Vec<Mistake>> {
        let written: Written = serde_saphyr::from_slice(text).map_err(|error| {
            let (line, what) = crate::yaml_mistake(&error);
            vec![Mistake { line, at: String::new(), what: without_field(what) }]
        })?;
        let mut tokens = Self::default();
        let mut mistakes = Vec::new();
        for (node, entry) in written.nodes {
            tokens.add(node, entry, &mut mistakes);
        }
        if mistakes.is_empty() {
            return Ok(tokens);
        }
        mistakes.sort_by_key(|mistake| mistake.line);
        Err(mistakes)
    }

    fn add(&mut self, node: String, entry: Node, mistakes: &mut Vec<Mistake>) {
        let token = &entry.token.value;
        let line = entry.token.referenced.line();
        let mut mistaken = |line, at: String, what: String| mistakes.push(Mistake { line, at, what });
        if node.is_empty() || node.len() > 253 {
            mistaken(line, format!("nodes.{node:?}"), "a node's name has 1 to 253 characters".to_owned());
        }
        if !(TOKEN_LEN_MIN..=TOKEN_LEN_MAX).contains(&token.len())
            || !token.bytes().all(|b| b.is_ascii_graphic())
        {
            let what = format!("a token has {TOKEN_LEN_MIN} to {TOKEN_LEN_MAX} visible ASCII characters");
            mistaken(line, format!("nodes.{node}.token"), what);
        }
        let digest = digest_of(token.as_bytes());
        if let Some((_, other)) = self.0.iter().find(|(known, _)| *known == digest) {
            let what = format!("node {} has the same token: it could not be told who calls", other.node);
            mistaken(line, format!("nodes.{node}.token"), what);
        }
        let mut allowed = Vec::new();
        for (index, identity) in entry.identities.iter().enumerate() {
            match identity.value.parse::<Allowed>() {
                Ok(parsed) => allowed.push(parsed),
                Err(error) => mistaken(
                    identity.referenced.line(),
                    format!("nodes.{node}.identities[{index}]"),
                    format!("{:?}: {error}", identity.value),
                ),
            }
        }
        self.0.push((digest, Caller { node: node.into(), allowed: allowed.into() }));
    }

    /// How many callers there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nobody is known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whose token this is. Takes the same time whether and where it is found.
    pub fn caller(&self, token: &[u8]) -> Option<Caller> {
        let digest = digest_of(token);
        let mut found = None;
        for (known, caller) in &self.0 {
            if verify_slices_are_equal(known, &digest).is_ok() {
                found = Some(caller);
            }
        }
        found.cloned()
    }
}

/// A field's name that is none may be a token in the wrong place: it is not repeated.
fn without_field(what: String) -> String {
    match what.strip_prefix("unknown field `").and_then(|rest| rest.rsplit_once("`, ")) {
        Some((_, expected)) => format!("unknown field, {expected}"),
        None => what,
    }
}

/// The digest, not the token, is compared and kept: its length is fixed, and memory holds no token.
pub(super) fn digest_of(token: &[u8]) -> [u8; 32] {
    let mut octets = [0; 32];
    octets.copy_from_slice(digest(&SHA256, token).as_ref());
    octets
}

/// Every mistake on a line of its own, each with file and line number.
pub(super) fn lines(path: &Path, mistakes: &[Mistake]) -> impl fmt::Display {
    let lines: Vec<String> = mistakes
        .iter()
        .map(|Mistake { line, at, what }| match (line, at.as_str()) {
            (0, _) => format!("{}: {what}", path.display()),
            (line, "") => format!("{}:{line}: {what}", path.display()),
            (line, at) => format!("{}:{line}: {at}: {what}", path.display()),
        })
        .collect();
    lines.join("\n")
}
