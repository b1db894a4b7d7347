//! `adit edges`: each pair of workloads that talked.

use std::path::Path;
use std::process::ExitCode;

use adit_proto::admin::{Edge, Edges, Party};
use anyhow::Result;
use comfy_table::{Table, TableStyle};

use super::Output;
use crate::client;

/// Arguments of `adit edges`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only edges from or to this namespace.
    #[arg(short, long, value_parser = super::name)]
    namespace: Option<String>,
    /// Over the last so many seconds, at most 600.
    #[arg(short, long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=600))]
    window: u64,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

pub(crate) async fn run(mesh: &Path, args: &Args) -> Result<ExitCode> {
    let (mut answers, all) =
        client::ask_all::<Edges>(mesh, &format!("/edges?window_s={}", args.window)).await?;
    for answer in &mut answers {
        answer.edges.retain(|edge| touches(edge, args.namespace.as_deref()));
    }
    super::print([match args.output {
        Output::Json => serde_json::to_string_pretty(&answers)?,
        Output::Table => table(&answers).to_string(),
    }])?;
    for answer in answers.iter().filter(|answer| answer.dropped + answer.other > 0) {
        eprintln!(
            "adit: on node {}, {} reports were lost and {} connections belong to edges beyond the bound",
            answer.node, answer.dropped, answer.other
        );
    }
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn touches(edge: &Edge, namespace: Option<&str>) -> bool {
    namespace.is_none_or(|namespace| {
        [&edge.source, &edge.destination].iter().any(|party| party.namespace.as_deref() == Some(namespace))
    })
}

fn table(answers: &[Edges]) -> Table {
    let mut table = Table::new();
    table.load_style(TableStyle::new());
    table.set_header([
        "TOLD BY",
        "SOURCE",
        "DESTINATION",
        "SERVICE",
        "SECURED",
        "OPENED",
        "ACTIVE",
        "FAILED",
        "RETRIES",
        "P50",
        "P99",
        "SENT",
        "RECEIVED",
    ]);
    for answer in answers {
        for edge in &answer.edges {
            table.add_row([
                format!(
                    "{} ({})",
                    answer.node,
                    if edge.direction == "outbound" { "client" } else { "server" }
                ),
                party(&edge.source),
                party(&edge.destination),
                edge.service.clone().unwrap_or_else(|| "-".into()),
                secured(edge),
                edge.opened.to_string(),
                edge.active.to_string(),
                failed(edge),
                edge.retries.to_string(),
                latency(edge.connect_p50_us),
                latency(edge.connect_p99_us),
                bytes(edge.bytes_to_server),
                bytes(edge.bytes_to_client),
            ]);
        }
    }
    table
}

/// The identity where one is known, else the workload, else what is known.
fn party(party: &Party<'_>) -> String {
    match (&party.identity, &party.namespace, &party.workload) {
        (Some(identity), _, _) => identity.strip_prefix("spiffe://").unwrap_or(identity).to_owned(),
        (None, Some(namespace), Some(workload)) => format!("{namespace}/{workload} (unproven)"),
        (None, _, _) => party.addr.to_string(),
    }
}

fn secured(edge: &Edge) -> String {
    match (&*edge.transport, &edge.tls) {
        ("mtls", Some(tls)) => format!("mTLS {tls}"),
        ("mtls", None) => "mTLS".into(),
        (other, _) => other.to_owned(),
    }
}

fn failed(edge: &Edge) -> String {
    let all: Vec<_> = edge.failed.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    if all.is_empty() { "0".into() } else { all.join(", ") }
}

fn latency(us: Option<u64>) -> String {
    match us {
        None => "-".into(),
        Some(u64::MAX) => ">10s".into(),
        Some(us) if us < 1000 => format!("\u{2264}{us}us"),
        Some(us) => format!("\u{2264}{}ms", us as f64 / 1000.0),
    }
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    if count < 1024 {
        return format!("{count} B");
    }
    let mut unit = "B";
    for next in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_latencies_are_short() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(3 << 30), "3.0 GiB");
        assert_eq!(latency(Some(250)), "\u{2264}250us");
        assert_eq!(latency(Some(2500)), "\u{2264}2.5ms");
        assert_eq!(latency(None), "-");
    }

    #[test]
    fn a_party_without_a_proven_identity_says_so() {
        let outside = Party { addr: "outside".into(), ..Party::default() };
        assert_eq!(party(&outside), "outside");
        let unproven = Party {
            namespace: Some("shop".into()),
            workload: Some("Deployment/web".into()),
            ..Party::default()
        };
        assert_eq!(party(&unproven), "shop/Deployment/web (unproven)");
        let proven = Party { identity: Some("spiffe://cluster.local/ns/shop/sa/web".into()), ..unproven };
        assert_eq!(party(&proven), "cluster.local/ns/shop/sa/web");
    }
}
