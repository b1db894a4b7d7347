//! Reads `manifests/examples`: what a user would hand to `kubectl apply`.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::mesh::{PodSpec, ServicePort, ServiceSpec};

/// Pods and services, in the order of the files' names.
#[derive(Debug, Default)]
pub(super) struct Examples {
    pub(super) pods: Vec<Template>,
    pub(super) services: Vec<ServiceSpec>,
}

/// A pod to be, and what runs in it.
#[derive(Clone, Debug)]
pub(super) struct Template {
    pub(super) spec: PodSpec,
    pub(super) image: String,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/examples")
}

/// The text of one file.
pub(super) fn text(name: &str) -> Result<String> {
    let file = folder().join(name);
    fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))
}

impl Examples {
    /// Reads every file of these folders but `namespace.yaml`.
    pub(super) fn read(folders: &[&str]) -> Result<Self> {
        let mut examples = Self::default();
        for part in folders {
            let list =
                fs::read_dir(folder().join(part)).with_context(|| format!("manifests/examples/{part}"))?;
            let mut names = list
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect::<Result<Vec<_>>>()?;
            names.sort_unstable();
            for name in names.iter().filter(|name| *name != "namespace.yaml") {
                let file = format!("{part}/{name}");
                examples.add(&text(&file)?).with_context(|| format!("manifests/examples/{file}"))?;
            }
        }
        Ok(examples)
    }

    fn add(&mut self, text: &str) -> Result<()> {
        for object in serde_saphyr::from_multiple::<Value>(text)? {
            match object["kind"].as_str() {
                Some("Pod") => self.pods.push(pod(serde_json::from_value(object)?)?),
                Some("Service") => self.services.push(service(serde_json::from_value(object)?)?),
                other => bail!("{other:?} is no kind that is run here"),
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Object<S> {
    metadata: Metadata,
    spec: S,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    namespace: String,
    name: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    owner_references: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodFields {
    node_name: String,
    service_account_name: String,
    containers: Vec<Container>,
}

#[derive(Deserialize)]
struct Container {
    name: String,
    image: String,
    #[serde(default)]
    ports: Vec<ContainerPort>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerPort {
    name: String,
    container_port: u16,
}

fn pod(object: Object<PodFields>) -> Result<Template> {
    let Object { metadata, spec } = object;
    let [container] = &spec.containers[..] else { bail!("{}: one container, please", metadata.name) };
    let image = container.image.clone();
    let ports = container.ports.iter().map(|port| (port.name.clone(), port.container_port)).collect();
    let main = serde_json::json!({ "name": container.name, "image": image });
    let spec = PodSpec {
        account: spec.service_account_name,
        labels: metadata.labels,
        annotations: metadata.annotations,
        ports,
        container: main,
        metadata: serde_json::json!({ "ownerReferences": metadata.owner_references }),
        ..PodSpec::new(&spec.node_name, &metadata.namespace, &metadata.name)
    };
    Ok(Template { spec, image })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceFields {
    #[serde(rename = "clusterIP")]
    cluster_ip: IpAddr,
    selector: BTreeMap<String, String>,
    ports: Vec<PortFields>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PortFields {
    name: String,
    port: u16,
    target_port: u16,
}

fn service(object: Object<ServiceFields>) -> Result<ServiceSpec> {
    let Object { metadata, spec } = object;
    let ports = spec.ports.into_iter();
    Ok(ServiceSpec {
        namespace: metadata.namespace,
        name: metadata.name,
        ips: vec![spec.cluster_ip],
        ports: ports
            .map(|port| ServicePort { name: port.name, port: port.port, target: port.target_port })
            .collect(),
        selector: spec.selector,
        spec: Value::Null,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_are_what_the_demo_runs() {
        let examples = Examples::read(&["shop", "guests"]).unwrap();
        let pods: Vec<_> = examples.pods.iter().map(|pod| (&*pod.spec.name, &*pod.image)).collect();
        assert_eq!(
            pods,
            [
                ("cart", "redis"),
                ("frontend", "nginx"),
                ("orders", "postgres"),
                ("payments-1", "nginx"),
                ("payments-2", "nginx"),
                ("outsider", "curl"),
            ]
        );
        assert_eq!(examples.services.len(), 4);
    }
}
