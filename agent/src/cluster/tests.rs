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
        let config = Config { directory: self.root() };
        Ok(Agent { cluster: start(config, own, clock, publisher)?, view })
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
        let waiting = async {
            loop {
                let world = self.view.latest();
                if wanted(&world) {
                    return world;
                }
                self.view.changed().await;
            }
        };
        match tokio::time::timeout(BOUND, waiting).await {
            Ok(world) => world,
            Err(_) => panic!("waited for {what}; problems: {:?}", self.problems()),
        }
    }

    async fn until_namespaces(&mut self, wanted: usize) {
        self.until(&format!("{wanted} namespaces"), |world| world.counts().namespaces == wanted).await;
    }

    fn namespaces(&self) -> usize {
        self.view.world().counts().namespaces
    }

    fn problems(&self) -> Vec<String> {
        self.cluster.problems().iter().map(ToString::to_string).collect()
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
async fn a_mounted_config_map_is_followed_through_its_switch() {
    let mesh = Mesh::new();
    let version = |name: &str, text: &str| {
        fs::create_dir(mesh.objects().join(name)).unwrap();
        fs::write(mesh.objects().join(name).join("a.yaml"), text).unwrap();
    };
    version("..1", &namespace("a"));
    std::os::unix::fs::symlink("..1", mesh.objects().join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/a.yaml", mesh.objects().join("a.yaml")).unwrap();
    let mut agent = mesh.agent("n1");
    assert_eq!(agent.namespaces(), 1);
    version("..2", &(namespace("a") + &namespace("b")));
    std::os::unix::fs::symlink("..2", mesh.objects().join("..fresh")).unwrap();
    fs::rename(mesh.objects().join("..fresh"), mesh.objects().join("..data")).unwrap();
    agent.until_namespaces(2).await;
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
    agent.cluster.refresh().await;
    assert_eq!(agent.namespaces(), 1);
    fs::create_dir(mesh.objects()).unwrap();
    mesh.write("b.yaml", &(namespace("b") + &namespace("c")));
    agent.until("the new ones alone", |world| world.counts().namespaces == 2).await;
}

#[tokio::test]
async fn what_one_agent_captures_the_others_know() {
    let mesh = Mesh::new();
    mesh.write("a.yaml", &(namespace("shop") + &pod("web", "n1")));
    let (one, mut two) = (mesh.agent("n1"), mesh.agent("n2"));
    let is_captured = |world: &World| world.workload(&uid("web")).unwrap().captured;
    one.cluster.announcer().set_captured(uid("web"), true).await.unwrap();
    assert!(is_captured(&one.view.world()), "the own World knows at once");
    assert!(mesh.status("n1").captured.contains("uid-web"));
    two.until("captured", is_captured).await;
    one.cluster.announcer().set_captured(uid("web"), false).await.unwrap();
    two.until("released", |world| !is_captured(world)).await;
    assert!(!is_captured(&one.view.world()));
    one.cluster.announcer().set_captured(uid("web"), true).await.unwrap();
    two.until("captured again", is_captured).await;
    drop(one);
    fs::remove_file(mesh.root().join("status/n1.yaml")).unwrap();
    two.cluster.refresh().await;
    assert!(is_captured(&two.view.world()), "never in clear for a file that was lost");
    assert!(two.problems()[0].contains("status/n1.yaml: is gone"), "{:?}", two.problems());
    mesh.write("a.yaml", &namespace("shop"));
    two.until("that the pods are gone", |world| world.workload(&uid("web")).is_none()).await;
    two.cluster.refresh().await;
    assert_eq!(two.problems(), [""; 0], "the node is forgotten with its last pod");
    mesh.write("a.yaml", &(namespace("shop") + &pod("web", "n1")));
    two.until("the pod again", |world| world.workload(&uid("web")).is_some()).await;
    assert!(!is_captured(&two.view.world()));
}

#[tokio::test]
async fn a_status_file_that_is_taken_away_comes_back_by_itself() {
    let mesh = Mesh::new();
    mesh.write("a.yaml", &(namespace("shop") + &pod("web", "n1")));
    let (one, mut two) = (mesh.agent("n1"), mesh.agent("n2"));
    one.cluster.announcer().set_captured(uid("web"), true).await.unwrap();
    let is_captured = |world: &World| world.workload(&uid("web")).unwrap().captured;
    two.until("captured", is_captured).await;
    let file = mesh.root().join("status/n1.yaml");
    for path in [file.clone(), mesh.root().join("status")] {
        // With its directory, the second time.
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
        let back = async {
            while !file.exists() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(BOUND, back).await.expect("it comes back, with nothing new to say");
        assert!(mesh.status("n1").captured.contains("uid-web"));
    }
}

#[tokio::test]
async fn a_directory_that_is_replaced_or_reached_by_a_switched_link_is_followed() {
    let mesh = Mesh::new();
    let version = |name: &str, text: &str| {
        let dir = mesh.dir.path().join(name);
        fs::create_dir_all(dir.join("objects")).unwrap();
        write(&dir.join("objects/a.yaml"), text);
        dir
    };
    mesh.write("a.yaml", &namespace("a"));
    let mut agent = mesh.agent("n1");
    assert_eq!(agent.namespaces(), 1);
    // Away, and another in its place: what is known stays in between.
    let next = version("next", &(namespace("a") + &namespace("b")));
    fs::rename(mesh.root(), mesh.dir.path().join("old")).unwrap();
    agent.cluster.refresh().await;
    assert_eq!(agent.namespaces(), 1);
    assert!(
        agent.problems().iter().any(|problem| problem.contains("cannot be followed")),
        "{:?}",
        agent.problems()
    );
    fs::rename(next, mesh.root()).unwrap();
    agent.until_namespaces(2).await;
    mesh.write("c.yaml", &namespace("c"));
    agent.until_namespaces(3).await;
    agent.cluster.refresh().await;
    assert_eq!(agent.problems(), [""; 0]);
    drop(agent);

    // A link, switched whole.
    fs::rename(mesh.root(), mesh.dir.path().join("one")).unwrap();
    version("two", &namespace("a"));
    let link = mesh.dir.path().join("link");
    std::os::unix::fs::symlink(mesh.dir.path().join("one"), mesh.root()).unwrap();
    let mut agent = mesh.agent("n1");
    assert_eq!(agent.namespaces(), 3);
    std::os::unix::fs::symlink(mesh.dir.path().join("two"), &link).unwrap();
    fs::rename(&link, mesh.root()).unwrap();
    agent.until_namespaces(1).await;
    mesh.write("b.yaml", &namespace("b"));
    agent.until_namespaces(2).await;
}

#[tokio::test]
async fn objects_may_be_a_link_that_is_switched_and_never_count_as_none_for_it() {
    let mesh = Mesh::new();
    let version = |name: &str, text: &str| {
        let dir = mesh.dir.path().join(name);
        fs::create_dir_all(&dir).unwrap();
        write(&dir.join("a.yaml"), text);
        dir
    };
    let one = version("one", &namespace("a"));
    let two = version("two", &(namespace("a") + &namespace("b")));
    fs::remove_dir(mesh.objects()).unwrap();
    std::os::unix::fs::symlink(one, mesh.objects()).unwrap();
    let mut agent = mesh.agent("n1");
    assert_eq!(agent.namespaces(), 1);
    let fresh = mesh.root().join("fresh");
    std::os::unix::fs::symlink(two, &fresh).unwrap();
    fs::rename(fresh, mesh.objects()).unwrap();
    agent.until_namespaces(2).await;
    mesh.write("c.yaml", &namespace("c"));
    agent.until_namespaces(3).await;
}

#[tokio::test]
async fn a_restarted_agent_still_says_what_is_captured_but_not_what_is_gone() {
    let mesh = Mesh::new();
    mesh.write("a.yaml", &(namespace("shop") + &pod("web", "n1")));
    mesh.write("b.yaml", &pod("old", "n1"));
    let agent = mesh.agent("n1");
    agent.cluster.announcer().set_captured(uid("web"), true).await.unwrap();
    agent.cluster.announcer().set_captured(uid("old"), true).await.unwrap();
    drop(agent);
    fs::remove_file(mesh.objects().join("b.yaml")).unwrap();
    let agent = mesh.agent("n1");
    assert!(agent.view.world().workload(&uid("web")).unwrap().captured);
    let captured: Vec<_> = mesh.status("n1").captured.into_iter().collect();
    assert_eq!(captured, ["uid-web"]);
}

#[tokio::test]
async fn a_broken_status_file_keeps_what_it_said() {
    let mesh = Mesh::new();
    mesh.write("a.yaml", &(namespace("shop") + &pod("web", "n1")));
    let file = mesh.root().join("status/n1.yaml");
    fs::create_dir(mesh.root().join("status")).unwrap();
    write(&file, "node: n1\ncaptured: [uid-web]\n");
    let mut two = mesh.agent("n2");
    assert!(two.view.world().workload(&uid("web")).unwrap().captured);
    write(&file, "node: n3\n");
    mesh.write("b.yaml", &namespace("b"));
    two.until_namespaces(2).await;
    assert!(two.view.world().workload(&uid("web")).unwrap().captured);
    let problems = two.problems();
    assert!(
        problems.len() == 1 && problems[0].ends_with("status/n1.yaml: says that it is node \"n3\"'s"),
        "{problems:?}"
    );
}

#[tokio::test]
async fn the_trust_bundle_is_handed_on_and_a_broken_one_is_not() {
    let mesh = Mesh::new();
    let mut agent = mesh.agent("n1");
    assert!(agent.view.world().trust().is_none());
    let file = mesh.root().join("trust-bundle.yaml");
    write(&file, &bundle(1));
    agent.until("a bundle", |world| world.trust().is_some_and(|trust| trust.generation == 1)).await;
    agent.cluster.acknowledge_bundle(1).await;
    agent.cluster.refresh().await;
    assert_eq!(mesh.status("n1").bundle_generation, 1);
    write(&file, &bundle(2).replace("cluster.local", "other.org"));
    agent.cluster.refresh().await;
    assert_eq!(agent.view.world().trust().unwrap().generation, 1);
    let problems = agent.problems();
    assert!(problems.len() == 1 && problems[0].contains("no bundle for cluster.local"), "{problems:?}");
    fs::remove_file(&file).unwrap();
    agent.cluster.refresh().await;
    assert_eq!(
        agent.view.world().trust().unwrap().generation,
        1,
        "nobody is untrusted for a file that is gone"
    );
    write(&file, &bundle(3));
    agent.until("the next", |world| world.trust().unwrap().generation == 3).await;
    assert_eq!(agent.problems(), [""; 0]);
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
    agent.cluster.refresh().await;
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
async fn an_older_trust_bundle_is_not_taken_until_it_is_mended() {
    let mesh = Mesh::new();
    let file = mesh.root().join("trust-bundle.yaml");
    write(&file, &bundle(7));
    let agent = mesh.agent("n1");
    let generation = |agent: &Agent| agent.view.world().trust().unwrap().generation;
    write(&file, &bundle(6));
    agent.cluster.refresh().await;
    assert_eq!(generation(&agent), 7);
    let problems = agent.problems();
    let stale = "spiffe_sequence 6 is older than 7, which stays in force";
    assert!(problems.len() == 1 && problems[0].ends_with(stale), "{problems:?}");
    write(&file, &bundle(8));
    agent.cluster.refresh().await;
    assert_eq!((generation(&agent), agent.problems()), (8, vec![]));
    write(&file, &bundle(6));
    assert_eq!(generation(&mesh.agent("n1")), 6, "a new life knows of no newer one");
}

#[tokio::test]
async fn a_refresh_shows_what_is_there_when_it_returns() {
    let mesh = Mesh::new();
    let agent = mesh.agent("n1");
    for at in 1..=20 {
        mesh.write(&format!("{at}.yaml"), &pod(&format!("p{at}"), "n1"));
        agent.cluster.refresh().await;
        assert!(agent.view.world().workload_by_name(&ObjectName::new("shop", format!("p{at}"))).is_some());
    }
}

#[tokio::test]
async fn an_announcement_that_cannot_be_written_says_so_and_is_made_up_for() {
    let mesh = Mesh::new();
    mesh.write("a.yaml", &pod("web", "n1"));
    let agent = mesh.agent("n1");
    let status = mesh.root().join("status");
    let away = mesh.root().join("gone");
    fs::rename(&status, &away).unwrap();
    fs::write(&status, "a file").unwrap();
    let result = agent.cluster.announcer().set_captured(uid("web"), true).await;
    assert!(matches!(result, Err(AnnounceError::Write(_))), "{result:?}");
    fs::remove_file(&status).unwrap();
    fs::rename(&away, &status).unwrap();
    agent.cluster.refresh().await;
    assert!(mesh.status("n1").captured.contains("uid-web"));
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
