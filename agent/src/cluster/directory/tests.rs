use std::os::unix::fs::{PermissionsExt as _, symlink};

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
    while directory.pending() == 0 {
        tokio::time::timeout(std::time::Duration::from_secs(20), directory.changed()).await.unwrap().unwrap();
    }
    assert_eq!(everything(&mut directory), [root.join("objects/a.yaml")]);
}
