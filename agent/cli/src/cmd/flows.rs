//! `adit flows`: single connections, and what became of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use adit_proto::Reason;
use adit_proto::admin::{Flow, Flows, Party};
use anyhow::Result;
use comfy_table::{Table, TableStyle};

use super::Output;
use crate::client;

/// Digits of a trace id in a table, if it is not asked for by one: enough to ask for it.
const TRACE_SHOWN_LEN: usize = 16;

/// Arguments of `adit flows`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only flows from or to this namespace.
    #[arg(short, long, value_parser = super::name)]
    namespace: Option<String>,
    /// Only flows from or to this pod.
    #[arg(short, long, value_parser = super::name)]
    pod: Option<String>,
    /// Only flows that failed.
    #[arg(long)]
    failed: bool,
    /// Only flows that ended for this reason.
    #[arg(long, value_parser = reason)]
    reason: Option<Reason>,
    /// Only flows of this trace: an id of 32 hexadecimal digits, or how it begins. Both sides of a connection share it.
    #[arg(long, value_name = "ID", value_parser = trace)]
    trace: Option<String>,
    /// At most so many of each agent, the newest.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

fn reason(word: &str) -> Result<Reason, String> {
    Reason::from_label(word).ok_or_else(|| {
        let all: Vec<_> = Reason::ALL.iter().map(|reason| reason.label()).collect();
        format!("no such reason; one of {}", all.join(", "))
    })
}

/// A trace id, or its beginning, in the digits in which agents write them.
fn trace(text: &str) -> Result<String, String> {
    const DIGITS: usize = 32;
    if (1..=DIGITS).contains(&text.len()) && text.chars().all(|c| c.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(format!("a trace id has {DIGITS} hexadecimal digits; give all or the first of them"))
    }
}

pub(crate) async fn run(mesh: &Path, args: &Args) -> Result<ExitCode> {
    let mut query = format!("/flows?limit={}", args.limit);
    if let Some(namespace) = &args.namespace {
        query.push_str(&format!("&namespace={namespace}"));
    }
    if let Some(pod) = &args.pod {
        query.push_str(&format!("&pod={pod}"));
    }
    if args.failed {
        query.push_str("&failed=true");
    }
    if let Some(reason) = args.reason {
        query.push_str(&format!("&reason={reason}"));
    }
    if let Some(trace) = &args.trace {
        query.push_str(&format!("&trace={trace}"));
    }
    let (answers, all) = client::ask_all::<Flows<'static>>(mesh, &query).await?;
    for answer in answers.iter().filter(|answer| answer.dropped > 0) {
        eprintln!("adit: on node {}, {} reports were lost", answer.node, answer.dropped);
    }
    let mut flows: Vec<_> = answers.into_iter().flat_map(|answer| answer.flows).collect();
    flows.sort_by(|a, b| a.time.cmp(&b.time));
    match args.output {
        Output::Json => {
            super::print(flows.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?)?;
        }
        Output::Table => {
            let shown = if args.trace.is_some() { usize::MAX } else { TRACE_SHOWN_LEN };
            super::print(std::iter::once(table(&flows, shown).to_string()).chain(hints(&flows)))?;
        }
    }
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Of each reason in the table, what to do about it.
fn hints(flows: &[Flow<'_>]) -> Vec<String> {
    let hints: BTreeMap<&str, &str> =
        flows.iter().filter_map(|flow| Some((flow.reason.as_deref()?, flow.hint.as_deref()?))).collect();
    let lines = hints.iter().map(|(reason, hint)| format!("{reason}: {hint}"));
    let space = (!hints.is_empty()).then(String::new);
    space.into_iter().chain(lines).collect()
}

fn table(flows: &[Flow<'_>], trace_len: usize) -> Table {
    let mut table = Table::new();
    table.load_style(TableStyle::new());
    table.set_header([
        "TIME",
        "TOLD BY",
        "SOURCE",
        "DESTINATION",
        "SERVICE",
        "SECURED",
        "VERDICT",
        "TOOK",
        "TRACE",
    ]);
    for flow in flows {
        table.add_row([
            flow.time.to_string(),
            if flow.direction == "outbound" { "client" } else { "server" }.to_owned(),
            party(&flow.source),
            party(&flow.destination),
            flow.service.as_deref().unwrap_or("-").to_owned(),
            match &flow.tls {
                Some(tls) => format!("{} {} {}", flow.transport, tls.version, tls.group),
                None => flow.transport.to_string(),
            },
            verdict(flow),
            format!("{:.1}ms", flow.duration_us as f64 / 1000.0),
            flow.trace.chars().take(trace_len).collect(),
        ]);
    }
    table
}

fn party(party: &Party<'_>) -> String {
    match (&party.namespace, &party.pod) {
        (Some(namespace), Some(pod)) => format!("{namespace}/{pod}"),
        (Some(_) | None, _) => party.addr.to_string(),
    }
}

/// What became of it, and which policy, with the rule, or which policies that did not match, decided so. One that let it
/// in is told from one that refused it: it has nothing to do with how the connection went on.
fn verdict(flow: &Flow<'_>) -> String {
    let mut text = match &flow.reason {
        Some(reason) => reason.to_string(),
        None => flow.state.to_string(),
    };
    let Some(decision) = &flow.decision else { return text };
    if let Some(policy) = &decision.policy {
        text.push_str(if decision.allowed { ", allowed by " } else { " by " });
        text.push_str(policy);
    }
    if let Some(rule) = decision.rule {
        text.push_str(&format!(" rule {rule}"));
    }
    if !decision.unmatched.is_empty() {
        text.push_str(&format!(" of {}", decision.unmatched.join(", ")));
        if decision.unmatched_more > 0 {
            text.push_str(&format!(" and {} more", decision.unmatched_more));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use adit_proto::admin::Decision;

    use super::*;

    fn flow(reason: Option<Reason>, decision: Option<Decision<'static>>) -> Flow<'static> {
        let mut flow: Flow<'static> = serde_json::from_value(serde_json::json!({
            "time": "2026-01-01T00:00:00Z", "state": "closed", "direction": "inbound", "transport": "mtls",
            "source": {}, "destination": {}, "duration_us": 1, "bytes_to_server": 0, "bytes_to_client": 0,
            "trace": "0123456789abcdef0123456789abcdef",
        }))
        .unwrap();
        flow.reason = reason.map(|reason| reason.label().into());
        flow.hint = reason.map(|reason| reason.hint().into());
        flow.decision = decision;
        flow
    }

    #[test]
    fn a_verdict_names_policy_and_rule_or_all_that_did_not_match() {
        let by = Decision { policy: Some("shop/no-bots".into()), rule: Some(1), ..Decision::default() };
        let denied = flow(Some(Reason::PolicyDenied), Some(by));
        assert_eq!(verdict(&denied), "policy_denied by shop/no-bots rule 1");
        let none = Decision {
            unmatched: vec!["shop/a".into(), "shop/b".into()],
            unmatched_more: 3,
            ..Decision::default()
        };
        let unmatched = flow(Some(Reason::PolicyNoneMatched), Some(none));
        assert_eq!(verdict(&unmatched), "policy_none_matched of shop/a, shop/b and 3 more");
        assert_eq!(verdict(&flow(None, Some(Decision::default()))), "closed");
    }

    #[test]
    fn a_policy_that_let_a_connection_in_is_not_shown_as_what_ended_it() {
        let by = Decision {
            allowed: true,
            policy: Some("shop/payments".into()),
            rule: Some(0),
            ..Decision::default()
        };
        assert_eq!(verdict(&flow(None, Some(by.clone()))), "closed, allowed by shop/payments rule 0");
        let refused = flow(Some(Reason::AppRefused), Some(by));
        assert_eq!(verdict(&refused), "app_refused, allowed by shop/payments rule 0");
    }

    #[test]
    fn a_verdict_without_a_policy_is_the_reason_alone() {
        assert_eq!(verdict(&flow(Some(Reason::Refused), None)), "refused");
    }

    #[test]
    fn each_reason_has_its_hint_below_the_table_once() {
        let (denied, refused) = (Some(Reason::PolicyDenied), Some(Reason::Refused));
        let flows = [refused, denied, None, denied].map(|reason| flow(reason, None));
        let wanted = [
            String::new(),
            format!("policy_denied: {}", Reason::PolicyDenied.hint()),
            format!("refused: {}", Reason::Refused.hint()),
        ];
        assert_eq!(hints(&flows), wanted);
        assert_eq!(hints(&[flow(None, None)]), Vec::<String>::new());
    }

    #[test]
    fn a_trace_is_shown_long_enough_to_ask_for_it_and_whole_if_it_was() {
        let flows = [flow(None, None)];
        let short = table(&flows, TRACE_SHOWN_LEN).to_string();
        assert!(short.contains("0123456789abcdef") && !short.contains("0123456789abcdef0"), "{short}");
        assert!(table(&flows, usize::MAX).to_string().contains(&*flows[0].trace));
        assert_eq!(trace("0123456789ABcdef"), Ok("0123456789abcdef".into()));
        for text in ["", "xyz", "0123&failed=true", &"0".repeat(33)] {
            assert!(trace(text).is_err(), "{text}");
        }
    }
}
