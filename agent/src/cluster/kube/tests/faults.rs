//! Whatever the API server does, what is known stays, and is up to date once it answers again.

use std::time::Duration;

use super::server::CUT;
use super::*;

/// Waits until every fault was met, and that the agent sees a pod which is made then.
async fn comes_through(server: &Server, agent: &mut Agent, name: &str) {
    until("that every fault is met", || server.faults_left() == 0).await;
    put_pod(server, name);
    agent.until(name, |world| world.workload(&uid(name)).is_some()).await;
    assert!(agent.view.world().workload(&uid("web")).is_some());
}

/// An agent that starts while lists of 600 pods fail in these ways: the first page, and the page after it. As few as
/// that, or the waits between them, which double, are longer than a test waits.
async fn is_listed_at_last(first: Vec<Fault>, further: Vec<Fault>) {
    let server = Server::start().await;
    let dir = tempfile::tempdir().unwrap();
    put_namespace(&server, "shop");
    for at in 0..600 {
        put_pod(&server, &format!("p{at}"));
    }
    for fault in further {
        server.fail("pods?limit=500&continue", fault);
    }
    for fault in first {
        server.fail("pods?limit=500", fault);
    }
    let mut agent = Agent::start(&server, dir.path());
    agent.until_synced().await;
    assert_eq!(agent.view.world().counts().workloads, 600);
    assert_eq!(server.faults_left(), 0);
    agent.until_no_problem().await;
}

#[tokio::test]
async fn a_list_that_is_refused_is_tried_again_from_its_beginning() {
    let refused = [403, 401, 500].map(Fault::Status).into();
    is_listed_at_last(refused, vec![Fault::Status(410)]).await;
}

#[tokio::test]
async fn a_list_that_is_cut_is_tried_again_from_its_beginning() {
    is_listed_at_last(vec![Fault::Half, Fault::Cut], vec![Fault::Half]).await;
}

#[tokio::test]
async fn a_list_that_is_none_is_tried_again_from_its_beginning() {
    let bodies = ["{\"items\": [", "null", "{\"metadata\": {}, \"items\": null}"];
    is_listed_at_last(bodies.map(|body| Fault::Body(body.into())).into(), Vec::new()).await;
}

#[tokio::test]
async fn a_watch_that_is_refused_or_cut_goes_on_from_where_it_was() {
    let (server, _dir, mut agent) = mesh().await;
    let lists = server.requests("/api/v1/pods?limit");
    for fault in
        [Fault::Status(403), Fault::Status(401), Fault::Status(503), Fault::Cut, Fault::Body(String::new())]
    {
        server.fail("/api/v1/pods?watch=1", fault);
    }
    server.say(PODS, CUT);
    comes_through(&server, &mut agent, "one").await;
    assert_eq!(server.requests("/api/v1/pods?limit"), lists, "from where it was");
    let error = json!({"type": "ERROR", "object": {"code": 500, "message": "etcd"}});
    server.say(PODS, &error.to_string());
    comes_through(&server, &mut agent, "two").await;
    assert_eq!(
        server.requests("/api/v1/pods?limit"),
        lists + 1,
        "all of it, after an error of the server's own"
    );
    agent.until_no_problem().await;
}

#[tokio::test]
async fn a_version_that_is_too_old_is_listed_anew_and_what_went_meanwhile_is_gone() {
    let (server, _dir, mut agent) = mesh().await;
    put_pod(&server, "short");
    agent.until_pods(2).await;
    server.fail("/api/v1/pods?watch=1", Fault::Status(403));
    server.say(PODS, "{\"type\": \"BOOKMARK\"");
    server.delete(&pod_path("short"));
    server.compact();
    comes_through(&server, &mut agent, "one").await;
    let world = agent.view.world();
    assert!(world.workload(&uid("short")).is_none() && world.workload(&uid("web")).is_some());
}

#[tokio::test]
async fn a_line_that_is_no_json_or_says_nothing_known_costs_a_new_list() {
    let (server, _dir, mut agent) = mesh().await;
    for (at, line) in ["{", "[]", "{\"type\": \"CHANGED\", \"object\": {}}", "{\"type\": \"ADDED\"}"]
        .into_iter()
        .enumerate()
    {
        let lists = server.requests("/api/v1/pods?limit");
        server.say(PODS, line);
        comes_through(&server, &mut agent, &format!("p{at}")).await;
        assert!(server.requests("/api/v1/pods?limit") > lists, "{line}");
    }
    agent.until_no_problem().await;
}

#[tokio::test]
async fn a_watch_that_says_nothing_is_given_up() {
    let (server, _dir, mut agent) = mesh().await;
    // The next watch of the pods is one that never answers: as a server that is stopped.
    server.fail("/api/v1/pods?watch=1", Fault::Silence);
    server.say(PODS, "{");
    until("the silent watch", || server.faults_left() == 0).await;
    put_pod(&server, "one");
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(11)).await;
    tokio::time::resume();
    comes_through(&server, &mut agent, "one").await;
}

#[tokio::test]
async fn a_server_that_stops_in_the_midst_of_a_watch_is_noticed() {
    let (server, _dir, agent) = mesh().await;
    let watches = server.requests("/api/v1/pods?watch=1");
    tokio::time::pause();
    // No bookmark comes: this server sends none.
    tokio::time::advance(Duration::from_secs(76)).await;
    tokio::time::resume();
    until("another watch", || server.requests("/api/v1/pods?watch=1") > watches).await;
    assert_eq!(server.requests("/api/v1/pods?limit"), 1, "from where it was");
    assert_eq!(agent.view.world().counts().workloads, 1);
}

#[tokio::test]
async fn a_policy_that_took_anothers_place_is_not_in_force_beside_it() {
    let (server, _dir, mut agent) = mesh().await;
    put_policy(&server, "old", json!({}));
    agent.until("the old one", |world| world.counts().authorization_policies == 1).await;
    server.fail("authorizationpolicies?watch=1", Fault::Status(403));
    server.say(POLICIES, "{");
    for at in 0..100 {
        put_policy(&server, &format!("new{at}"), json!({}));
    }
    server.delete("/apis/policy.adit.dev/v1alpha1/namespaces/shop/authorizationpolicies/old");
    server.compact();
    agent
        .until("the new ones", |world| {
            let count = world.counts().authorization_policies;
            assert!([1, 100].contains(&count), "{count}: neither as it was nor as it is");
            count == 100
        })
        .await;
}
