use adit_core::net::NodeName;
use adit_core::workload::{MeshLabel, Namespace, Owner, Pod, Skip};
use adit_core::world::builder::WorldBuilder;
use adit_core::world::{Change, Settings};

use super::*;

fn pod(namespace: &str, name: &str) -> Pod {
    Pod {
        uid: PodUid(format!("uid-{name}").into()),
        name: ObjectName::new(namespace, name),
        node: Some(NodeName("n1".into())),
        ips: vec![],
        service_account: "web".into(),
        labels: Arc::default(),
        mesh: None,
        host_network: false,
        is_static: false,
        terminating: false,
        captured: false,
        ports: vec![],
        probe_ports: vec![],
        skip: Skip::default(),
        owner: Owner { kind: "Pod".into(), name: name.into() },
    }
}

fn world(changes: Vec<Change>) -> Arc<World> {
    let mut builder = WorldBuilder::new(Settings {
        trust_domain: "cluster.local".parse().unwrap(),
        system_namespace: "adit-system".into(),
        excluded_namespaces: ["kube-system".into()].into(),
        node: NodeName("n1".into()),
    });
    changes.into_iter().for_each(|change| builder.apply(change));
    builder.freeze()
}

fn enabled(name: &str) -> Change {
    Change::Namespace(Namespace { name: name.into(), mesh: Some(MeshLabel::Enabled), skip: Skip::default() })
}

fn named(namespace: &str, name: &str) -> PodRef {
    PodRef { namespace: namespace.into(), name: name.into(), uid: format!("uid-{name}") }
}

fn wish_of(world: &World, pod: &PodRef) -> Wish {
    known(world, pod, None, &Namespaces::default()).wish
}

#[test]
fn a_pod_that_world_knows_is_as_its_labels_say() {
    let world = world(vec![
        enabled("shop"),
        Change::Pod(pod("shop", "web")),
        Change::Pod(Pod { mesh: Some(MeshLabel::Disabled), ..pod("shop", "out") }),
        Change::Pod(Pod { terminating: true, captured: true, ..pod("shop", "dying") }),
        Change::Pod(pod("other", "far")),
    ]);
    let Wish::In(want) = wish_of(&world, &named("shop", "web")) else { panic!("not wanted") };
    assert_eq!(want.identity.as_str(), "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(wish_of(&world, &named("shop", "out")), Wish::Out);
    assert_eq!(wish_of(&world, &named("other", "far")), Wish::Out);
    let dying = known(&world, &named("shop", "dying"), None, &Namespaces::default());
    assert!(dying.announced && dying.terminating);
}

#[test]
fn a_pod_that_world_does_not_know_waits_unless_it_can_never_be_enrolled() {
    let world = world(vec![enabled("shop")]);
    assert_eq!(wish_of(&world, &named("shop", "new")), Wish::Unknown);
    assert_eq!(wish_of(&world, &named("adit-system", "agent")), Wish::Out);
    assert_eq!(wish_of(&world, &named("kube-system", "proxy")), Wish::Out);
    let source = |from: &str| BTreeMap::from([(CONFIG_SOURCE.to_owned(), from.to_owned())]);
    let told = |from| known(&world, &named("shop", "new"), Some(&source(from)), &Namespaces::default()).wish;
    assert_eq!(told("file"), Wish::Out);
    assert_eq!(told("api"), Wish::Unknown);
}

#[test]
fn a_static_pod_is_told_by_the_name_of_its_object() {
    let object = Pod { is_static: true, ..pod("shop", "etcd") };
    let world = world(vec![enabled("shop"), Change::Pod(object)]);
    let by_hash = PodRef { uid: "0123456789abcdef0123456789abcdef".into(), ..named("shop", "etcd") };
    assert_eq!(wish_of(&world, &by_hash), Wish::Out);
}

#[test]
fn before_the_first_snapshot_only_namespaces_without_enrolled_pods_pass() {
    let settings = world(vec![]).settings().clone();
    let nothing = World::empty(settings);
    let before = Namespaces::new(BTreeMap::from([
        ("idle".to_owned(), Membership::Unenrolled),
        ("shop".to_owned(), Membership::Enrolled),
    ]));
    let wish = |world: &World, namespace: &str| known(world, &named(namespace, "new"), None, &before).wish;
    assert_eq!(wish(&nothing, "idle"), Wish::Out);
    assert_eq!(wish(&nothing, "shop"), Wish::Unknown);
    assert_eq!(wish(&nothing, "new"), Wish::Unknown);
    let synced = world(vec![enabled("shop")]);
    assert_eq!(wish(&synced, "idle"), Wish::Unknown, "World will know it in a moment");
}

#[test]
fn a_namespace_counts_as_unenrolled_only_by_a_pod_that_its_label_would_have_enrolled() {
    let world = world(vec![
        enabled("shop"),
        Change::Pod(pod("shop", "web")),
        Change::Pod(pod("idle", "a")),
        Change::Pod(pod("mixed", "b")),
        Change::Pod(Pod { mesh: Some(MeshLabel::Enabled), ..pod("mixed", "c") }),
        enabled("opted"),
        Change::Pod(Pod { mesh: Some(MeshLabel::Disabled), ..pod("opted", "d") }),
        Change::Pod(Pod { host_network: true, ..pod("hosts", "e") }),
        enabled("empty"),
        Change::Pod(pod("kube-system", "f")),
    ]);
    let found = memberships(&world).namespaces;
    let of = |name: &str| found.get(name).copied();
    assert_eq!(of("shop"), Some(Membership::Enrolled));
    assert_eq!(of("mixed"), Some(Membership::Enrolled));
    assert_eq!(of("idle"), Some(Membership::Unenrolled));
    assert_eq!([of("opted"), of("hosts"), of("empty")], [None; 3]);
    assert_eq!(of("kube-system"), Some(Membership::Excluded));
    assert_eq!(of("adit-system"), Some(Membership::Excluded));
}

#[test]
fn the_file_is_written_when_it_differs_and_read_by_the_next_run() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = dir.path().join("lib/adit");
    let mut file = NamespacesFile::open(&state_dir);
    assert_eq!(file.kept, Namespaces::default());
    let now = memberships(&world(vec![Change::Pod(pod("idle", "a"))]));
    file.keep(now.clone()).unwrap();
    let written = fs::metadata(state_dir.join(NAMESPACES_FILE)).unwrap().modified().unwrap();
    file.keep(now.clone()).unwrap();
    let again = fs::metadata(state_dir.join(NAMESPACES_FILE)).unwrap().modified().unwrap();
    assert_eq!(again, written);
    assert_eq!(NamespacesFile::open(&state_dir).kept, now);
}
