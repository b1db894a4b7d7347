use http::Method;
use serde_json::{Value, json};

use super::*;
use crate::cluster::scripted::Scripted;
use crate::refusal::Refusal;
use tonic::Code;

const PODS: &str = "/api/v1/pods";
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

fn pod(name: &str, uid: &str, node: &str, account: &str) -> Value {
    let (namespace, name) = name.split_once('/').unwrap();
    json!({
        "metadata": {"namespace": namespace, "name": name, "uid": uid, "resourceVersion": "1"},
        "spec": {"nodeName": node, "serviceAccountName": account},
        "status": {"phase": "Running"},
    })
}

fn list(pods: &[Value]) -> Value {
    json!({"metadata": {"resourceVersion": "1"}, "items": pods})
}

/// A cluster whose watch knows `watched`, and whose API server has `real`.
async fn agents(watched: &[Value], real: &[Value]) -> (Scripted, Agents) {
    let server = Scripted::default();
    server.inner().once.insert(PODS.into(), [(200, list(watched).to_string())].into());
    let pods = KnownPods::default();
    let following = tokio::spawn(pods.clone().follow(server.api()));
    // The list, and then the watch: what was listed is known.
    server.until_asked(2).await;
    assert!(pods.are_current());
    following.abort();
    assert!(following.await.unwrap_err().is_cancelled());
    server.inner().fixed.insert(PODS.into(), (200, list(real)));
    let agents = Agents::new(server.api(), Settings::default(), pods);
    (server, agents)
}

fn claim() -> Claim {
    Claim {
        node: "node1".into(),
        pod: crate::placement::PodName { namespace: "adit-system".into(), name: "agent-1".into() },
        uid: "a1".into(),
    }
}

fn web() -> SpiffeId {
    "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap()
}

fn agent() -> Value {
    pod("adit-system/agent-1", "a1", "node1", "adit-agent")
}

/// A token that may be an agent's.
fn agents_token() -> String {
    let agent = "system:serviceaccount:adit-system:adit-agent";
    jwt::unsigned(&json!({"aud": ["adit-ca"], "sub": agent, "exp": 4_000_000_000_u64}))
}

fn lists(server: &Scripted) -> usize {
    let inner = server.inner();
    inner.asked.iter().filter(|asked| asked.query.contains("spec.nodeName%3Dnode1")).count()
}

/// Word, step and code of a refusal.
fn refused(error: impl Into<Refusal>) -> (&'static str, &'static str, Code) {
    let refusal = error.into();
    (refusal.word(), refusal.step(), refusal.code())
}

#[tokio::test(start_paused = true)]
async fn what_the_watch_knows_is_not_asked_again() {
    let running = [agent(), pod("shop/web-1", "w1", "node1", "web")];
    let (server, agents) = agents(&running, &[]).await;
    agents.place(&claim(), &web()).await.unwrap();
    assert_eq!(lists(&server), 0);
    assert_eq!(agents.lists().now(), [("found", 0), ("absent", 0), ("failed", 0)]);
}

#[tokio::test(start_paused = true)]
async fn a_miss_is_looked_up_once_before_it_is_refused() {
    // The watch has not heard of web yet.
    let (server, agents_of) = agents(&[agent()], &[agent(), pod("shop/web-1", "w1", "node1", "web")]).await;
    agents_of.place(&claim(), &web()).await.unwrap();
    assert_eq!((lists(&server), agents_of.lists().now()[0]), (1, ("found", 1)));

    let elsewhere = [agent(), pod("shop/web-2", "w2", "node2", "web")];
    let (server, agents_of) = agents(&elsewhere, &[agent()]).await;
    let error = agents_of.place(&claim(), &web()).await.unwrap_err();
    assert_eq!(error.to_string(), "no pod of shop/web is scheduled on node node1, or all are finished");
    assert_eq!(refused(error), ("not_on_node", "placement", Code::PermissionDenied));
    assert_eq!((lists(&server), agents_of.lists().now()[1]), (1, ("absent", 1)));
    // Nor is it had by a wrong form of the identity.
    for odd in
        ["spiffe://cluster.local/ns/shop/sa/web/x", "spiffe://cluster.local/web", "spiffe://cluster.local"]
    {
        if let Ok(odd) = odd.parse() {
            let error = agents_of.place(&claim(), &odd).await.unwrap_err();
            assert_eq!(refused(error), ("no_account", "placement", Code::PermissionDenied), "{odd}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_calling_pod_that_is_not_there_gets_nothing() {
    let web = pod("shop/web-1", "w1", "node1", "web");
    for (there, word) in [
        (pod("adit-system/agent-1", "a9", "node1", "adit-agent"), "caller_gone"),
        (pod("adit-system/agent-1", "a1", "node2", "adit-agent"), "caller_elsewhere"),
    ] {
        let (_server, agents) = agents(&[there.clone(), web.clone()], &[there, web.clone()]).await;
        let error = agents.place(&claim(), &self::web()).await.unwrap_err();
        assert_eq!(refused(error), (word, "caller", Code::Unauthenticated));
    }
    let mut finished = agent();
    finished["status"]["phase"] = json!("Failed");
    let (_server, agents) = agents(&[finished.clone(), web.clone()], &[finished, web]).await;
    let error = agents.place(&claim(), &self::web()).await.unwrap_err();
    assert_eq!(refused(error), ("caller_finished", "caller", Code::Unauthenticated));
}

#[tokio::test(start_paused = true)]
async fn many_who_miss_share_one_list_a_second() {
    let (server, agents) = agents(&[agent()], &[agent()]).await;
    let (claim, web) = (claim(), web());
    let began = Instant::now();
    let all = (0..WAITING_MAX).map(|_| agents.place(&claim, &web));
    let all = futures_util::future::join_all(all).await;
    assert!(all.iter().all(|placed| matches!(placed, Err(NotPlaced::Absent { .. }))), "{all:?}");
    assert_eq!(lists(&server), 1, "those that came before it began have its answer");
    assert!(began.elapsed() < LIST_EVERY);
    tokio::time::advance(Duration::from_millis(1)).await;
    agents.place(&claim, &web).await.unwrap_err();
    assert_eq!(lists(&server), 2);
    assert!(began.elapsed() >= LIST_EVERY, "whoever comes later waits for the next");
    // More than may wait are told to come back.
    tokio::time::advance(Duration::from_millis(1)).await;
    let most = (0..WAITING_MAX + 1).map(|_| agents.place(&claim, &web));
    let most = futures_util::future::join_all(most).await;
    let busy = most.into_iter().filter_map(|placed| match placed {
        Err(error @ NotPlaced::Busy(_)) => Some(refused(error)),
        Ok(()) | Err(_) => None,
    });
    assert_eq!(busy.collect::<Vec<_>>(), [("placement_busy", "placement", Code::Unavailable)]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_was_not_heard_of_for_long_decides_nothing() {
    let running = [agent(), pod("shop/web-1", "w1", "node1", "web")];
    let (server, agents) = agents(&running, &[agent()]).await;
    tokio::time::advance(Duration::from_secs(200)).await;
    let error = agents.place(&claim(), &web()).await.unwrap_err();
    assert_eq!(refused(error).0, "not_on_node");
    assert_eq!(lists(&server), 1);
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_away_is_no_reason_to_doubt_the_caller() {
    let (server, agents) = agents(&[agent()], &[]).await;
    server.inner().is_down = true;
    let bearer = format!("Bearer {}", agents_token());
    let error = agents.place(&claim(), &web()).await.unwrap_err();
    assert_eq!(refused(error), ("api_away", "placement", Code::Unavailable));
    let error = agents.authenticate(Some(bearer.as_bytes()), SystemTime::now()).await.unwrap_err();
    assert_eq!(refused(error), ("api_away", "authenticate", Code::Unavailable));
    // Nor is one that refuses us, which it does to everybody just after its start.
    server.inner().is_down = false;
    let forbidden = json!({"kind": "Status", "status": "Failure", "code": 403, "message": "not yet"});
    server.inner().fixed.insert(REVIEWS.into(), (403, forbidden));
    let error = agents.authenticate(Some(bearer.as_bytes()), SystemTime::now()).await.unwrap_err();
    assert_eq!(refused(error), ("api_away", "authenticate", Code::Unavailable));
}

#[tokio::test(start_paused = true)]
async fn a_token_is_reviewed_for_the_own_audience() {
    let (server, agents) = agents(&[], &[]).await;
    for (header, word) in [
        (None, "no_authorization"),
        (Some(&b"Basic x"[..]), "not_bearer"),
        (Some(b"Bearer \xff"), "not_bearer"),
        // Junk costs the API server nothing.
        (Some(b"Bearer x"), "token_refused"),
        (Some(b"Bearer a.e30.c"), "token_refused"),
    ] {
        let error = agents.authenticate(header, SystemTime::now()).await.unwrap_err();
        assert_eq!(refused(error), (word, "authenticate", Code::Unauthenticated));
    }
    assert_eq!(server.count(Method::POST, "tokenreviews"), 0);
    let token = agents_token();
    let bearer = format!("Bearer {token}");
    let answer = json!({"status": {"error": "[token audiences are others]"}});
    server.inner().fixed.insert(REVIEWS.into(), (201, answer));
    let error = agents.authenticate(Some(bearer.as_bytes()), SystemTime::now()).await.unwrap_err();
    assert!(!error.to_string().contains(&token));
    assert_eq!(refused(error), ("token_refused", "authenticate", Code::Unauthenticated));
    let asked: Value = serde_json::from_str(&server.inner().asked.last().unwrap().body).unwrap();
    assert_eq!(asked["spec"], json!({"token": token, "audiences": ["adit-ca"]}));
}
