//! Pods: only those fields are decoded that the mesh reads.

use std::net::IpAddr;

use adit_core::net::{NodeName, PodUid};
use adit_core::workload::{self, NamedPort, Owner};
use adit_core::world::{Change, Kind};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Deserialize;

use crate::meta::{Translated, labels, missing, namespaced_name, or_default};
use crate::policies::parse;
use crate::problem::{FieldPath, Problem, Rejected, Wrong};
use crate::skip;

#[cfg(test)]
mod tests;

const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
const MIRROR: &str = "kubernetes.io/config.mirror";
const TEMPLATE_HASH: &str = "pod-template-hash";

/// A Pod, as far as the mesh reads it.
#[derive(Clone, Debug, Deserialize)]
pub struct Pod {
    /// `metadata`.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// `spec`.
    #[serde(default, deserialize_with = "or_default")]
    pub spec: Spec,
    /// `status`.
    #[serde(default, deserialize_with = "or_default")]
    pub status: Status,
}

/// `spec` of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    node_name: Option<String>,
    service_account_name: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    host_network: bool,
    #[serde(default, deserialize_with = "or_default")]
    containers: Vec<Container>,
    #[serde(default, deserialize_with = "or_default")]
    init_containers: Vec<Container>,
}

/// `status` of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    #[serde(default, deserialize_with = "or_default")]
    phase: String,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs", default, deserialize_with = "or_default")]
    pod_ips: Vec<PodIp>,
}

#[derive(Clone, Debug, Deserialize)]
struct PodIp {
    #[serde(default)]
    ip: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    restart_policy: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    ports: Vec<ContainerPort>,
    liveness_probe: Option<Action>,
    readiness_probe: Option<Action>,
    startup_probe: Option<Action>,
    lifecycle: Option<Lifecycle>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerPort {
    #[serde(default, deserialize_with = "or_default")]
    name: String,
    container_port: Option<i32>,
    protocol: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Lifecycle {
    post_start: Option<Action>,
    pre_stop: Option<Action>,
}

/// A probe's or a hook's action that opens a connection.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Action {
    http_get: Option<Dial>,
    tcp_socket: Option<Dial>,
    grpc: Option<Dial>,
}

#[derive(Clone, Debug, Deserialize)]
struct Dial {
    port: Option<IntOrString>,
    host: Option<String>,
}

/// What a Pod means; no change for a finished one: its address may already be another's.
pub fn translate(pod: &Pod) -> Result<Translated, Rejected> {
    let name = namespaced_name(Kind::Pod, &pod.metadata)?;
    if matches!(pod.status.phase.as_str(), "Succeeded" | "Failed") {
        return Ok(Translated { change: None, problems: Vec::new() });
    }
    let uid = pod.metadata.uid.as_deref().filter(|uid| !uid.is_empty());
    let uid = uid.ok_or_else(|| missing(Kind::Pod, &pod.metadata, FieldPath::of(["metadata", "uid"])))?;
    let mut problems = Vec::new();
    let ips = ips(&pod.status, &mut problems);
    let mut ports = Ports::default();
    ports.read(pod, &ips, &mut problems);
    let account = pod.spec.service_account_name.as_deref().filter(|account| !account.is_empty());
    let annotation = |key| pod.metadata.annotations.as_ref().and_then(|all| all.get(key)).map(String::as_str);
    let change = Change::Pod(workload::Pod {
        uid: PodUid(uid.into()),
        node: pod.spec.node_name.as_deref().filter(|node| !node.is_empty()).map(|node| NodeName(node.into())),
        ips,
        service_account: account.unwrap_or("default").into(),
        labels: pod.metadata.labels.as_ref().map(labels).unwrap_or_default().into(),
        mesh: skip::mesh_label(&pod.metadata, &mut problems),
        host_network: pod.spec.host_network,
        is_static: annotation(MIRROR).is_some()
            || annotation(CONFIG_SOURCE).is_some_and(|source| source != "api"),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        captured: annotation(skip::CAPTURE_ANNOTATION) == Some("enabled"),
        ports: ports.named,
        probe_ports: ports.probes,
        skip: skip::skip(&pod.metadata, &mut problems),
        owner: owner(&pod.metadata, &name.name),
        name,
    });
    Ok(Translated { change: Some(change), problems })
}

/// `status.podIPs`, or the older `podIP`; no doubles.
fn ips(status: &Status, problems: &mut Vec<Problem>) -> Vec<IpAddr> {
    let many = status
        .pod_ips
        .iter()
        .enumerate()
        .map(|(at, ip)| (FieldPath::of(["status", "podIPs"]).index(at).key("ip"), ip.ip.as_str()));
    let one = status.pod_ip.iter().map(|ip| (FieldPath::of(["status", "podIP"]), ip.as_str()));
    let mut ips = Vec::new();
    for (field, text) in many.chain(one) {
        match parse::address(text) {
            Ok(ip) if ips.contains(&ip) => {}
            Ok(ip) => ips.push(ip),
            Err(_) if text.is_empty() => {}
            Err(wrong) => problems.push(Problem { field, wrong }),
        }
    }
    ips
}

/// The ports of a pod that count: those of containers and of restartable init containers, which run beside them.
#[derive(Default)]
struct Ports {
    named: Vec<NamedPort>,
    probes: Vec<u16>,
}

impl Ports {
    fn read(&mut self, pod: &Pod, ips: &[IpAddr], problems: &mut Vec<Problem>) {
        let groups = [("containers", &pod.spec.containers), ("initContainers", &pod.spec.init_containers)];
        for (group, containers) in groups {
            for (at, container) in containers.iter().enumerate() {
                let runs_on = group == "containers" || container.restart_policy.as_deref() == Some("Always");
                if runs_on {
                    let field = FieldPath::of(["spec", group]).index(at);
                    self.read_container(container, ips, &field, problems);
                }
            }
        }
        self.probes.sort_unstable();
        self.probes.dedup();
    }

    fn read_container(
        &mut self,
        container: &Container,
        ips: &[IpAddr],
        field: &FieldPath,
        problems: &mut Vec<Problem>,
    ) {
        for (at, port) in container.ports.iter().enumerate() {
            if port.name.is_empty() || port.protocol.as_deref().unwrap_or("TCP") != "TCP" {
                continue;
            }
            match number(port.container_port) {
                Ok(number) => self.named.push(NamedPort { name: port.name.as_str().into(), port: number }),
                Err(wrong) => {
                    problems.push(Problem { field: field.key("ports").index(at).key("containerPort"), wrong })
                }
            }
        }
        let probes = [
            ("livenessProbe", &container.liveness_probe),
            ("readinessProbe", &container.readiness_probe),
            ("startupProbe", &container.startup_probe),
        ];
        for (name, action) in probes {
            self.read_action(container, action.as_ref(), ips, &field.key(name), problems);
        }
        if let Some(lifecycle) = &container.lifecycle {
            let field = field.key("lifecycle");
            for (name, action) in [("postStart", &lifecycle.post_start), ("preStop", &lifecycle.pre_stop)] {
                self.read_action(container, action.as_ref(), ips, &field.key(name), problems);
            }
        }
    }

    fn read_action(
        &mut self,
        container: &Container,
        action: Option<&Action>,
        ips: &[IpAddr],
        field: &FieldPath,
        problems: &mut Vec<Problem>,
    ) {
        let Some(action) = action else { return };
        let dials =
            [("httpGet", &action.http_get), ("tcpSocket", &action.tcp_socket), ("grpc", &action.grpc)];
        for (name, dial) in dials {
            let Some(dial) = dial else { continue };
            if !reaches_pod(dial, ips) {
                continue;
            }
            match probe_port(container, dial) {
                Ok(port) => self.probes.push(port),
                Err(wrong) => problems.push(Problem { field: field.key(name).key("port"), wrong }),
            }
        }
    }
}

/// A probe may name another host, and then says nothing about this pod's ports.
fn reaches_pod(dial: &Dial, ips: &[IpAddr]) -> bool {
    match dial.host.as_deref() {
        None | Some("") => true,
        Some(host) => parse::address(host).is_ok_and(|ip| ips.contains(&ip)),
    }
}

/// The port that the kubelet will dial; a name is one of the same container's.
fn probe_port(container: &Container, dial: &Dial) -> Result<u16, Wrong> {
    match &dial.port {
        None => Err(Wrong::Missing),
        Some(IntOrString::Int(port)) => number(Some(*port)),
        Some(IntOrString::String(name)) => match container.ports.iter().find(|port| port.name == *name) {
            Some(port) => number(port.container_port),
            // The kubelet takes a string of digits as a number.
            None => parse::port(name).map_err(|_| Wrong::PortName(name.clone())),
        },
    }
}

fn number(port: Option<i32>) -> Result<u16, Wrong> {
    let port = port.ok_or(Wrong::Missing)?;
    u16::try_from(port).ok().filter(|port| *port != 0).ok_or_else(|| Wrong::Port(port.to_string()))
}

/// What made the pod. A ReplicaSet's name is its Deployment's with the hash that the pod's label repeats.
fn owner(metadata: &ObjectMeta, pod: &str) -> Owner {
    let owners = metadata.owner_references.iter().flatten();
    let Some(made_by) = owners.into_iter().find(|owner| owner.controller == Some(true)) else {
        return Owner { kind: "Pod".into(), name: pod.into() };
    };
    let hash = metadata.labels.as_ref().and_then(|labels| labels.get(TEMPLATE_HASH));
    let deployment = hash.and_then(|hash| made_by.name.strip_suffix(hash.as_str())?.strip_suffix('-'));
    match (made_by.kind.as_str(), deployment) {
        ("ReplicaSet", Some(deployment)) if !deployment.is_empty() => {
            Owner { kind: "Deployment".into(), name: deployment.into() }
        }
        (kind, _) => Owner { kind: kind.into(), name: made_by.name.as_str().into() },
    }
}
