use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::*;
use crate::cluster::scripted::Scripted;

#[derive(Clone, Debug, Deserialize)]
struct Named {
    metadata: Meta,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    name: String,
    #[serde(default)]
    resource_version: String,
}

impl Versioned for Named {
    fn version(&self) -> &str {
        &self.metadata.resource_version
    }
}

const PATH: &str = "/api/v1/pods";

/// Follows a server that answers this, until it has no more to say; returns what was told and what was asked.
async fn followed(answers: &[(u16, &str)]) -> (Vec<String>, Vec<String>) {
    let server = Scripted::default();
    let answers: VecDeque<_> = answers.iter().map(|(status, text)| (*status, (*text).to_owned())).collect();
    let asked_for = answers.len();
    server.inner().once.insert(PATH.into(), answers);
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = {
        let told = Arc::clone(&told);
        move |heard: Heard<Named>| {
            let said = match heard {
                Heard::All(all) => {
                    let names: Vec<_> = all.into_iter().map(|named| named.metadata.name).collect();
                    format!("all {}", names.join(","))
                }
                Heard::Put(named) => format!("put {}", named.metadata.name),
                Heard::Gone(named) => format!("gone {}", named.metadata.name),
                Heard::Alive => "alive".to_owned(),
            };
            told.lock().unwrap().push(said);
        }
    };
    let following = tokio::spawn(follow(server.api(), "pods", PATH, tell));
    server.until_asked(asked_for + 1).await;
    following.abort();
    let asked = server.inner().asked.iter().map(|asked| asked.query.clone()).collect();
    let told = told.lock().unwrap().clone();
    (told, asked)
}

#[tokio::test(start_paused = true)]
async fn a_list_comes_in_pages_and_a_watch_goes_on_from_where_it_broke_off() {
    let (told, asked) = followed(&[
        (200, r#"{"metadata": {"resourceVersion": "5", "continue": "a/b="}, "items": [{"metadata": {"name": "a"}}]}"#),
        (200, r#"{"metadata": {"resourceVersion": "5"}, "items": [{"metadata": {"name": "b"}}]}"#),
        (
            200,
            "{\"type\":\"ADDED\",\"object\":{\"metadata\":{\"name\":\"c\",\"resourceVersion\":\"6\"}}}\n\
             {\"type\":\"DELETED\",\"object\":{\"metadata\":{\"name\":\"a\",\"resourceVersion\":\"7\"}}}\n\
             {\"type\":\"BOOKMARK\",\"object\":{\"kind\":\"Pod\",\"apiVersion\":\"v1\",\"metadata\":{\"resourceVersion\":\"9\"}}}\n",
        ),
        (403, r#"{"kind": "Status", "status": "Failure", "code": 403, "message": "not yet"}"#),
        (200, "{\"type\":\"MODIFIED\",\"object\":{\"metadata\":{\"name\":\"c\",\"resourceVersion\":\"10\"}}}\n"),
    ])
    .await;
    assert_eq!(told, ["all a,b", "put c", "gone a", "alive", "put c"]);
    assert_eq!(asked[0], "limit=500");
    assert_eq!(asked[1], "limit=500&continue=a%2Fb%3D");
    let from = |query: &str| query.rsplit_once("resourceVersion=").unwrap().1.to_owned();
    let from: Vec<_> = asked[2..].iter().map(|query| from(query)).collect();
    assert_eq!(from, ["5", "9", "9", "10"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_too_long_ago_is_listed_anew_and_replaces_all() {
    let gone = r#"{"kind": "Status", "status": "Failure", "code": 410, "message": "too old"}"#;
    let event = format!("{{\"type\":\"ERROR\",\"object\":{gone}}}\n");
    let (told, asked) = followed(&[
        (200, r#"{"metadata": {"resourceVersion": "5"}, "items": [{"metadata": {"name": "a"}}]}"#),
        (200, &event),
        (200, r#"{"metadata": {"resourceVersion": "8"}, "items": null}"#),
        (410, gone),
        (500, "{}"),
        (200, r#"{"metadata": {"resourceVersion": "9"}}"#),
    ])
    .await;
    assert_eq!(told, ["all a", "all ", "all "]);
    let lists = asked.iter().filter(|query| query.starts_with("limit=")).count();
    assert_eq!(lists, 4, "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_always_says_too_old_is_asked_less_and_less() {
    let gone = r#"{"type":"ERROR","object":{"kind":"Status","status":"Failure","code":410,"message":"old"}}"#;
    let list = (200, r#"{"metadata": {"resourceVersion": "5"}}"#);
    let began = tokio::time::Instant::now();
    followed(&[list, (200, &format!("{gone}\n"))].repeat(12)).await;
    assert!(began.elapsed() > Duration::from_secs(4), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_event_that_cannot_be_read_is_not_asked_for_again() {
    let (told, _) = followed(&[
        (200, r#"{"metadata": {"resourceVersion": "5"}, "items": [{"metadata": {"name": "a"}}]}"#),
        (200, "{\"type\":\"ADDED\",\"object\":{\"metadata\":7}}\n"),
        (200, r#"{"metadata": {"resourceVersion": "8"}, "items": [{"metadata": {"name": "b"}}]}"#),
    ])
    .await;
    assert_eq!(told, ["all a", "all b"]);
}

#[tokio::test]
async fn a_page_that_is_too_long_is_asked_for_in_parts() {
    let server = Scripted::default();
    // As many objects as were asked for, of which the third is so long that no other fits beside it.
    let page = |first: usize, limit: usize| {
        let (end, of) = ((first + limit).min(6), |n: usize| if n == 2 { 15_000_000 } else { 2_000_000 });
        let items: Vec<_> = (first..end)
            .map(|n| serde_json::json!({"metadata": {"name": n.to_string()}, "spec": "<".repeat(of(n))}))
            .collect();
        let more = if end < 6 { end.to_string() } else { String::new() };
        serde_json::json!({"metadata": {"resourceVersion": "5", "continue": more}, "items": items})
            .to_string()
    };
    server.before_each(move |asked, inner| {
        let of = |key: &str| {
            let value = asked.query.split('&').find_map(|pair| pair.strip_prefix(key));
            value.map_or(0, |value| value.parse().unwrap())
        };
        let answer = (200, page(of("continue="), of("limit=")));
        inner.once.insert(PATH.into(), [answer].into());
    });
    let (all, version) = list::<Named>(&server.api(), "pods", PATH, Which::All).await.unwrap();
    let names: Vec<_> = all.into_iter().map(|named| named.metadata.name).collect();
    assert_eq!((names.join(","), &*version), ("0,1,2,3,4,5".to_owned(), "5"));
    let asked: Vec<_> = server.inner().asked.iter().map(|asked| asked.query.clone()).collect();
    assert_eq!(asked[..3], ["limit=500", "limit=250", "limit=125"]);
    assert_eq!(asked.last().unwrap(), "limit=4&continue=5");
}

#[test]
fn a_value_of_a_query_is_escaped() {
    assert_eq!(escaped("spec.nodeName=n-1_~"), "spec.nodeName%3Dn-1_~");
    assert_eq!(escaped("a b&ü"), "a%20b%26%C3%BC");
}
