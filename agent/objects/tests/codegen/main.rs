//! The manifests of the policies' kinds are what the Rust types say: the definitions below `manifests/crds`, and what
//! refuses at admission below `manifests/admission`. `UPDATE=1 cargo test -p adit-objects --test codegen` writes them.

#![expect(clippy::unwrap_used, reason = "a generator that cannot generate fails its test")]

mod admission;
mod agreement;
mod definition;
mod schema;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

const HEADER: &str = "# Generated from agent/objects/src/crd.rs by `cargo xtask codegen`, which also checks it. Do not edit.\n";

/// Every generated file, by its path below `manifests`.
fn manifests() -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for definition in definition::all() {
        let plural = definition["spec"]["names"]["plural"].as_str().unwrap();
        files.insert(format!("admission/{plural}.yaml"), yaml(&admission::policy(&definition)));
        files.insert(format!("crds/{plural}.yaml"), yaml(std::slice::from_ref(&definition)));
    }
    files
}

fn yaml(documents: &[Value]) -> String {
    let options = serde_saphyr::ser_options! { compact_list_indent: true, folded_wrap_chars: 110 };
    let texts = documents
        .iter()
        .map(|document| serde_saphyr::to_string_with_options(&sorted(document), options.clone()).unwrap());
    format!("{HEADER}{}", texts.collect::<Vec<_>>().join("---\n"))
}

/// The same with every object's keys in order, whatever other crates make of serde_json's features.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let ordered: BTreeMap<_, _> = fields.iter().collect();
            ordered.into_iter().map(|(key, value)| (key.clone(), sorted(value))).collect()
        }
        Value::Array(values) => values.iter().map(sorted).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

#[test]
fn the_manifests_are_what_the_types_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../manifests");
    let files = manifests();
    for part in ["admission", "crds"] {
        fs::create_dir_all(folder.join(part)).unwrap();
        for entry in fs::read_dir(folder.join(part)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(
                files.contains_key(&format!("{part}/{name}")),
                "nothing generates manifests/{part}/{name}"
            );
        }
    }
    for (name, fresh) in files {
        let committed = folder.join(&name);
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&committed, &fresh).unwrap();
        }
        assert!(
            fs::read_to_string(&committed).unwrap_or_default() == fresh,
            "manifests/{name} is stale: run `UPDATE=1 cargo test -p adit-objects --test codegen`"
        );
    }
}

#[test]
fn yaml_says_what_was_meant() {
    for definition in definition::all() {
        let documents = [&admission::policy(&definition)[..], std::slice::from_ref(&definition)].concat();
        let read = adit_objects::yaml::read(&yaml(&documents)).unwrap();
        assert_eq!(read.into_iter().map(|document| document.value).collect::<Vec<_>>(), documents);
    }
}
