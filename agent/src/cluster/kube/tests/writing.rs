//! What the agent writes: annotations, its Lease, Events.

use std::time::Duration;

use super::*;

fn annotation(server: &Server, name: &str) -> Option<String> {
    let value = server.object(&pod_path(name))?;
    value["metadata"]["annotations"]["adit.dev/capture"].as_str().map(str::to_owned)
}

fn is_captured(agent: &Agent, name: &str) -> bool {
    agent.view.world().workload(&uid(name)).unwrap().captured
}

#[tokio::test]
async fn a_captured_pod_carries_the_annotation_when_that_was_said() {
    let (server, _dir, agent) = mesh().await;
    let announcer = agent.cluster.announcer();
    announcer.set_captured(uid("web"), true).await.unwrap();
    assert_eq!((annotation(&server, "web").as_deref(), is_captured(&agent, "web")), (Some("enabled"), true));
    let patches = server.requests("PATCH /api/v1/namespaces/shop");
    announcer.set_captured(uid("web"), true).await.unwrap();
    assert_eq!(server.requests("PATCH /api/v1/namespaces/shop"), patches, "it is there");
    announcer.set_captured(uid("web"), false).await.unwrap();
    assert_eq!((annotation(&server, "web"), is_captured(&agent, "web")), (None, false));
    let unknown = announcer.set_captured(uid("nobody"), true).await;
    assert!(matches!(unknown, Err(AnnounceError::NoPod)), "{unknown:?}");
}

#[tokio::test]
async fn a_sandbox_is_made_again_while_the_api_server_is_away() {
    let (server, dir, agent) = mesh().await;
    agent.cluster.announcer().set_captured(uid("web"), true).await.unwrap();
    let api = server.address;
    // Until the watch has it: then it is in the copy.
    let copy = dir.path().join("kube/Pod.jsonl");
    until("the copy", || fs::read_to_string(&copy).unwrap().contains("adit.dev/capture")).await;
    drop((server, agent));
    let mut agent = Agent::at(&format!("http://{api}"), dir.path());
    agent.until_synced().await;
    assert!(is_captured(&agent, "web"), "an earlier life said so");
    agent.cluster.announcer().set_captured(uid("web"), true).await.unwrap();
    let removed = agent.cluster.announcer().set_captured(uid("web"), false).await;
    assert!(matches!(removed, Err(AnnounceError::Api(_))), "{removed:?}");
}

#[tokio::test]
async fn an_announcement_that_fails_is_said_to_and_made_as_soon_as_it_can_be() {
    let (server, _dir, agent) = mesh().await;
    server.fail("PATCH /api/v1/namespaces/shop", Fault::Status(403));
    server.fail("PATCH /api/v1/namespaces/shop", Fault::Cut);
    let failed = agent.cluster.announcer().set_captured(uid("web"), true).await;
    let Err(AnnounceError::Api(why)) = failed else { panic!("{failed:?}") };
    assert_eq!(&*why, "the API server answers 403: as told");
    until("the annotation", || annotation(&server, "web").is_some()).await;
    until("that it is seen", || is_captured(&agent, "web")).await;
}

#[tokio::test]
async fn a_pod_that_took_anothers_name_is_left_alone() {
    let (server, _dir, agent) = mesh().await;
    server.fail("/api/v1/pods?watch=1", Fault::Silence);
    server.say(PODS, "{");
    until("a silent watch", || server.faults_left() == 0).await;
    let mut other = pod("web", "n1");
    other["metadata"]["uid"] = "uid-other".into();
    server.put(&pod_path("web"), other);
    let failed = agent.cluster.announcer().set_captured(uid("web"), true).await;
    assert!(matches!(failed, Err(AnnounceError::NoPod)), "{failed:?}");
    assert_eq!(annotation(&server, "web"), None);
}

#[tokio::test]
async fn a_value_that_no_agent_wrote_is_removed_on_the_own_node_only() {
    let (server, _dir, mut agent) = mesh().await;
    for (name, node, value) in [("own", "n1", "enabled"), ("odd", "n1", "yes"), ("foreign", "n2", "enabled")]
    {
        let mut object = pod(name, node);
        object["metadata"]["annotations"] = json!({"adit.dev/capture": value, "other": "x"});
        server.put(&pod_path(name), object);
    }
    let world = agent.until_pods(4).await;
    let captured = |name: &str| world.workload(&uid(name)).unwrap().captured;
    assert_eq!((captured("own"), captured("odd"), captured("foreign")), (false, false, true));
    until("both gone", || annotation(&server, "own").is_none() && annotation(&server, "odd").is_none()).await;
    assert_eq!(annotation(&server, "foreign").as_deref(), Some("enabled"));
    assert_eq!(server.object(&pod_path("own")).unwrap()["metadata"]["annotations"]["other"], "x");
    agent.cluster.announcer().set_captured(uid("own"), true).await.unwrap();
    assert_eq!(annotation(&server, "own").as_deref(), Some("enabled"));
}

#[tokio::test]
async fn somebody_who_takes_the_annotation_away_is_put_right() {
    let (server, _dir, agent) = mesh().await;
    agent.cluster.announcer().set_captured(uid("web"), true).await.unwrap();
    put_pod(&server, "web");
    until("the annotation", || annotation(&server, "web").is_some()).await;
}

#[tokio::test]
async fn an_agent_that_was_succeeded_leaves_the_annotations_to_the_next() {
    let (server, dir, old) = mesh().await;
    old.cluster.announcer().set_captured(uid("web"), true).await.unwrap();
    let mut new = Agent::start(&server, dir.path());
    new.until_synced().await;
    // The copy may be of the moment before.
    until("that what the old one said holds", || is_captured(&new, "web")).await;
    new.cluster.announcer().set_captured(uid("web"), false).await.unwrap();
    put_pod(&server, "other");
    until("that both have seen it", || {
        [&old, &new].iter().all(|agent| agent.view.world().counts().workloads == 2)
    })
    .await;
    assert_eq!(annotation(&server, "web"), None);
    let refused = old.cluster.announcer().set_captured(uid("other"), true).await;
    assert!(matches!(refused, Err(AnnounceError::Succeeded)), "{refused:?}");
    new.cluster.announcer().set_captured(uid("other"), true).await.unwrap();
}

#[tokio::test]
async fn an_agent_that_has_taken_over_again_keeps_a_copy_that_goes_on() {
    let (server, dir, mut old) = mesh().await;
    let folder = dir.path().join("kube");
    let owner = || fs::read_to_string(folder.join("owner")).unwrap_or_default();
    until("an owner", || !owner().is_empty()).await;
    let before = owner();
    let new = Agent::start(&server, dir.path());
    until("the next owner", || owner() != before).await;
    put_pod(&server, "other");
    old.until_pods(2).await;
    drop(new);
    old.cluster.announcer().stand_aside(false).await;
    put_pod(&server, "last");
    until("a copy of everything", || kept().all(|of| folder.join(format!("{}.jsonl", of.word())).exists()))
        .await;
    let pods = || fs::read_to_string(folder.join("Pod.jsonl")).unwrap_or_default();
    until("the copy of what came after", || pods().contains("uid-last")).await;
    drop((old, server));
    let mut next = Agent::at("http://127.0.0.1:1", dir.path());
    next.until_synced().await;
    assert_eq!(next.view.world().counts().workloads, 3);
}

#[tokio::test]
async fn an_agent_that_stands_aside_leaves_what_the_other_has_announced() {
    let (server, dir, mut agent) = mesh().await;
    agent.cluster.announcer().stand_aside(true).await;
    let announced = dir.path().join("kube/captured/uid-of-a-pod-that-only-the-other-knows");
    fs::write(&announced, "").unwrap();
    let watches = server.requests("/api/v1/pods?watch=1");
    server.say(PODS, "{");
    until("another list and watch", || server.requests("/api/v1/pods?watch=1") > watches).await;
    put_pod(&server, "other");
    agent.until_pods(2).await;
    assert!(announced.exists());
    agent.cluster.announcer().stand_aside(false).await;
    server.say(PODS, "{");
    until("that it is forgotten, by the agent whose turn it is", || !announced.exists()).await;
}

#[tokio::test]
async fn the_lease_is_made_and_says_which_bundle_is_in_use() {
    let (server, _dir, agent) = mesh().await;
    let path = "/apis/coordination.k8s.io/v1/namespaces/adit-system/leases/adit-node-n1";
    until("the Lease", || server.object(path).is_some()).await;
    let generation =
        || server.object(path).unwrap()["metadata"]["annotations"]["adit.dev/bundle-generation"].clone();
    assert_eq!(generation(), "0");
    agent.cluster.acknowledge_bundle(7).await;
    until("the generation", || generation() == "7").await;
    let node = json!({"metadata": {"name": "n1", "uid": "uid-n1"}});
    server.put("/api/v1/nodes/n1", node);
    let owners = || server.object(path).unwrap()["metadata"]["ownerReferences"].clone();
    until("its owner", || owners()[0]["uid"] == "uid-n1").await;
}

#[tokio::test]
async fn the_lease_is_renewed() {
    let (server, _dir, _agent) = mesh().await;
    let leases = "PATCH /apis/coordination.k8s.io/v1/namespaces/adit-system/leases";
    until("the Lease", || server.requests("POST /apis/coordination") == 1).await;
    let before = server.requests(leases);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(31)).await;
    tokio::time::resume();
    until("a renewal", || server.requests(leases) > before).await;
}

#[tokio::test]
async fn what_happens_to_a_pod_is_an_event() {
    let (server, _dir, agent) = mesh().await;
    let event = PodEvent {
        pod: ObjectName::new("shop", "web"),
        uid: uid("web"),
        gravity: Gravity::Warning,
        reason: "CaptureFailed",
        note: "no netns".into(),
    };
    server.fail("POST /api/v1/namespaces/shop/events", Fault::Status(500));
    for _ in 0..100 {
        agent.cluster.events().say(event.clone());
    }
    let written = || server.requests("POST /api/v1/namespaces/shop/events");
    until("the Event", || written() == 2).await;
    let pods = server.requests("/events/");
    assert_eq!((written(), pods), (2, 0), "one that failed, and one for all");
}

#[tokio::test]
async fn an_event_that_was_stored_without_an_answer_is_not_made_again_and_again() {
    let (server, _dir, agent) = mesh().await;
    let event = |namespace: &str| PodEvent {
        pod: ObjectName::new(namespace, "web"),
        uid: uid("web"),
        gravity: Gravity::Warning,
        reason: "CaptureFailed",
        note: "no netns".into(),
    };
    server.fail("POST /api/v1/namespaces/shop/events", Fault::Half);
    for _ in 0..10 {
        agent.cluster.events().say(event("shop"));
    }
    agent.cluster.events().say(event("last"));
    until("the last", || server.requests("POST /api/v1/namespaces/last/events") == 1).await;
    assert_eq!(server.requests("POST /api/v1/namespaces/shop/events"), 2, "it, and that it is there");
}
