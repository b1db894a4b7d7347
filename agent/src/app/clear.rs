//! What the agent keeps on the node, taken off it after an uninstall.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use adit_proto::cni::{INSTALLER_FILE, INSTALLER_UNINSTALLED, MISSED_DIR, NAMESPACES_FILE};
use tokio::time::sleep;

use crate::clock::Clock;
use crate::cluster::kube::COPY_DIR;
use crate::config::Config;
use crate::redirect::LOCK;

/// How long the installer may take to have the CNI plugin out of the way: until then every new pod asks at the socket. It
/// takes a second, and is told as soon as it asks.
const INSTALLER_WAIT: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(100);

/// Where everything is.
pub(super) struct Kept {
    run_dir: PathBuf,
    /// Sockets and files.
    files: Vec<PathBuf>,
    /// Folders of the agent's own, with all that is in them.
    folders: Vec<PathBuf>,
    /// Folders that others may use too.
    shared: Vec<PathBuf>,
}

impl Kept {
    /// By the configuration.
    pub(super) fn of(config: &Config) -> Self {
        let namespaces = config.pods.state_dir.join(NAMESPACES_FILE);
        let mut folders = vec![
            config.pods.journal.clone(),
            config.pods.socket.with_file_name(MISSED_DIR),
            config.run_dir.join("objects"),
            config.run_dir.join("status"),
            config.run_dir.join(COPY_DIR),
        ];
        folders.extend(config.identity.journal.clone());
        Self {
            run_dir: config.run_dir.clone(),
            files: vec![
                config.pods.socket.clone(),
                config.admin.socket.clone(),
                PathBuf::from(LOCK),
                namespaces.with_extension("json.new"),
                namespaces,
            ],
            folders,
            shared: vec![config.pods.state_dir.clone(), config.state_dir.clone(), config.run_dir.clone()],
        }
    }

    /// Waits until the installer on this node, if there is one, has taken the CNI plugin out, or has had its time.
    pub(super) async fn wait_for_installer(&self, clock: Clock) {
        let until = clock.now().mono + INSTALLER_WAIT;
        let file = self.run_dir.join(INSTALLER_FILE);
        // One that is not there, or has left its word, asks nothing any more.
        while fs::read(&file).is_ok_and(|said| said != INSTALLER_UNINSTALLED) {
            if until <= clock.now().mono {
                tracing::warn!(
                    "the CNI plugin's installer has not taken it out yet; new pods wait until it has"
                );
                return;
            }
            sleep(LOOK).await;
        }
    }

    /// Removes it; what is others' stays. A failure is said, and keeps nothing else back.
    pub(super) fn clear(&self) {
        for file in &self.files {
            said(file, fs::remove_file(file));
        }
        for folder in &self.folders {
            said(folder, fs::remove_dir_all(folder));
        }
        for folder in &self.shared {
            // One with something of somebody else in it stays, as does one that is mounted there.
            let _ = fs::remove_dir(folder);
        }
        tracing::info!("Adit has left this node");
    }
}

fn said(path: &Path, removed: io::Result<()>) {
    if let Err(error) = removed
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::error!(path = %path.display(), %error, "cannot remove what the agent kept");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_of_the_agent_s_goes_and_what_is_others_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (run, state) = (dir.path().join("run"), dir.path().join("state"));
        let text = format!(
            "node: one\ncluster: {{directory: /m}}\nrun-dir: {}\nstate-dir: {}\n",
            run.display(),
            state.display()
        );
        let file = dir.path().join("agent.yaml");
        fs::write(&file, text).unwrap();
        let config = Config::load(&file, &crate::config::NodeFacts::default()).unwrap();
        for folder in
            ["run/journal", "run/identity", "run/objects", "run/status", "run/missed", "run/kube", "state"]
        {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        for name in ["run/cni.sock", "run/admin.sock", "run/journal/a.json", "state/namespaces.json"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        fs::write(run.join(INSTALLER_FILE), INSTALLER_UNINSTALLED).unwrap();
        let kept = Kept::of(&config);
        kept.wait_for_installer(Clock::real()).await;
        kept.clear();
        let left: Vec<_> = fs::read_dir(&run).unwrap().map(|file| file.unwrap().file_name()).collect();
        assert_eq!(left, [INSTALLER_FILE]);
        assert!(!state.exists());
        fs::remove_file(run.join(INSTALLER_FILE)).unwrap();
        kept.clear();
        assert!(!run.exists());
    }
}
