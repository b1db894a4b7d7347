use adit_core::world::Kind;
use adit_objects::watch::LINE_LEN_MAX;
use futures_util::StreamExt as _;
use futures_util::stream;
use tokio_util::task::AbortOnDropHandle;

use super::super::config::Config;
use super::super::tests::server::{Fault, Server};
use super::*;

const PODS: &str = "/api/v1/pods";
const ADDED: &str = "{\"type\": \"ADDED\", \"object\": {\"metadata\": {\"resourceVersion\": \"7\"}}}\n";

/// A source whose last attempts failed, and what it tells.
fn failed_before() -> (Source, mpsc::Receiver<News>) {
    let config = Config { api_server: Some("http://127.0.0.1:1".into()), ..Config::default() };
    let (news, told) = mpsc::channel(8);
    let of = Watched::Kind(Kind::Pod);
    let mut backoff = Backoff::default();
    backoff.next(&mut Seed(1));
    let api = Api::open(&config).unwrap();
    (Source { api, of, path: PODS.into(), limit: 1, news, was_refused: false, backoff }, told)
}

/// A watch that says each of these so long after the one before, and then ends.
fn lines(said: &[(u64, &str)]) -> Lines {
    let said: Vec<_> =
        said.iter().map(|(after, text)| (*after, Bytes::copy_from_slice(text.as_bytes()))).collect();
    let pieces = stream::iter(said).then(async |(after, text)| {
        tokio::time::sleep(Duration::from_secs(after)).await;
        Ok(text)
    });
    Lines::of(pieces.boxed())
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_says_an_error_is_waited_for_longer_each_time() {
    for code in [410, 500, 503] {
        let (mut source, _told) = failed_before();
        let before = source.backoff;
        let error = format!("{{\"type\": \"ERROR\", \"object\": {{\"code\": {code}}}}}\n");
        let ended = source.hear(lines(&[(20, &error)]), "5".into()).await;
        match code {
            410 => assert!(matches!(ended, Err(Ended::TooOld))),
            _ => assert!(matches!(ended, Err(Ended::Failed(ApiError::Status { .. }, None))), "{code}"),
        }
        assert_eq!(source.backoff, before, "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_after_a_line_is_waited_for_longer_each_time() {
    let (mut source, _told) = failed_before();
    let before = source.backoff;
    let ended = source.hear(lines(&[(9, ADDED)]), "5".into()).await;
    assert!(matches!(ended, Err(Ended::Early(version)) if version == "7"));
    assert_eq!(source.backoff, before);
    let ended = source.hear(lines(&[(9, ADDED), (1, ADDED)]), "5".into()).await;
    assert!(matches!(ended, Ok(version) if version == "7"), "one that has lasted");
    assert_eq!(source.backoff, Backoff::default());
}

#[tokio::test(start_paused = true)]
async fn a_line_that_is_too_long_costs_a_new_list() {
    let (mut source, _told) = failed_before();
    let long = "x".repeat(LINE_LEN_MAX + 1);
    let ended = source.hear(lines(&[(0, ADDED), (0, &long)]), "5".into()).await;
    assert!(matches!(ended, Err(Ended::Failed(ApiError::TooLong(_), None))));
}

#[tokio::test(start_paused = true)]
async fn the_longest_object_is_read_however_json_writes_it() {
    let (mut source, mut told) = failed_before();
    let value = "\\u003c".repeat(1_572_864);
    let line = format!(
        "{{\"type\": \"ADDED\", \"object\": {{\"metadata\": {{\"name\": \"web\", \"x\": \"{value}\"}}}}}}"
    );
    let ended = source.hear(lines(&[(0, &line), (0, "\n")]), "5".into()).await;
    assert!(matches!(ended, Err(Ended::Early(_))));
    assert!(matches!(told.try_recv().unwrap().what, What::There(_)));
}

/// Follows the pods of a server until it has listed them.
async fn listed(server: &Server) -> (AbortOnDropHandle<()>, watch::Sender<()>, mpsc::Receiver<News>) {
    let config = Config { api_server: Some(format!("http://{}", server.address)), ..Config::default() };
    let (news, mut told) = mpsc::channel(8);
    let (api, of) = (Api::open(&config).unwrap(), Watched::Kind(Kind::Pod));
    let (asks, anew) = watch::channel(());
    let following = AbortOnDropHandle::new(tokio::spawn(follow(api, of, PODS.into(), Seed(1), news, anew)));
    while !matches!(told.recv().await.unwrap().what, What::ListEnds) {}
    (following, asks, told)
}

#[tokio::test]
async fn a_watch_that_has_said_nothing_is_not_heard_of() {
    let server = Server::start().await;
    let (_following, _asks, mut told) = listed(&server).await;
    server.put("/api/v1/namespaces/shop/pods/web", serde_json::json!({"metadata": {"name": "web"}}));
    let next = told.recv().await.unwrap().what;
    assert!(matches!(next, What::There(_)), "{next:?}");
    server.say(PODS, "{\"type\": \"BOOKMARK\", \"object\": {}}");
    let next = told.recv().await.unwrap().what;
    assert!(matches!(next, What::Heard), "{next:?}");
}

#[tokio::test]
async fn a_watch_that_is_served_after_it_was_refused_is_heard_of_at_once() {
    let server = Server::start().await;
    server.fail("watch=1", Fault::Status(401));
    let (_following, _asks, mut told) = listed(&server).await;
    let next = told.recv().await.unwrap().what;
    assert!(matches!(next, What::Lost(_)), "{next:?}");
    let next = told.recv().await.unwrap().what;
    assert!(matches!(next, What::Heard), "{next:?}");
}
