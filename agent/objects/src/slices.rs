//! EndpointSlices: only those fields are decoded that the mesh reads.

use std::net::IpAddr;

use adit_core::net::{NodeName, ObjectName};
use adit_core::service::{self, SlicePort};
use adit_core::world::{Change, Kind};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use crate::meta::{Translated, namespaced_name, or_default};
use crate::policies::parse;
use crate::problem::{FieldPath, Problem, Rejected, Wrong};

#[cfg(test)]
mod tests;

/// The label that names a slice's Service.
pub const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// An EndpointSlice, as far as the mesh reads it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSlice {
    /// `metadata`.
    #[serde(default)]
    pub metadata: ObjectMeta,
    #[serde(default, deserialize_with = "or_default")]
    address_type: String,
    #[serde(default, deserialize_with = "or_default")]
    endpoints: Vec<Endpoint>,
    #[serde(default, deserialize_with = "or_default")]
    ports: Vec<Port>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    #[serde(default, deserialize_with = "or_default")]
    addresses: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    conditions: Conditions,
    node_name: Option<String>,
    zone: Option<String>,
    target_ref: Option<TargetRef>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Clone, Debug, Deserialize)]
struct TargetRef {
    #[serde(default, deserialize_with = "or_default")]
    kind: String,
    #[serde(default, deserialize_with = "or_default")]
    name: String,
    namespace: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Port {
    #[serde(default, deserialize_with = "or_default")]
    name: String,
    port: Option<i32>,
    protocol: Option<String>,
}

/// What an EndpointSlice means; no change for one of names (addressType FQDN) or of no Service.
pub fn translate(slice: &EndpointSlice) -> Result<Translated, Rejected> {
    let name = namespaced_name(Kind::EndpointSlice, &slice.metadata)?;
    let mut problems = Vec::new();
    let labels = slice.metadata.labels.as_ref();
    let service = labels.and_then(|labels| labels.get(SERVICE_LABEL)).filter(|service| !service.is_empty());
    let (Some(service), "IPv4" | "IPv6" | "") = (service, slice.address_type.as_str()) else {
        return Ok(Translated { change: None, problems });
    };
    let service = ObjectName::new(name.namespace.clone(), service.as_str());
    let endpoints = slice.endpoints.iter().enumerate();
    let endpoints = endpoints.map(|(at, endpoint)| {
        let field = FieldPath::of(["endpoints"]).index(at);
        translate_endpoint(endpoint, &name.namespace, &field, &mut problems)
    });
    let endpoints = endpoints.collect();
    Ok(Translated {
        change: Some(Change::EndpointSlice(service::EndpointSlice {
            name,
            service,
            ports: ports(&slice.ports, &mut problems),
            endpoints,
        })),
        problems,
    })
}

fn ports(ports: &[Port], problems: &mut Vec<Problem>) -> Vec<SlicePort> {
    let mut read = Vec::new();
    for (at, port) in ports.iter().enumerate() {
        if port.protocol.as_deref().unwrap_or("TCP") != "TCP" {
            continue;
        }
        let number = match port.port {
            None => None,
            Some(number) => match u16::try_from(number) {
                Ok(number @ 1..) => Some(number),
                Ok(0) | Err(_) => {
                    problems.push(Problem {
                        field: FieldPath::of(["ports"]).index(at).key("port"),
                        wrong: Wrong::Port(number.to_string()),
                    });
                    continue;
                }
            },
        };
        read.push(SlicePort { name: port.name.as_str().into(), port: number });
    }
    read
}

fn translate_endpoint(
    endpoint: &Endpoint,
    namespace: &str,
    field: &FieldPath,
    problems: &mut Vec<Problem>,
) -> service::Endpoint {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for (at, text) in endpoint.addresses.iter().enumerate() {
        match parse::address(text) {
            Ok(ip) => addresses.push(ip),
            Err(wrong) => problems.push(Problem { field: field.key("addresses").index(at), wrong }),
        }
    }
    let ready = endpoint.conditions.ready.unwrap_or(true);
    let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let pod = endpoint.target_ref.as_ref().filter(|target| target.kind == "Pod" && !target.name.is_empty());
    service::Endpoint {
        addresses,
        ready,
        serving: endpoint.conditions.serving.unwrap_or(ready),
        terminating: endpoint.conditions.terminating.unwrap_or(false),
        node: text(&endpoint.node_name).map(|node| NodeName(node.into())),
        zone: text(&endpoint.zone).map(Into::into),
        pod: pod.map(|pod| ObjectName::new(pod.namespace.as_deref().unwrap_or(namespace), pod.name.as_str())),
    }
}
