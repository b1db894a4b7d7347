//! What each metric counts, as the page's HELP lines say it; the pods' own metrics say theirs beside their code.

/// Counters and what they count.
const COUNTERS: &[(&str, &str)] = &[
    ("adit_access_log_lost_total", "Access-log lines that could not be written."),
    ("adit_bytes_to_client_total", "Bytes from servers to clients, by edge."),
    ("adit_bytes_to_server_total", "Bytes from clients to servers, by edge."),
    (
        "adit_certificate_requests_total",
        "Requests for certificates that the CA answered or did not, by result.",
    ),
    ("adit_connect_retries_total", "Connect attempts after the first, by edge."),
    ("adit_connection_panics_total", "Connections that ended by a panic: each is a mistake in Adit."),
    ("adit_connections_closed_total", "Opened connections that have ended, by edge."),
    (
        "adit_connections_failed_total",
        "Connections that were not carried, or ended other than by both sides closing, by edge and reason.",
    ),
    ("adit_connections_opened_total", "Connections whose connect phase succeeded, by edge."),
    (
        "adit_ejections_total",
        "Endpoints taken out of a Service for a while after failures in a row, by Service.",
    ),
    (
        "adit_events_dropped_total",
        "Kubernetes Events that were not written, as too many wait or the API server took none.",
    ),
    ("adit_object_errors_total", "Files and objects found broken or refused, by what was wrong."),
    (
        "adit_policy_verdicts_total",
        "What each policy did with connections, by policy, its action and verdict.",
    ),
    ("adit_reports_dropped_total", "Reports lost because they came too fast to be written."),
    (
        "adit_retry_budget_total",
        "Retries that asked the budget of their Service: granted, or denied and therefore not made.",
    ),
    (
        "adit_tls_handshakes_total",
        "TLS handshakes of tunnels that ended, by side (client, server) and result: ok, or the reason of the failure.",
    ),
    ("adit_watch_failures_total", "Lists and watches of the API server that failed, by kind."),
    ("process_cpu_seconds_total", "CPU time of the agent, user and system, in seconds."),
];

/// Gauges and what they show.
const GAUGES: &[(&str, &str)] = &[
    (
        "adit_buffered_bytes",
        "Bytes of connections that a worker holds, as its peers and apps are slow to take them.",
    ),
    ("adit_build_info", "1, with the version as label."),
    ("adit_certificate_expiry_timestamp_seconds", "When the certificate in use expires, by identity."),
    ("adit_certificate_issued_timestamp_seconds", "When the certificate in use was issued, by identity."),
    ("adit_connections_active", "Connections open now, by edge."),
    ("adit_endpoints_ejected", "Endpoints that a worker leaves out now after failures in a row."),
    (
        "adit_inbound_tunnels_open",
        "Tunnels of peers to this node's pods that are open or shaking hands, by worker.",
    ),
    ("adit_object_errors", "Files and objects that are broken or refused now."),
    ("adit_pods", "Sandboxes of this node, by what they are to the mesh."),
    ("adit_sysctls_refused", "Pods in which a sysctl that capture wants cannot be set, by sysctl."),
    ("adit_tunnels_open", "Tunnels that this node's pods have open to peers, by worker."),
    ("adit_watch_staleness_seconds", "How long ago the API server was last heard of, by kind."),
    ("process_open_fds", "File descriptors that the agent has open."),
    ("process_resident_memory_bytes", "Memory of the agent that is resident, in bytes."),
];

/// Histograms and what they measure.
const HISTOGRAMS: &[(&str, &str)] = &[
    ("adit_connect_duration_seconds", "Time of the whole connect phase, by edge."),
    ("adit_tls_handshake_duration_seconds", "Time of TLS handshakes, by edge."),
];

/// Tells the recorder.
pub(super) fn describe() {
    for (name, help) in COUNTERS {
        metrics::describe_counter!(*name, *help);
    }
    for (name, help) in GAUGES {
        metrics::describe_gauge!(*name, *help);
    }
    for (name, help) in HISTOGRAMS {
        metrics::describe_histogram!(*name, *help);
    }
}
