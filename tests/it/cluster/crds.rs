//! What the API server refuses of our policies, and what it takes: the table, and how a line of it is tried in each way
//! that an object comes in.

use adit_tests::process::Output;
use anyhow::{Result, bail, ensure};

use super::Kubectl;

/// A policy, and what becomes of it.
struct Case {
    kind: &'static str,
    /// The object's fields after `metadata`, as JSON.
    fields: &'static str,
    verdict: Verdict,
}

enum Verdict {
    Taken,
    /// With all of this in the message.
    Refused(&'static [&'static str]),
}

/// How an object comes to the API server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Way {
    /// `kubectl apply`, which asks for strict validation.
    Apply,
    /// `kubectl apply --server-side`.
    ServerSide,
    /// A POST as other clients make it, with a `fieldValidation` or none.
    Post(&'static str),
}

const WAYS: [Way; 5] = [
    Way::Apply,
    Way::ServerSide,
    Way::Post(""),
    Way::Post("?fieldValidation=Warn"),
    Way::Post("?fieldValidation=Ignore"),
];

impl Way {
    /// Tries to make the object.
    fn create(self, kubectl: Kubectl<'_>, plural: &str, object: &str) -> Result<Output> {
        match self {
            Self::Apply => kubectl(&["apply", "-f", "-"], object),
            Self::ServerSide => kubectl(&["apply", "--server-side", "-f", "-"], object),
            Self::Post(query) => {
                let url = format!("/apis/policy.adit.dev/v1alpha1/namespaces/default/{plural}{query}");
                kubectl(&["create", "--raw", &url, "-f", "-"], object)
            }
        }
    }
}

/// Applies the definitions and what refuses, and returns once both are in force.
pub(crate) fn applied(kubectl: Kubectl<'_>, manifests: &str) -> Result<()> {
    for folder in ["crds", "admission"] {
        let output = kubectl(&["apply", "-f", &format!("{manifests}/{folder}")], "")?;
        ensure!(output.status.success(), "{}", said(&output));
        // A definition is served, and a policy in force, a moment after it is there.
        if folder == "crds" {
            let established =
                kubectl(&["wait", "--for=condition=Established", "-f", &format!("{manifests}/crds")], "")?;
            ensure!(established.status.success(), "{}", said(&established));
        }
    }
    for kind in [AUTHORIZATION, PEERS, TRAFFIC] {
        let probe = object(kind, "probe", PROBE);
        let refused = (0..300).any(|_| {
            kubectl(&["create", "--dry-run=server", "-f", "-"], &probe)
                .is_ok_and(|output| said(&output).contains("adit decides at L4"))
        });
        ensure!(refused, "the admission policy for {kind} does not come into force");
    }
    Ok(())
}

/// Tries every line of the table in every way. Returns how many that were.
pub(crate) fn check(kubectl: Kubectl<'_>) -> Result<usize> {
    let mut wrong = Vec::new();
    for case in CASES {
        let plural = plural(case.kind);
        let object = object(case.kind, "tried", case.fields);
        for way in WAYS {
            let output = way.create(kubectl, plural, &object)?;
            let said = said(&output);
            let good = match case.verdict {
                Verdict::Taken => output.status.success() && !said.contains("Warning"),
                Verdict::Refused(words) => {
                    !output.status.success() && words.iter().all(|word| said.contains(word))
                }
            };
            if !good {
                wrong.push(format!("{way:?} {} {}\n    {said}", case.kind, case.fields));
            }
            if output.status.success() {
                let gone = kubectl(&["delete", "-n", "default", plural, "tried"], "")?;
                ensure!(gone.status.success(), "{}", gone.stderr);
            }
        }
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    Ok(CASES.len() * WAYS.len())
}

/// A policy as JSON, which a raw POST needs, and which is YAML too.
fn object(kind: &str, name: &str, fields: &str) -> String {
    let comma = if fields.is_empty() { "" } else { ", " };
    format!(
        r#"{{"apiVersion": "policy.adit.dev/v1alpha1", "kind": "{kind}",
            "metadata": {{"name": "{name}", "namespace": "default"}}{comma}{fields}}}"#
    )
}

fn plural(kind: &str) -> &'static str {
    match kind {
        AUTHORIZATION => "authorizationpolicies",
        PEERS => "peerauthentications",
        TRAFFIC => "trafficpolicies",
        other => panic!("no kind of ours: {other}"),
    }
}

fn said(output: &Output) -> String {
    output.stderr.clone()
}

const AUTHORIZATION: &str = "AuthorizationPolicy";
const PEERS: &str = "PeerAuthentication";
const TRAFFIC: &str = "TrafficPolicy";

const fn taken(kind: &'static str, fields: &'static str) -> Case {
    Case { kind, fields, verdict: Verdict::Taken }
}

const fn refused(kind: &'static str, fields: &'static str, words: &'static [&'static str]) -> Case {
    Case { kind, fields, verdict: Verdict::Refused(words) }
}

/// Good for every kind but for its first field.
const PROBE: &str = r#""sepc": {}, "spec": {"targetRefs": [{"kind": "Service", "name": "web"}]}"#;

const L4: &str = "adit decides at L4, by identity, address and port, and does not know: ";

#[rustfmt::skip] // one line each, to be read down
const CASES: &[Case] = &[
    // Nothing, everything, and null for absent.
    taken(AUTHORIZATION, ""),
    taken(AUTHORIZATION, r#""spec": null"#),
    taken(AUTHORIZATION, r#""spec": {}"#),
    taken(AUTHORIZATION, r#""spec": {"rules": []}"#),
    taken(AUTHORIZATION, r#""spec": {"rules": [{}]}"#),
    taken(AUTHORIZATION, r#""spec": {"selector": null, "action": null, "dryRun": null, "rules": [{"from": null, "to": null, "when": null}]}"#),
    taken(AUTHORIZATION, r#""spec": {"selector": {"matchLabels": null}, "rules": [{"when": []}]}"#),
    taken(PEERS, ""),
    taken(PEERS, r#""spec": {}"#),
    taken(PEERS, r#""spec": {"selector": null, "mtls": null, "portLevelMtls": null}"#),
    // Every field.
    taken(AUTHORIZATION, r#""spec": {"selector": {"matchLabels": {"app.kubernetes.io/name": "Web_1.x", "empty": ""}}, "action": "DENY", "dryRun": true, "rules": [{
        "from": [{"source": {
            "principals": ["spiffe://Cluster.Local/ns/shop/sa/web", "cluster.local/ns/other/*", "*/sa/bot", "*"], "notPrincipals": ["cluster.local/ns/a/sa/b"],
            "namespaces": ["shop", "dev-*"], "notNamespaces": ["*-test"],
            "serviceAccounts": ["web", "other/api"], "notServiceAccounts": ["a/b"],
            "ipBlocks": ["10.1.2.3/8", "192.0.2.1", "::ffff:10.0.0.0/104", "::ffff:1.2.3.4/24", "::ffff:1.2.3.4", "FD00::1", "::"], "notIpBlocks": ["fd00::1/64"]}}],
        "to": [{"operation": {"ports": ["80", 443], "notPorts": [8080]}}],
        "when": [
            {"key": "source.principal", "values": ["*"]}, {"key": "source.namespace", "notValues": ["a"]},
            {"key": "source.ip", "values": ["10.0.0.1"]}, {"key": "destination.ip", "values": ["10.0.0.0/8"], "notValues": ["10.0.0.1"]},
            {"key": "destination.port", "values": ["80", 443], "notValues": null}]}]}"#),
    taken(AUTHORIZATION, r#""spec": {"action": "AUDIT", "rules": [{"from": [{"source": {"principals": ["a.b/ns/x"], "namespaces": null}}]}]}"#),
    taken(PEERS, r#""spec": {"selector": {"matchLabels": {"app": "web"}}, "mtls": {"mode": "STRICT"}, "portLevelMtls": {"8080": {"mode": "PERMISSIVE"}, "9": {"mode": "UNSET"}, "10": {}, "11": {"mode": null}}}"#),
    taken(TRAFFIC, r#""spec": {"targetRefs": [{"kind": "Service", "name": "web", "group": ""}, {"kind": "Service", "name": "db"}, {"kind": "Service", "name": "x", "group": "core"}, {"kind": "Service", "name": "y", "group": null}],
        "connectTimeout": "5s", "attemptTimeout": "500ms", "retry": {"attempts": 10, "backoff": "1ms", "maxBackoff": "1h"},
        "retryConstraint": {"budget": {"percent": 100, "interval": "20s"}, "minRetryRate": {"count": 0, "interval": "59m59s999ms"}},
        "ejection": {"consecutiveFailures": 0, "baseTime": "2s", "maxTime": "1m30s", "maxPercent": 0}}"#),
    taken(TRAFFIC, r#""spec": {"targetRefs": [{"kind": "Service", "name": "web"}], "connectTimeout": null, "retry": {"attempts": null, "backoff": null}, "retryConstraint": {"budget": null}, "ejection": {}}"#),

    // A field that is not known, at every level.
    refused(AUTHORIZATION, r#""sepc": {"action": "DENY"}"#, &[L4, "sepc (here it knows apiVersion, kind, metadata, spec, status)"]),
    refused(AUTHORIZATION, r#""spec": {"ruels": [{}]}"#, &[L4, "spec.ruels (here it knows action, dryRun, rules, selector)"]),
    refused(AUTHORIZATION, r#""spec": {"targetRefs": []}"#, &[L4, "spec.targetRefs ("]),
    refused(AUTHORIZATION, r#""spec": {"selector": {"matchExpressions": []}}"#, &[L4, "spec.selector.matchExpressions (here it knows matchLabels)"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{}, {"form": [{"source": {"namespaces": ["a"]}}]}]}"#, &[L4, "spec.rules[1].form (here it knows from, to, when)"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"from": [{"source": {"namespaces": ["a"]}, "sources": {}}]}]}"#, &[L4, "spec.rules[0].from[0].sources (here it knows source)"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"from": [{"source": {"namespaces": ["a"]}}, {"source": {"notPrincpals": ["a"]}}]}]}"#, &[L4, "spec.rules[0].from[1].source.notPrincpals (here it knows ipBlocks, namespaces, notIpBlocks"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"to": [{"operation": {"ports": ["80"]}, "operations": {}}]}]}"#, &[L4, "spec.rules[0].to[0].operations (here it knows operation)"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"to": [{"operation": {"ports": ["80"], "prots": [80]}}]}]}"#, &[L4, "spec.rules[0].to[0].operation.prots (here it knows notPorts, ports)"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"when": [{"key": "source.ip", "values": ["::1"], "value": "::1"}]}]}"#, &[L4, "spec.rules[0].when[0].value (here it knows key, notValues, values)"]),
    refused(PEERS, r#""spce": {}"#, &[L4, "spce ("]),
    refused(PEERS, r#""spec": {"mtsl": {"mode": "STRICT"}}"#, &[L4, "spec.mtsl (here it knows mtls, portLevelMtls, selector)"]),
    refused(PEERS, r#""spec": {"mtls": {"mode": "STRICT", "modus": "x"}}"#, &[L4, "spec.mtls.modus (here it knows mode)"]),
    refused(PEERS, r#""spec": {"portLevelMtls": {"80": {"mode": "STRICT"}, "81": {"mod": "STRICT"}}}"#, &[L4, "spec.portLevelMtls[81].mod (here it knows mode)"]),
    refused(PEERS, r#""spec": {"selector": {"labels": {}}}"#, &[L4, "spec.selector.labels ("]),
    refused(TRAFFIC, r#""spec": {"targetRefs": [{"kind": "Service", "name": "web", "port": 1}]}"#, &[L4, "spec.targetRefs[0].port (here it knows group, kind, name)"]),
    refused(TRAFFIC, r#""spec": {"targetRefs": [{"kind": "Service", "name": "web"}], "timeout": "1s"}"#, &[L4, "spec.timeout ("]),
    refused(TRAFFIC, r#""spec": {"targetRefs": [{"kind": "Service", "name": "web"}], "retry": {"on": "5xx"}}"#, &[L4, "spec.retry.on (here it knows attempts, backoff, maxBackoff)"]),
    refused(TRAFFIC, r#""spec": {"targetRefs": [{"kind": "Service", "name": "web"}], "retryConstraint": {"x": 1, "budget": {"y": 1}, "minRetryRate": {"z": 1}}}"#, &[L4, "spec.retryConstraint.x (", "spec.retryConstraint.budget.y (", "spec.retryConstraint.minRetryRate.z ("]),
    refused(TRAFFIC, r#""spec": {"targetRefs": [{"kind": "Service", "name": "web"}], "ejection": {"max": 1}}"#, &[L4, "spec.ejection.max ("]),

    // What is inside HTTP.
    refused(AUTHORIZATION, r#""spec": {"provider": {"name": "x"}}"#, &[L4, "spec.provider (inside HTTP)"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"to": [{"operation": {"methods": ["GET"], "paths": ["/x"], "notHosts": ["h"]}}]}]}"#, &[L4, "spec.rules[0].to[0].operation.methods (inside HTTP)", "spec.rules[0].to[0].operation.paths (inside HTTP)", "spec.rules[0].to[0].operation.notHosts (inside HTTP)"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"from": [{"source": {"requestPrincipals": ["*"], "remoteIpBlocks": ["10.0.0.0/8"]}}]}]}"#, &[L4, "spec.rules[0].from[0].source.requestPrincipals (inside HTTP)", "spec.rules[0].from[0].source.remoteIpBlocks (inside HTTP)"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"when": [{"key": "request.headers[x]", "values": ["a"]}]}]}"#, &["spec.rules[0].when[0].key", "\"source.principal\""]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"when": [{"key": "connection.sni", "values": ["a"]}]}]}"#, &["spec.rules[0].when[0].key"]),

    // Words and numbers.
    refused(AUTHORIZATION, r#""spec": {"action": "CUSTOM"}"#, &["spec.action", "\"ALLOW\", \"DENY\", \"AUDIT\""]),
    refused(AUTHORIZATION, r#""spec": {"action": "allow"}"#, &["spec.action"]),
    refused(AUTHORIZATION, r#""spec": {"dryRun": "true"}"#, &["spec.dryRun"]),
    refused(AUTHORIZATION, r#""spec": {"rules": {"from": []}}"#, &["spec.rules"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [null]}"#, &["spec.rules[0]"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"from": []}]}"#, &["spec.rules[0].from"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"to": []}]}"#, &["spec.rules[0].to"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"from": [{}]}]}"#, &["spec.rules[0].from[0].source"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"from": [{"source": null}]}]}"#, &["spec.rules[0].from[0].source"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"from": [{"source": {}}]}]}"#, &["spec.rules[0].from[0].source"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"from": [{"source": {"principals": null}}]}]}"#, &["spec.rules[0].from[0].source"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"to": [{"operation": {"ports": null}}]}]}"#, &["spec.rules[0].to[0].operation"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"from": [{"source": {"principals": []}}]}]}"#, &["spec.rules[0].from[0].source.principals"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"from": [{"source": {"principals": ["*", "a*b/c"]}}]}]}"#, &["spec.rules[0].from[0].source.principals[1]"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"from": [{"source": {"principals": ["web"]}}]}]}"#, &["spec.rules[0].from[0].source.principals[0]"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"from": [{"source": {"notPrincipals": ["a/../b"]}}]}]}"#, &["spec.rules[0].from[0].source.notPrincipals[0]"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"from": [{"source": {"namespaces": ["a/b"]}}]}]}"#, &["spec.rules[0].from[0].source.namespaces[0]"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"from": [{"source": {"serviceAccounts": ["a/*"]}}]}]}"#, &["spec.rules[0].from[0].source.serviceAccounts[0]"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"from": [{"source": {"ipBlocks": ["10.0.0.0/33"]}}]}]}"#, &["spec.rules[0].from[0].source.ipBlocks[0]"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"from": [{"source": {"ipBlocks": ["01.2.3.4"]}}]}]}"#, &["spec.rules[0].from[0].source.ipBlocks[0]"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"from": [{"source": {"ipBlocks": ["10.0.0.0/08"]}}]}]}"#, &["spec.rules[0].from[0].source.ipBlocks[0]"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"from": [{"source": {"notIpBlocks": ["fe80::1%eth0"]}}]}]}"#, &["spec.rules[0].from[0].source.notIpBlocks[0]"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"to": [{"operation": {"ports": [0]}}]}]}"#, &["spec.rules[0].to[0].operation.ports[0]"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"to": [{"operation": {"ports": [80, 70000]}}]}]}"#, &["spec.rules[0].to[0].operation.ports[1]"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"to": [{"operation": {"notPorts": ["http"]}}]}]}"#, &["spec.rules[0].to[0].operation.notPorts[0]"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"to": [{"operation": {"ports": ["080"]}}]}]}"#, &["spec.rules[0].to[0].operation.ports[0]"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"when": [{"values": ["a"]}]}]}"#, &["spec.rules[0].when[0].key"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"when": [{"key": "source.ip"}]}]}"#, &["spec.rules[0].when[0]"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"when": [{"key": "source.ip", "values": null}]}]}"#, &["spec.rules[0].when[0]"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"when": [{"key": "source.ip", "values": []}]}]}"#, &["spec.rules[0].when[0].values"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"when": [{"key": "source.ip", "values": ["x"]}]}]}"#, &["spec.rules[0].when[0]"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"when": [{"key": "source.principal", "values": ["web"]}]}]}"#, &["spec.rules[0].when[0]"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"when": [{"key": "destination.port", "values": ["http"]}]}]}"#, &["spec.rules[0].when[0]"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"when": [{"key": "destination.port", "notValues": [70000]}]}]}"#, &["spec.rules[0].when[0]"]),
    refused(AUTHORIZATION, r#""spec": {"rules": [{"when": [{"key": "source.namespace", "notValues": ["a", 80]}]}]}"#, &["adit does not understand: spec.rules[0].when[0].notValues (has a number)"]),
    refused(AUTHORIZATION, r#""spec": {"selector": {"matchLabels": {"app": "*"}}}"#, &["spec.selector.matchLabels.app"]),
    refused(AUTHORIZATION, r#""spec": {"selector": {"matchLabels": {"a/b/c": "x"}}}"#, &["adit does not understand: spec.selector.matchLabels[a/b/c] (is no label)"]),
    refused(PEERS, r#""spec": {"mtls": {"mode": "DISABLE"}}"#, &["spec.mtls.mode"]),
    refused(PEERS, r#""spec": {"portLevelMtls": {"http": {"mode": "STRICT"}}}"#, &["adit does not understand: spec.portLevelMtls[http] (is no port)"]),
    refused(PEERS, r#""spec": {"selector": {"matchLabels": {"-a": "x"}}}"#, &["adit does not understand: spec.selector.matchLabels[-a] (is no label)"]),
    refused(TRAFFIC, "", &["spec"]),
    refused(TRAFFIC, r#""spec": {}"#, &["spec.targetRefs"]),
    refused(TRAFFIC, r#""spec": {"targetRefs": []}"#, &["spec.targetRefs"]),
    refused(TRAFFIC, r#""spec": {"targetRefs": [{"kind": "Gateway", "name": "x"}]}"#, &["spec.targetRefs[0].kind"]),
    refused(TRAFFIC, r#""spec": {"targetRefs": [{"kind": "Service"}]}"#, &["spec.targetRefs[0].name"]),
    refused(TRAFFIC, r#""spec": {"targetRefs": [{"kind": "Service", "name": "x", "group": "apps"}]}"#, &["spec.targetRefs[0].group"]),
    refused(TRAFFIC, r#""spec": {"targetRefs": [{"kind": "Service", "name": "x"}], "connectTimeout": 3}"#, &["spec.connectTimeout"]),
    refused(TRAFFIC, r#""spec": {"targetRefs": [{"kind": "Service", "name": "x"}], "connectTimeout": "1.5s"}"#, &["spec.connectTimeout"]),
    refused(TRAFFIC, r#""spec": {"targetRefs": [{"kind": "Service", "name": "x"}], "attemptTimeout": "0s"}"#, &["adit does not understand: spec.attemptTimeout (is not above zero and up to 1h)"]),
    refused(TRAFFIC, r#""spec": {"targetRefs": [{"kind": "Service", "name": "x"}], "retry": {"backoff": "1h1ms"}, "ejection": {"maxTime": "99999h"}}"#, &["spec.retry.backoff (is not above", "spec.ejection.maxTime (is not above"]),
    refused(TRAFFIC, r#""spec": {"targetRefs": [{"kind": "Service", "name": "x"}], "retry": {"attempts": 11}}"#, &["spec.retry.attempts"]),
    refused(TRAFFIC, r#""spec": {"targetRefs": [{"kind": "Service", "name": "x"}], "retryConstraint": {"budget": {"percent": 101}}}"#, &["spec.retryConstraint.budget.percent"]),
    refused(TRAFFIC, r#""spec": {"targetRefs": [{"kind": "Service", "name": "x"}], "retryConstraint": {"minRetryRate": {"count": -1}}}"#, &["spec.retryConstraint.minRetryRate.count"]),
    refused(TRAFFIC, r#""spec": {"targetRefs": [{"kind": "Service", "name": "x"}], "ejection": {"maxPercent": "x"}}"#, &["spec.ejection.maxPercent"]),
];
