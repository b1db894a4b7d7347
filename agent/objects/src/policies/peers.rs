//! PeerAuthentication: whether plaintext may enter. One that is not understood is STRICT on every port.

use std::collections::BTreeMap;

use adit_core::policy::{PeerAuthentication, PeerMode};
use adit_core::world::{Change, Kind};
use serde_json::Value;

use super::{At, Policy, mistyped, object, parse, present, scope};
use crate::meta::{Translated, namespaced_name};
use crate::problem::{Problem, Rejected, Wrong};

/// Fields of `spec`.
pub(crate) const SPEC: &[&str] = &["mtls", "portLevelMtls", "selector"];
/// Fields of `mtls`.
pub(crate) const MTLS: &[&str] = &["mode"];

/// What a PeerAuthentication means. `system_namespace` is where one without selector is mesh-wide.
pub fn translate(policy: &Policy, system_namespace: &str) -> Result<Translated, Rejected> {
    let name = namespaced_name(Kind::PeerAuthentication, &policy.metadata)?;
    let mut problems = Vec::new();
    let spec = policy.spec(SPEC, &mut problems);
    let scope = scope(&spec, &name.namespace, system_namespace, &mut problems);
    let root = At::ROOT.key("spec");
    let mut mode = spec.get("mtls").and_then(|value| mtls(value, &root.key("mtls"), &mut problems));
    let ports_at = root.key("portLevelMtls");
    let mut port_modes = match spec.get("portLevelMtls") {
        None => BTreeMap::new(),
        Some(value) => ports(value, &ports_at, &mut problems),
    };
    if !problems.is_empty() {
        mode = Some(PeerMode::Strict);
        port_modes.clear();
    }
    Ok(Translated {
        change: Some(Change::PeerAuthentication(PeerAuthentication {
            created: policy.created(),
            name,
            scope,
            mode,
            port_modes,
        })),
        problems,
    })
}

fn ports(value: &Value, at: &At<'_>, problems: &mut Vec<Problem>) -> BTreeMap<u16, PeerMode> {
    let mut modes = BTreeMap::new();
    let Some(fields) = value.as_object() else {
        mistyped(value, "an object", at, problems);
        return modes;
    };
    for (key, value) in fields {
        let at = at.key(key);
        let mode = mtls(value, &at, problems);
        match (parse::port(key), mode) {
            (Ok(port), Some(mode)) => {
                modes.insert(port, mode);
            }
            // UNSET: as without the entry.
            (Ok(_), None) => {}
            (Err(wrong), Some(_) | None) => at.wrong(wrong, problems),
        }
    }
    modes
}

/// Reads `{mode: …}`; none for UNSET.
fn mtls(value: &Value, at: &At<'_>, problems: &mut Vec<Problem>) -> Option<PeerMode> {
    let mode = present(object(value, at, MTLS, problems)?, "mode")?;
    let at = at.key("mode");
    match mode.as_str() {
        Some("STRICT") => Some(PeerMode::Strict),
        Some("PERMISSIVE") => Some(PeerMode::Permissive),
        Some("UNSET") => None,
        Some(other) => {
            let wrong = Wrong::UnknownValue { value: other.to_owned(), known: "STRICT, PERMISSIVE, UNSET" };
            at.wrong(wrong, problems);
            None
        }
        None => {
            mistyped(mode, "a string", &at, problems);
            None
        }
    }
}
