//! TrafficPolicy: deadlines, retries, budget and ejection, by the names of Gateway API's XBackendTrafficPolicy
//! (`retryConstraint`) and HTTPRoute (`retry`) where they have them. What is not understood keeps its default.

use std::time::Duration;

use adit_core::net::ObjectName;
use adit_core::traffic::{TrafficPolicy, TrafficSettings};
use adit_core::world::{Change, Kind};
use serde_json::{Map, Value};

use super::{At, Policy, list, mistyped, object, present};
use crate::durations;
use crate::meta::{Translated, namespaced_name};
use crate::problem::{Problem, Rejected, Wrong};

/// Fields of `spec`.
pub(crate) const SPEC: &[&str] =
    &["attemptTimeout", "connectTimeout", "ejection", "retry", "retryConstraint", "targetRefs"];
/// Fields of `targetRefs[]`.
pub(crate) const TARGET: &[&str] = &["group", "kind", "name"];
/// Fields of `retry`.
pub(crate) const RETRY: &[&str] = &["attempts", "backoff", "maxBackoff"];
/// Fields of `retryConstraint`.
pub(crate) const CONSTRAINT: &[&str] = &["budget", "minRetryRate"];
/// Fields of `retryConstraint.budget`.
pub(crate) const BUDGET: &[&str] = &["interval", "percent"];
/// Fields of `retryConstraint.minRetryRate`.
pub(crate) const RATE: &[&str] = &["count", "interval"];
/// Fields of `ejection`.
pub(crate) const EJECTION: &[&str] = &["baseTime", "consecutiveFailures", "maxPercent", "maxTime"];

/// The most retries after a first attempt: more than that is another way to write "never give up".
pub(crate) const RETRIES_MOST: u32 = 10;
/// The highest floor: a million retries in its interval.
pub(crate) const RATE_MOST: u32 = 1_000_000;
/// The most failures in a row that an endpoint may be allowed.
pub(crate) const FAILURES_MOST: u32 = 1_000_000;
/// No span in a policy is longer than an hour: a retry or an ejection that old is another incident's.
const SPAN_MOST: Duration = Duration::from_secs(3600);

/// What a TrafficPolicy means.
pub fn translate(policy: &Policy) -> Result<Translated, Rejected> {
    let name = namespaced_name(Kind::TrafficPolicy, &policy.metadata)?;
    let mut problems = Vec::new();
    let spec = policy.spec(SPEC, &mut problems);
    let empty = Map::new();
    let fields = Fields { map: spec.fields.unwrap_or(&empty), at: &At::ROOT.key("spec") };
    let mut settings = TrafficSettings::default();
    read(&fields, &mut settings, &mut problems);
    let services = services(&fields, &name, &mut problems);
    Ok(Translated {
        change: Some(Change::TrafficPolicy(TrafficPolicy {
            created: policy.created(),
            name,
            services,
            settings,
        })),
        problems,
    })
}

fn read(spec: &Fields<'_>, settings: &mut TrafficSettings, problems: &mut Vec<Problem>) {
    spec.span("connectTimeout", &mut settings.connect_deadline, problems);
    spec.span("attemptTimeout", &mut settings.attempt_timeout, problems);
    spec.object("retry", RETRY, problems, |retry, problems| {
        retry.number("attempts", 0, RETRIES_MOST, &mut settings.retries_max, problems);
        retry.span("backoff", &mut settings.backoff_base, problems);
        retry.span("maxBackoff", &mut settings.backoff_cap, problems);
    });
    // A base above the cap is the cap: what was asked for is "always this long", with jitter.
    settings.backoff_cap = settings.backoff_cap.max(settings.backoff_base);
    spec.object("retryConstraint", CONSTRAINT, problems, |constraint, problems| {
        constraint.object("budget", BUDGET, problems, |budget, problems| {
            budget.number("percent", 0, 100, &mut settings.budget_percent, problems);
            budget.span("interval", &mut settings.budget_interval, problems);
        });
        constraint.object("minRetryRate", RATE, problems, |rate, problems| {
            // Ten a second, as Gateway API has it, is also our own floor.
            let mut count = 10;
            let mut interval = Duration::from_secs(1);
            rate.number("count", 0, RATE_MOST, &mut count, problems);
            rate.span("interval", &mut interval, problems);
            settings.budget_floor_interval = interval.checked_div(count);
        });
    });
    spec.object("ejection", EJECTION, problems, |ejection, problems| {
        ejection.number("consecutiveFailures", 0, FAILURES_MOST, &mut settings.ejection_failures, problems);
        ejection.span("baseTime", &mut settings.ejection_base, problems);
        ejection.span("maxTime", &mut settings.ejection_cap, problems);
        ejection.number("maxPercent", 0, 100, &mut settings.ejection_percent_max, problems);
    });
    settings.ejection_cap = settings.ejection_cap.max(settings.ejection_base);
}

/// The Services of the policy's own namespace that `targetRefs` names.
fn services(spec: &Fields<'_>, policy: &ObjectName, problems: &mut Vec<Problem>) -> Vec<ObjectName> {
    let at = spec.at.key("targetRefs");
    let Some(value) = present(spec.map, "targetRefs") else {
        at.wrong(Wrong::Missing, problems);
        return Vec::new();
    };
    let mut services = Vec::new();
    for (index, value) in list(value, &at, problems).unwrap_or_default().iter().enumerate() {
        if let Some(service) = target(value, &at.index(index), problems) {
            let service = ObjectName::new(policy.namespace.clone(), service);
            if !services.contains(&service) {
                services.push(service);
            }
        }
    }
    services
}

fn target<'v>(value: &'v Value, at: &At<'_>, problems: &mut Vec<Problem>) -> Option<&'v str> {
    let fields = object(value, at, TARGET, problems)?;
    let word = |key: &'static str| present(fields, key).map(|value| value.as_str().unwrap_or_default());
    if let Some(value) = present(fields, "group").filter(|value| !value.is_string()) {
        mistyped(value, "a string", &at.key("group"), problems);
        return None;
    }
    if !matches!(word("group"), None | Some("" | "core")) {
        let value = word("group").unwrap_or_default().to_owned();
        at.key("group").wrong(Wrong::UnknownValue { value, known: "\"\" (core)" }, problems);
        return None;
    }
    if word("kind") != Some("Service") {
        let value = word("kind").unwrap_or_default().to_owned();
        at.key("kind").wrong(Wrong::UnknownValue { value, known: "Service" }, problems);
        return None;
    }
    match word("name") {
        Some(name) if !name.is_empty() => Some(name),
        Some(_) | None => {
            at.key("name").wrong(Wrong::Missing, problems);
            None
        }
    }
}

/// The fields of one object, and where it stands.
struct Fields<'a> {
    map: &'a Map<String, Value>,
    at: &'a At<'a>,
}

impl Fields<'_> {
    /// Reads an object inside, if it is there.
    fn object(
        &self,
        key: &str,
        known: &[&str],
        problems: &mut Vec<Problem>,
        read: impl FnOnce(&Fields<'_>, &mut Vec<Problem>),
    ) {
        let at = self.at.key(key);
        let value = present(self.map, key);
        if let Some(map) = value.and_then(|value| object(value, &at, known, problems)) {
            read(&Fields { map, at: &at }, problems);
        }
    }

    /// Reads a span above zero, if it is there.
    fn span(&self, key: &str, into: &mut Duration, problems: &mut Vec<Problem>) {
        let at = self.at.key(key);
        let Some(value) = present(self.map, key) else {
            return;
        };
        let Some(text) = value.as_str() else {
            return mistyped(value, "a duration in a string", &at, problems);
        };
        match durations::parse(text) {
            Some(span) if !span.is_zero() && span <= SPAN_MOST => *into = span,
            Some(_) | None => at.wrong(Wrong::Duration(text.to_owned()), problems),
        }
    }

    /// Reads a whole number, if it is there.
    fn number(&self, key: &str, least: u32, most: u32, into: &mut u32, problems: &mut Vec<Problem>) {
        let at = self.at.key(key);
        let Some(value) = present(self.map, key) else {
            return;
        };
        let Some(number) = value.as_i64() else {
            return mistyped(value, "a whole number", &at, problems);
        };
        match u32::try_from(number) {
            Ok(number) if (least..=most).contains(&number) => *into = number,
            Ok(_) | Err(_) => {
                at.wrong(Wrong::Range { value: number, least: least.into(), most: most.into() }, problems)
            }
        }
    }
}
