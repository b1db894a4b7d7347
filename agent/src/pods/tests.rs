//! The driver with everything that it needs, over its socket. Pods here are not enrolled, or not known: what captures one
//! needs a namespace of its own and is tested in `tests/it`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use adit_core::life::Ready;
use adit_core::net::{NodeName, ObjectName};
use adit_core::trust::TrustBundle;
use adit_core::workload::{MeshLabel, Owner, Pod, Skip};
use adit_core::world::builder::WorldBuilder;
use adit_core::world::{Change, Settings, World};
use adit_proto::cni::{
    self, Add, Attachment, Check, Code, ContainerId, Del, Gc, IfName, PodRef, Removal, Reply, Request,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::model::BOOT_ID;
use super::*;
use crate::cluster::{self, Announcer, Cluster};
use crate::view::{Publisher, View};
use crate::{dataplane, identity, telemetry, view};

/// A node's agent without its captures: what the driver is given, in a folder of its own.
struct Node {
    dir: tempfile::TempDir,
    publisher: Publisher,
    builder: WorldBuilder,
    cluster: Cluster,
    announcer: Announcer,
    /// What the directory says, which this test publishes itself.
    elsewhere: View,
    view: View,
    /// Whether its agents are ready.
    ready: watch::Sender<bool>,
    seeds: AtomicU64,
    add_deadline: Duration,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("mesh/objects")).unwrap();
        fs::create_dir(dir.path().join("proc")).unwrap();
        let settings = Settings {
            trust_domain: "cluster.local".parse().unwrap(),
            system_namespace: "adit-system".into(),
            excluded_namespaces: ["kube-system".into()].into(),
            node: NodeName("n1".into()),
        };
        let (publisher, view) = view::channel(World::empty(settings.clone()));
        // Its own World goes nowhere: the test publishes.
        let (publisher_of_cluster, elsewhere) = view::channel(World::empty(settings.clone()));
        let config = cluster::Config { directory: dir.path().join("mesh"), kube: None };
        let own = cluster::Own {
            settings: settings.clone(),
            version: "test".into(),
            admin_socket: "/run/adit/admin.sock".into(),
            copy_dir: None,
        };
        let cluster = cluster::start(config, own, clock(), publisher_of_cluster, Seed(1)).unwrap();
        let (builder, ready) = (WorldBuilder::new(settings), watch::Sender::new(false));
        let (announcer, seeds) = (cluster.announcer(), AtomicU64::new(7));
        let add_deadline = Duration::from_secs(60);
        Self { dir, publisher, builder, cluster, announcer, elsewhere, view, ready, seeds, add_deadline }
    }

    fn publish(&mut self, change: Change) {
        self.builder.apply(change);
        self.publisher.publish(self.builder.freeze());
    }

    fn start(&self) -> Pods {
        self.start_after(Rest::default())
    }

    /// One that has asked the one before it to rest.
    fn start_after(&self, rest: Rest) -> Pods {
        let (_, trust) = watch::channel(Arc::new(TrustBundle::default()));
        let identity = identity::Config { journal: None, ..identity::Config::default() };
        let (certs, identity) = identity::start(identity, clock(), trust).unwrap();
        let (reporter, _) = telemetry::start(telemetry::Config::default(), clock(), "n1".into()).unwrap();
        let handles = dataplane::Handles {
            view: self.view.clone(),
            certs: certs.clone(),
            reporter,
            clock: clock(),
            node: None,
        };
        let dataplane = dataplane::start(dataplane::Config::default(), handles, Seed(7)).unwrap();
        let links = Links {
            dataplane,
            needs: identity.needs(),
            certs,
            view: self.view.clone(),
            announcer: self.announcer.clone(),
            events: self.cluster.events(),
            node_inode: 1,
            clock: clock(),
            ready: self.ready.subscribe(),
            removal: watch::channel(Removal::Stays).1,
        };
        start(self.config(), links, Seed(self.seeds.fetch_add(1, Ordering::Relaxed)), rest).unwrap()
    }

    fn config(&self) -> Config {
        Config {
            socket: self.dir.path().join("run/cni.sock"),
            journal: self.dir.path().join("run/journal"),
            state_dir: self.dir.path().join("lib"),
            add_deadline: self.add_deadline,
            proc: self.dir.path().join("proc"),
            cni_results: vec![],
            netns_dirs: vec![],
            ..Config::default()
        }
    }

    async fn ask(&self, request: Request) -> Reply {
        ask(&self.config().socket, request).await
    }

    fn journal(&self) -> Vec<String> {
        let files = fs::read_dir(self.config().journal).unwrap();
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn sorted_journal(&self) -> Vec<String> {
        let mut files = self.journal();
        files.sort();
        files
    }

    /// Of the sandbox in the journal: it may be there, and cannot be opened, as by too many symbolic links. Returns its path.
    fn leave_unopenable(&self) -> PathBuf {
        let netns = self.dir.path().join("netns");
        std::os::unix::fs::symlink(&netns, &netns).unwrap();
        let file = self.config().journal.join("c0ffee.json");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replace("/proc/self/ns/net", netns.to_str().unwrap())).unwrap();
        netns
    }
}

fn clock() -> Clock {
    Clock::paused(SystemTime::UNIX_EPOCH)
}

async fn ask(socket: &Path, request: Request) -> Reply {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    stream.write_all(&cni::encode(&request).unwrap()).await.unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    cni::decode(&bytes).unwrap().unwrap().0
}

fn container() -> ContainerId {
    ContainerId::try_from("c0ffee".to_owned()).unwrap()
}

fn ifname(name: &str) -> IfName {
    IfName::try_from(name.to_owned()).unwrap()
}

fn add(namespace: &str) -> Add {
    Add {
        container_id: container(),
        netns: "/proc/self/ns/net".into(),
        ifname: ifname("eth0"),
        pod: PodRef { namespace: namespace.into(), name: "web".into(), uid: "u1".into() },
        ips: vec!["10.0.0.7".parse().unwrap()],
        annotations: None,
        cgroup: None,
    }
}

fn del(interface: &str) -> Request {
    Request::Del(Del { container_id: container(), ifname: ifname(interface) })
}

fn object(terminating: bool) -> Change {
    Change::Pod(Pod {
        uid: PodUid("u1".into()),
        name: ObjectName::new("idle", "web"),
        node: Some(NodeName("n1".into())),
        ips: vec![],
        service_account: "web".into(),
        labels: Arc::default(),
        mesh: None,
        host_network: false,
        is_static: false,
        terminating,
        captured: false,
        ports: vec![],
        probe_ports: vec![],
        skip: Skip::default(),
        owner: Owner { kind: "Pod".into(), name: "web".into() },
    })
}

/// The message of a reply that must be an error.
fn message(reply: Reply) -> String {
    match reply {
        Reply::Failed(failure) => failure.message,
        Reply::Ok | Reply::Status { .. } | Reply::Removal { .. } | Reply::Successor { .. } => {
            panic!("{reply:?} is no failure")
        }
    }
}

#[tokio::test]
async fn a_pod_that_is_not_enrolled_is_let_go_at_once_and_known_until_its_del() {
    let mut node = Node::new();
    node.publish(object(false));
    let pods = node.start();
    assert_eq!(node.ask(Request::Add(add("idle"))).await, Reply::Ok);
    assert_eq!(node.journal(), ["c0ffee.json"]);
    let status = pods.status();
    assert_eq!((status.len(), status[0].pod.as_str(), status[0].state.as_str()), (1, "idle/web", "added"));
    assert!(!status[0].enrolled && !status[0].captured);
    // Repeated, checked, another interface of the sandbox gone.
    assert_eq!(node.ask(Request::Add(add("idle"))).await, Reply::Ok);
    let check = Request::Check(Check {
        container_id: container(),
        netns: "/proc/self/ns/net".into(),
        ifname: ifname("eth0"),
    });
    assert_eq!(node.ask(check).await, Reply::Ok);
    assert_eq!(node.ask(del("net1")).await, Reply::Ok);
    assert_eq!(node.journal(), ["c0ffee.json"]);
    for _ in 0..2 {
        assert_eq!(node.ask(del("eth0")).await, Reply::Ok);
        assert_eq!(node.journal(), [""; 0]);
    }
    assert_eq!(pods.status(), []);
}

#[tokio::test]
async fn a_pod_that_an_add_names_and_nobody_knows_is_looked_for() {
    let mut node = Node::new();
    let _pods = node.start();
    // Nobody hears of it: its writer has not closed it.
    let mut unheard = fs::File::create(node.dir.path().join("mesh/objects/web.yaml")).unwrap();
    let object =
        "{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: idle, uid: u1}, spec: {nodeName: n1}}";
    std::io::Write::write_all(&mut unheard, object.as_bytes()).unwrap();
    node.ask(Request::Add(add("idle"))).await;
    let known = |world: &World| world.workload(&PodUid("u1".into())).is_some();
    let looked = node.elsewhere.until(Duration::from_secs(20), known).await;
    assert!(looked.is_some(), "the file was read for the ADD");
    drop(unheard);
}

#[tokio::test]
async fn the_next_agent_knows_the_sandboxes_of_the_one_before() {
    let mut node = Node::new();
    node.publish(object(false));
    let before = node.start();
    assert_eq!(node.ask(Request::Add(add("idle"))).await, Reply::Ok);
    drop(before);
    let next = node.start();
    assert_eq!(next.status().len(), 1, "known before anything is asked");
    assert_eq!(next.adopting(), 0, "nothing of it is captured");
    let gc = |valid| Request::Gc(Gc { valid });
    let ours = Attachment { container_id: container(), ifname: ifname("eth0") };
    assert_eq!(node.ask(gc(vec![ours])).await, Reply::Ok);
    assert_eq!(node.journal(), ["c0ffee.json"]);
    assert_eq!(node.ask(gc(vec![])).await, Reply::Ok);
    assert_eq!(node.journal(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_cannot_be_opened_is_waited_for_until_it_was_looked_at_again() {
    let mut node = Node::new();
    node.publish(object(false));
    let before = node.start();
    assert_eq!(node.ask(Request::Add(add("idle"))).await, Reply::Ok);
    drop(before);
    node.leave_unopenable();
    let next = node.start();
    assert_eq!((next.adopting(), next.status().len()), (1, 0));
    let mut changes = next.changes();
    while next.adopting() > 0 {
        changes.changed().await.unwrap();
    }
    assert_eq!(node.journal(), ["c0ffee.json"], "it is looked at again all the same");
}

#[tokio::test]
async fn a_del_or_a_gc_drops_an_entry_that_could_not_be_read() {
    let node = Node::new();
    let dir = node.config().journal;
    fs::create_dir_all(&dir).unwrap();
    let boot = fs::read_to_string(BOOT_ID).unwrap();
    let newer = format!(r#"{{"version":60000,"boot":"{}","ifname":"eth0"}}"#, boot.trim());
    fs::write(dir.join("c0ffee.json"), &newer).unwrap();
    fs::write(dir.join("b0b.json"), newer).unwrap();
    fs::write(dir.join("90e.json"), "{").unwrap();
    let _pods = node.start();
    let mut left = vec!["90e.json", "b0b.json", "c0ffee.json"];
    assert_eq!(node.sorted_journal(), left);
    assert_eq!(node.ask(del("net1")).await, Reply::Ok);
    assert_eq!(node.sorted_journal(), left, "another interface of the sandbox");
    assert_eq!(node.ask(del("eth0")).await, Reply::Ok);
    left.pop();
    assert_eq!(node.sorted_journal(), left);
    let valid = ContainerId::try_from("b0b".to_owned()).unwrap();
    let valid = vec![Attachment { container_id: valid, ifname: ifname("eth0") }];
    assert_eq!(node.ask(Request::Gc(Gc { valid })).await, Reply::Ok);
    assert_eq!(node.sorted_journal(), ["b0b.json"]);
}

#[tokio::test]
async fn a_sandbox_that_cannot_be_opened_is_dropped_at_its_del() {
    let mut node = Node::new();
    node.publish(object(false));
    let before = node.start();
    assert_eq!(node.ask(Request::Add(add("idle"))).await, Reply::Ok);
    drop(before);
    node.leave_unopenable();
    let next = node.start();
    assert_eq!((next.adopting(), node.journal()), (1, vec!["c0ffee.json".to_owned()]));
    assert_eq!(node.ask(del("eth0")).await, Reply::Ok);
    assert_eq!((next.adopting(), node.journal()), (0, vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_that_cannot_be_opened_is_not_taken_for_a_later_one_of_its_id() {
    let mut node = Node::new();
    node.publish(object(false));
    let before = node.start();
    assert_eq!(node.ask(Request::Add(add("idle"))).await, Reply::Ok);
    drop(before);
    let netns = node.leave_unopenable();
    let next = node.start();
    assert_eq!(node.ask(Request::Add(add("idle"))).await, Reply::Ok);
    // The one of before is gone at the next look, and the later one is not.
    fs::remove_file(&netns).unwrap();
    tokio::time::timeout(Duration::from_secs(30), std::future::pending::<()>()).await.unwrap_err();
    assert_eq!((node.journal(), next.status().len()), (vec!["c0ffee.json".to_owned()], 1));
}

#[tokio::test]
async fn a_pod_that_started_while_the_agent_was_away_is_taken_in() {
    let mut node = Node::new();
    node.publish(object(false));
    let folder = node.dir.path().join("run").join(cni::MISSED_DIR);
    fs::create_dir_all(&folder).unwrap();
    let leave = |name: &str, add: Add| {
        fs::write(folder.join(name), cni::encode(&Request::Add(add)).unwrap()).unwrap();
    };
    leave("c0ffee", add("idle"));
    let gone = ContainerId::try_from("90e".to_owned()).unwrap();
    leave("90e", Add { netns: "/run/netns/none".into(), container_id: gone, ..add("idle") });
    leave("0ther", add("idle"));
    fs::write(folder.join("damaged"), b"?").unwrap();
    fs::write(folder.join(".c0ffee"), b"half written").unwrap();
    let pods = node.start();
    assert_eq!(node.journal(), ["c0ffee.json"]);
    let status = pods.status();
    assert_eq!((status.len(), status[0].pod.as_str(), status[0].state.as_str()), (1, "idle/web", "added"));
    let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(left, [".c0ffee"], "what is still being written stays");
}

#[tokio::test]
async fn an_add_waits_for_world_and_is_answered_when_its_pod_is_there() {
    let mut node = Node::new();
    let _pods = node.start();
    let socket = node.config().socket;
    let asking = tokio::spawn(async move { ask(&socket, Request::Add(add("idle"))).await });
    while node.journal().is_empty() {
        tokio::task::yield_now().await;
    }
    node.publish(object(false));
    assert_eq!(asking.await.unwrap(), Reply::Ok);
}

#[tokio::test]
async fn an_add_of_a_pod_that_nobody_knows_ends_at_its_deadline() {
    let node = Node { add_deadline: Duration::from_millis(200), ..Node::new() };
    let _pods = node.start();
    let said = message(node.ask(Request::Add(add("idle"))).await);
    assert!(said.contains("idle/web") && said.contains("not known yet"), "{said}");
}

#[tokio::test]
async fn an_add_whose_pod_gets_a_deletion_timestamp_is_answered_at_once() {
    let mut node = Node::new();
    let _pods = node.start();
    let socket = node.config().socket;
    // Known, wanted nowhere, but before World has synced nothing of that is known.
    let asking = tokio::spawn(async move { ask(&socket, Request::Add(add("idle"))).await });
    while node.journal().is_empty() {
        tokio::task::yield_now().await;
    }
    node.publish(object(true));
    let reply = asking.await.unwrap();
    // Whichever comes first: it is not enrolled, so it may start; or it is deleted, so it must not.
    assert!(matches!(reply, Reply::Ok) || message(reply).contains("being deleted"));
}

#[tokio::test]
async fn an_add_without_a_namespace_is_refused_by_the_variable_s_name() {
    let node = Node::new();
    let pods = node.start();
    let gone = Add { netns: "/run/netns/none".into(), ..add("idle") };
    let Reply::Failed(failure) = node.ask(Request::Add(gone)).await else { panic!("not refused") };
    assert_eq!((failure.code, failure.details.as_str()), (Code::BadEnvironment, "CNI_NETNS"));
    assert_eq!(pods.status(), []);
}

#[tokio::test(start_paused = true)]
async fn the_namespaces_are_kept_for_the_plugin_and_the_agent_s_own_next_start() {
    let mut node = Node::new();
    node.publish(object(false));
    let before = node.start();
    let file = node.config().state_dir.join(cni::NAMESPACES_FILE);
    while !file.exists() {
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    drop(before);
    // Nothing is published yet: as after a reboot with the API server away.
    let mut after = Node::new();
    fs::create_dir_all(after.config().state_dir).unwrap();
    fs::copy(&file, after.config().state_dir.join(cni::NAMESPACES_FILE)).unwrap();
    let _pods = after.start();
    assert_eq!(after.ask(Request::Add(add("idle"))).await, Reply::Ok);
    after.publish(object(false));
}

#[tokio::test]
async fn a_namespace_is_held_back_before_its_first_pod_is_captured() {
    let mut node = Node::new();
    fs::create_dir_all(node.config().state_dir).unwrap();
    let file = node.config().state_dir.join(cni::NAMESPACES_FILE);
    let before = BTreeMap::from([("idle".to_owned(), cni::Membership::Unenrolled)]);
    fs::write(&file, serde_json::to_vec(&cni::Namespaces::new(before)).unwrap()).unwrap();
    node.publish(enrolled("10.0.0.7"));
    let _pods = node.start();
    // It waits for a certificate that nobody issues, and less long than changes of World are gathered.
    message(node.ask(Request::Add(add("idle"))).await);
    let now = cni::Namespaces::parse(&fs::read(&file).unwrap()).unwrap();
    assert!(!now.passes("idle"), "{now:?}");
}

#[tokio::test]
async fn status_names_the_release() {
    let node = Node::new();
    let _pods = node.start();
    let release = env!("CARGO_PKG_VERSION").to_owned();
    assert_eq!(node.ask(Request::Status).await, Reply::Status { release });
}

#[tokio::test]
async fn an_agent_of_a_mesh_without_a_cluster_tells_the_installer_that_adit_stays() {
    let node = Node::new();
    let _pods = node.start();
    assert_eq!(node.ask(Request::Removal).await, Reply::Removal { adit: Removal::Stays });
}

/// Waits until an agent's standing is so.
async fn until_standing(pods: &Pods, wanted: Option<Ready>) {
    let mut standing = pods.standing();
    let is_so = standing.wait_for(|standing| standing.succeeded == wanted);
    let waited = tokio::time::timeout(Duration::from_secs(30), is_so).await;
    waited.expect("not in time").expect("the agent runs");
}

#[tokio::test]
async fn an_agent_rests_for_its_successor_and_has_the_pods_again_when_that_ends() {
    let mut node = Node::new();
    node.publish(object(false));
    let old = node.start();
    assert_eq!(node.ask(Request::Add(add("idle"))).await, Reply::Ok);

    // One that asks for the handover and ends before it listens: it is as if it had never asked.
    let asks = Rest::ask(&node.config().socket).await;
    until_standing(&old, Some(Ready(false))).await;
    drop(asks);
    until_standing(&old, None).await;
    assert_eq!(node.ask(del("eth0")).await, Reply::Ok);
    assert_eq!(node.ask(Request::Add(add("idle"))).await, Reply::Ok);

    let new = node.start_after(Rest::ask(&node.config().socket).await);
    assert_eq!(new.status().len(), 1, "what the old one has written is there");
    until_standing(&old, Some(Ready(false))).await;
    node.ready.send_replace(true);
    until_standing(&old, Some(Ready(true))).await;
    assert_eq!(new.standing().borrow().succeeded, None);
    // What the new one does alone, the old one finds when it has the pods again.
    assert_eq!(node.ask(del("eth0")).await, Reply::Ok);
    drop(new);
    until_standing(&old, None).await;
    assert_eq!(node.ask(Request::Add(add("idle"))).await, Reply::Ok);
    assert_eq!(node.journal(), ["c0ffee.json"]);
    assert_eq!(old.status().len(), 1);
}

#[tokio::test]
async fn an_agent_rests_for_its_successor_while_the_source_of_truth_keeps_it_waiting() {
    let mut node = Node::new();
    node.announcer = Announcer::that_finds_nobody();
    let old = node.start();
    message(node.ask(Request::Add(add("idle"))).await);
    let asks = Rest::ask(&node.config().socket).await;
    until_standing(&old, Some(Ready(false))).await;
    drop(asks);
}

#[tokio::test]
async fn an_agent_that_was_never_asked_rests_once_another_socket_is_in_place_and_lets_go_for_good() {
    let mut node = Node::new();
    node.publish(object(false));
    let old = node.start();
    node.ready.send_replace(true);
    let new = node.start();
    node.publish(object(true));
    until_standing(&old, Some(Ready(true))).await;
    old.refuse_new().await;
    drop(new);
    let asked = tokio::time::timeout(Duration::from_secs(3), until_standing(&old, None)).await;
    assert!(asked.is_err(), "what has let go does not come back");
    let third = node.start();
    assert_eq!(node.ask(Request::Add(add("idle"))).await, Reply::Ok);
    old.farewell().await;
    drop(third);
}

#[tokio::test]
async fn a_node_that_adit_leaves_has_nothing_of_it_in_any_pod() {
    let mut node = Node::new();
    node.publish(object(false));
    let pods = node.start();
    assert_eq!(node.ask(Request::Add(add("idle"))).await, Reply::Ok);
    pods.leave(Duration::from_secs(1));
    let mut standing = pods.standing();
    let released = standing.wait_for(|standing| standing.released);
    tokio::time::timeout(Duration::from_secs(30), released).await.expect("not in time").unwrap();
    assert_eq!(node.ask(Request::Add(add("idle"))).await, Reply::Ok, "others still start");
}

/// The same pod, running and to be captured.
fn enrolled(ip: &str) -> Change {
    let Change::Pod(pod) = object(false) else { unreachable!("object makes a pod") };
    Change::Pod(Pod { mesh: Some(MeshLabel::Enabled), ips: vec![ip.parse().unwrap()], ..pod })
}

#[tokio::test]
async fn a_running_pod_that_cannot_be_found_is_shown_with_the_reason_until_its_add_comes() {
    let mut node = Node::new();
    let pods = node.start();
    let mut changes = pods.changes();
    node.publish(enrolled("10.0.0.7"));
    let shown = changes
        .wait_for(|shown| {
            shown
                .pods
                .iter()
                .any(|pod| pod.conditions.iter().any(|said| said.contains("no process of the pod")))
        })
        .await
        .unwrap()
        .clone();
    let [pod] = &*shown.pods else { panic!("{shown:?}") };
    assert_eq!((pod.pod.as_str(), pod.state.as_str(), pod.sandbox.as_str()), ("idle/web", "sought", ""));
    assert!(pod.enrolled && !pod.captured);
    assert_eq!(node.journal(), [""; 0]);
    // No more once it is not wanted, or known.
    node.publish(object(false));
    changes.wait_for(|shown| shown.pods.is_empty()).await.unwrap();
    assert_eq!(node.ask(Request::Add(add("idle"))).await, Reply::Ok);
    assert_eq!(pods.status().iter().map(|pod| pod.state.as_str()).collect::<Vec<_>>(), ["added"]);
}

#[tokio::test]
async fn nobody_is_looked_for_who_has_no_sandbox_yet_or_shares_the_node_s_network() {
    let mut node = Node::new();
    let pods = node.start();
    let mut changes = pods.changes();
    let Change::Pod(pod) = enrolled("10.0.0.7") else { unreachable!("enrolled makes a pod") };
    for not_yet in [
        Pod { ips: vec![], ..pod.clone() },
        Pod { host_network: true, ..pod.clone() },
        Pod { is_static: true, ..pod.clone() },
        Pod { terminating: true, ..pod.clone() },
        Pod { node: Some(NodeName("n2".into())), ..pod.clone() },
        Pod { mesh: None, ..pod.clone() },
    ] {
        node.builder.apply(Change::Pod(not_yet));
        // Of the same World: once it is shown the other has been looked at.
        let barrier = ObjectName::new("idle", "barrier");
        let (uid, name) = (PodUid("u2".into()), barrier.clone());
        node.publish(Change::Pod(Pod { uid, name, ..pod.clone() }));
        let shown = changes.wait_for(|shown| !shown.pods.is_empty()).await.unwrap().clone();
        assert_eq!(shown.pods.iter().map(|pod| pod.uid.as_str()).collect::<Vec<_>>(), ["u2"]);
        node.publish(Change::PodGone(barrier));
        changes.wait_for(|shown| shown.pods.is_empty()).await.unwrap();
    }
}
