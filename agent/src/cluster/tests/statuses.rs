//! What agents say of themselves, and to one another.

use super::*;

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
    two.cluster.announcer().refresh(&nobody()).await;
    assert!(is_captured(&two.view.world()), "never in clear for a file that was lost");
    assert!(two.problems()[0].contains("status/n1.yaml: is gone"), "{:?}", two.problems());
    mesh.write("a.yaml", &namespace("shop"));
    two.until("that the pods are gone", |world| world.workload(&uid("web")).is_none()).await;
    two.cluster.announcer().refresh(&nobody()).await;
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
    agent.cluster.announcer().refresh(&nobody()).await;
    assert!(mesh.status("n1").captured.contains("uid-web"));
}

#[tokio::test]
async fn what_a_lost_status_file_said_holds_for_an_agent_that_starts_anew() {
    let mesh = Mesh::new();
    mesh.write("a.yaml", &(namespace("shop") + &pod("web", "n1")));
    let (one, mut two) = (mesh.agent("n1"), mesh.agent("n2"));
    let is_captured = |world: &World| world.workload(&uid("web")).unwrap().captured;
    one.cluster.announcer().set_captured(uid("web"), true).await.unwrap();
    two.until("captured", is_captured).await;
    drop((one, two));
    fs::remove_dir_all(mesh.root().join("status")).unwrap();
    let mut two = mesh.agent("n2");
    assert!(is_captured(&two.view.world()), "never in clear for a file that was lost");
    assert!(two.problems()[0].contains("status/n1.yaml: is gone"), "{:?}", two.problems());
    // What is there counts, not what was kept.
    write(&mesh.root().join("status/n1.yaml"), "node: n1\n");
    two.until("released", |world| !is_captured(world)).await;
    write(&mesh.root().join("status/n1.yaml"), "node: n1\ncaptured: [uid-web]\n");
    two.until("captured again", is_captured).await;
    drop(two);
    write(&mesh.root().join("status/n1.yaml"), "node: n1\n");
    let mut two = mesh.agent("n2");
    assert!(!is_captured(&two.view.world()));
    // Forgotten for good with the node's last pod.
    write(&mesh.root().join("status/n1.yaml"), "node: n1\ncaptured: [uid-web]\n");
    two.until("captured again", is_captured).await;
    fs::remove_file(mesh.root().join("status/n1.yaml")).unwrap();
    mesh.write("a.yaml", &namespace("shop"));
    two.until("that the pods are gone", |world| world.workload(&uid("web")).is_none()).await;
    two.cluster.announcer().refresh(&nobody()).await;
    drop(two);
    mesh.write("a.yaml", &(namespace("shop") + &pod("web", "n1")));
    let two = mesh.agent("n2");
    assert!(!is_captured(&two.view.world()));
    assert_eq!(two.problems(), [""; 0]);
}
