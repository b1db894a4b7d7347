//! The CA in a cluster, as two replicas beside it that reach the API server with the rights that they are to have.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use adit_objects::trust;
use adit_tests::cluster::{Cluster, Families, Settings};
use adit_tests::process::{Process, program};
use adit_tests::{has_real_root, slot};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use self::ask::{Answer, PERMISSION_DENIED, UNAUTHENTICATED, UNAVAILABLE, ask};
use super::MANIFESTS;

mod ask;

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

/// What the CA may do: these verbs and no others.
const RIGHTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: adit-system}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: adit-ca, namespace: adit-system}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: adit-agent, namespace: adit-system}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: shop}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: cart, namespace: shop}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: late, namespace: shop}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: adit-ca}
rules:
- {apiGroups: [authentication.k8s.io], resources: [tokenreviews], verbs: [create]}
- {apiGroups: [""], resources: [pods], verbs: [list, watch]}
- {apiGroups: [policy.adit.dev], resources: [authorizationpolicies, peerauthentications, trafficpolicies], verbs: [list, watch]}
- {apiGroups: [policy.adit.dev], resources: [authorizationpolicies/status, peerauthentications/status, trafficpolicies/status], verbs: [patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: adit-ca}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: adit-ca}
subjects: [{kind: ServiceAccount, name: adit-ca, namespace: adit-system}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: adit-ca, namespace: adit-system}
rules:
- {apiGroups: [""], resources: [secrets], resourceNames: [adit-ca], verbs: [get, update]}
- {apiGroups: [""], resources: [secrets], resourceNames: [adit-ca-root], verbs: [get]}
- {apiGroups: [""], resources: [secrets], verbs: [create]}
- {apiGroups: [""], resources: [configmaps], resourceNames: [adit-trust-bundle], verbs: [get, update]}
- {apiGroups: [""], resources: [configmaps], verbs: [create]}
- {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [list, create]}
- {apiGroups: [coordination.k8s.io], resources: [leases], resourceNames: [adit-ca-status], verbs: [get, update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: adit-ca, namespace: adit-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: adit-ca}
subjects: [{kind: ServiceAccount, name: adit-ca, namespace: adit-system}]
"#;

/// The cluster, and what is needed to run CAs beside it.
struct World {
    cluster: Cluster,
    folder: PathBuf,
}

/// A replica.
struct Replica {
    process: Process,
    at: SocketAddr,
}

impl World {
    fn start() -> Result<Self> {
        let cluster = Cluster::start(Settings { nodes: 2, families: Families::V4 })?;
        cluster.load_images()?;
        cluster.kubectl(["apply", "-f", &format!("{MANIFESTS}/crds")])?;
        cluster.apply(RIGHTS)?;
        let folder = cluster.admin().parent().context("the cluster's folder")?.join("ca");
        fs::create_dir(&folder)?;
        let world = Self { cluster, folder };
        let token = world.cluster.kubectl(["create", "token", "adit-ca", "-n", "adit-system"])?;
        world.write("token", token.trim())?;
        // The administrator's, with another user.
        let admin: Value = serde_json::from_str(&fs::read_to_string(world.cluster.admin())?)?;
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "ca",
            "clusters": admin["clusters"],
            "users": [{"name": "ca", "user": {"tokenFile": world.folder.join("token")}}],
            "contexts": [{"name": "ca", "context": {"cluster": admin["clusters"][0]["name"], "user": "ca"}}],
        });
        world.write("kubeconfig", &config.to_string())?;
        Ok(world)
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Starts a replica; does not wait.
    fn replica(&self, port: u16) -> Result<Replica> {
        let config = json!({
            "store": {"kubernetes": {
                "kubeconfig": self.folder.join("kubeconfig"), "replica": format!("ca-{port}"),
            }},
            "listen": format!("127.0.0.1:{port}"),
            "metrics-address": format!("127.0.0.1:{}", port + 100),
            "leaf-life": "10s",
            "poll": "100ms",
        });
        self.run(port, &config)
    }

    fn run(&self, port: u16, config: &Value) -> Result<Replica> {
        let file = self.write(&format!("ca-{port}.yaml"), &config.to_string())?;
        let network = self.cluster.network().control();
        let run = network.command(program("adit-ca")?).args(["run", "--config"]).args([&file]);
        Ok(Replica { process: run.spawn()?, at: SocketAddr::from(([127, 0, 0, 1], port)) })
    }

    /// What the published ConfigMap of a namespace says.
    fn bundle(&self, namespace: &str) -> Result<trust::Read> {
        let text = self.cluster.kubectl(["get", "configmap", "-n", namespace, trust::NAME, "-o", "json"])?;
        let map: trust::ConfigMap = serde_json::from_str(&text)?;
        Ok(trust::translate(&map, &"cluster.local".parse()?)?)
    }

    fn roots(&self, namespace: &str) -> Result<Vec<Arc<[u8]>>> {
        let bundle = self.bundle(namespace)?.bundle;
        Ok(bundle.roots.values().flatten().cloned().collect())
    }

    fn ask(&self, replica: &Replica, token: &str, identity: &str) -> Result<Answer> {
        let roots = self.roots("adit-system")?;
        ask(self.cluster.network().control(), replica.at, &roots, token.trim(), identity)
    }

    /// What is said instead of a certificate: word and code.
    fn refusal(&self, replica: &Replica, token: &str, identity: &str) -> Result<(String, u32)> {
        match self.ask(replica, token, identity)? {
            Answer::Refused { word, code, .. } => Ok((word, code)),
            Answer::Chain(_) => anyhow::bail!("{identity} was given"),
        }
    }

    /// Makes a pod that does nothing; returns its uid once the scheduler's part is done.
    fn pod(&self, name: &str, node: &str, account: &str) -> Result<String> {
        let (namespace, account) = account.split_once('/').context("NAMESPACE/NAME")?;
        self.cluster.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}}}, spec: {{nodeName: {node}, \
             serviceAccountName: {account}, terminationGracePeriodSeconds: 0, containers: [{{name: pause, \
             image: 'localhost/pause:1', imagePullPolicy: Never}}]}}}}"
        ))?;
        self.cluster.kubectl(["get", "pod", "-n", namespace, name, "-o", "jsonpath={.metadata.uid}"])
    }

    /// A token as the kubelet projects it into an agent's pod.
    fn token(&self, account: &str, pod: &str, uid: &str, audience: &str) -> Result<String> {
        let bound = ["--bound-object-kind=Pod", "--bound-object-name", pod, "--bound-object-uid", uid];
        let args = ["create", "token", account, "-n", "adit-system", "--audience", audience];
        self.cluster.kubectl(args.iter().chain(&bound))
    }

    fn annotation(&self, key: &str) -> Result<String> {
        let key = key.replace('.', "\\.");
        let path = format!("jsonpath={{.metadata.annotations.{key}}}");
        self.cluster.kubectl(["get", "configmap", "-n", "adit-system", trust::NAME, "-o", &path])
    }

    fn acknowledge(&self, node: &str, generation: u64) -> Result<()> {
        self.cluster.apply(&format!(
            "{{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {{name: adit-node-{node}, namespace: adit-system, \
             annotations: {{adit.dev/bundle-generation: '{generation}'}}}}, spec: {{holderIdentity: {node}}}}}"
        ))?;
        Ok(())
    }

    /// The condition `Accepted` of a policy: status, reason and message.
    fn accepted(&self, kind: &str, name: &str) -> Result<Option<String>> {
        let path =
            "jsonpath={range .status.conditions[?(@.type==\"Accepted\")]}{.status} {.reason} {.message}{end}";
        let said = self.cluster.kubectl(["get", kind, "-n", "shop", name, "-o", path])?;
        Ok((!said.is_empty()).then_some(said))
    }
}

impl Replica {
    fn wait_ready(&self) -> Result<()> {
        let line = |line: &str| line.starts_with("adit-ca ready on ");
        self.process.wait_for_line("the CA's word that it is ready", line).map(drop)
    }
}

/// The last entry of a chain: the roots.
fn root_of(chain: &[String]) -> Result<&str> {
    chain.last().map(String::as_str).context("an empty chain")
}

#[test]
fn two_replicas_share_one_root_and_give_a_node_only_what_runs_on_it() -> Result<()> {
    if !has_real_root("nodes run containers") {
        return Ok(());
    }
    let _alone = slot::exclusive();
    let mut world = World::start()?;
    let (one, two) = (world.replica(15012)?, world.replica(15013)?);
    one.wait_ready()?;
    two.wait_ready()?;
    ensure!(world.roots("adit-system")?.len() == 1, "one root");

    let agent = "adit-system/adit-agent";
    let uid = world.pod("agent-1", "node1", agent)?;
    world.pod("agent-2", "node2", agent)?;
    world.pod("web-1", "node1", "shop/web")?;
    world.pod("cart-2", "node2", "shop/cart")?;
    let token = world.token("adit-agent", "agent-1", &uid, "adit-ca")?;
    let by_one = world.ask(&one, &token, WEB)?.chain()?;
    let by_two = world.ask(&two, &token, WEB)?.chain()?;
    ensure!(root_of(&by_one)? == root_of(&by_two)?, "both sign below the same root");

    // Whatever it asks, a node has what runs on it.
    for foreign in
        [CART, "spiffe://cluster.local/ns/shop/sa/nobody", "spiffe://cluster.local/ns/kube-system/sa/web"]
    {
        let said = world.refusal(&one, &token, foreign)?;
        ensure!(said == ("not_on_node".into(), PERMISSION_DENIED), "{foreign}: {said:?}");
    }
    let said = world.refusal(&two, &token, "spiffe://other.example/ns/shop/sa/web")?;
    ensure!(said == ("trust_domain".into(), PERMISSION_DENIED), "{said:?}");
    // A pod that was made this moment.
    world.pod("late-1", "node1", "shop/late")?;
    world.ask(&two, &token, "spiffe://cluster.local/ns/shop/sa/late")?.chain()?;

    let wrong = world.token("adit-agent", "agent-1", &uid, "https://kubernetes.default.svc")?;
    let said = world.refusal(&one, &wrong, WEB)?;
    ensure!(said == ("token_refused".into(), UNAUTHENTICATED), "another audience: {said:?}");
    let unbound = world.cluster.kubectl([
        "create",
        "token",
        "adit-agent",
        "-n",
        "adit-system",
        "--audience=adit-ca",
    ])?;
    let said = world.refusal(&one, &unbound, WEB)?;
    ensure!(said == ("no_pod_claim".into(), PERMISSION_DENIED), "bound to no pod: {said:?}");
    let other =
        world.cluster.kubectl(["create", "token", "adit-ca", "-n", "adit-system", "--audience=adit-ca"])?;
    let said = world.refusal(&one, &other, WEB)?;
    ensure!(said == ("not_an_agent".into(), PERMISSION_DENIED), "another account: {said:?}");

    // The API server believes the token of a pod that is gone for 10 s; the CA does not, once its watch has told of it.
    let gone = world.pod("agent-3", "node1", agent)?;
    let stolen = world.token("adit-agent", "agent-3", &gone, "adit-ca")?;
    world.ask(&one, &stolen, WEB)?.chain()?;
    world.cluster.kubectl([
        "delete",
        "pod",
        "-n",
        "adit-system",
        "agent-3",
        "--grace-period=0",
        "--force",
    ])?;
    let said = world.cluster.until("that it is refused", || {
        Ok(match world.ask(&one, &stolen, WEB)? {
            Answer::Refused { word, code, .. } => Some((word, code)),
            Answer::Chain(_) => None,
        })
    })?;
    ensure!(said == ("caller_gone".into(), UNAUTHENTICATED), "a pod that is gone: {said:?}");

    world.cluster.signal_api_server(Signal::SIGSTOP)?;
    // Asked with roots that are known already: nobody can be asked for them now.
    let roots = [root_der(root_of(&by_one)?)?];
    let said = ask(world.cluster.network().control(), one.at, &roots, token.trim(), WEB);
    world.cluster.signal_api_server(Signal::SIGCONT)?;
    match said? {
        Answer::Refused { word, code, .. } => ensure!(code == UNAVAILABLE, "away: {word} {code}"),
        Answer::Chain(_) => anyhow::bail!("a certificate without a review"),
    }
    world.cluster.until("that certificates are given again", || {
        Ok(matches!(world.ask(&one, &token, WEB)?, Answer::Chain(_)).then_some(()))
    })?;
    world.cluster.kill_api_server()?;
    world.cluster.start_api_server()?;
    world.cluster.until("that certificates are given after a restart", || {
        Ok(matches!(world.ask(&two, &token, WEB)?, Answer::Chain(_)).then_some(()))
    })?;
    policies_are_told(&world)
}

/// Of policies: each is told whether it is accepted, and by a field why not, in its status.
fn policies_are_told(world: &World) -> Result<()> {
    world.cluster.apply(
        r#"
{apiVersion: policy.adit.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {name: good, namespace: shop}, spec: {rules: [{from: [{source: {namespaces: [shop]}}]}]}}
---
{apiVersion: policy.adit.dev/v1alpha1, kind: AuthorizationPolicy, metadata: {name: http, namespace: shop}, spec: {rules: [{to: [{operation: {methods: [GET]}}]}]}}
---
{apiVersion: policy.adit.dev/v1alpha1, kind: PeerAuthentication, metadata: {name: first, namespace: shop}, spec: {mtls: {mode: STRICT}}}
"#,
    )?;
    let said = |kind: &'static str, name: &'static str, wanted: &'static str| {
        world.cluster.until(&format!("{kind} {name}: {wanted}"), || {
            Ok(world.accepted(kind, name)?.filter(|said| said.starts_with(wanted)))
        })
    };
    said("adap", "good", "True Accepted")?;
    said(
        "adap",
        "http",
        "False Invalid spec.rules[0].to[0].operation.methods: is decided by what is inside HTTP",
    )?;
    said("adpa", "first", "True Accepted")?;
    // Younger by name too, as both may be of one second.
    world.cluster.apply(
        "{apiVersion: policy.adit.dev/v1alpha1, kind: PeerAuthentication, metadata: {name: second, namespace: shop}, \
         spec: {mtls: {mode: PERMISSIVE}}}",
    )?;
    said("adpa", "second", "False Conflicted spec: does not count: shop/first is for the same and older")?;
    world.cluster.kubectl(["delete", "adpa", "-n", "shop", "first"])?;
    said("adpa", "second", "True Accepted")?;
    let holder =
        ["get", "lease", "-n", "adit-system", "adit-ca-status", "-o", "jsonpath={.spec.holderIdentity}"];
    ensure!(world.cluster.kubectl(holder)?.starts_with("ca-1501"), "one of the two writes");
    Ok(())
}

#[test]
fn a_rotation_by_annotation_goes_on_after_every_replica_was_killed_and_a_given_root_is_used() -> Result<()> {
    if !has_real_root("nodes run containers") {
        return Ok(());
    }
    let _alone = slot::exclusive();
    let world = World::start()?;
    let agent = "adit-system/adit-agent";
    let uid = world.pod("agent-1", "node1", agent)?;
    world.pod("agent-2", "node2", agent)?;
    world.pod("web-1", "node1", "shop/web")?;
    let token = world.token("adit-agent", "agent-1", &uid, "adit-ca")?;
    let (one, two) = (world.replica(15012)?, world.replica(15013)?);
    one.wait_ready()?;
    two.wait_ready()?;
    world.acknowledge("node1", 1)?;
    let old = world.ask(&one, &token, WEB)?.chain()?;

    let args = ["annotate", "configmap", "-n", "adit-system", trust::NAME, "adit.dev/rotate-root=now"];
    world.cluster.kubectl(args)?;
    let rotation = |wanted: &'static str| {
        world.cluster.until(&format!("the rotation's word {wanted:?}"), || {
            Ok(world.annotation("adit.dev/rotation")?.starts_with(wanted).then_some(()))
        })
    };
    rotation("published; waiting for 2 of 2 agents: node1, node2")?;
    ensure!(world.annotation("adit.dev/rotate-root")?.is_empty(), "the request is taken");
    ensure!(world.roots("adit-system")?.len() == 2, "both roots are published");
    for replica in [one, two] {
        replica.process.signal(Signal::SIGKILL)?;
        replica.process.wait()?;
    }
    let three = world.replica(15014)?;
    three.wait_ready()?;
    world.acknowledge("node1", 2)?;
    rotation("published; waiting for 1 of 2 agents: node2")?;
    let still = world.ask(&three, &token, WEB)?.chain()?;
    ensure!(still.get(1) == old.get(1), "the old intermediate signs until every agent knows the new root");
    world.acknowledge("node2", 2)?;
    rotation("signing with the new root; the old one is dropped after ")?;
    let new = world.ask(&three, &token, WEB)?.chain()?;
    ensure!(new.get(1) != old.get(1), "the new one signs");
    three.process.signal(Signal::SIGKILL)?;
    three.process.wait()?;
    let four = world.replica(15015)?;
    rotation("steady")?;
    ensure!(world.roots("adit-system")?.len() == 1, "the old root is gone");
    four.wait_ready()?;
    let last = world.ask(&four, &token, WEB)?.chain()?;
    ensure!(last.get(1) == new.get(1), "nothing else was made");
    drop(four);
    a_given_root_is_used(&world, &token)
}

/// In a namespace of its own, where cert-manager or a user has put a root before the CA was there.
fn a_given_root_is_used(world: &World, token: &str) -> Result<()> {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
    let authority = |name: &str, path_len: u8| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_len));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.use_authority_key_identifier_extension = true;
        params
    };
    let key = KeyPair::generate()?;
    let root = authority("their root", 1).self_signed(&key)?;
    let issuer = Issuer::new(authority("their root", 1), key);
    let own = KeyPair::generate()?;
    let intermediate = authority("their intermediate", 0).signed_by(&own, &issuer)?;
    // As cert-manager writes it, as text.
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": "from-cert-manager", "namespace": "given"},
        "stringData": {"tls.crt": intermediate.pem(), "tls.key": own.serialize_pem(), "ca.crt": root.pem()},
    });
    world.cluster.kubectl(["create", "namespace", "given"])?;
    world.cluster.apply(&secret.to_string())?;
    let config = json!({
        "store": {"kubernetes": {
            "kubeconfig": world.cluster.admin(), "namespace": "given", "given-secret": "from-cert-manager",
        }},
        "listen": "127.0.0.1:15016",
    });
    let replica = world.run(15016, &config)?;
    replica.wait_ready()?;
    let roots = world.roots("given")?;
    ensure!(roots.len() == 1 && *roots[0] == **root.der(), "their root is the one that is published");
    let answer = ask(world.cluster.network().control(), replica.at, &roots, token.trim(), WEB)?;
    let chain = answer.chain()?;
    let bare = |pem: &str| pem.split_whitespace().collect::<String>();
    ensure!(
        chain.get(1).map(|pem| bare(pem)) == Some(bare(&intermediate.pem())),
        "and their intermediate signs"
    );
    Ok(())
}

/// A certificate in PEM, in DER.
fn root_der(pem: &str) -> Result<Arc<[u8]>> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| anyhow::anyhow!("{error:?}"))?;
    Ok(der.to_vec().into())
}
