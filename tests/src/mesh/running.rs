//! Pods that run on a node without their ADD having reached the agent: what the node's files then show of them.
//!
//! A sandbox here has no control groups and its apps are threads of the test, so the agents look into a folder for
//! processes, and into another for what a container runtime keeps of its CNI results.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cni::agent_folder;
use super::objects;
use super::{Mesh, Pod, PodSpec, replace};

/// Where a node's agent looks, as its configuration says it.
pub(super) fn settings(mesh: &Path, node: &str) -> Result<Value> {
    let (proc, results) = folders(mesh, node);
    for folder in [&proc, &results] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    Ok(json!({ "proc": proc, "cni-results": [results], "netns-dirs": [] }))
}

fn folders(mesh: &Path, node: &str) -> (PathBuf, PathBuf) {
    let folder = agent_folder(mesh, node);
    (folder.join("proc"), folder.join("cni-results"))
}

impl Mesh {
    /// Adds a pod as a cluster does whose runtime does not know of Adit: no CNI call.
    pub fn add_unseen_pod(&mut self, spec: PodSpec) -> Result<Pod> {
        let host = self.topology.add_pod(&spec.node, &spec.host_name())?;
        self.uids += 1;
        let uid = format!("00000000-0000-4000-8000-{:012}", self.uids);
        let pod = Pod { spec, uid, sandbox: format!("{:064x}", self.uids), host };
        self.put_pod(pod)
    }

    /// Gives a pod another sandbox, as the runtime does when the old one's process died: same uid, other namespace and
    /// addresses. Of the old one its namespace stays until its last handle is dropped. No CNI call.
    pub fn remake_sandbox(&mut self, pod: &Pod) -> Result<Pod> {
        self.uids += 1;
        let host = self.topology.add_pod(&pod.spec.node, &format!("{}.{}", pod.host.name, self.uids))?;
        self.pods.remove(&pod.host.name);
        self.put_pod(Pod { sandbox: format!("{:064x}", self.uids), host, ..pod.clone() })
    }

    fn put_pod(&mut self, pod: Pod) -> Result<Pod> {
        self.write_pod(&objects::pod(&pod.spec, &pod.uid, Some(&pod.host)), &pod.spec)?;
        self.pods.insert(pod.host.name.clone(), pod.clone());
        self.write_endpoints()?;
        Ok(pod)
    }

    /// Says in the pod's object that all of its containers have ended, and takes its network away.
    pub fn finish_pod(&mut self, pod: Pod) -> Result<()> {
        self.pods.remove(&pod.host.name);
        self.write_endpoints()?;
        let mut object = objects::pod(&pod.spec, &pod.uid, Some(&pod.host));
        object["status"]["phase"] = json!("Succeeded");
        self.topology.remove_pod(&pod.host.name)?;
        let file = pod.spec.object_file();
        // Its namespace goes with the last handle.
        drop(pod);
        self.write_object(&file, &object)
    }

    /// Shows a process in the pod's cgroup and namespace to the agent of its node.
    pub fn show_process(&self, pod: &Pod, pid: u32, name: &str) -> Result<()> {
        let process = self.process_folder(pod, pid);
        fs::create_dir_all(process.join("ns")).context("a process's folder")?;
        symlink(pod.host.netns.path(), process.join("ns/net")).context("a process's namespace")?;
        let stat = format!("{pid} ({name}) S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 {pid} 0 0\n");
        replace(&process.join("stat"), &stat)?;
        let path = format!("/kubepods/besteffort/pod{}/{}", pod.uid, pod.sandbox);
        // Last: by this the agent knows it.
        replace(&process.join("cgroup"), &format!("2:cpu:{path}\n1:name=systemd:{path}\n0::/\n"))
    }

    /// Lets it end.
    pub fn end_process(&self, pod: &Pod, pid: u32) -> Result<()> {
        fs::remove_dir_all(self.process_folder(pod, pid)).context("no such process")
    }

    fn process_folder(&self, pod: &Pod, pid: u32) -> PathBuf {
        folders(&self.folder, &pod.spec.node).0.join(pid.to_string())
    }

    /// Keeps the record that libcni writes after an ADD.
    pub fn keep_record(&self, pod: &Pod) -> Result<()> {
        let record = json!({
            "kind": "cniCacheV1",
            "containerId": pod.sandbox,
            "config": "e30=",
            "ifName": "eth0",
            "networkName": "test",
            "netns": pod.host.netns.path(),
            "cniArgs": [
                ["K8S_POD_NAMESPACE", pod.spec.namespace],
                ["K8S_POD_NAME", pod.spec.name],
                ["K8S_POD_UID", pod.uid],
            ],
            "result": { "cniVersion": "1.0.0", "ips": [{ "address": format!("{}/24", pod.host.v4), "interface": 1 }] },
        });
        let file = folders(&self.folder, &pod.spec.node).1.join(format!("test-{}-eth0", pod.sandbox));
        replace(&file, &record.to_string())
    }
}
