use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;
use crate::cluster::scripted::Scripted;

/// So many policies of which none says yet that it is accepted.
fn known(policies: usize) -> Known {
    let known = Known {
        policies: Arc::new(Mutex::new(Policies::new("adit-system".to_owned()))),
        changed: Arc::new(Notify::new()),
    };
    for n in 0..policies {
        let metadata = json!({"namespace": "shop", "name": format!("p{n:03}"), "resourceVersion": "1"});
        let told = serde_json::from_value(json!({"metadata": metadata, "spec": {}})).unwrap();
        known.take(KINDS[0], Heard::Put(told));
    }
    known
}

/// A server that answers every change of a status so.
fn answering(code: u16) -> Scripted {
    let server = Scripted::default();
    server.before_each(move |asked, inner| {
        let refused = json!({"kind": "Status", "status": "Failure", "code": code, "message": "no"});
        inner.fixed.insert(asked.path.clone(), (code, refused));
    });
    server
}

fn asked(server: &Scripted) -> Vec<String> {
    server.inner().asked.iter().map(|asked| asked.path.clone()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_write_is_asked_once_and_then_left_alone_for_longer_and_longer() {
    for code in [403, 429, 500, 503] {
        let (server, known) = (answering(code), known(3));
        let mut rounds = Rounds::default();
        let mut waited = Duration::ZERO;
        for round in 1..=10 {
            assert!(rounds.write(&server.api(), &known).await.unwrap_err().contains(&code.to_string()));
            assert_eq!(asked(&server).len(), round, "{code}");
            waited += rounds.again.unwrap() - Instant::now();
        }
        assert!(waited > Duration::from_secs(4), "{waited:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_waits_writes_nothing_and_one_that_lost_the_lease_does_not_wait() {
    let again = Instant::now() + Duration::from_secs(2);
    let mut rounds = Rounds { again: Some(again), ..Rounds::default() };
    assert!(!rounds.is_due(true));
    tokio::time::advance(Duration::from_secs(2)).await;
    assert!(rounds.is_due(true));
    assert!(!rounds.is_due(false));
    assert_eq!(rounds.again, None, "or it would be woken at once, for ever");
    assert!(rounds.is_due(true), "when it has the Lease again");
}

#[tokio::test(start_paused = true)]
async fn policies_that_always_fail_keep_no_other_from_its_turn() {
    let (server, known) = (answering(422), known(WRITTEN_AT_ONCE_MAX + 3));
    let mut rounds = Rounds::default();
    rounds.write(&server.api(), &known).await.unwrap_err();
    assert_eq!(asked(&server).len(), WRITTEN_AT_ONCE_MAX);
    rounds.write(&server.api(), &known).await.unwrap_err();
    let all: BTreeSet<String> = asked(&server).into_iter().collect();
    assert_eq!(all.len(), WRITTEN_AT_ONCE_MAX + 3);
}

#[tokio::test(start_paused = true)]
async fn what_a_round_leaves_is_written_at_once_and_then_nothing_is() {
    let (server, known) = (Scripted::default(), known(WRITTEN_AT_ONCE_MAX + 1));
    server.before_each(|asked, inner| {
        let name = asked.path.rsplit('/').nth(1).unwrap_or_default().to_owned();
        let patch: Value = serde_json::from_str(&asked.body).unwrap();
        let metadata = json!({"namespace": "shop", "name": name, "resourceVersion": "2"});
        let written = json!({"metadata": metadata, "spec": {}, "status": patch["status"]});
        inner.fixed.insert(asked.path.clone(), (200, written));
    });
    let mut rounds = Rounds::default();
    rounds.write(&server.api(), &known).await.unwrap();
    assert_eq!(rounds.again, Some(Instant::now()));
    for _ in 0..2 {
        rounds.write(&server.api(), &known).await.unwrap();
        assert_eq!((asked(&server).len(), rounds.again), (WRITTEN_AT_ONCE_MAX + 1, None));
    }
}
