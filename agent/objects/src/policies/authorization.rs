//! AuthorizationPolicy: Istio's L4 subset, read so that what is not understood allows less and denies more.
//!
//! | not understood | what it means |
//! |---|---|
//! | a condition, a value or an unknown field in a rule | the rule is marked: ALLOW and AUDIT never match it, DENY takes the condition as true |
//! | `selector` | every workload of the namespace; in ALLOW no rule matches |
//! | `dryRun` | enforced; in ALLOW no rule matches |
//! | `action` | [`Action::NotUnderstood`] |
//! | a field in or beside `spec` | every rule is marked; where there is no rule to mark, one that DENY takes as true for all |
//! | `rules` itself | one such rule |

use std::sync::Arc;

use adit_core::net::ObjectName;
use adit_core::policy::{Action, Among, AuthorizationPolicy, Condition, Operation, Rule, Source, Understood};
use adit_core::world::{Change, Kind};
use serde_json::{Map, Value};

use super::{At, Policy, Spec, list, mistyped, object, parse, port, present, scope, text, values};
use crate::meta::{Translated, namespaced_name};
use crate::problem::{Problem, Rejected, Wrong};

/// Fields of `spec`.
pub(crate) const SPEC: &[&str] = &["action", "dryRun", "rules", "selector"];
/// Fields of a rule.
pub(crate) const RULE: &[&str] = &["from", "to", "when"];
/// Fields of `from[]`.
pub(crate) const FROM: &[&str] = &["source"];
/// Fields of `to[]`.
pub(crate) const TO: &[&str] = &["operation"];
/// Fields of `from[].source`.
pub(crate) const SOURCE: &[&str] = &[
    "ipBlocks",
    "namespaces",
    "notIpBlocks",
    "notNamespaces",
    "notPrincipals",
    "notServiceAccounts",
    "principals",
    "serviceAccounts",
];
/// Fields of `to[].operation`.
pub(crate) const OPERATION: &[&str] = &["notPorts", "ports"];
/// Fields of `when[]`.
pub(crate) const WHEN: &[&str] = &["key", "notValues", "values"];
/// Values of `when[].key`.
pub(crate) const KEYS: &str =
    "source.principal, source.namespace, source.ip, destination.ip, destination.port";

/// What an AuthorizationPolicy means. `system_namespace` is where a policy without selector is mesh-wide.
pub fn translate(policy: &Policy, system_namespace: &str) -> Result<Translated, Rejected> {
    let name = namespaced_name(Kind::AuthorizationPolicy, &policy.metadata)?;
    let mut problems = Vec::new();
    let spec = policy.spec(SPEC, &mut problems);
    let scope = scope(&spec, &name.namespace, system_namespace, &mut problems);
    let dry_run = dry_run(&spec, &mut problems);
    let whole = if problems.is_empty() { Understood::Fully } else { Understood::InPart };
    let action = action(&spec, &mut problems);
    let mut rules = rules(&spec, &name, &mut problems);
    for rule in &mut rules {
        rule.understood = match whole {
            Understood::Fully => rule.understood,
            Understood::InPart => Understood::InPart,
        };
    }
    Ok(Translated {
        change: Some(Change::AuthorizationPolicy(AuthorizationPolicy {
            created: policy.created(),
            name,
            scope,
            action,
            dry_run,
            rules,
        })),
        problems,
    })
}

fn action(spec: &Spec<'_>, problems: &mut Vec<Problem>) -> Action {
    let root = At::ROOT.key("spec");
    let at = root.key("action");
    match spec.get("action") {
        None => Action::Allow,
        Some(Value::String(word)) => match word.as_str() {
            "ALLOW" => Action::Allow,
            "DENY" => Action::Deny,
            "AUDIT" => Action::Audit,
            other => {
                let wrong = Wrong::UnknownValue { value: other.to_owned(), known: "ALLOW, DENY, AUDIT" };
                at.wrong(wrong, problems);
                Action::NotUnderstood
            }
        },
        Some(value) => {
            mistyped(value, "a string", &at, problems);
            Action::NotUnderstood
        }
    }
}

fn dry_run(spec: &Spec<'_>, problems: &mut Vec<Problem>) -> bool {
    match spec.get("dryRun") {
        None => false,
        Some(Value::Bool(dry_run)) => *dry_run,
        Some(value) => {
            mistyped(value, "a boolean", &At::ROOT.key("spec").key("dryRun"), problems);
            false
        }
    }
}

fn rules(spec: &Spec<'_>, name: &ObjectName, problems: &mut Vec<Problem>) -> Vec<Rule> {
    let root = At::ROOT.key("spec");
    let at = root.key("rules");
    // Stands for rules that were meant, but cannot be read.
    let lost = || vec![Rule { understood: Understood::InPart, ..Rule::default() }];
    match spec.get("rules") {
        Some(Value::Array(raw)) if !raw.is_empty() => {
            let reader = Reader { own: &name.namespace };
            let each = raw.iter().enumerate();
            each.map(|(index, value)| reader.rule(value, &at.index(index), problems)).collect()
        }
        None | Some(Value::Array(_)) if spec.is_whole => Vec::new(),
        None | Some(Value::Array(_)) => lost(),
        Some(value) => {
            mistyped(value, "a list", &at, problems);
            lost()
        }
    }
}

/// Reads rules; knows the policy's own namespace, which a bare service account is in.
struct Reader<'a> {
    own: &'a Arc<str>,
}

impl Reader<'_> {
    fn rule(&self, value: &Value, at: &At<'_>, problems: &mut Vec<Problem>) -> Rule {
        let before = problems.len();
        let mut rule = Rule::default();
        if let Some(fields) = object(value, at, RULE, problems) {
            if let Some(value) = present(fields, "from") {
                rule.from = each(value, &at.key("from"), problems, |value, at, problems| {
                    self.source(value, at, problems)
                });
            }
            if let Some(value) = present(fields, "to") {
                rule.to = each(value, &at.key("to"), problems, operation);
            }
            // No conditions are no condition; no sources could be all or none.
            let no_conditions = |value: &&Value| value.as_array().is_some_and(Vec::is_empty);
            if let Some(value) = present(fields, "when").filter(|value| !no_conditions(value)) {
                let conditions = each(value, &at.key("when"), problems, condition);
                rule.when = conditions.into_iter().flatten().collect();
            }
        }
        if problems.len() > before {
            rule.understood = Understood::InPart;
        }
        rule
    }

    fn source(&self, value: &Value, at: &At<'_>, problems: &mut Vec<Problem>) -> Source {
        let Some(fields) = inner(value, at, (FROM, "source"), SOURCE, problems) else {
            return Source::default();
        };
        let at = &at.key("source");
        let account = |text: &str| parse::service_account(text, self.own);
        Source {
            principals: among(fields, ["principals", "notPrincipals"], at, text(parse::principal), problems),
            namespaces: among(fields, ["namespaces", "notNamespaces"], at, text(parse::namespace), problems),
            service_accounts: among(
                fields,
                ["serviceAccounts", "notServiceAccounts"],
                at,
                text(account),
                problems,
            ),
            ip_blocks: among(fields, ["ipBlocks", "notIpBlocks"], at, text(parse::cidr), problems),
        }
    }
}

fn operation(value: &Value, at: &At<'_>, problems: &mut Vec<Problem>) -> Operation {
    let Some(fields) = inner(value, at, (TO, "operation"), OPERATION, problems) else {
        return Operation::default();
    };
    Operation { ports: among(fields, ["ports", "notPorts"], &at.key("operation"), port, problems) }
}

/// Reads one of `when`; none where its key is not understood: then it counts as true, and the rule as marked.
fn condition(value: &Value, at: &At<'_>, problems: &mut Vec<Problem>) -> Option<Condition> {
    let fields = object(value, at, WHEN, problems)?;
    if present(fields, "values").is_none() && present(fields, "notValues").is_none() {
        at.key("values").wrong(Wrong::Missing, problems);
    }
    let key_at = at.key("key");
    let Some(key) = present(fields, "key") else {
        key_at.wrong(Wrong::Missing, problems);
        return None;
    };
    let names = ["values", "notValues"];
    match key.as_str() {
        Some("source.principal") => {
            Some(Condition::SourcePrincipal(among(fields, names, at, text(parse::principal), problems)))
        }
        Some("source.namespace") => {
            Some(Condition::SourceNamespace(among(fields, names, at, text(parse::namespace), problems)))
        }
        Some("source.ip") => Some(Condition::SourceIp(among(fields, names, at, text(parse::cidr), problems))),
        Some("destination.ip") => {
            Some(Condition::DestinationIp(among(fields, names, at, text(parse::cidr), problems)))
        }
        Some("destination.port") => {
            Some(Condition::DestinationPort(among(fields, names, at, port, problems)))
        }
        Some(http) if http.starts_with("request.") || matches!(http, "connection.sni" | "remote.ip") => {
            key_at.wrong(Wrong::Http, problems);
            None
        }
        Some(other) => {
            let value = other.to_owned();
            key_at.wrong(Wrong::UnknownValue { value, known: KEYS }, problems);
            None
        }
        None => {
            mistyped(key, "a string", &key_at, problems);
            None
        }
    }
}

/// Reads every element of a list; one that cannot be read becomes what `read` makes of it, which asks nothing.
fn each<T>(
    value: &Value,
    at: &At<'_>,
    problems: &mut Vec<Problem>,
    read: impl Fn(&Value, &At<'_>, &mut Vec<Problem>) -> T,
) -> Vec<T> {
    let raw = list(value, at, problems).unwrap_or_default();
    let each = raw.iter().enumerate();
    each.map(|(index, value)| read(value, &at.index(index), problems)).collect()
}

/// The object inside `{source: {…}}` or `{operation: {…}}`. One that asks nothing is a problem: it could mean all or none.
fn inner<'v>(
    value: &'v Value,
    at: &At<'_>,
    (outer, key): (&[&str], &str),
    known: &[&str],
    problems: &mut Vec<Problem>,
) -> Option<&'v Map<String, Value>> {
    let outer = object(value, at, outer, problems)?;
    let at = at.key(key);
    let Some(value) = present(outer, key) else {
        at.wrong(Wrong::Missing, problems);
        return None;
    };
    let fields = object(value, &at, known, problems)?;
    if fields.values().all(Value::is_null) {
        at.wrong(Wrong::Empty, problems);
    }
    Some(fields)
}

/// Reads a field and its negation. Each is left out where a value of it was not understood.
fn among<T>(
    fields: &Map<String, Value>,
    [any, none]: [&str; 2],
    at: &At<'_>,
    read: impl Fn(&Value) -> Result<T, Wrong>,
    problems: &mut Vec<Problem>,
) -> Among<T> {
    Among { any: values(fields, any, at, &read, problems), none: values(fields, none, at, &read, problems) }
}
