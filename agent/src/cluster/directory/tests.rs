use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::time::Duration;

use nix::unistd::{Uid, setfsuid};

use super::*;

/// A user with no rights of its own.
const NOBODY: Uid = Uid::from_raw(65_534);

/// Does something without root's right to read every directory, which only this thread gives up.
fn without_rights<T>(what: impl FnOnce() -> T) -> T {
    let before = setfsuid(NOBODY);
    let done = what();
    setfsuid(before);
    done
}

fn everything(directory: &mut Directory) -> Vec<PathBuf> {
    directory.read(Vec::new).objects
}

/// Hears events until one of them leads to this file. Never looks of its own accord.
async fn until_found(directory: &mut Directory, file: &Path) {
    let found = async {
        while !everything(directory).iter().any(|found| found == file) {
            directory.changed().await.unwrap();
        }
    };
    let is_found = tokio::time::timeout(Duration::from_secs(20), found).await.is_ok();
    assert!(is_found, "waited for {}", file.display());
}

/// Lets the directory that is there now have the number of the one that was followed, as a file system may.
fn give_the_old_number(directory: &mut Directory) {
    if let Some(id) = &mut directory.root_id {
        *id = DirId::of(&directory.root).unwrap();
    }
}

#[tokio::test]
async fn a_directory_made_anew_with_the_number_of_the_old_one_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("mesh");
    let objects = root.join("objects");
    fs::create_dir_all(&objects).unwrap();
    let mut directory = Directory::open(&root).unwrap();
    for is_looked_for_while_away in [false, true] {
        fs::remove_dir_all(&root).unwrap();
        if is_looked_for_while_away {
            directory.look();
            assert_eq!(directory.troubles().count(), 1);
        }
        fs::create_dir_all(&objects).unwrap();
        fs::write(objects.join("a.yaml"), "").unwrap();
        give_the_old_number(&mut directory);
        if is_looked_for_while_away {
            directory.look();
        }
        until_found(&mut directory, &objects.join("a.yaml")).await;
        fs::write(objects.join("b.yaml"), "").unwrap();
        until_found(&mut directory, &objects.join("b.yaml")).await;
        assert_eq!(directory.troubles().count(), 0);
    }
}

#[tokio::test]
async fn objects_reached_by_the_link_of_a_config_map_are_followed_at_its_switch() {
    let dir = tempfile::tempdir().unwrap();
    let (root, data) = (dir.path(), dir.path().join("..data"));
    for version in ["..1", "..2"] {
        fs::create_dir_all(root.join(version).join("objects")).unwrap();
    }
    fs::write(root.join("..2/objects/a.yaml"), "").unwrap();
    symlink("..1", &data).unwrap();
    symlink("..data/objects", root.join("objects")).unwrap();
    let mut directory = Directory::open(root).unwrap();
    assert!(everything(&mut directory).is_empty());
    symlink("..2", root.join("..fresh")).unwrap();
    fs::rename(root.join("..fresh"), &data).unwrap();
    until_found(&mut directory, &root.join("objects/a.yaml")).await;
    fs::write(root.join("..2/objects/b.yaml"), "").unwrap();
    until_found(&mut directory, &root.join("objects/b.yaml")).await;
}

#[tokio::test]
async fn a_link_that_goes_back_from_where_it_could_not_be_followed_is_followed_again() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (one, closed) = (dir.path().join("one"), dir.path().join("closed"));
    fs::create_dir_all(one.join("objects")).unwrap();
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o311)).unwrap();
    let root = dir.path().join("mesh");
    let lead_to = |target: &Path| {
        let _ = fs::remove_file(&root);
        symlink(target, &root).unwrap();
    };
    lead_to(&one);
    let mut directory = Directory::open(&root).unwrap();
    assert!(everything(&mut directory).is_empty());
    lead_to(&closed);
    without_rights(|| directory.look());
    assert_eq!(directory.troubles().count(), 1, "it cannot be watched");
    lead_to(&one);
    directory.look();
    assert_eq!(directory.troubles().count(), 0);
    everything(&mut directory);
    fs::write(one.join("objects/a.yaml"), "").unwrap();
    until_found(&mut directory, &root.join("objects/a.yaml")).await;
}
