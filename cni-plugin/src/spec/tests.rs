use std::net::IpAddr;

use super::*;

fn environment(vars: &[(&str, &str)]) -> Environment {
    Environment(vars.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect())
}

fn asked(extra: &str) -> Asked {
    let input = format!(r#"{{"cniVersion":"1.1.0","name":"net","type":"adit-cni"{extra}}}"#);
    Asked::parse(Verb::Add, input.as_bytes()).unwrap()
}

#[test]
fn supported_versions_sort_as_text() {
    assert!(VERSIONS.is_sorted());
    assert_eq!(VERSIONS.last(), Some(&VERSION_NEWEST));
}

#[test]
fn cni_args_in_any_order_and_with_strangers_name_the_pod() {
    let args =
        "K8S_POD_UID=u1;IgnoreUnknown=1;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_NAME=web;K8S_POD_NAMESPACE=shop";
    let pod = environment(&[("CNI_ARGS", args)]).pod().unwrap().unwrap();
    assert_eq!((pod.namespace.as_str(), pod.name.as_str(), pod.uid.as_str()), ("shop", "web", "u1"));
}

#[test]
fn cni_args_that_name_no_pod_are_not_of_kubernetes() {
    for args in ["", "IgnoreUnknown=1", ";;"] {
        assert_eq!(environment(&[("CNI_ARGS", args)]).pod(), Ok(None), "{args:?}");
    }
}

#[test]
fn cni_args_that_name_a_pod_in_part_are_refused() {
    for args in ["K8S_POD_NAMESPACE=shop", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=a;K8S_POD_UID=", "nonsense"] {
        let error = environment(&[("CNI_ARGS", args)]).pod().unwrap_err();
        assert_eq!((error.code, error.details.as_str()), (Code::BadEnvironment, "CNI_ARGS"), "{args:?}");
    }
}

#[test]
fn defaults_are_those_that_the_agent_has() {
    let config = asked("").config().unwrap();
    assert_eq!(config.socket.to_str(), Some("/run/adit/cni.sock"));
    assert_eq!(config.timeout.as_secs(), 30);
    assert_eq!(config.unreachable, Unreachable::RefuseEnrolled);
    assert!(config.excludes("kube-system"));
    assert!(!config.excludes("shop"));
}

#[test]
fn our_own_namespace_passes_whatever_is_configured() {
    let config = asked(r#","excludeNamespaces":["infra"]"#).config().unwrap();
    assert_eq!(
        ["adit-system", "infra", "kube-system"].map(|name| config.excludes(name)),
        [true, true, false]
    );
}

#[test]
fn a_bad_value_of_our_own_keys_is_named() {
    for (extra, key) in [
        (r#","socket":"run/x""#, "socket"),
        (r#","socket":7"#, "socket"),
        (r#","timeout":"30s""#, "timeout"),
        (r#","timeout":-1"#, "timeout"),
        (r#","timeout":181"#, "timeout"),
        (r#","stateDir":"""#, "stateDir"),
        (r#","unreachable":"pass""#, "unreachable"),
        (r#","excludeNamespaces":"a""#, "excludeNamespaces"),
        (r#","excludeNamespaces":[1]"#, "excludeNamespaces"),
    ] {
        let error = asked(extra).config().unwrap_err();
        assert_eq!(error.code, Code::InvalidConfig, "{extra}");
        assert!(error.details.starts_with(key), "{extra}: {}", error.details);
    }
}

#[test]
fn only_annotations_that_the_agent_reads_are_passed_on() {
    let asked = asked(
        r#","runtimeConfig":{"cgroupPath":"/kubepods/podu1","io.kubernetes.cri.pod-annotations":
        {"adit.dev/mesh":"disabled","kubernetes.io/config.source":"api","kubectl.kubernetes.io/last-applied":"x"}}"#,
    );
    let keys: Vec<String> = asked.annotations().unwrap().into_keys().collect();
    assert_eq!(keys, ["adit.dev/mesh", "kubernetes.io/config.source"]);
    assert_eq!(asked.cgroup().as_deref(), Some("/kubepods/podu1"));
}

#[test]
fn a_runtime_that_passes_no_annotations_is_told_from_a_pod_without_any() {
    assert_eq!(asked("").annotations(), None);
    let none = asked(r#","runtimeConfig":{"io.kubernetes.cri.pod-annotations":{}}"#);
    assert_eq!(none.annotations(), Some(BTreeMap::new()));
}

#[test]
fn addresses_of_interfaces_outside_the_sandbox_are_not_the_pods() {
    let asked = asked(
        r#","prevResult":{"interfaces":[{"name":"cni0"},{"name":"eth0","sandbox":"/n"}],
        "ips":[{"address":"10.0.0.1/24","interface":0},{"address":"10.0.0.7/24","interface":1},{"address":"fd00::7/64"}]}"#,
    );
    let ips: Vec<String> = asked.result().unwrap().ips().unwrap().iter().map(IpAddr::to_string).collect();
    assert_eq!(ips, ["10.0.0.7", "fd00::7"]);
}

#[test]
fn an_address_that_is_none_is_refused_by_key() {
    for ips in [r#"[{"address":"10.0.0.7"}]"#, r#"[{}]"#, r#"[7]"#, r#"{}"#] {
        let error = asked(&format!(r#","prevResult":{{"ips":{ips}}}"#)).result().unwrap().ips().unwrap_err();
        assert_eq!(error.code, Code::InvalidConfig, "{ips}");
    }
}
