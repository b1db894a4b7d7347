//! Objects that nobody expects, in each kind that is followed: named, counted, and without harm to the rest.

use anyhow::{Context, Result, ensure};

use super::bed::Bed;
use super::policies::{may, policy, until_may};
use super::shop::{SHOP, Shop};

/// Of policy; etcd takes 1.5 MiB at once.
const LARGE: usize = 1 << 20;

#[test]
fn garbage_in_each_kind_is_named_and_counted_and_the_rest_goes_on() -> Result<()> {
    let Some(bed) = Bed::make()? else { return Ok(()) };
    let cluster = &bed.cluster;
    let shop = Shop::open(cluster)?;
    shop.label(true)?;
    // What refuses such policies was taken away, or they were there before it.
    for kind in ["authorizationpolicies", "peerauthentications", "trafficpolicies"] {
        let binding = format!("{kind}.policy.adit.dev");
        cluster.kubectl(["delete", "validatingadmissionpolicybinding", &binding])?;
    }
    let garbage = "apiVersion: v1
kind: Pod
metadata: {name: nowhere, namespace: shop}
spec: {nodeName: node9, automountServiceAccountToken: false, containers: [{name: it, image: none}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: names, namespace: shop, labels: {kubernetes.io/service-name: server}}
addressType: FQDN
endpoints: [{addresses: [elsewhere.example]}]
ports: [{name: http, port: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: shop}
spec: {type: ExternalName, externalName: elsewhere.example}
---
apiVersion: v1
kind: Namespace
metadata: {name: odd, labels: {adit.dev/mesh: perhaps}}
";
    cluster.apply(garbage)?;
    let policies = "apiVersion: policy.adit.dev/v1alpha1
kind: PeerAuthentication
metadata: {name: odd, namespace: odd}
spec: {mtls: {mode: STRICT}, sauce: 1}
---
apiVersion: policy.adit.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: odd, namespace: odd}
spec: {targetRefs: [{kind: Service, name: none}], sauce: 1}
---
apiVersion: policy.adit.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: odd, namespace: odd}
spec: {rules: [{from: [{source: {sauce: [shop]}}]}]}
";
    let create = |text: &str| {
        cluster.until("that it is taken", || {
            // Applied, as what was taken already stays when it is tried again.
            let args = ["apply", "--server-side", "--validate=false", "-f", "-"];
            cluster.kubectl_command(args).stdin(text).ok().map(Some)
        })
    };
    create(policies)?;
    // One that asks for what nobody has, ten thousands of times.
    let values: Vec<String> =
        (0..LARGE / 24).map(|number| format!("\"nobody-{number:06}/nobody\"")).collect();
    let rules = format!("{{rules: [{{from: [{{source: {{serviceAccounts: [{}]}}}}]}}]}}", values.join(","));
    create(&policy("odd", "large", &rules))?;

    let named = cluster.until("that each is named on both nodes", || {
        for node in ["node1", "node2"] {
            let problems = shop.status(node)?.problems;
            for of in [
                "AuthorizationPolicy odd/odd",
                "PeerAuthentication odd/odd",
                "TrafficPolicy odd/odd",
                "Namespace odd",
            ] {
                if !problems.iter().any(|problem| problem.starts_with(of)) {
                    return Ok(None);
                }
            }
        }
        Ok(Some(()))
    });
    named.with_context(|| format!("{:?}", shop.status("node2").map(|status| status.problems)))?;
    for node in ["node1", "node2"] {
        let metrics = shop.metrics(node)?;
        let now: usize = metrics
            .lines()
            .filter(|line| line.starts_with("adit_object_errors{") || line.starts_with("adit_object_errors "))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok())
            .sum();
        ensure!(now >= 4, "{node}: {now} are counted");
    }
    // The rest: traffic, and policies that come after.
    ensure!(may(&shop)?, "calls are answered");
    cluster.apply(&policy(SHOP, "after", "{action: DENY, rules: [{}]}"))?;
    until_may(&shop, false)?;
    cluster.kubectl(["delete", "adap", "-n", SHOP, "after"])?;
    until_may(&shop, true)
}
