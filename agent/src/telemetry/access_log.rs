//! A closed report as a [`Flow`], and a flow as a line: JSON, or words for people.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::SystemTime;

use adit_core::net::ObjectName;
use adit_core::report::{ConnectionReport, Decision, Direction, End, Security, Stages};
use adit_core::workload::Workload;
use adit_proto::admin::{self, Flow, Party};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::config::Format;
use super::said::Said;

/// Makes the flow that a report says. Borrows what it can.
pub fn flow(said: &Said) -> Flow<'_> {
    let report = &said.report;
    let (reason, detail) = match &said.end {
        End::Open | End::Closed => (None, None),
        End::Failed(reason, detail) => (Some(*reason), detail.as_deref()),
    };
    let peer = report.security.as_ref().map(|security| Cow::Borrowed(security.peer.as_str()));
    let local = party(None, Some(&report.local), Some(report.local.identity.as_str().into()));
    let remote = party(None, report.remote.as_deref(), peer);
    let (mut source, mut destination) = match report.direction {
        Direction::Outbound => (local, remote),
        Direction::Inbound => (remote, local),
    };
    source.addr = addr(report.source.0);
    destination.addr = addr(report.destination.0);
    Flow {
        time: rfc3339(report.opened.wall).into(),
        state: match &said.end {
            End::Open => "open",
            End::Closed => "closed",
            End::Failed(..) => "failed",
        }
        .into(),
        direction: report.direction.label().into(),
        transport: report.transport.label().into(),
        reason: reason.map(|reason| reason.label().into()),
        detail: detail.map(Into::into),
        hint: reason.map(|reason| reason.hint().into()),
        source,
        destination,
        service: report.service.as_ref().map(|(name, port)| format!("{name}:{port}").into()),
        target: report.target.map(addr),
        tls: report.security.as_deref().map(tls),
        tunnel_reused: report.tunnel_reused,
        decision: report.decision.as_ref().map(decision),
        dry_run: report.dry_run.iter().map(decision).collect(),
        attempts: report.attempts,
        last_failure: report.last_failure.map(|reason| reason.label().into()),
        stages_us: stages(report),
        duration_us: micros(report.duration(said.at)),
        rtt_us: report.tcp.map(|tcp| tcp.rtt_us),
        min_rtt_us: report.tcp.map(|tcp| tcp.min_rtt_us),
        retransmits: report.tcp.map(|tcp| tcp.retransmits),
        bytes_to_server: report.bytes_to_server,
        bytes_to_client: report.bytes_to_client,
        trace: report.trace.to_string().into(),
    }
}

/// A workload as telemetry names it; `addr` and `identity` are the caller's.
pub fn party<'a>(
    addr: Option<SocketAddr>,
    workload: Option<&'a Workload>,
    identity: Option<Cow<'a, str>>,
) -> Party<'a> {
    let pod = workload.map(|workload| &*workload.pod);
    Party {
        addr: addr.map(|addr| addr.to_string().into()).unwrap_or_default(),
        namespace: pod.map(|pod| (&*pod.name.namespace).into()),
        pod: pod.map(|pod| (&*pod.name.name).into()),
        workload: pod.map(|pod| format!("{}/{}", pod.owner.kind, pod.owner.name).into()),
        identity,
    }
}

fn addr<'a>(addr: SocketAddr) -> Cow<'a, str> {
    addr.to_string().into()
}

fn tls(security: &Security) -> admin::Tls<'_> {
    admin::Tls {
        version: security.version.into(),
        suite: security.suite.into(),
        group: security.group.into(),
        peer_serial: (&*security.peer_serial).into(),
        peer_not_after: rfc3339(security.peer_not_after).into(),
    }
}

fn decision(decision: &Decision) -> admin::Decision<'_> {
    let unmatched = decision.unmatched.as_deref();
    admin::Decision {
        allowed: decision.allowed,
        policy: decision.policy.as_ref().map(|name: &ObjectName| name.to_string().into()),
        rule: decision.rule,
        unmatched: unmatched.iter().flat_map(|all| &all.named).map(|name| name.to_string().into()).collect(),
        unmatched_more: unmatched.map_or(0, |unmatched| unmatched.more),
    }
}

fn stages(report: &ConnectionReport) -> std::collections::BTreeMap<Cow<'_, str>, u64> {
    let took = |stage| report.stages.get(stage).map(micros);
    Stages::ALL.into_iter().filter_map(|stage| Some((stage.label().into(), took(stage)?))).collect()
}

fn micros(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// RFC 3339, always of one length: such words are in order of time when they are in order of letters.
const MILLISECONDS: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// A wall-clock instant in RFC 3339, UTC, to the millisecond; the epoch where the clock is beyond what it can say.
pub fn rfc3339(wall: SystemTime) -> String {
    let at = Some(OffsetDateTime::from(wall)).filter(|at| *at >= OffsetDateTime::UNIX_EPOCH);
    at.and_then(|at| at.format(MILLISECONDS).ok()).unwrap_or_else(|| "1970-01-01T00:00:00.000Z".into())
}

/// Writes one line.
pub fn write_line(out: &mut impl Write, format: Format, flow: &Flow<'_>) -> io::Result<()> {
    match format {
        Format::Json => serde_json::to_writer(&mut *out, flow)?,
        Format::Text => out.write_all(words(flow).as_bytes())?,
    }
    out.write_all(b"\n")
}

/// A flow as one line of words: who, to whom, how, what became of it.
pub fn words(flow: &Flow<'_>) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = write!(text, "{} {} {} ", flow.time, flow.direction, flow.state);
    side(&mut text, &flow.source);
    text.push_str(" -> ");
    side(&mut text, &flow.destination);
    if let Some(service) = &flow.service {
        let _ = write!(text, " service={service}");
    }
    let _ = write!(text, " transport={}", flow.transport);
    if let Some(tls) = &flow.tls {
        let _ = write!(text, " tls={}/{}", tls.version, tls.group);
    }
    if let Some(reason) = &flow.reason {
        let _ = write!(text, " reason={reason}");
    }
    if let Some(admin::Decision { policy: Some(policy), rule, .. }) = &flow.decision {
        let _ = write!(text, " policy={policy}");
        if let Some(rule) = rule {
            let _ = write!(text, " rule={rule}");
        }
    }
    if let Some(admin::Decision { unmatched, unmatched_more, .. }) =
        flow.decision.as_ref().filter(|decision| !decision.unmatched.is_empty())
    {
        let _ = write!(text, " unmatched={}", unmatched.join(","));
        if *unmatched_more > 0 {
            let _ = write!(text, "+{unmatched_more}");
        }
    }
    if let Some(detail) = &flow.detail {
        let _ = write!(text, " detail={detail:?}");
    }
    if flow.attempts > 1 {
        let _ = write!(text, " attempts={}", flow.attempts);
    }
    let _ = write!(
        text,
        " sent={} received={} took={}us trace={}",
        flow.bytes_to_server, flow.bytes_to_client, flow.duration_us, flow.trace
    );
    text
}

fn side(text: &mut String, party: &Party<'_>) {
    match (&party.namespace, &party.pod) {
        (Some(namespace), Some(pod)) => {
            let _ = write!(text, "{namespace}/{pod}({})", party.addr);
        }
        (Some(_) | None, _) => text.push_str(&party.addr),
    }
    if let Some(identity) = &party.identity {
        let _ = write!(text, "[{identity}]");
    }
}
