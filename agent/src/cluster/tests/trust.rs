//! The trust bundle's file.

use super::*;

#[tokio::test]
async fn the_trust_bundle_is_handed_on_and_a_broken_one_is_not() {
    let mesh = Mesh::new();
    let mut agent = mesh.agent("n1");
    assert!(agent.view.world().trust().is_none());
    let file = mesh.root().join("trust-bundle.yaml");
    write(&file, &bundle(1));
    agent.until("a bundle", |world| world.trust().is_some_and(|trust| trust.generation == 1)).await;
    agent.cluster.acknowledge_bundle(1).await;
    agent.cluster.announcer().refresh(&nobody()).await;
    assert_eq!(mesh.status("n1").bundle_generation, 1);
    write(&file, &bundle(2).replace("cluster.local", "other.org"));
    agent.cluster.announcer().refresh(&nobody()).await;
    assert_eq!(agent.view.world().trust().unwrap().generation, 1);
    let problems = agent.problems();
    assert!(problems.len() == 1 && problems[0].contains("no bundle for cluster.local"), "{problems:?}");
    fs::remove_file(&file).unwrap();
    agent.cluster.announcer().refresh(&nobody()).await;
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
async fn an_older_trust_bundle_is_not_taken_until_it_is_mended() {
    let mesh = Mesh::new();
    let file = mesh.root().join("trust-bundle.yaml");
    write(&file, &bundle(7));
    let agent = mesh.agent("n1");
    agent.cluster.acknowledge_bundle(7).await;
    let generation = |agent: &Agent| agent.view.world().trust().unwrap().generation;
    write(&file, &bundle(6));
    agent.cluster.announcer().refresh(&nobody()).await;
    assert_eq!(generation(&agent), 7);
    let problems = agent.problems();
    let stale = "spiffe_sequence 6 is older than 7, which stays in force";
    assert!(problems.len() == 1 && problems[0].ends_with(stale), "{problems:?}");
    write(&file, &bundle(8));
    agent.cluster.announcer().refresh(&nobody()).await;
    assert_eq!((generation(&agent), agent.problems()), (8, vec![]));
    write(&file, &bundle(6));
    assert_eq!(generation(&mesh.agent("n1")), 6, "a new life knows of no newer one");
}

#[tokio::test]
async fn the_bundle_before_one_that_was_refused_is_not_older_than_what_is_in_force() {
    let mesh = Mesh::new();
    let file = mesh.root().join("trust-bundle.yaml");
    write(&file, &bundle(7));
    let agent = mesh.agent("n1");
    let generation = |agent: &Agent| agent.view.world().trust().unwrap().generation;
    agent.cluster.acknowledge_bundle(7).await;
    // Its root is no certificate: who uses it will say so, and never acknowledge it.
    let key = r#"{"kty": "EC", "use": "x509-svid", "x5c": ["bm8gY2VydGlmaWNhdGU="]}"#;
    write(&file, &bundle(8).replace("\"keys\": []", &format!("\"keys\": [{key}]")));
    agent.cluster.announcer().refresh(&nobody()).await;
    assert_eq!(generation(&agent), 8, "handed on");
    write(&file, &bundle(7));
    agent.cluster.announcer().refresh(&nobody()).await;
    assert_eq!((generation(&agent), agent.problems()), (7, vec![]));
    write(&file, &bundle(6));
    agent.cluster.announcer().refresh(&nobody()).await;
    assert_eq!((generation(&agent), agent.problems().len()), (7, 1));
}
