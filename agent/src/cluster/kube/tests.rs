use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use adit_core::net::{NodeName, ObjectName, PodUid};
use adit_core::world::{Settings, World};
use serde_json::{Value, json};

use self::server::{BOUND, Fault, Server};
use super::super::model::AnnounceError;
use super::super::{Cluster, Gravity, PodEvent};
use super::client::AccessError;
use super::*;
use crate::view::{self, View};

mod faults;
pub(super) mod server;
mod writing;

static SEEDS: AtomicU64 = AtomicU64::new(1);

/// An agent that follows a server, for node `n1`.
struct Agent {
    cluster: Cluster,
    view: View,
}

impl Agent {
    fn start(server: &Server, copy_dir: &Path) -> Self {
        Self::at(&format!("http://{}", server.address), copy_dir)
    }

    fn at(api_server: &str, copy_dir: &Path) -> Self {
        let settings = Settings {
            trust_domain: "cluster.local".parse().unwrap(),
            system_namespace: "adit-system".into(),
            excluded_namespaces: BTreeSet::new(),
            node: NodeName("n1".into()),
        };
        let own = Own {
            settings: settings.clone(),
            version: "1".into(),
            admin_socket: "/run/adit/admin.sock".into(),
            copy_dir: Some(copy_dir.to_path_buf()),
        };
        let (publisher, view) = view::channel(World::empty(settings));
        let clock = Clock::paused(SystemTime::UNIX_EPOCH);
        let kube = Config { api_server: Some(api_server.into()), ..Config::default() };
        let config = super::super::Config { directory: PathBuf::new(), kube: Some(kube) };
        // Two of one process tell each other by what they draw.
        let seed = Seed(SEEDS.fetch_add(1, Ordering::Relaxed));
        let cluster = super::super::start(config, own, clock, publisher, seed).unwrap();
        Self { cluster, view }
    }

    /// Waits until a snapshot is as wanted.
    async fn until(&mut self, what: &str, wanted: impl Fn(&World) -> bool) -> Arc<World> {
        match self.view.until(BOUND, wanted).await {
            Some(world) => world,
            None => panic!("waited for {what}; problems: {:?}", self.cluster.problems()),
        }
    }

    async fn until_synced(&mut self) {
        self.until("everything", |world| world.generation() > 0).await;
        assert_eq!(self.cluster.kinds_missing(), [""; 0]);
    }

    async fn until_pods(&mut self, wanted: usize) -> Arc<World> {
        self.until(&format!("{wanted} pods"), |world| world.counts().workloads == wanted).await
    }

    /// Waits until something wrong is shown.
    async fn until_problem(&self, wanted: &str) {
        until(wanted, || self.cluster.problems().iter().any(|problem| problem.contains(wanted))).await;
    }

    async fn until_no_problem(&self) {
        until("that nothing is wrong", || self.cluster.problems().is_empty()).await;
    }
}

/// Waits until something is so of which nobody tells.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    };
    assert!(tokio::time::timeout(BOUND, waiting).await.is_ok(), "waited for {what}");
}

const PODS: &str = "/api/v1/pods";
const POLICIES: &str = "/apis/policy.adit.dev/v1alpha1/authorizationpolicies";

fn put_namespace(server: &Server, name: &str) {
    let object = json!({"metadata": {"name": name, "uid": name, "labels": {"adit.dev/mesh": "enabled"}}});
    server.put(&format!("/api/v1/namespaces/{name}"), object);
}

fn pod_path(name: &str) -> String {
    format!("/api/v1/namespaces/shop/pods/{name}")
}

fn pod(name: &str, node: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}")},
        "spec": {"nodeName": node, "containers": []},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
    })
}

fn put_pod(server: &Server, name: &str) {
    server.put(&pod_path(name), pod(name, "n1"));
}

fn put_policy(server: &Server, name: &str, spec: Value) {
    let path = format!("/apis/policy.adit.dev/v1alpha1/namespaces/shop/authorizationpolicies/{name}");
    server.put(&path, json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec}));
}

fn uid(name: &str) -> PodUid {
    PodUid(format!("uid-{name}").into())
}

/// A server with a namespace and a pod, and an agent that knows them.
async fn mesh() -> (Server, tempfile::TempDir, Agent) {
    let server = Server::start().await;
    let dir = tempfile::tempdir().unwrap();
    put_namespace(&server, "shop");
    put_pod(&server, "web");
    let mut agent = Agent::start(&server, dir.path());
    agent.until_synced().await;
    (server, dir, agent)
}

#[tokio::test]
async fn objects_are_listed_and_followed() {
    let (server, _dir, mut agent) = mesh().await;
    let world = agent.view.world();
    assert_eq!((world.counts().namespaces, world.counts().workloads), (1, 1));
    assert!(world.workload(&uid("web")).unwrap().enrolment.is_enrolled());
    put_pod(&server, "other");
    agent.until_pods(2).await;
    server.delete(&pod_path("web"));
    let world = agent.until_pods(1).await;
    assert!(world.workload(&uid("other")).is_some());
    put_policy(&server, "p", json!({}));
    agent.until("the policy", |world| world.counts().authorization_policies == 1).await;
    assert_eq!(agent.cluster.problems(), [""; 0]);
}

#[tokio::test]
async fn a_list_of_many_pages_is_read_whole() {
    let server = Server::start().await;
    let dir = tempfile::tempdir().unwrap();
    for at in 0..1201 {
        put_pod(&server, &format!("p{at}"));
    }
    let mut agent = Agent::start(&server, dir.path());
    agent.until_synced().await;
    assert_eq!(agent.view.world().counts().workloads, 1201);
    assert_eq!(server.requests("/api/v1/pods?limit"), 3);
}

#[tokio::test]
async fn the_trust_bundle_is_followed() {
    let (server, _dir, mut agent) = mesh().await;
    let bundle = |sequence: u64| {
        let text = json!({"trust_domains": {"cluster.local": {"keys": [], "spiffe_sequence": sequence}}});
        json!({"metadata": {"name": "adit-trust-bundle"}, "data": {"bundle.json": text.to_string()}})
    };
    let path = "/api/v1/namespaces/adit-system/configmaps/adit-trust-bundle";
    server.put(path, bundle(7));
    let of = |generation| move |world: &World| world.trust().is_some_and(|it| it.generation == generation);
    agent.until("the bundle", of(7)).await;
    server.put(path, json!({"metadata": {"name": "adit-trust-bundle"}, "data": {"bundle.json": "{"}}));
    agent.until_problem("ConfigMap adit-trust-bundle: bundle.json: ").await;
    server.put(path, bundle(8));
    agent.until("the next", of(8)).await;
}

#[tokio::test]
async fn an_agent_that_starts_while_the_api_server_is_away_serves_what_an_earlier_life_knew() {
    let (server, dir, mut agent) = mesh().await;
    put_policy(&server, "p", json!({"action": "DENY"}));
    put_pod(&server, "late");
    agent
        .until("all", |world| world.counts().authorization_policies == 1 && world.counts().workloads == 2)
        .await;
    drop((agent, server));

    let mut agent = Agent::at("http://127.0.0.1:1", dir.path());
    agent.until_synced().await;
    let world = agent.view.world();
    assert_eq!((world.counts().workloads, world.counts().authorization_policies), (2, 1));
    agent.until_problem("Pod: not followed, what is known stays: the API server is not reached").await;
    drop(agent);

    // Without the policies it waits: what they say may be no.
    fs::remove_file(dir.path().join("kube/AuthorizationPolicy.jsonl")).unwrap();
    let agent = Agent::at("http://127.0.0.1:1", dir.path());
    agent.until_problem("Pod: not followed").await;
    assert_eq!(agent.cluster.kinds_missing(), ["AuthorizationPolicy"]);
    assert_eq!(agent.view.world().generation(), 0, "nothing is published");
}

#[tokio::test]
async fn what_went_while_no_agent_was_there_is_gone_after_the_first_list() {
    let (server, dir, agent) = mesh().await;
    drop(agent);
    server.delete(&pod_path("web"));
    put_pod(&server, "other");
    let mut agent = Agent::start(&server, dir.path());
    let world = agent.until("the other", |world| world.workload(&uid("other")).is_some()).await;
    assert!(world.workload(&uid("web")).is_none());
}

#[tokio::test]
async fn one_broken_object_of_each_kind_is_named_and_the_others_go_on() {
    let (server, _dir, mut agent) = mesh().await;
    let mut broken = pod("broken", "n1");
    broken["status"]["podIPs"] = json!([{"ip": "10.0.0"}]);
    server.put(&pod_path("broken"), broken);
    server.put(
        &pod_path("shapeless"),
        json!({"metadata": {"name": "shapeless", "namespace": "shop", "uid": "u"}, "spec": 7}),
    );
    server.put(
        &pod_path("unborn"),
        json!({"metadata": {"name": "unborn", "namespace": "shop", "uid": "uid-unborn"}}),
    );
    server.put(
        "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices/s",
        json!({
            "metadata": {"name": "s", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.x"]}],
        }),
    );
    let fields: Vec<_> = (0..50_000).map(|at| json!({"from": [{"sauce": {"field": at}}]})).collect();
    put_policy(&server, "huge", json!({"rules": fields}));
    put_policy(&server, "good", json!({}));
    agent
        .until("the good ones", |world| {
            world.counts().authorization_policies == 2 && world.workload(&uid("unborn")).is_some()
        })
        .await;
    for wanted in [
        "Pod shop/broken: status.podIPs[0].ip: is \"10.0.0\", not an IP address",
        "Pod shop/shapeless: spec: ",
        "EndpointSlice shop/s: endpoints[0].addresses[0]: ",
        "AuthorizationPolicy shop/huge: spec.rules[0].from[0].sauce: ",
    ] {
        agent.until_problem(wanted).await;
    }
    assert!(agent.cluster.problems().len() < 30, "{:?}", agent.cluster.problems());
    server.put(&pod_path("broken"), pod("broken", "n1"));
    until("mended", || !agent.cluster.problems().iter().any(|problem| problem.contains("broken"))).await;
}

#[tokio::test]
async fn an_object_that_cannot_be_read_any_more_stays_as_it_was_over_a_list_and_a_restart() {
    let (server, dir, mut agent) = mesh().await;
    server.put(
        &pod_path("web"),
        json!({"metadata": {"name": "web", "namespace": "shop", "uid": "uid-web"}, "spec": 7}),
    );
    agent.until_problem("Pod shop/web: spec: ").await;
    server.compact();
    server.say(PODS, "{");
    put_pod(&server, "other");
    let world = agent.until("another list", |world| world.workload(&uid("other")).is_some()).await;
    assert!(world.workload(&uid("web")).is_some());
    drop((agent, server));
    let mut agent = Agent::at("http://127.0.0.1:1", dir.path());
    agent.until_synced().await;
    assert!(agent.view.world().workload(&uid("web")).is_some());
}

#[tokio::test]
async fn a_pod_that_the_watch_has_not_told_yet_is_fetched() {
    let (server, _dir, agent) = mesh().await;
    server.fail("watch=1", Fault::Silence);
    let name = ObjectName::new("shop", "new");
    agent.cluster.announcer().refresh(&name).await;
    assert!(agent.view.world().workload_by_name(&name).is_none(), "there is none");
    put_pod(&server, "new");
    agent.cluster.announcer().refresh(&name).await;
    assert!(agent.view.world().workload_by_name(&name).is_some());
}

#[tokio::test]
async fn adit_leaves_when_its_daemon_set_or_its_namespace_goes() {
    let (server, _dir, agent) = mesh().await;
    let mut removal = agent.cluster.removal();
    assert_eq!(*removal.borrow_and_update(), Removal::Undecided);
    let daemon_set = "/apis/apps/v1/namespaces/adit-system/daemonsets/adit-agent";
    let object = json!({"metadata": {"name": "adit-agent", "namespace": "adit-system"}});
    put_namespace(&server, "adit-system");
    server.put(daemon_set, object.clone());
    let mut becomes = async |wanted| {
        let waiting = removal.wait_for(|known| *known == wanted);
        assert!(tokio::time::timeout(BOUND, waiting).await.is_ok(), "{wanted:?}");
    };
    becomes(Removal::Stays).await;
    server.delete(daemon_set);
    becomes(Removal::Leaves).await;
    server.put(daemon_set, object);
    becomes(Removal::Stays).await;
    let terminating =
        json!({"metadata": {"name": "adit-system", "deletionTimestamp": "2026-01-01T00:00:00Z"}});
    server.put("/api/v1/namespaces/adit-system", terminating);
    becomes(Removal::Leaves).await;
}

#[tokio::test]
async fn there_is_no_way_to_an_api_server_from_no_pod_and_no_kubeconfig() {
    let nowhere = Config { kubeconfig: Some("/nowhere/kubeconfig".into()), ..Config::default() };
    let error = Api::open(&nowhere).err().unwrap().to_string();
    assert_eq!(error, "the kubeconfig /nowhere/kubeconfig");
    assert!(matches!(Api::open(&Config::default()), Err(AccessError::InCluster(_))));
    let secure = Config { api_server: Some("https://127.0.0.1:1".into()), ..Config::default() };
    assert!(Api::open(&secure).is_err(), "with TLS, nobody is anonymous");
}
