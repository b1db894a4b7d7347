use std::path::PathBuf;

use adit_core::world::Settings;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use adit_core::net::{NodeName, ObjectName};
use adit_core::world::World;
use adit_proto::status::NodeStatus;

use super::*;
use crate::view::{self, View};

mod links;
mod statuses;
mod trust;

/// Every wait is for an event; this bounds the one that never comes.
const BOUND: Duration = Duration::from_secs(20);

struct Mesh {
    dir: tempfile::TempDir,
}

/// A running source of truth, and what it shows.
struct Agent {
    cluster: Cluster,
    view: View,
}

impl Mesh {
    fn new() -> Self {
        let mesh = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir_all(mesh.objects()).unwrap();
        mesh
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("mesh")
    }

    fn objects(&self) -> PathBuf {
        self.root().join("objects")
    }

    fn write(&self, name: &str, text: &str) {
        write(&self.objects().join(name), text);
    }

    fn try_agent(&self, node: &str) -> Result<Agent, StartError> {
        let settings = Settings {
            trust_domain: "cluster.local".parse().unwrap(),
            system_namespace: "adit-system".into(),
            excluded_namespaces: BTreeSet::new(),
            node: NodeName(node.into()),
        };
        let own = Own {
            settings: settings.clone(),
            version: "1".into(),
            admin_socket: "/run/adit/admin.sock".into(),
            copy_dir: Some(self.dir.path().join(format!("copy-{node}"))),
        };
        let (publisher, view) = view::channel(World::empty(settings));
        let clock = Clock::paused(SystemTime::UNIX_EPOCH);
        let config = Config { directory: self.root(), kube: None };
        Ok(Agent { cluster: start(config, own, clock, publisher, Seed(1))?, view })
    }

    fn agent(&self, node: &str) -> Agent {
        self.try_agent(node).unwrap()
    }

    fn status(&self, node: &str) -> NodeStatus {
        let text = fs::read_to_string(self.root().join("status").join(format!("{node}.yaml"))).unwrap();
        serde_saphyr::from_str(&text).unwrap()
    }
}

impl Agent {
    /// Waits until a snapshot is as wanted.
    async fn until(&mut self, what: &str, wanted: impl Fn(&World) -> bool) -> Arc<World> {
        match self.view.until(BOUND, wanted).await {
            Some(world) => world,
            None => panic!("waited for {what}; problems: {:?}", self.problems()),
        }
    }

    async fn until_namespaces(&mut self, wanted: usize) {
        self.until(&format!("{wanted} namespaces"), |world| world.counts().namespaces == wanted).await;
    }

    fn namespaces(&self) -> usize {
        self.view.world().counts().namespaces
    }

    /// Waits until something wrong is shown, with nobody asking for it. Not for a test with paused time.
    async fn until_problem(&self, wanted: &str) {
        let shown = async {
            while !self.problems().iter().any(|problem| problem.contains(wanted)) {
                tokio::task::yield_now().await;
            }
        };
        let is_shown = tokio::time::timeout(BOUND, shown).await.is_ok();
        assert!(is_shown, "waited for {wanted:?}; problems: {:?}", self.problems());
    }

    fn problems(&self) -> Vec<String> {
        self.cluster.problems()
    }
}

/// As an editor that is careful, or `kubectl`, writes: whole, by rename.
fn write(path: &Path, text: &str) {
    let fresh = path.with_extension("fresh");
    fs::write(&fresh, text).unwrap();
    fs::rename(fresh, path).unwrap();
}

fn namespace(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{adit.dev/mesh: enabled}}}}\n---\n"
    )
}

fn pod(name: &str, node: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: uid-{name}}}\n\
         spec: {{nodeName: {node}}}\nstatus: {{phase: Running, podIPs: [{{ip: 10.0.0.1}}]}}\n---\n"
    )
}

fn bundle(sequence: u64) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: adit-trust-bundle}}\ndata:\n  bundle.json: |\n    \
         {{\"trust_domains\": {{\"cluster.local\": {{\"keys\": [], \"spiffe_sequence\": {sequence}}}}}}}\n"
    )
}

/// A pod of which nothing is known: what is looked for is what else there is.
fn nobody() -> ObjectName {
    ObjectName::new("shop", "nobody")
}

fn uid(name: &str) -> PodUid {
    PodUid(format!("uid-{name}").into())
}

#[tokio::test]
async fn what_is_there_at_the_start_is_published_before_start_returns() {
    let mesh = Mesh::new();
    mesh.write("a.yaml", &namespace("shop"));
    fs::create_dir_all(mesh.objects().join("deep/er")).unwrap();
    mesh.write("deep/er/b.yml", &pod("web", "n1"));
    mesh.write("notes.txt", "not ours");
    mesh.write(".hidden.yaml", &namespace("hidden"));
    fs::write(mesh.root().join("trust-bundle.yaml"), bundle(7)).unwrap();
    let agent = mesh.agent("n1");
    let world = agent.view.world();
    assert_eq!((world.counts().namespaces, world.counts().workloads), (1, 1));
    assert_eq!(world.trust().unwrap().generation, 7);
    assert!(world.policies_for(&uid("web")).is_some());
    assert_eq!((agent.cluster.kinds_missing(), agent.problems()), (vec![], vec![]));
    let status = mesh.status("n1");
    assert_eq!((status.node.as_str(), status.admin_socket.as_str()), ("n1", "/run/adit/admin.sock"));
}

#[tokio::test]
async fn files_are_followed_whichever_way_they_are_written() {
    let mesh = Mesh::new();
    let mut agent = mesh.agent("n1");
    mesh.write("renamed.yaml", &namespace("a"));
    agent.until_namespaces(1).await;
    fs::write(mesh.objects().join("in-place.yaml"), namespace("b")).unwrap();
    agent.until_namespaces(2).await;
    let outside = mesh.dir.path().join("outside.yaml");
    fs::write(&outside, namespace("c")).unwrap();
    std::os::unix::fs::symlink(&outside, mesh.objects().join("linked.yaml")).unwrap();
    agent.until_namespaces(3).await;
    fs::hard_link(&outside, mesh.objects().join("hard.yaml")).unwrap();
    fs::remove_file(mesh.objects().join("linked.yaml")).unwrap();
    fs::write(mesh.objects().join("in-place.yaml"), namespace("b") + &namespace("d")).unwrap();
    agent.until_namespaces(4).await;
    fs::remove_file(mesh.objects().join("in-place.yaml")).unwrap();
    agent.until_namespaces(2).await;
    fs::rename(mesh.objects().join("renamed.yaml"), mesh.objects().join("renamed.bak")).unwrap();
    agent.until_namespaces(1).await;
    assert_eq!(agent.problems(), [""; 0]);
}

#[tokio::test]
async fn directories_come_move_and_go() {
    let mesh = Mesh::new();
    let mut agent = mesh.agent("n1");
    let dir = mesh.objects().join("team/sub");
    fs::create_dir_all(&dir).unwrap();
    write(&dir.join("a.yaml"), &namespace("a"));
    agent.until_namespaces(1).await;
    write(&dir.join("b.yaml"), &namespace("b"));
    agent.until_namespaces(2).await;
    fs::rename(mesh.objects().join("team"), mesh.objects().join("crew")).unwrap();
    write(&mesh.objects().join("crew/sub/c.yaml"), &namespace("c"));
    agent.until_namespaces(3).await;
    write(&mesh.objects().join("crew/sub/a.yaml"), &(namespace("a") + &namespace("d")));
    agent.until_namespaces(4).await;
    // Out of sight: what is in it is gone, and what is written there later is nobody's.
    fs::rename(mesh.objects().join("crew"), mesh.dir.path().join("away")).unwrap();
    agent.until_namespaces(0).await;
    write(&mesh.dir.path().join("away/sub/e.yaml"), &namespace("e"));
    fs::rename(mesh.dir.path().join("away"), mesh.objects().join("back")).unwrap();
    agent.until_namespaces(5).await;
    fs::remove_dir_all(mesh.objects().join("back")).unwrap();
    agent.until_namespaces(0).await;
}

#[tokio::test]
async fn a_broken_file_keeps_its_objects_while_others_go_on_and_is_mended() {
    let mesh = Mesh::new();
    mesh.write("a.yaml", &namespace("a"));
    let mut agent = mesh.agent("n1");
    mesh.write("a.yaml", "kind: {\n");
    mesh.write("b.yaml", &namespace("b"));
    agent.until_namespaces(2).await;
    let problems = agent.problems();
    assert!(problems.len() == 1 && problems[0].contains("objects/a.yaml:"), "{problems:?}");
    mesh.write("a.yaml", &(namespace("a") + &namespace("c")));
    agent.until_namespaces(3).await;
    assert_eq!(agent.problems(), [""; 0]);
}

#[tokio::test]
async fn an_agent_that_starts_while_a_file_is_broken_goes_on_from_its_copy() {
    let mesh = Mesh::new();
    mesh.write("a.yaml", &namespace("a"));
    mesh.write("b.yaml", &namespace("b"));
    drop(mesh.agent("n1"));
    mesh.write("a.yaml", "kind: {\n");
    fs::remove_file(mesh.objects().join("b.yaml")).unwrap();
    let agent = mesh.agent("n1");
    assert_eq!((agent.namespaces(), agent.problems().len()), (1, 1));
    drop(agent);
    assert_eq!(mesh.agent("n2").namespaces(), 0, "which another agent does not have");
    let agent = mesh.agent("n1");
    assert_eq!(agent.namespaces(), 1, "again");
}

#[tokio::test]
async fn a_mesh_without_its_objects_is_not_synced_and_loses_nothing_later() {
    let mesh = Mesh::new();
    fs::remove_dir(mesh.objects()).unwrap();
    let mut agent = mesh.agent("n1");
    assert_eq!(agent.cluster.kinds_missing().len(), 8);
    assert_eq!(agent.view.world().generation(), 0, "nothing is published");
    fs::create_dir(mesh.objects()).unwrap();
    mesh.write("a.yaml", &namespace("a"));
    agent.until_namespaces(1).await;
    assert_eq!(agent.cluster.kinds_missing(), [""; 0]);
    // Unmounted: what is known stays, and comes to nothing new until it is back.
    fs::rename(mesh.objects(), mesh.dir.path().join("away")).unwrap();
    agent.cluster.announcer().refresh(&nobody()).await;
    assert_eq!(agent.namespaces(), 1);
    fs::create_dir(mesh.objects()).unwrap();
    mesh.write("b.yaml", &(namespace("b") + &namespace("c")));
    agent.until("the new ones alone", |world| world.counts().namespaces == 2).await;
}

#[tokio::test]
async fn a_policy_that_is_not_understood_is_in_force_and_said_not_to_be_accepted() {
    let mesh = Mesh::new();
    mesh.write("a.yaml", &(namespace("shop") + &pod("web", "n1")));
    let mut agent = mesh.agent("n1");
    mesh.write(
        "policy.yaml",
        "apiVersion: policy.adit.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: shop}\n\
         spec:\n  rules:\n  - to:\n    - operation: {methods: [GET]}\n",
    );
    let world = agent.until("the policy", |world| world.counts().authorization_policies == 1).await;
    let policies = world.policies_for(&uid("web")).unwrap();
    let request = adit_core::authz::Request {
        peer: None,
        source_ip: "10.0.0.2".parse().unwrap(),
        destination: "10.0.0.1:80".parse().unwrap(),
    };
    assert!(!adit_core::authz::decide(policies, &request).allowed());
    agent.cluster.announcer().refresh(&nobody()).await;
    let status = mesh.status("n1").policies.remove(0);
    assert_eq!((status.name.as_str(), status.accepted), ("p", false));
    assert!(
        status.problems[0].starts_with("spec.rules[0].to[0].operation.methods: "),
        "{:?}",
        status.problems
    );
    assert!(agent.problems()[0].contains("policy.yaml:7:28: "), "{:?}", agent.problems());
}

#[tokio::test]
async fn many_changes_are_few_snapshots() {
    let mesh = Mesh::new();
    let mut agent = mesh.agent("n1");
    let before = agent.view.world().generation();
    for at in 0..1000 {
        mesh.write(&format!("{at}.yaml"), &namespace(&format!("n{at}")));
    }
    agent.until_namespaces(1000).await;
    let snapshots = agent.view.world().generation() - before;
    assert!(snapshots <= 60, "{snapshots} snapshots");
}

#[tokio::test]
async fn a_refresh_shows_what_is_there_when_it_returns() {
    let mesh = Mesh::new();
    let agent = mesh.agent("n1");
    for at in 1..=20 {
        mesh.write(&format!("{at}.yaml"), &pod(&format!("p{at}"), "n1"));
        agent.cluster.announcer().refresh(&nobody()).await;
        assert!(agent.view.world().workload_by_name(&ObjectName::new("shop", format!("p{at}"))).is_some());
    }
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let mesh = Mesh::new();
    assert!(matches!(mesh.try_agent("a/b"), Err(StartError::NodeName(_))));
    assert!(matches!(mesh.try_agent(""), Err(StartError::NodeName(_))));
    fs::write(mesh.root().join("status"), "a file").unwrap();
    assert!(matches!(mesh.try_agent("n1"), Err(StartError::Status { .. })));
    fs::remove_dir_all(mesh.root()).unwrap();
    assert!(matches!(mesh.try_agent("n1"), Err(StartError::Directory { .. })));
    fs::write(mesh.root(), "a file").unwrap();
    assert!(matches!(mesh.try_agent("n1"), Err(StartError::Directory { .. })));
}

#[tokio::test]
async fn an_announcer_outlives_its_cluster_without_waiting() {
    let mesh = Mesh::new();
    let announcer = mesh.agent("n1").cluster.announcer();
    let result = tokio::time::timeout(BOUND, announcer.set_captured(uid("web"), true)).await.unwrap();
    assert!(matches!(result, Err(AnnounceError::Ended)), "{result:?}");
}

#[tokio::test]
async fn when_the_first_of_two_files_goes_the_other_counts() {
    let mesh = Mesh::new();
    mesh.write("a.yaml", &namespace("shop"));
    mesh.write("b.yaml", &namespace("shop").replace("enabled", "disabled"));
    mesh.write("pod.yaml", &pod("web", "n1"));
    let mut agent = mesh.agent("n1");
    let is_enrolled = |world: &World| world.workload(&uid("web")).unwrap().enrolment.is_enrolled();
    assert!(is_enrolled(&agent.view.world()));
    assert_eq!(agent.problems().len(), 1);
    fs::remove_file(mesh.objects().join("a.yaml")).unwrap();
    agent.until("the other file's", |world| !is_enrolled(world)).await;
}
