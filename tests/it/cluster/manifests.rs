//! The manifests on a real API server: it takes every field of them, with every component, and warns of nothing; and it
//! lets agents and the CA do what they need, and no more.

use std::fs;
use std::path::{Path, PathBuf};

use adit_tests::cluster::{Cluster, Families, Settings};
use adit_tests::{has_real_root, slot};
use anyhow::{Context, Result, ensure};

use super::MANIFESTS;

/// The kinds of cert-manager's that a component uses, as its own definitions are not here: what is in them is not looked at.
const OF_CERT_MANAGER: [(&str, &str); 2] = [("issuers", "Issuer"), ("certificates", "Certificate")];

#[test]
fn a_real_api_server_takes_every_manifest_and_component_without_a_warning() -> Result<()> {
    if !has_real_root("nodes run containers") {
        return Ok(());
    }
    let _alone = slot::exclusive();
    let cluster = Cluster::start(Settings { nodes: 1, families: Families::V4 })?;
    // As a user does it, at once and whole; and again, which changes nothing.
    let first = quiet(&cluster, &["apply", "-k", MANIFESTS])?;
    ensure!(first.lines().all(|line| line.ends_with(" created")), "{first}");
    let again = quiet(&cluster, &["apply", "-k", MANIFESTS])?;
    ensure!(
        again.lines().all(|line| line.ends_with(" unchanged") || line.ends_with(" configured")),
        "{again}"
    );
    define_cert_manager(&cluster)?;
    let overlays = Overlays::make()?;
    let tried = overlays.write()?;
    for overlay in &tried {
        let overlay = overlay.to_string_lossy();
        // kubectl asks for strict validation: a field that is not known is an error.
        let dry = ["apply", "--dry-run=server", "-k", &overlay];
        quiet(&cluster, &dry).with_context(|| {
            fs::read_to_string(Path::new(&*overlay).join("kustomization.yaml")).unwrap_or_default()
        })?;
    }
    println!("{} combinations of manifests and components", tried.len());
    println!("{} questions about rights", may(&cluster)?);
    cluster.remove_mesh()?;
    cluster.until("that a delete leaves nothing in the API server", || {
        let left = cluster.kubectl([
            "get",
            "clusterroles,clusterrolebindings,crds,validatingadmissionpolicies,validatingadmissionpolicybindings,namespaces",
            "-o",
            "name",
        ])?;
        Ok((!left.contains("adit")).then_some(()))
    })
}

/// Runs kubectl; a warning is an error.
fn quiet(cluster: &Cluster, args: &[&str]) -> Result<String> {
    let output = cluster.try_kubectl(args)?;
    ensure!(
        output.status.success() && output.stderr.is_empty(),
        "kubectl {args:?}: {}\n{}",
        output.status,
        output.stderr
    );
    Ok(output.stdout.trim().to_owned())
}

fn define_cert_manager(cluster: &Cluster) -> Result<()> {
    for (plural, kind) in OF_CERT_MANAGER {
        let definition = format!(
            "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {{name: {plural}.cert-manager.io}}\n\
             spec:\n  group: cert-manager.io\n  scope: Namespaced\n  names: {{plural: {plural}, kind: {kind}}}\n  versions:\n  \
             - name: v1\n    served: true\n    storage: true\n    schema: {{openAPIV3Schema: {{type: object, \
             x-kubernetes-preserve-unknown-fields: true}}}}\n"
        );
        cluster.apply(&definition)?;
        let crd = format!("crd/{plural}.cert-manager.io");
        cluster.kubectl(["wait", "--for=condition=Established", &crd, "--timeout=60s"])?;
        // Discovery, by which kubectl goes, lists it a moment later.
        cluster.until(&format!("that {plural} can be listed"), || {
            let listed = cluster.try_kubectl(["get", &format!("{plural}.cert-manager.io"), "-A"])?;
            Ok(listed.status.success().then_some(()))
        })?;
    }
    Ok(())
}

/// Kustomizations of somebody who uses ours, in a folder of their own. Removed when dropped.
struct Overlays(PathBuf);

impl Overlays {
    fn make() -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("adit-overlays-{}", std::process::id()));
        fs::create_dir_all(&folder).context("cannot make a folder")?;
        Ok(Self(folder.canonicalize().context("the folder's own path")?))
    }

    /// One for the base and one for the uninstall with each component that is for it; the folders.
    fn write(&self) -> Result<Vec<PathBuf>> {
        let manifests = Path::new(MANIFESTS).canonicalize().context("the manifests")?;
        let mut overlays = Vec::new();
        let listed = fs::read_dir(manifests.join("components")).context("the components")?;
        for component in listed {
            let name = component.context("a component")?.file_name().to_string_lossy().into_owned();
            overlays.push(self.overlay(&manifests, "", &name)?);
            if ["gke", "k3s", "openshift"].contains(&name.as_str()) {
                overlays.push(self.overlay(&manifests, "/uninstall", &name)?);
            }
        }
        ensure!(overlays.len() >= 6, "every component is tried: {overlays:?}");
        overlays.push(manifests.join("uninstall"));
        Ok(overlays)
    }

    fn overlay(&self, manifests: &Path, of: &str, component: &str) -> Result<PathBuf> {
        let folder = self.0.join(format!("{component}{}", of.replace('/', "-")));
        fs::create_dir_all(&folder).context("cannot make a folder")?;
        // Kustomize takes no absolute paths.
        let up = "../".repeat(folder.components().count() - 1);
        let manifests = format!("{up}{}", manifests.strip_prefix("/").context("an absolute path")?.display());
        let text = format!(
            "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n  - {manifests}{of}\n\
             components:\n  - {manifests}/components/{component}\n"
        );
        fs::write(folder.join("kustomization.yaml"), text).context("cannot write a kustomization")?;
        Ok(folder)
    }
}

impl Drop for Overlays {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const AGENT: &str = "system:serviceaccount:adit-system:adit-agent";
const CA: &str = "system:serviceaccount:adit-system:adit-ca";

/// Who may do what: verb, resource, namespace (empty: everywhere).
#[rustfmt::skip] // one line each, to be read down
const RIGHTS: &[(&str, bool, &str, &str, &str)] = &[
    (AGENT, true, "list", "pods", ""),
    (AGENT, true, "watch", "endpointslices.discovery.k8s.io", ""),
    (AGENT, true, "watch", "authorizationpolicies.policy.adit.dev", ""),
    (AGENT, true, "patch", "pods", "shop"),
    (AGENT, true, "create", "events", "shop"),
    (AGENT, true, "patch", "leases.coordination.k8s.io/adit-node-node1", "adit-system"),
    (AGENT, true, "watch", "configmaps/adit-trust-bundle", "adit-system"),
    (AGENT, true, "watch", "daemonsets.apps/adit-agent", "adit-system"),
    (AGENT, false, "get", "secrets", "adit-system"),
    (AGENT, false, "list", "secrets", ""),
    (AGENT, false, "get", "configmaps", "shop"),
    (AGENT, false, "patch", "pods/status", "shop"),
    (AGENT, false, "create", "pods/exec", "shop"),
    (AGENT, false, "delete", "pods", "shop"),
    (AGENT, false, "patch", "namespaces", ""),
    (AGENT, false, "update", "authorizationpolicies.policy.adit.dev", "shop"),
    (AGENT, false, "update", "authorizationpolicies.policy.adit.dev/status", "shop"),
    (AGENT, false, "patch", "leases.coordination.k8s.io", "kube-node-lease"),
    (AGENT, false, "create", "tokenreviews.authentication.k8s.io", ""),
    (AGENT, false, "create", "serviceaccounts/token", "adit-system"),
    (CA, true, "create", "tokenreviews.authentication.k8s.io", ""),
    (CA, true, "watch", "pods", ""),
    (CA, true, "patch", "trafficpolicies.policy.adit.dev/status", "shop"),
    (CA, true, "get", "secrets/adit-ca", "adit-system"),
    (CA, true, "update", "secrets/adit-ca", "adit-system"),
    (CA, true, "get", "secrets/adit-ca-root", "adit-system"),
    (CA, true, "create", "secrets", "adit-system"),
    (CA, true, "update", "configmaps/adit-trust-bundle", "adit-system"),
    (CA, true, "list", "leases.coordination.k8s.io", "adit-system"),
    (CA, true, "update", "leases.coordination.k8s.io/adit-ca-status", "adit-system"),
    (CA, false, "update", "leases.coordination.k8s.io/adit-node-node1", "adit-system"),
    (CA, false, "update", "secrets/adit-ca-root", "adit-system"),
    (CA, false, "delete", "secrets/adit-ca", "adit-system"),
    (CA, false, "get", "secrets/other", "adit-system"),
    (CA, false, "list", "secrets", "adit-system"),
    (CA, false, "get", "secrets", "shop"),
    (CA, false, "patch", "pods", "shop"),
    (CA, false, "update", "trafficpolicies.policy.adit.dev", "shop"),
    (CA, false, "get", "nodes", ""),
];

/// Asks the API server for every line of the table; returns how many.
fn may(cluster: &Cluster) -> Result<usize> {
    let mut wrong = Vec::new();
    for (who, wanted, verb, resource, namespace) in RIGHTS {
        // `/` is a name's before which no sub-resource stands.
        let (resource, part) = match resource.split_once('/') {
            Some((of, part @ ("status" | "exec" | "token"))) => (of, vec![format!("--subresource={part}")]),
            _ => (*resource, vec![]),
        };
        let place = if namespace.is_empty() {
            "--all-namespaces".to_owned()
        } else {
            format!("--namespace={namespace}")
        };
        let mut args = vec!["auth".to_owned(), "can-i".to_owned(), (*verb).to_owned(), resource.to_owned()];
        args.extend(part);
        args.extend([place, format!("--as={who}")]);
        let said = cluster.try_kubectl(&args)?.stdout;
        if said.trim() != if *wanted { "yes" } else { "no" } {
            wrong.push(format!("{} said {}", args.join(" "), said.trim()));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(RIGHTS.len())
}
