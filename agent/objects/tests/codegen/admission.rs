//! The ValidatingAdmissionPolicies that refuse what OpenAPI cannot: fields that are not known, at every level, and the
//! few things about values that no pattern says.
//!
//! Known is what the definition's schema has, which a test beside the types holds to what the readers read. The
//! expressions are made level by level: one that walked the whole object would exceed the budget of one expression
//! sooner. They use two-variable comprehensions (servers from 1.33), so that a message says which rule it is about.

use adit_objects::crd::leaves;
use adit_objects::policies::HTTP_FIELDS;
use serde_json::{Value, json};

use crate::definition;

/// The policy and its binding for the kind of a definition.
pub(crate) fn policy(definition: &Value) -> [Value; 2] {
    let name = &definition["metadata"]["name"];
    let spec = &definition["spec"];
    let mut checks = Vec::new();
    collect(&definition::schema(definition)["properties"]["spec"], &mut Vec::new(), &mut checks);
    let top = Rule::Fields(ROOT.map(str::to_owned).to_vec());
    let mut variables = vec![
        // `dyn`: the schema's own type would have no fields but the known ones.
        json!({"name": "whole", "expression": "dyn(object)"}),
        json!({"name": "spec", "expression":
            "has(variables.whole.spec) && variables.whole.spec != null ?\nvariables.whole.spec : dyn({})"}),
        json!({"name": "http", "expression": list(&HTTP_FIELDS).replace(", ", ",\n")}),
        json!({"name": "top_fields", "expression": format!("{}.join(\", \")", top.says("variables.whole", ""))}),
    ];
    variables
        .extend(checks.iter().map(|check| json!({"name": check.name(), "expression": check.expression()})));
    let all = |about: About| {
        let of_it = checks.iter().filter(|check| check.rule.about() == about);
        of_it.map(|check| format!("variables.{}", check.name())).collect::<Vec<_>>()
    };
    let fields = [vec!["variables.top_fields".to_owned()], all(About::Fields)].concat();
    variables.push(json!({"name": "unknown", "expression": joined(&fields)}));
    variables.push(json!({"name": "misread", "expression": joined(&all(About::Values))}));
    [
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": name},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {"resourceRules": [{
                    "apiGroups": [spec["group"]],
                    "apiVersions": ["*"],
                    "operations": ["CREATE", "UPDATE"],
                    "resources": [spec["names"]["plural"]],
                }]},
                "matchConditions": [{"name": "says-something-new", "expression": NEW}],
                "variables": variables,
                "validations": [
                    validation("unknown", "adit decides at L4, by identity, address and port, and does not know"),
                    validation("misread", "adit does not understand"),
                ],
            },
        }),
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": name},
            "spec": {"policyName": name, "validationActions": ["Deny"]},
        }),
    ]
}

/// Fields beside `spec`.
const ROOT: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];

/// What stands in an object already may stay: or a label could not be changed, nor a finalizer be taken off.
const NEW: &str = r#"request.operation == "CREATE" ||
!dyn(object).all(k, k in ["metadata", "status"] || (k in dyn(oldObject) && dyn(object)[k] == dyn(oldObject)[k])) ||
!dyn(oldObject).all(k, k in ["metadata", "status"] || k in dyn(object))"#;

fn validation(variable: &str, says: &str) -> Value {
    json!({
        "expression": format!("variables.{variable} == \"\""),
        "messageExpression": format!("\"{says}: \" + variables.{variable}"),
        // Where the one above becomes too long.
        "message": format!("{says} many of these fields"),
        "reason": "Invalid",
    })
}

/// A step from the spec to what is checked.
#[derive(Clone)]
enum Step {
    Field(String),
    Each,
}

/// Something to be checked in every value that some steps lead to.
struct Check {
    steps: Vec<Step>,
    rule: Rule,
}

impl Check {
    /// The variable that has what it finds, joined.
    fn name(&self) -> String {
        let fields = self.steps.iter().filter_map(|step| match step {
            Step::Field(name) => Some(&**name),
            Step::Each => None,
        });
        let words: Vec<_> = ["spec"].into_iter().chain(fields).collect();
        let about = match self.rule.about() {
            About::Fields => "fields",
            About::Values => "values",
        };
        format!("{}_{about}", words.join("_"))
    }

    fn expression(&self) -> String {
        self.says("variables.spec", "spec", &self.steps, 0)
    }

    /// What is wrong, in one string. `place` is the inside of a CEL string literal, which may be closed, continued and
    /// opened again. Only what breaks the rule is collected: a list that grows with the object costs its square.
    fn says(&self, value: &str, place: &str, steps: &[Step], depth: usize) -> String {
        match steps {
            [] => format!("{}.join(\", \")", self.rule.says(value, place)),
            [Step::Field(name), rest @ ..] => {
                let field = format!("{value}.{name}");
                let inside = self.says(&field, &format!("{place}.{name}"), rest, depth);
                format!("(has({field}) && {field} != null ?\n{inside} :\n\"\")")
            }
            [Step::Each, rest @ ..] => {
                let (index, each) = (format!("i{depth}"), format!("v{depth}"));
                let place = format!("{place}[\" + string({index}) + \"]");
                let is_broken = self.is_broken(&each, rest, depth + 1);
                let inside = self.says(&each, &place, rest, depth + 1);
                format!("{value}.transformList({index}, {each},\n{is_broken},\n{inside}).join(\", \")")
            }
        }
    }

    /// Whether anything is wrong.
    fn is_broken(&self, value: &str, steps: &[Step], depth: usize) -> String {
        match steps {
            [] => self.rule.is_broken(value),
            [Step::Field(name), rest @ ..] => {
                let field = format!("{value}.{name}");
                format!("has({field}) && {field} != null && {}", self.is_broken(&field, rest, depth))
            }
            [Step::Each, rest @ ..] => {
                let each = format!("v{depth}");
                format!("{value}.exists({each}, {})", self.is_broken(&each, rest, depth + 1))
            }
        }
    }
}

/// What must hold for a value.
enum Rule {
    /// An object has these fields and no others.
    Fields(Vec<String>),
    /// The same for each value of a map.
    FieldsOfEach(Vec<String>),
    /// The keys of a map are like this.
    Keys { pattern: &'static str, or: &'static str },
    /// An object has something in it but nulls.
    NotEmpty,
    /// A duration is within the bounds of the readers.
    Span,
    /// A condition has values, and numbers only where they are ports.
    Condition,
}

/// Which message a rule goes to.
#[derive(Clone, Copy, Eq, PartialEq)]
enum About {
    Fields,
    Values,
}

impl Rule {
    fn about(&self) -> About {
        match self {
            Self::Fields(_) | Self::FieldsOfEach(_) => About::Fields,
            Self::Keys { .. } | Self::NotEmpty | Self::Span | Self::Condition => About::Values,
        }
    }

    /// Whether a value breaks it, in CEL.
    fn is_broken(&self, value: &str) -> String {
        match self {
            Self::Fields(known) => format!("!{value}.all(k, k in {})", list(known)),
            Self::FieldsOfEach(known) => {
                format!("!{value}.all(p, {value}[p].all(k, k in {}))", list(known))
            }
            Self::Keys { pattern, .. } => format!("!{value}.all(k, k.matches(r\"{pattern}\"))"),
            Self::NotEmpty => format!("!{value}.exists(k, {value}[k] != null)"),
            Self::Span => {
                format!("!(duration({value}) > duration(\"0s\") && duration({value}) <= duration(\"1h\"))")
            }
            Self::Condition => format!(
                "(!{LISTS}.exists(f, {0}) ||\n{LISTS}.exists(f, {0} && {1}))",
                is_there(value),
                has_number(value)
            ),
        }
    }

    /// The places that break it, in CEL: a list of strings, which may be empty only where nothing does.
    fn says(&self, value: &str, place: &str) -> String {
        match self {
            Self::Fields(known) => {
                let dot = if place.is_empty() { "" } else { "." };
                let (among, here) = (list(known), known.join(", "));
                format!(
                    "{value}.filter(k, !(k in {among}))\n.map(k, \"{place}{dot}\" + k + \
                     (k in variables.http ? \" (inside HTTP)\" : \" (here it knows {here})\"))"
                )
            }
            Self::FieldsOfEach(known) => {
                let rule = Self::Fields(known.clone());
                let inside = rule.says("v", &format!("{place}[\" + p + \"]"));
                let is_broken = rule.is_broken("v");
                format!("{value}.transformList(p, v,\n{is_broken},\n{inside}.join(\", \"))")
            }
            Self::Keys { pattern, or } => format!(
                "{value}.filter(k, !k.matches(r\"{pattern}\")).map(k, \"{place}[\" + k + \"] ({or})\")"
            ),
            Self::NotEmpty => self.all_or_nothing(value, place, "is empty"),
            Self::Span => self.all_or_nothing(value, place, "is not above zero and up to 1h"),
            Self::Condition => format!(
                "({LISTS}.exists(f, {0}) ?\n{LISTS}.filter(f, {0} && {1})\n\
                 .map(f, \"{place}.\" + f + \" (has a number)\") :\n[\"{place}.values (is missing)\"])",
                is_there(value),
                has_number(value)
            ),
        }
    }

    fn all_or_nothing(&self, value: &str, place: &str, what: &str) -> String {
        format!("({} ? [\"{place} ({what})\"] : [])", self.is_broken(value))
    }
}

/// The fields of a condition that have values.
const LISTS: &str = r#"["values", "notValues"]"#;

fn is_there(condition: &str) -> String {
    format!("f in {condition} && {condition}[f] != null")
}

fn has_number(condition: &str) -> String {
    format!("{condition}.key != \"destination.port\" && !{condition}[f].all(v, type(v) == string)")
}

/// Every check of a level of the schema, and of those below.
fn collect(schema: &Value, steps: &mut Vec<Step>, checks: &mut Vec<Check>) {
    let mut add = |rule| checks.push(Check { steps: steps.clone(), rule });
    let known = fields(schema);
    if !known.is_empty() {
        assert_eq!(schema["x-kubernetes-preserve-unknown-fields"], true, "or there is nothing to be refused");
        add(Rule::Fields(known.clone()));
    }
    if known == ["key", "notValues", "values"] {
        add(Rule::Condition);
    } else if schema["minProperties"] == 1 {
        add(Rule::NotEmpty);
    } else if schema["pattern"] == leaves::SPAN {
        add(Rule::Span);
    }
    if let Some(inner) = schema.get("additionalProperties") {
        let Some(Step::Field(name)) = steps.last() else { panic!("a map that has no name") };
        add(match name.as_str() {
            "matchLabels" => Rule::Keys { pattern: leaves::LABEL_KEY, or: "is no label" },
            "portLevelMtls" => Rule::Keys { pattern: leaves::PORT, or: "is no port" },
            other => panic!("what may the keys of {other} look like?"),
        });
        let inner = fields(inner);
        if !inner.is_empty() {
            add(Rule::FieldsOfEach(inner));
        }
    }
    for name in known {
        steps.push(Step::Field(name.clone()));
        collect(&schema["properties"][&name], steps, checks);
        steps.pop();
    }
    if let Some(items) = schema.get("items") {
        steps.push(Step::Each);
        collect(items, steps, checks);
        steps.pop();
    }
}

/// The fields that a level knows, in order.
fn fields(schema: &Value) -> Vec<String> {
    let properties = schema["properties"].as_object();
    let mut known: Vec<String> = properties.into_iter().flat_map(|all| all.keys().cloned()).collect();
    known.sort_unstable();
    known
}

fn joined(variables: &[String]) -> String {
    format!("[\n{}\n].filter(s, s != \"\").join(\", \")", variables.join(",\n"))
}

/// A list of strings, in CEL.
fn list(words: &[impl AsRef<str>]) -> String {
    let quoted: Vec<_> = words.iter().map(|word| format!("\"{}\"", word.as_ref())).collect();
    format!("[{}]", quoted.join(", "))
}
