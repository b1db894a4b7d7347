//! `adit flows`: single connections, and what became of them.

use std::path::Path;
use std::process::ExitCode;

use adit_proto::Reason;
use adit_proto::admin::{Flow, Flows, Party};
use anyhow::Result;
use comfy_table::{Table, TableStyle};

use super::Output;
use crate::client;

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
        Output::Table => super::print([table(&flows).to_string()])?,
    }
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn table(flows: &[Flow<'_>]) -> Table {
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
            flow.trace.chars().take(8).collect(),
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

fn verdict(flow: &Flow<'_>) -> String {
    let mut text = match &flow.reason {
        Some(reason) => reason.to_string(),
        None => flow.state.to_string(),
    };
    if let Some(policy) = flow.decision.as_ref().and_then(|decision| decision.policy.as_ref()) {
        text.push_str(&format!(" by {policy}"));
    }
    text
}
