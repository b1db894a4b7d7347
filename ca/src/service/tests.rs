use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use kube::client::Body;
use serde_json::json;

use super::*;
use crate::cluster::Settings;
use crate::cluster::client::ApiServer;
use crate::cluster::jwt;
use crate::cluster::pods::KnownPods;
use crate::issue::Life;
use crate::root::Authority;
use crate::state::State;

/// A CA in a cluster whose API server takes questions and does not answer.
fn unanswered() -> Service {
    let waits = |_: http::Request<Body>| std::future::pending::<io::Result<http::Response<Body>>>();
    let api = ApiServer::of(kube::Client::new(tower::service_fn(waits), "default"));
    let now = Stamp::of(SystemTime::now());
    let domain: adit_proto::TrustDomain = "cluster.local".parse().unwrap();
    let authority = Authority::make(&domain, now).unwrap();
    let state = State::first(domain, authority, Duration::from_secs(10));
    let signing = Signing::of(&state, Life::new(Duration::from_secs(10)).unwrap()).unwrap();
    let askers = Askers::Cluster(Arc::new(Agents::new(api, Settings::default(), KnownPods::default())));
    Service::new(askers, watch::channel(Arc::new(signing)).1, Fresh::always(), Arc::default())
}

type Asking<'a> =
    Pin<Box<dyn Future<Output = Result<Response<IstioCertificateResponse>, Status>> + Send + 'a>>;

/// Asks, and returns who still waits for the answer; or why there is none.
async fn ask<'a>(service: &'a Service, peer: &Peer) -> Result<Asking<'a>, String> {
    let agent = "system:serviceaccount:adit-system:adit-agent";
    let token = jwt::unsigned(&json!({"aud": ["adit-ca"], "sub": agent, "exp": 4_000_000_000_u64}));
    let mut request = Request::new(IstioCertificateRequest::default());
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request.extensions_mut().insert(peer.clone());
    let mut asking = service.create_certificate(request);
    match poll_fn(|cx| Poll::Ready(asking.as_mut().poll(cx))).await {
        Poll::Pending => Ok(asking),
        Poll::Ready(Ok(_)) => Err("given".to_owned()),
        Poll::Ready(Err(status)) => Err(status.message().to_owned()),
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_is_unknown_takes_no_place_of_an_agent() {
    let service = unanswered();
    let peer = |n: usize| Peer::stranger(SocketAddr::from(([10, 0, 0, u8::try_from(n).unwrap()], 1)));
    let busy = "admit: too many requests at once; come back";
    let mut waiting = Vec::new();
    for source in 0..STRANGERS_MAX / STRANGERS_PER_SOURCE_MAX {
        for _ in 0..STRANGERS_PER_SOURCE_MAX {
            waiting.push(ask(&service, &peer(source)).await.unwrap());
        }
        assert_eq!(ask(&service, &peer(source)).await.err().as_deref(), Some(busy), "{source}");
    }
    assert_eq!(ask(&service, &peer(200)).await.err().as_deref(), Some(busy));
    let agent = peer(0);
    agent.is_known();
    while waiting.len() < REQUESTS_MAX {
        waiting.push(ask(&service, &agent).await.unwrap());
    }
    assert_eq!(ask(&service, &agent).await.err().as_deref(), Some(busy));
    drop(waiting);
    assert!(ask(&service, &peer(200)).await.is_ok(), "places come back");
}
