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
    let mut agent = mesh.agent("n1");
    mesh.write("a.yaml", &namespace("a"));
    agent.until_namespaces(1).await;
    // Nothing else is to be read by now. Away, and another in its place: what is known stays in between.
    let next = version("next", &(namespace("a") + &namespace("b")));
    fs::rename(mesh.root(), mesh.dir.path().join("old")).unwrap();
    agent.until_problem("cannot be followed").await;
    assert_eq!(agent.namespaces(), 1);
    fs::rename(next, mesh.root()).unwrap();
    agent.until_namespaces(2).await;
    mesh.write("c.yaml", &namespace("c"));
    agent.until_namespaces(3).await;
    agent.cluster.announcer().refresh(&nobody()).await;
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
            agent.cluster.announcer().refresh(&nobody()).await;
            assert_eq!(agent.namespaces(), 2, "what is known stays");
        }
        fs::create_dir_all(mesh.objects()).unwrap();
        mesh.write("a.yaml", &namespace("a"));
        agent.until_namespaces(1).await;
    }
}

/// Writes a version of the objects, as a tool does that switches a link to it afterwards.
fn version(dir: &Path, namespaces: &[&str]) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    for name in namespaces {
        fs::write(dir.join(format!("{name}.yaml")), namespace(name)).unwrap();
    }
    dir.to_path_buf()
}

/// Lets a link lead to `target`, in one step.
fn switch(link: &Path, target: &Path) {
    let fresh = link.with_file_name("..fresh");
    std::os::unix::fs::symlink(target, &fresh).unwrap();
    fs::rename(fresh, link).unwrap();
}

#[tokio::test]
async fn a_config_map_mounted_as_the_whole_directory_is_followed_through_its_switch() {
    let mesh = Mesh::new();
    fs::remove_dir(mesh.objects()).unwrap();
    version(&mesh.root().join("..1/objects"), &["a"]);
    fs::write(mesh.root().join("..1/trust-bundle.yaml"), bundle(1)).unwrap();
    switch(&mesh.root().join("..data"), Path::new("..1"));
    switch(&mesh.objects(), Path::new("..data/objects"));
    switch(&mesh.root().join("trust-bundle.yaml"), Path::new("..data/trust-bundle.yaml"));
    let mut agent = mesh.agent("n1");
    assert_eq!(agent.namespaces(), 1);
    version(&mesh.root().join("..2/objects"), &["a", "b"]);
    fs::write(mesh.root().join("..2/trust-bundle.yaml"), bundle(2)).unwrap();
    switch(&mesh.root().join("..data"), Path::new("..2"));
    fs::remove_dir_all(mesh.root().join("..1")).unwrap();
    agent.until_namespaces(2).await;
    agent.until("its bundle", |world| world.trust().unwrap().generation == 2).await;
    version(&mesh.objects(), &["c"]);
    agent.until_namespaces(3).await;
    assert_eq!(agent.problems(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_link_on_the_way_to_the_objects_may_be_switched_and_its_target_made_anew() {
    let mesh = Mesh::new();
    let git = mesh.dir.path().join("git");
    version(&git.join("one/objects"), &["a"]);
    let two = version(&git.join("two/objects"), &["a", "b"]);
    switch(&git.join("current"), Path::new("one"));
    fs::remove_dir(mesh.objects()).unwrap();
    switch(&mesh.objects(), &git.join("current/objects"));
    let mut agent = mesh.agent("n1");
    assert_eq!(agent.namespaces(), 1);
    switch(&git.join("current"), Path::new("two"));
    agent.until_namespaces(2).await;
    version(&mesh.objects(), &["c"]);
    agent.until_namespaces(3).await;
    // Removed, and made anew at once or later, with what may be the same inode number.
    for away_first in [false, true].repeat(3) {
        fs::remove_dir_all(&two).unwrap();
        if away_first {
            agent.cluster.announcer().refresh(&nobody()).await;
            assert_eq!(agent.namespaces(), 3, "what is known stays");
        }
        version(&two, &["a"]);
        agent.until_namespaces(1).await;
        version(&two, &["b", "c"]);
        agent.until_namespaces(3).await;
    }
    // Away and back, and changed in between.
    let away = git.join("away");
    fs::rename(&two, &away).unwrap();
    agent.cluster.announcer().refresh(&nobody()).await;
    version(&away, &["d"]);
    agent.cluster.announcer().refresh(&nobody()).await;
    assert_eq!(agent.namespaces(), 3, "what is known stays");
    fs::rename(&away, &two).unwrap();
    agent.until_namespaces(4).await;
}
