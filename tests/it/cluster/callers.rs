//! More pods of the shop: they do nothing by themselves, and call what a test tells them to.

use adit_tests::cluster::Cluster;
use adit_tests::process::Output;
use anyhow::{Result, bail};
use nix::unistd::Pid;

use super::shop::{SHOP, container, pod};

/// A pod with an account of its own, both of this name.
pub(crate) struct Caller {
    pub(crate) name: &'static str,
    pub(crate) node: &'static str,
    /// How many seconds it sleeps: its process is known by that.
    pub(crate) sleeps: u32,
}

impl Caller {
    /// Account and pod, as a user applies them.
    pub(crate) fn objects(&self) -> String {
        let command = format!("[/usr/bin/sleep, \"{}\"]", self.sleeps);
        pod(self.name, self.node, &container("caller", &command))
    }

    /// Its process, where it runs.
    pub(crate) fn process(&self, cluster: &Cluster) -> Result<Option<Pid>> {
        match cluster.node(self.node)?.processes(&format!("/usr/bin/sleep {}", self.sleeps))?[..] {
            [] => Ok(None),
            [one] => Ok(Some(one)),
            [..] => bail!("{} runs more than once", self.name),
        }
    }

    /// Waits until it runs, as another process than one of before.
    pub(crate) fn wait(&self, cluster: &Cluster, before: Option<Pid>) -> Result<Pid> {
        cluster.until(&format!("that {} runs", self.name), || {
            Ok(self.process(cluster)?.filter(|process| Some(*process) != before))
        })
    }

    /// Asks for a page; how curl ended.
    pub(crate) fn ask(&self, cluster: &Cluster, process: Pid, url: &str) -> Result<Output> {
        let curl = cluster.node(self.node)?.inside(process, "curl");
        curl.args(["-sS", "-o", "/dev/null", "-m", "10", url]).output()
    }

    /// What it says of itself, by jsonpath below it.
    pub(crate) fn field(&self, cluster: &Cluster, path: &str) -> Result<String> {
        cluster.kubectl(["get", "pod", "-n", SHOP, self.name, "-o", &format!("jsonpath={{{path}}}")])
    }
}
