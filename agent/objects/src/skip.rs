//! The labels and annotations of ours that pods and namespaces share.

use std::collections::BTreeMap;

use adit_core::workload::{MeshLabel, PortRange, Skip};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::policies::parse;
use crate::problem::{FieldPath, Problem, Wrong};

/// The label that enrols.
pub const MESH_LABEL: &str = "adit.dev/mesh";
/// The annotation by which a node's agent says that a pod is captured.
pub const CAPTURE_ANNOTATION: &str = "adit.dev/capture";
const SKIP_PREFIX: &str = "adit.dev/skip-";
const OUTBOUND_PORTS: &str = "adit.dev/skip-outbound-ports";
const OUTBOUND_CIDRS: &str = "adit.dev/skip-outbound-cidrs";
const INBOUND_PORTS: &str = "adit.dev/skip-inbound-ports";

/// What the label [`MESH_LABEL`] says. Any other word than its two is a problem, and says nothing.
pub(crate) fn mesh_label(metadata: &ObjectMeta, problems: &mut Vec<Problem>) -> Option<MeshLabel> {
    match metadata.labels.as_ref()?.get(MESH_LABEL)?.as_str() {
        "enabled" => Some(MeshLabel::Enabled),
        "disabled" => Some(MeshLabel::Disabled),
        other => {
            problems.push(Problem {
                field: FieldPath::of(["metadata", "labels", MESH_LABEL]),
                wrong: Wrong::UnknownValue { value: other.to_owned(), known: "enabled, disabled" },
            });
            None
        }
    }
}

/// What the skip annotations say. With one bad value nothing at all is skipped: what is skipped is in clear.
pub(crate) fn skip(metadata: &ObjectMeta, problems: &mut Vec<Problem>) -> Skip {
    let none = BTreeMap::new();
    let annotations = metadata.annotations.as_ref().unwrap_or(&none);
    let before = problems.len();
    let mut skip = Skip::default();
    for (key, text) in annotations.range(SKIP_PREFIX.to_owned()..) {
        if !key.starts_with(SKIP_PREFIX) {
            break;
        }
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        let bad = match key.as_str() {
            OUTBOUND_PORTS => collect(items, &mut skip.outbound_ports, port_range),
            INBOUND_PORTS => collect(items, &mut skip.inbound_ports, port_range),
            OUTBOUND_CIDRS => collect(items, &mut skip.outbound_cidrs, parse::cidr),
            _ => Some(Wrong::UnknownField {
                known: [INBOUND_PORTS, OUTBOUND_CIDRS, OUTBOUND_PORTS].join(", "),
            }),
        };
        if let Some(wrong) = bad {
            let field = FieldPath::of(["metadata", "annotations", key]);
            problems.push(Problem { field, wrong });
        }
    }
    match problems.get(before) {
        None => skip,
        Some(problem) => Skip { invalid: Some(problem.to_string().into()), ..Skip::default() },
    }
}

fn collect<'a, T>(
    items: impl Iterator<Item = &'a str>,
    into: &mut Vec<T>,
    read: impl Fn(&str) -> Result<T, Wrong>,
) -> Option<Wrong> {
    for item in items {
        match read(item) {
            Ok(value) => into.push(value),
            Err(wrong) => return Some(wrong),
        }
    }
    None
}

/// `80` or `8000-8999`.
fn port_range(text: &str) -> Result<PortRange, Wrong> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (parse::port(first.trim()), parse::port(last.trim())) {
        (Ok(first), Ok(last)) if first <= last => Ok(first..=last),
        (Ok(_) | Err(_), Ok(_) | Err(_)) => Err(Wrong::PortRange(text.to_owned())),
    }
}
