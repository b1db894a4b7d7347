//! Services: only those fields are decoded that the mesh reads.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use adit_core::service::{self, Distribution, ServicePort, TargetPort};
use adit_core::world::{Change, Kind};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Deserialize;

use crate::meta::{Translated, created, labels, namespaced_name, or_default};
use crate::policies::parse;
use crate::problem::{FieldPath, Problem, Rejected, Wrong};

#[cfg(test)]
mod tests;

/// `sessionAffinityConfig.clientIP.timeoutSeconds` where it is absent (Kubernetes' own default: three hours).
const AFFINITY_DEFAULT: Duration = Duration::from_secs(10_800);

/// A Service, as far as the mesh reads it.
#[derive(Clone, Debug, Deserialize)]
pub struct Service {
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

/// `spec` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    #[serde(rename = "type", default, deserialize_with = "or_default")]
    kind: String,
    #[serde(rename = "clusterIP", default, deserialize_with = "or_default")]
    cluster_ip: String,
    #[serde(rename = "clusterIPs", default, deserialize_with = "or_default")]
    cluster_ips: Vec<String>,
    #[serde(rename = "externalIPs", default, deserialize_with = "or_default")]
    external_ips: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    ports: Vec<Port>,
    selector: Option<BTreeMap<String, String>>,
    internal_traffic_policy: Option<String>,
    traffic_distribution: Option<String>,
    session_affinity: Option<String>,
    session_affinity_config: Option<AffinityConfig>,
    #[serde(default, deserialize_with = "or_default")]
    publish_not_ready_addresses: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    #[serde(default, deserialize_with = "or_default")]
    name: String,
    protocol: Option<String>,
    port: Option<i32>,
    target_port: Option<IntOrString>,
    node_port: Option<i32>,
}

#[derive(Clone, Debug, Deserialize)]
struct AffinityConfig {
    #[serde(rename = "clientIP")]
    client_ip: Option<ClientIp>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClientIp {
    timeout_seconds: Option<i32>,
}

/// `status` of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    #[serde(default, deserialize_with = "or_default")]
    load_balancer: LoadBalancer,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct LoadBalancer {
    #[serde(default, deserialize_with = "or_default")]
    ingress: Vec<Ingress>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ingress {
    #[serde(default, deserialize_with = "or_default")]
    ip: String,
    ip_mode: Option<String>,
}

/// What a Service means; no change for one by name only (ExternalName) or without a TCP port.
pub fn translate(service: &Service) -> Result<Translated, Rejected> {
    let name = namespaced_name(Kind::Service, &service.metadata)?;
    let spec = &service.spec;
    let mut problems = Vec::new();
    let ports = ports(&spec.ports, &mut problems);
    if spec.kind == "ExternalName" || ports.is_empty() {
        return Ok(Translated { change: None, problems });
    }
    let cluster_ips = cluster_ips(spec, &mut problems);
    let external_ips = external_ips(service, &cluster_ips, &mut problems);
    let change = Change::Service(service::Service {
        name,
        created: created(&service.metadata),
        cluster_ips,
        external_ips,
        headless: spec.cluster_ip == "None" || spec.cluster_ips.first().is_some_and(|ip| ip == "None"),
        ports,
        internal_local: internal_local(spec, &mut problems),
        distribution: distribution(spec, &mut problems),
        affinity: affinity(spec, &mut problems),
        publish_not_ready: spec.publish_not_ready_addresses,
        selector: spec.selector.as_ref().filter(|selector| !selector.is_empty()).map(labels),
    });
    Ok(Translated { change: Some(change), problems })
}

fn spec(field: &str) -> FieldPath {
    FieldPath::of(["spec", field])
}

fn ports(ports: &[Port], problems: &mut Vec<Problem>) -> Vec<ServicePort> {
    let mut read = Vec::new();
    for (at, port) in ports.iter().enumerate() {
        if port.protocol.as_deref().unwrap_or("TCP") != "TCP" {
            continue;
        }
        match service_port(port) {
            Ok(port) => read.push(port),
            Err((field, wrong)) => {
                problems.push(Problem { field: spec("ports").index(at).key(field), wrong })
            }
        }
    }
    read
}

fn service_port(port: &Port) -> Result<ServicePort, (&'static str, Wrong)> {
    let own = number(port.port.ok_or(("port", Wrong::Missing))?).map_err(|wrong| ("port", wrong))?;
    let target = match &port.target_port {
        None | Some(IntOrString::Int(0)) => TargetPort::Number(own),
        Some(IntOrString::Int(target)) => {
            TargetPort::Number(number(*target).map_err(|wrong| ("targetPort", wrong))?)
        }
        Some(IntOrString::String(name)) if name.is_empty() => TargetPort::Number(own),
        // Digits in quotes are a number too: no port name is all digits (RFC 6335, 5.1).
        Some(IntOrString::String(name)) => match parse::port(name) {
            Ok(target) => TargetPort::Number(target),
            Err(_) => TargetPort::Name(name.as_str().into()),
        },
    };
    let node_port = match port.node_port {
        None | Some(0) => None,
        Some(node_port) => Some(number(node_port).map_err(|wrong| ("nodePort", wrong))?),
    };
    Ok(ServicePort { name: port.name.as_str().into(), port: own, target, node_port })
}

fn number(port: i32) -> Result<u16, Wrong> {
    u16::try_from(port).ok().filter(|port| *port != 0).ok_or_else(|| Wrong::Port(port.to_string()))
}

fn cluster_ips(fields: &Spec, problems: &mut Vec<Problem>) -> Vec<IpAddr> {
    let all = fields.cluster_ips.iter().enumerate().map(|(at, ip)| (spec("clusterIPs").index(at), ip));
    let first = [(spec("clusterIP"), &fields.cluster_ip)];
    addresses(all.chain(first), &[], problems)
}

/// Where clients outside the cluster find it. A load balancer that says `ipMode: Proxy` wants to see the traffic itself.
fn external_ips(service: &Service, cluster_ips: &[IpAddr], problems: &mut Vec<Problem>) -> Vec<IpAddr> {
    let Service { spec: fields, status, .. } = service;
    let external = fields.external_ips.iter().enumerate().map(|(at, ip)| (spec("externalIPs").index(at), ip));
    let ingress = status.load_balancer.ingress.iter().enumerate();
    let ingress =
        ingress.filter(|(_, ingress)| ingress.ip_mode.as_deref() != Some("Proxy")).map(|(at, ingress)| {
            let field = FieldPath::of(["status", "loadBalancer", "ingress"]).index(at).key("ip");
            (field, &ingress.ip)
        });
    addresses(external.chain(ingress), cluster_ips, problems)
}

/// Reads each address once that is not `known` yet.
fn addresses<'a>(
    texts: impl Iterator<Item = (FieldPath, &'a String)>,
    known: &[IpAddr],
    problems: &mut Vec<Problem>,
) -> Vec<IpAddr> {
    let mut read = Vec::new();
    for (field, text) in texts.filter(|(_, text)| !matches!(text.as_str(), "" | "None")) {
        match parse::address(text) {
            Ok(ip) if known.contains(&ip) || read.contains(&ip) => {}
            Ok(ip) => read.push(ip),
            Err(wrong) => problems.push(Problem { field, wrong }),
        }
    }
    read
}

fn internal_local(fields: &Spec, problems: &mut Vec<Problem>) -> bool {
    match fields.internal_traffic_policy.as_deref() {
        None | Some("" | "Cluster") => false,
        Some("Local") => true,
        Some(other) => {
            problems.push(Problem {
                field: spec("internalTrafficPolicy"),
                wrong: Wrong::UnknownValue { value: other.to_owned(), known: "Cluster, Local" },
            });
            false
        }
    }
}

fn distribution(fields: &Spec, problems: &mut Vec<Problem>) -> Distribution {
    match fields.traffic_distribution.as_deref() {
        None | Some("") => Distribution::Any,
        Some("PreferSameZone" | "PreferClose") => Distribution::SameZone,
        Some("PreferSameNode") => Distribution::SameNode,
        Some(other) => {
            problems.push(Problem {
                field: spec("trafficDistribution"),
                wrong: Wrong::UnknownValue {
                    value: other.to_owned(),
                    known: "PreferSameZone, PreferSameNode, PreferClose",
                },
            });
            Distribution::Any
        }
    }
}

fn affinity(fields: &Spec, problems: &mut Vec<Problem>) -> Option<Duration> {
    match fields.session_affinity.as_deref() {
        None | Some("" | "None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            problems.push(Problem {
                field: spec("sessionAffinity"),
                wrong: Wrong::UnknownValue { value: other.to_owned(), known: "None, ClientIP" },
            });
            return None;
        }
    }
    let config = fields.session_affinity_config.as_ref();
    let Some(seconds) = config.and_then(|config| config.client_ip.as_ref()?.timeout_seconds) else {
        return Some(AFFINITY_DEFAULT);
    };
    match u64::try_from(seconds) {
        Ok(seconds @ 1..=86_400) => Some(Duration::from_secs(seconds)),
        Ok(_) | Err(_) => {
            problems.push(Problem {
                field: spec("sessionAffinityConfig").key("clientIP").key("timeoutSeconds"),
                wrong: Wrong::Range { value: seconds.into(), least: 1, most: 86_400 },
            });
            Some(AFFINITY_DEFAULT)
        }
    }
}
