//! Directories that are replaced, and links that are switched.

use super::*;

#[tokio::test]
async fn a_mounted_config_map_is_followed_through_its_switch() {
    let mesh = Mesh::new();
    let version = |name: &str, text: &str| {
        fs::create_dir(mesh.objects().join(name)).unwrap();
        fs::write(mesh.objects().join(name).join("a.yaml"), text).unwrap();
    };
    version("..1", &namespace("a"));
    std::os::unix::fs::symlink("..1", mesh.objects().join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/a.yaml", mesh.objects().join("a.yaml")).unwrap();
    let mut agent = mesh.agent("n1");
    assert_eq!(agent.namespaces(), 1);
    version("..2", &(namespace("a") + &namespace("b")));
    std::os::unix::fs::symlink("..2", mesh.objects().join("..fresh")).unwrap();
    fs::rename(mesh.objects().join("..fresh"), mesh.objects().join("..data")).unwrap();
    agent.until_namespaces(2).await;
}

#[tokio::test]
async fn a_directory_that_is_replaced_or_reached_by_a_switched_link_is_followed() {
    let mesh = Mesh::new();
    let version = |name: &str, text: &str| {
        let dir = mesh.dir.path().join(name);
        fs::create_dir_all(dir.join("objects")).unwrap();
        write(&dir.join("objects/a.yaml"), text);
        dir
    };
    mesh.write("a.yaml", &namespace("a"));
    let mut agent = mesh.agent("n1");
    assert_eq!(agent.namespaces(), 1);
    // Away, and another in its place: what is known stays in between.
    let next = version("next", &(namespace("a") + &namespace("b")));
    fs::rename(mesh.root(), mesh.dir.path().join("old")).unwrap();
    agent.until_problem("cannot be followed").await;
    assert_eq!(agent.namespaces(), 1);
    fs::rename(next, mesh.root()).unwrap();
    agent.until_namespaces(2).await;
    mesh.write("c.yaml", &namespace("c"));
    agent.until_namespaces(3).await;
    agent.cluster.refresh().await;
    assert_eq!(agent.problems(), [""; 0]);
    drop(agent);

    // A link, switched whole.
    fs::rename(mesh.root(), mesh.dir.path().join("one")).unwrap();
    version("two", &namespace("a"));
    let link = mesh.dir.path().join("link");
    std::os::unix::fs::symlink(mesh.dir.path().join("one"), mesh.root()).unwrap();
    let mut agent = mesh.agent("n1");
    assert_eq!(agent.namespaces(), 3);
    std::os::unix::fs::symlink(mesh.dir.path().join("two"), &link).unwrap();
    fs::rename(&link, mesh.root()).unwrap();
    agent.until_namespaces(1).await;
    mesh.write("b.yaml", &namespace("b"));
    agent.until_namespaces(2).await;
}

#[tokio::test]
async fn objects_may_be_a_link_that_is_switched_and_never_count_as_none_for_it() {
    let mesh = Mesh::new();
    let version = |name: &str, text: &str| {
        let dir = mesh.dir.path().join(name);
        fs::create_dir_all(&dir).unwrap();
        write(&dir.join("a.yaml"), text);
        dir
    };
    let one = version("one", &namespace("a"));
    let two = version("two", &(namespace("a") + &namespace("b")));
    fs::remove_dir(mesh.objects()).unwrap();
    std::os::unix::fs::symlink(one, mesh.objects()).unwrap();
    let mut agent = mesh.agent("n1");
    assert_eq!(agent.namespaces(), 1);
    let fresh = mesh.root().join("fresh");
    std::os::unix::fs::symlink(two, &fresh).unwrap();
    fs::rename(fresh, mesh.objects()).unwrap();
    agent.until_namespaces(2).await;
    mesh.write("c.yaml", &namespace("c"));
    agent.until_namespaces(3).await;
}

/// A new directory often has the inode number of the one that was removed before it.
#[tokio::test(start_paused = true)]
async fn a_directory_that_is_removed_and_made_anew_is_followed_whatever_its_number() {
    let mesh = Mesh::new();
    let mut agent = mesh.agent("n1");
    for away_first in [false, true].repeat(4) {
        mesh.write("a.yaml", &namespace("a"));
        mesh.write("b.yaml", &namespace("b"));
        agent.until_namespaces(2).await;
        fs::remove_dir_all(mesh.root()).unwrap();
        if away_first {
            agent.cluster.refresh().await;
            assert_eq!(agent.namespaces(), 2, "what is known stays");
        }
        fs::create_dir_all(mesh.objects()).unwrap();
        mesh.write("a.yaml", &namespace("a"));
        agent.until_namespaces(1).await;
    }
}
