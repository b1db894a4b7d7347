//! What a node's agent may write, and that it may write nothing else, whatever RBAC lets it: the table, and how it is
//! tried. `kubectl` must be one that may impersonate.

use adit_tests::process::Output;
use anyhow::{Result, bail, ensure};

use super::Kubectl;

/// Something that the agent of node `fence-1` does.
struct Case {
    args: &'static [&'static str],
    stdin: &'static str,
    /// What is said if it is refused.
    refused: Option<&'static str>,
}

const AGENT: &str = "--as=system:serviceaccount:adit-system:adit-agent";
const NODE: &str = "--as-user-extra=authentication.kubernetes.io/node-name=fence-1";

/// Applies the fence and what it is tried on, and returns once it is in force.
pub(crate) fn applied(kubectl: Kubectl<'_>, manifests: &str) -> Result<()> {
    run(kubectl, &["apply", "-f", &format!("{manifests}/fence.yaml")], "")?;
    // Server-side: kubectl would hand what it applied otherwise to whoever applies server-side next.
    run(kubectl, &["apply", "--server-side", "--field-manager=given", "-f", "-"], GIVEN)?;
    let probes: [(&[&str], &str); 4] = [
        (&["annotate", "-n", "fence", "pod", "own", "probe=x", "--dry-run=server"], ""),
        (&["create", "--dry-run=server", "-f", "-"], FOREIGN_LEASE),
        (&["create", "--dry-run=server", "-f", "-"], EVENT_OF_ANOTHER_NODE),
        (&["create", "--dry-run=server", "configmap", "-n", "fence", "probe"], ""),
    ];
    for (args, stdin) in probes {
        let refused = (0..300).any(|_| {
            let args = [args, &[AGENT, NODE]].concat();
            kubectl(&args, stdin).is_ok_and(|output| said(&output).contains("denied request"))
        });
        ensure!(refused, "the fence does not come into force: {args:?}");
    }
    Ok(())
}

/// Tries every line of the table. Returns how many those are.
pub(crate) fn check(kubectl: Kubectl<'_>) -> Result<usize> {
    let mut wrong = Vec::new();
    for case in CASES {
        let output = kubectl(&[case.args, &[AGENT, NODE]].concat(), case.stdin)?;
        let said = said(&output);
        let good = match case.refused {
            None => output.status.success(),
            // Forbidden, not Invalid: a client must not think that another value would do.
            Some(words) => {
                !output.status.success() && said.contains(words) && said.to_lowercase().contains("forbidden")
            }
        };
        if !good {
            wrong.push(format!("{:?} {}\n    {said}", case.args, case.stdin));
        }
    }
    let anonymous = kubectl(&["annotate", "-n", "fence", "pod", "own", "adit.dev/capture=x", AGENT], "")?;
    if !said(&anonymous).contains("the token carries no node claim") {
        wrong.push(format!("without a node claim\n    {}", said(&anonymous)));
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    Ok(CASES.len() + 1)
}

fn run(kubectl: Kubectl<'_>, args: &[&str], stdin: &str) -> Result<()> {
    let output = kubectl(args, stdin)?;
    ensure!(output.status.success(), "kubectl {args:?}: {}", said(&output));
    Ok(())
}

fn said(output: &Output) -> String {
    output.stderr.clone()
}

/// An agent that RBAC would let do everything, a pod of its node and one of another.
const GIVEN: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: fence-lets-the-agent-do-everything}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects: [{kind: ServiceAccount, namespace: adit-system, name: adit-agent}]
---
apiVersion: v1
kind: Namespace
metadata: {name: fence}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: fenced, namespace: fence}
---
apiVersion: v1
kind: Pod
metadata: {name: own, namespace: fence, annotations: {other: x}, labels: {app: a}, finalizers: [example.com/f]}
spec: {nodeName: fence-1, serviceAccountName: fenced, automountServiceAccountToken: false, containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: Pod
metadata: {name: foreign, namespace: fence}
spec: {nodeName: fence-2, serviceAccountName: fenced, automountServiceAccountToken: false, containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: Event
metadata: {name: kubelets, namespace: fence}
involvedObject: {kind: Pod, namespace: fence, name: own}
reportingComponent: kubelet
reportingInstance: fence-2
"#;

const fn may(args: &'static [&'static str], stdin: &'static str) -> Case {
    Case { args, stdin, refused: None }
}

const fn not(args: &'static [&'static str], stdin: &'static str, says: &'static str) -> Case {
    Case { args, stdin, refused: Some(says) }
}

const PATCH: &str = "--patch";
const OWN: [&str; 5] = ["patch", "-n", "fence", "pod", "own"];

const LEASE: &str = r#"{"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "adit-node-fence-1", "namespace": "adit-system",
    "annotations": {"adit.dev/bundle-generation": "3"}}, "spec": {"holderIdentity": "fence-1"}}"#;
/// Only said to be made: there is no such Node, and what is owned by nobody is collected.
const OWNED_LEASE: &str = r#"{"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "adit-node-fence-1", "namespace": "adit-system",
    "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "fence-1", "uid": "u"}]}, "spec": {"holderIdentity": "fence-1"}}"#;
const FOREIGN_LEASE: &str = r#"{"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "adit-node-fence-2", "namespace": "adit-system"}}"#;
const EVENT: &str = r#"{"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e1", "namespace": "fence"},
    "involvedObject": {"kind": "Pod", "namespace": "fence", "name": "own"}, "reason": "R", "type": "Warning", "reportingComponent": "adit.dev/agent", "reportingInstance": "fence-1"}"#;
const EVENT_OF_ANOTHER_NODE: &str = r#"{"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e2", "namespace": "fence"},
    "involvedObject": {"kind": "Pod", "namespace": "fence", "name": "own"}, "reportingComponent": "adit.dev/agent", "reportingInstance": "fence-2"}"#;
const CREATE: &[&str] = &["create", "-f", "-"];

#[rustfmt::skip] // one line each, to be read down
const CASES: &[Case] = &[
    // Pods: the annotation, and only of the own node.
    may(&["annotate", "-n", "fence", "pod", "own", "adit.dev/capture=enabled"], ""),
    may(&[OWN[0], OWN[1], OWN[2], OWN[3], OWN[4], "--type=merge", PATCH, r#"{"metadata": {"annotations": {"adit.dev/capture": "x"}}}"#], ""),
    may(&["apply", "--server-side", "--force-conflicts", "--field-manager=agent", "-f", "-"], r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "own", "namespace": "fence", "annotations": {"adit.dev/capture": "enabled"}}}"#),
    may(&["annotate", "-n", "fence", "pod", "own", "adit.dev/capture-"], ""),
    not(&["annotate", "-n", "fence", "pod", "foreign", "adit.dev/capture=enabled"], "", "adit-agent of node fence-1 may not touch a pod of node fence-2"),
    not(&["annotate", "-n", "fence", "pod", "own", "more=x"], "", "may change no annotation but adit.dev/capture"),
    not(&["annotate", "-n", "fence", "pod", "own", "adit.dev/capture=enabled", "other=y", "--overwrite"], "", "may change no annotation but adit.dev/capture"),
    not(&["annotate", "-n", "fence", "pod", "own", "other-"], "", "may change no annotation but adit.dev/capture"),
    not(&["label", "-n", "fence", "pod", "own", "x=y"], "", "may change nothing but the annotation"),
    not(&[OWN[0], OWN[1], OWN[2], OWN[3], OWN[4], "--type=merge", PATCH, r#"{"metadata": {"finalizers": null}}"#], "", "may change nothing but the annotation"),
    not(&[OWN[0], OWN[1], OWN[2], OWN[3], OWN[4], "--type=merge", PATCH, r#"{"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u"}]}}"#], "", "may change nothing but the annotation"),
    not(&["set", "image", "-n", "fence", "pod/own", "c=evil"], "", "may change nothing but the annotation"),
    not(&[OWN[0], OWN[1], OWN[2], OWN[3], OWN[4], "--subresource=status", "--type=merge", PATCH, r#"{"status": {"podIP": "10.0.0.1"}}"#], "", "no other verb, no sub-resource"),
    not(&["delete", "-n", "fence", "pod", "own", "--grace-period=0", "--force"], "", "no other verb, no sub-resource"),
    not(CREATE, r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "new", "namespace": "fence"}, "spec": {"nodeName": "fence-1", "serviceAccountName": "fenced", "automountServiceAccountToken": false, "containers": [{"name": "c", "image": "i"}]}}"#, "no other verb, no sub-resource"),
    not(&["create", "--raw", "/api/v1/namespaces/fence/pods/own/eviction", "-f", "-"], r#"{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "own", "namespace": "fence"}}"#, "no other verb, no sub-resource"),
    not(&["create", "--raw", "/api/v1/namespaces/fence/pods/own/exec?command=sh&stdout=true", "-f", "-"], "", "no other verb, no sub-resource"),
    // Its Lease.
    may(&["create", "--dry-run=server", "-f", "-"], OWNED_LEASE),
    may(CREATE, LEASE),
    may(&["annotate", "-n", "adit-system", "lease", "adit-node-fence-1", "adit.dev/bundle-generation=4", "--overwrite"], ""),
    not(CREATE, FOREIGN_LEASE, "may write no Lease but adit-system/adit-node-fence-1"),
    not(CREATE, r#"{"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "adit-node-fence-1", "namespace": "fence"}}"#, "may write no Lease but adit-system/adit-node-fence-1"),
    not(CREATE, r#"{"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"generateName": "adit-node-", "namespace": "adit-system"}}"#, "may write no Lease but adit-system/adit-node-fence-1"),
    not(&["patch", "-n", "adit-system", "lease", "adit-node-fence-1", "--type=merge", PATCH, r#"{"metadata": {"finalizers": ["example.com/f"]}}"#], "", "no finalizer, and no owner but its Node"),
    not(&["patch", "-n", "adit-system", "lease", "adit-node-fence-1", "--type=merge", PATCH, r#"{"metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "fence-2", "uid": "u"}]}}"#], "", "no finalizer, and no owner but its Node"),
    not(&["delete", "-n", "adit-system", "lease", "adit-node-fence-1"], "", "no other verb"),
    // Events.
    may(CREATE, EVENT),
    may(&["patch", "-n", "fence", "event", "e1", "--type=merge", PATCH, r#"{"count": 2}"#], ""),
    may(CREATE, r#"{"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e3", "namespace": "fence"}, "involvedObject": {"kind": "Namespace", "name": "fence", "namespace": "fence"}, "reportingComponent": "adit.dev/agent", "reportingInstance": "fence-1"}"#),
    may(CREATE, r#"{"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e4", "namespace": "fence"}, "regarding": {"kind": "Pod", "namespace": "fence", "name": "own"}, "eventTime": "2026-01-01T00:00:00.000000Z", "reason": "R", "type": "Warning", "action": "A", "note": "n", "reportingController": "adit.dev/agent", "reportingInstance": "fence-1"}"#),
    not(CREATE, EVENT_OF_ANOTHER_NODE, "may write Events only as adit.dev/agent, instance fence-1"),
    not(CREATE, r#"{"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e5", "namespace": "fence"}, "regarding": {"kind": "Pod", "namespace": "fence", "name": "own"}, "eventTime": "2026-01-01T00:00:00.000000Z", "reason": "R", "type": "Warning", "action": "A", "note": "n", "reportingController": "kubelet", "reportingInstance": "fence-1"}"#, "may write Events only as adit.dev/agent, instance fence-1"),
    not(CREATE, r#"{"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e6", "namespace": "fence"}, "involvedObject": {"kind": "Secret", "namespace": "fence", "name": "s"}, "reportingComponent": "adit.dev/agent", "reportingInstance": "fence-1"}"#, "only about pods and namespaces"),
    not(CREATE, r#"{"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e7", "namespace": "fence", "finalizers": ["example.com/f"]}, "involvedObject": {"kind": "Pod", "namespace": "fence", "name": "own"}, "reportingComponent": "adit.dev/agent", "reportingInstance": "fence-1"}"#, "no finalizer and no owner"),
    not(&["patch", "-n", "fence", "event", "kubelets", "--type=merge", PATCH, r#"{"reportingComponent": "adit.dev/agent", "reportingInstance": "fence-1"}"#], "", "an Event that is not of its node"),
    not(&["delete", "-n", "fence", "event", "e1"], "", "no other verb"),
    // Nothing else.
    not(&["create", "configmap", "-n", "fence", "x"], "", "may write nothing but"),
    not(&["create", "secret", "generic", "-n", "fence", "x"], "", "may write nothing but"),
    not(&["label", "namespace", "fence", "adit.dev/mesh=enabled"], "", "may write nothing but"),
    not(&["create", "token", "-n", "fence", "fenced"], "", "may write nothing but"),
    not(&["create", "clusterrolebinding", "x", "--clusterrole=cluster-admin", "--user=u"], "", "may write nothing but"),
    not(&["delete", "namespace", "fence"], "", "may write nothing but"),
];
