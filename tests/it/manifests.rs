//! What the manifests say, read as text: no cluster is needed to see that they grant too much or cannot be deleted.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests");

/// Every object below the manifests, with its file; kustomizations are none.
fn objects() -> Result<Vec<(PathBuf, Value)>> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from(MANIFESTS)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry.context("a manifest")?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "yaml") {
                let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
                let documents: Vec<Value> =
                    serde_saphyr::from_multiple(&text).with_context(|| path.display().to_string())?;
                found.extend(documents.into_iter().map(|object| (path.clone(), object)));
            }
        }
    }
    found.retain(|(path, _)| path.file_name() != Some("kustomization.yaml".as_ref()));
    ensure!(found.len() > 30, "the manifests are found: {}", found.len());
    Ok(found)
}

#[test]
fn no_role_grants_by_a_wildcard_and_none_lets_anybody_grant_more() -> Result<()> {
    let mut rules = 0;
    for (path, object) in objects()? {
        let kind = object["kind"].as_str().unwrap_or_default();
        ensure!(
            object["roleRef"]["name"] != "cluster-admin" && object["roleRef"]["name"] != "admin",
            "{}: a role of everything",
            path.display()
        );
        if !["Role", "ClusterRole"].contains(&kind) {
            continue;
        }
        ensure!(object.get("aggregationRule").is_none(), "{}: others may add to it", path.display());
        for rule in object["rules"].as_array().context("a role without rules")? {
            rules += 1;
            for field in ["apiGroups", "resources", "verbs", "resourceNames", "nonResourceURLs"] {
                let words = rule[field].as_array().cloned().unwrap_or_default();
                for word in words.iter().filter_map(Value::as_str) {
                    let grants_more = ["impersonate", "bind", "escalate", "deletecollection"].contains(&word);
                    ensure!(!word.contains('*') && !grants_more, "{}: {field}: {word}", path.display());
                }
            }
        }
    }
    ensure!(rules > 10, "rules are read: {rules}");
    Ok(())
}

#[test]
fn nothing_has_a_finalizer_and_the_base_has_no_custom_resource() -> Result<()> {
    // Those that a kustomization of the base names, by the folders that they are in.
    let in_base = |path: &Path| {
        let below = path.strip_prefix(MANIFESTS).unwrap_or(path);
        !["components", "examples"].iter().any(|other| below.starts_with(other))
    };
    for (path, object) in objects()? {
        ensure!(object["metadata"].get("finalizers").is_none(), "{}: a finalizer", path.display());
        let group = object["apiVersion"]
            .as_str()
            .and_then(|version| version.split_once('/'))
            .map_or("", |(group, _)| group);
        let is_built_in = !group.contains('.') || group.ends_with(".k8s.io");
        ensure!(is_built_in || !in_base(&path), "{}: the first apply would fail on {group}", path.display());
    }
    Ok(())
}

#[test]
fn images_are_of_this_release_and_come_from_nowhere_else() -> Result<()> {
    let mut images = BTreeSet::new();
    for (path, object) in objects()? {
        // The examples' are those of applications.
        if path.starts_with(Path::new(MANIFESTS).join("examples")) {
            continue;
        }
        let pod = &object["spec"]["template"]["spec"];
        for containers in ["containers", "initContainers"] {
            for container in pod[containers].as_array().into_iter().flatten() {
                images.extend(container["image"].as_str().map(str::to_owned));
            }
        }
    }
    let wanted =
        ["adit-agent", "adit-ca"].map(|name| format!("localhost/{name}:{}", env!("CARGO_PKG_VERSION")));
    ensure!(images == BTreeSet::from(wanted), "{images:?}");
    Ok(())
}

#[test]
fn each_program_is_told_to_read_the_file_that_its_config_map_becomes() -> Result<()> {
    let objects = objects()?;
    let find = |kind: &str, name: &str| {
        let is_it = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == name;
        // Components patch what the base has: the whole object says what it reads.
        let mut all = objects.iter().map(|(_, object)| object).filter(is_it);
        all.find(|object| object.get("data").is_some() || object["spec"].get("selector").is_some())
            .with_context(|| format!("no {kind} {name}"))
    };
    for (kind, name, key, command) in
        [("DaemonSet", "adit-agent", "agent.yaml", None), ("Deployment", "adit-ca", "ca.yaml", Some("run"))]
    {
        ensure!(find("ConfigMap", name)?["data"][key].is_string(), "{name} has no {key}");
        let container = &find(kind, name)?["spec"]["template"]["spec"]["containers"][0];
        let mount = &container["volumeMounts"][0];
        let wanted = format!("--config={}/{key}", mount["mountPath"].as_str().unwrap_or_default());
        let args: Vec<&str> = command.into_iter().chain([&*wanted]).collect();
        ensure!(mount["name"] == "config" && container["args"] == serde_json::json!(args), "{container}");
    }
    Ok(())
}
