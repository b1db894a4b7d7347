//! Real lists, as their projects write them (shortened where a part says nothing new), and what becomes of them.

use super::*;

/// kubernetes.io/docs: bridge + portmap, as installed by hand and by kubeadm guides.
const BRIDGE: &str = r#"{
  "cniVersion": "1.0.0",
  "name": "bridge",
  "plugins": [
    {
      "type": "bridge",
      "bridge": "cni0",
      "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}]]}
    },
    {
      "type": "portmap",
      "capabilities": {"portMappings": true}
    }
  ]
}
"#;
const CALICO: &str = r#"{
  "name": "k8s-pod-network",
  "cniVersion": "0.3.1",
  "plugins": [
    {
      "type": "calico",
      "datastore_type": "kubernetes",
      "mtu": 0,
      "nodename_file_optional": false,
      "log_level": "Info",
      "log_file_path": "/var/log/calico/cni/cni.log",
      "ipam": { "type": "calico-ipam", "assign_ipv4" : "true", "assign_ipv6" : "false"},
      "container_settings": {
          "allow_ip_forwarding": false
      },
      "policy": {
          "type": "k8s"
      },
      "kubernetes": {
          "k8s_api_root":"https://10.96.0.1:443",
          "kubeconfig": "/etc/cni/net.d/calico-kubeconfig"
      }
    },
    {
      "type": "bandwidth",
      "capabilities": {"bandwidth": true}
    },
    {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}
  ]
}"#;
const CILIUM: &str = "
{
  \"cniVersion\": \"0.3.1\",
  \"name\": \"cilium\",
  \"plugins\": [
    {
       \"type\": \"cilium-cni\",
       \"enable-debug\": false,
       \"log-file\": \"/var/run/cilium/cilium-cni.log\"
    }
  ]
}
";
const FLANNEL: &str = r#"{
  "name": "cbr0",
  "cniVersion": "1.1.0",
  "plugins": [
    {
      "type": "flannel",
      "delegate": {
        "hairpinMode": true,
        "isDefaultGateway": true
      }
    },
    {
      "type": "portmap",
      "capabilities": {
        "portMappings": true
      }
    }
  ]
}
"#;
const AWS: &str = r#"{"cniVersion":"0.4.0","name":"aws-cni","disableCheck":true,"plugins":[{"name":"aws-cni","type":"aws-cni","vethPrefix":"eni","mtu":"9001","podSGEnforcingMode":"strict","pluginLogFile":"/var/log/aws-routed-eni/plugin.log","pluginLogLevel":"DEBUG"},{"name":"egress-cni","type":"egress-cni","mtu":"9001","enabled":"false","ipam":{"type":"host-local","ranges":[[{"subnet":"fd00::ac:00/118"}]],"routes":[{"dst":"::/0"}],"dataDir":"/run/cni/v4pd/egress-v6-ipam"}},{"type":"portmap","capabilities":{"portMappings":true},"snat":true}]}"#;
const PLAIN: &str = r#"{
    "cniVersion": "0.4.0",
    "name": "crio",
    "type": "bridge",
    "bridge": "cni0",
    "ipam": {"type": "host-local", "subnet": "10.85.0.0/16"}
}
"#;

const ENTRY: &str = r#"{"type":"adit-cni","capabilities":{"io.kubernetes.cri.pod-annotations":true,"cgroupPath":true,"portMappings":true},"socket":"/run/adit/cni.sock"}"#;
const DROPPED_IN: &str = r#"{"type":"adit-cni","capabilities":{"io.kubernetes.cri.pod-annotations":true,"cgroupPath":true,"portMappings":true},"socket":"/run/adit/cni.sock","markCalls":"/run/adit/called"}
"#;

pub(super) fn entry() -> Entry {
    Entry { socket: "/run/adit/cni.sock".into(), ..Entry::default() }
}

pub(super) fn folder(files: &[(&str, &str)]) -> Folder {
    let mut folder = Folder::default();
    for (name, text) in files {
        if let Some((dir, _)) = name.split_once('/') {
            folder.dirs.insert(dir.to_owned());
        }
        folder.files.insert((*name).to_owned(), text.as_bytes().to_vec());
    }
    folder
}

/// As the executor does it.
pub(super) fn apply(folder: &mut Folder, edits: &[Edit]) {
    for edit in edits {
        match edit {
            Edit::Write { file, was, bytes } => {
                assert_eq!(folder.files.insert(file.clone(), bytes.clone()), *was, "{file}");
                if let Some((dir, _)) = file.split_once('/') {
                    assert!(folder.dirs.contains(dir), "{file} is written before its folder is made");
                }
            }
            Edit::Remove { file } => assert!(folder.files.remove(file).is_some(), "{file}"),
            Edit::MakeDir { dir } => assert!(folder.dirs.insert(dir.clone()), "{dir}"),
            Edit::RemoveDir { dir } => {
                if !folder.files.keys().any(|name| name.starts_with(&format!("{dir}/"))) {
                    assert!(folder.dirs.remove(dir), "{dir}");
                }
            }
        }
    }
}

/// The folder after an installation, which is whole: another one finds nothing to do.
#[track_caller]
fn installed(files: &[(&str, &str)], chains: Chains) -> (Folder, Place) {
    let mut after = folder(files);
    let plan = install(&after, &entry(), chains).unwrap();
    apply(&mut after, &plan.edits);
    let again = install(&after, &entry(), chains).unwrap();
    assert_eq!(again, Plan { edits: vec![], ..plan.clone() });
    (after, plan.place.unwrap())
}

#[track_caller]
pub(super) fn uninstalled(mut folder: Folder) -> Folder {
    let (edits, refusals) = uninstall(&folder);
    assert_eq!(refusals, []);
    apply(&mut folder, &edits);
    folder
}

fn refused(name: &str, text: &str, chains: Chains) -> String {
    install(&folder(&[(name, text)]), &entry(), chains).unwrap_err().to_string()
}

fn text<'f>(folder: &'f Folder, file: &str) -> &'f str {
    std::str::from_utf8(&folder.files[file]).unwrap()
}

/// The list is edited to `after`, or completed by a drop-in; both go without a trace.
#[track_caller]
fn check_list(name: &str, before: &str, network: &str, after: &str) {
    let (edited, place) = installed(&[(name, before)], Chains::No);
    assert_eq!(text(&edited, name), after);
    assert_eq!(place, Place { network: network.into(), form: Form::Entry { list: name.into() } });
    assert_eq!(uninstalled(edited), folder(&[(name, before)]));

    let (completed, place) = installed(&[(name, before)], Chains::Perhaps);
    let (drop_in, made) = (format!("{network}/99-adit.conf"), format!(".{network}.adit-made"));
    assert_eq!(completed, folder(&[(name, before), (&drop_in, DROPPED_IN), (&made, "")]));
    assert_eq!(place, Place { network: network.into(), form: Form::DropIn { list: name.into() } });
    assert_eq!(uninstalled(completed), folder(&[(name, before)]));
}

#[test]
fn bridge_and_portmap() {
    let tail = "\n    }\n  ]\n}\n";
    let after = BRIDGE.replace(tail, &format!("\n    }},\n    {ENTRY}\n  ]\n}}\n"));
    check_list("10-bridge.conflist", BRIDGE, "bridge", &after);
}

#[test]
fn calico() {
    let tail = "\"capabilities\": {\"portMappings\": true}}\n  ]\n}";
    let after = CALICO.replace(tail, &tail.replace("\n  ]", &format!(",\n    {ENTRY}\n  ]")));
    check_list("10-calico.conflist", CALICO, "k8s-pod-network", &after);
}

#[test]
fn cilium() {
    let after = CILIUM.replace("\n    }\n", &format!("\n    }},\n    {ENTRY}\n"));
    check_list("05-cilium.conflist", CILIUM, "cilium", &after);
}

#[test]
fn flannel() {
    let after = FLANNEL.replace("\n    }\n  ]\n", &format!("\n    }},\n    {ENTRY}\n  ]\n"));
    check_list("10-flannel.conflist", FLANNEL, "cbr0", &after);
}

#[test]
fn aws_vpc_in_one_line() {
    let after = AWS.replace("\"snat\":true}]}", &format!("\"snat\":true}},{ENTRY}]}}"));
    check_list("10-aws.conflist", AWS, "aws-cni", &after);
}

#[test]
fn a_plain_configuration_is_wrapped_in_its_own_words_and_version() {
    for name in ["100-crio-bridge.conf", "10-x.json"] {
        let (after, place) = installed(&[(name, PLAIN)], Chains::Perhaps);
        let wrap = format!(
            "{{\"cniVersion\":\"0.4.0\",\"name\":\"crio\",\"plugins\":[\n{},\n{ENTRY}\n]}}\n",
            PLAIN.trim()
        );
        assert_eq!(after, folder(&[(WRAP, &wrap), (name, PLAIN)]));
        assert_eq!(place.to_string(), format!("network crio, by 00-adit.conflist around {name}"));
        assert_eq!(uninstalled(after), folder(&[(name, PLAIN)]));
    }
}

#[test]
fn what_is_wrapped_is_followed_and_the_wrap_goes_with_it() {
    let (mut after, _) = installed(&[("10-x.conf", PLAIN)], Chains::Perhaps);
    after.files.insert("10-x.conf".into(), PLAIN.replace("10.85", "10.86").into());
    let plan = install(&after, &entry(), Chains::Perhaps).unwrap();
    apply(&mut after, &plan.edits);
    assert!(text(&after, WRAP).contains("10.86"));

    after.files.remove("10-x.conf");
    let plan = install(&after, &entry(), Chains::Perhaps).unwrap();
    assert_eq!(plan, Plan { place: None, edits: vec![Edit::Remove { file: WRAP.into() }] });
}

#[test]
fn an_empty_folder_is_waited_for() {
    let other = folder(&[("calico-kubeconfig/99-other", ""), (".bridge.adit-made", "")]);
    for folder in [Folder::default(), other] {
        assert_eq!(install(&folder, &entry(), Chains::Perhaps), Ok(Plan { place: None, edits: vec![] }));
    }
}

#[test]
fn the_first_file_in_lexical_order_is_the_network_and_a_dot_file_is_one() {
    let files = [("10-b.conflist", BRIDGE), ("05-c.conflist", CILIUM), ("10-a.conf", PLAIN)];
    let place = |files: &[(&str, &str)]| installed(files, Chains::Perhaps).1.network;
    assert_eq!(place(&files), "cilium");
    assert_eq!(place(&[files[0], files[2]]), "crio");
    assert_eq!(place(&[files[0], (".hidden.conflist", FLANNEL)]), "cbr0");
    assert_eq!(place(&[files[0], ("05-c.conflist.bak", CILIUM)]), "bridge");
}

#[test]
fn a_new_network_in_front_gets_the_entry_and_the_former_loses_it() {
    let (mut after, _) = installed(&[("10-bridge.conflist", BRIDGE)], Chains::No);
    after.files.insert("05-cilium.conflist".into(), CILIUM.into());
    let plan = install(&after, &entry(), Chains::No).unwrap();
    let writes = plan.edits.iter().map(|edit| match edit {
        Edit::Write { file, .. } => file.as_str(),
        Edit::Remove { .. } | Edit::MakeDir { .. } | Edit::RemoveDir { .. } => "",
    });
    assert_eq!(writes.collect::<Vec<_>>(), ["05-cilium.conflist", "10-bridge.conflist"], "never without one");
    apply(&mut after, &plan.edits);
    assert_eq!(text(&after, "10-bridge.conflist"), BRIDGE);

    let (mut after, _) = installed(&[("10-bridge.conflist", BRIDGE)], Chains::Yes);
    after.files.insert("05-cilium.conflist".into(), CILIUM.into());
    let plan = install(&after, &entry(), Chains::Yes).unwrap();
    apply(&mut after, &plan.edits);
    let files = [
        ("05-cilium.conflist", CILIUM),
        ("10-bridge.conflist", BRIDGE),
        ("cilium/99-adit.conf", DROPPED_IN),
        (".cilium.adit-made", ""),
    ];
    assert_eq!(after, folder(&files));
}

#[test]
fn a_network_with_a_new_name_is_followed() {
    let (mut after, _) = installed(&[("10-bridge.conflist", BRIDGE)], Chains::Perhaps);
    let renamed = BRIDGE.replace("\"name\": \"bridge\"", "\"name\": \"podnet\"");
    after.files.insert("10-bridge.conflist".into(), renamed.clone().into());
    let plan = install(&after, &entry(), Chains::Perhaps).unwrap();
    apply(&mut after, &plan.edits);
    let files = [
        ("10-bridge.conflist", renamed.as_str()),
        ("podnet/99-adit.conf", DROPPED_IN),
        (".podnet.adit-made", ""),
    ];
    assert_eq!(after, folder(&files));
}

#[test]
fn a_list_that_has_our_entry_keeps_its_place_and_gets_todays_words() {
    let old = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}, {"type":"adit-cni"} ,{"type":"portmap"}]}"#;
    let (after, place) = installed(&[("10-n.conflist", old)], Chains::Perhaps);
    assert_eq!(text(&after, "10-n.conflist"), old.replace(r#"{"type":"adit-cni"}"#, ENTRY));
    assert_eq!(place.form, Form::Entry { list: "10-n.conflist".into() }, "an edited list stays one");

    let (after, _) = installed(&[("10-n.conflist", old)], Chains::Yes);
    assert_eq!(text(&after, "10-n.conflist"), old.replace(r#", {"type":"adit-cni"}"#, ""));
    assert_eq!(text(&after, "n/99-adit.conf"), DROPPED_IN);
}

#[test]
fn an_entry_that_another_has_written_in_its_own_style_is_left_alone() {
    let (mut after, _) = installed(&[("10-bridge.conflist", BRIDGE)], Chains::No);
    let value: Value = serde_json::from_slice(&after.files["10-bridge.conflist"]).unwrap();
    let pretty = serde_json::to_string_pretty(&value).unwrap();
    after.files.insert("10-bridge.conflist".into(), pretty.into());
    assert_eq!(install(&after, &entry(), Chains::No).unwrap().edits, []);
}

#[test]
fn an_entry_without_one_before_it_and_a_second_one_are_put_right() {
    for plugins in [
        r#"[{"type":"adit-cni"},{"type":"bridge"}]"#,
        r#"[{"type":"adit-cni"},{"type":"bridge"},{"type":"adit-cni"}]"#,
        r#"[{"type":"bridge"},{"type":"adit-cni"},{"type":"adit-cni"}]"#,
    ] {
        let list = format!(r#"{{"cniVersion":"1.0.0","name":"n","plugins":{plugins}}}"#);
        let (after, _) = installed(&[("n.conflist", &list)], Chains::No);
        let wanted =
            format!(r#"{{"cniVersion":"1.0.0","name":"n","plugins":[{{"type":"bridge"}},{ENTRY}]}}"#);
        assert_eq!(text(&after, "n.conflist"), wanted);
    }
}

#[test]
fn a_list_that_loads_only_what_is_in_it_is_edited_whatever_the_runtime_chains() {
    for only in ["true", "\"True\""] {
        let list = BRIDGE.replace("\"name\"", &format!("\"loadOnlyInlinedPlugins\": {only}, \"name\""));
        for chains in [Chains::Perhaps, Chains::Yes] {
            let (_, place) = installed(&[("10-bridge.conflist", &list)], chains);
            assert_eq!(place.form, Form::Entry { list: "10-bridge.conflist".into() });
        }
    }
}

#[test]
fn a_folder_that_was_there_before_stays_and_so_does_what_others_put_into_ours() {
    let before = [("10-bridge.conflist", BRIDGE), ("bridge/50-other.conf", "{}")];
    let (after, _) = installed(&before, Chains::Yes);
    assert!(!after.files.contains_key(".bridge.adit-made"));
    assert_eq!(uninstalled(after), folder(&before));

    let mut empty = folder(&before[..1]);
    empty.dirs.insert("bridge".into());
    let mut after = empty.clone();
    let plan = install(&after, &entry(), Chains::Yes).unwrap();
    apply(&mut after, &plan.edits);
    assert_eq!(uninstalled(after), empty);

    let (mut after, _) = installed(&before[..1], Chains::Yes);
    after.files.insert("bridge/50-other.conf".into(), b"{}".to_vec());
    assert_eq!(uninstalled(after), folder(&before));
}

#[test]
fn what_an_uninstall_finds_changed_loses_our_entry_only() {
    let (mut after, _) = installed(&[("10-bridge.conflist", BRIDGE)], Chains::No);
    let changed = text(&after, "10-bridge.conflist").replace("cni0", "cni1");
    after.files.insert("10-bridge.conflist".into(), changed.into());
    assert_eq!(text(&uninstalled(after), "10-bridge.conflist"), BRIDGE.replace("cni0", "cni1"));
}

#[test]
fn a_list_that_cannot_be_read_is_named_with_line_and_column_and_not_touched() {
    let broken = BRIDGE.replace("\"bridge\": \"cni0\",", "\"bridge\": \"cni0\"");
    let told = refused("10-bridge.conflist", &broken, Chains::Perhaps);
    assert_eq!(told, "10-bridge.conflist:8:7: expected `,` or `}`");
    assert_eq!(uninstall(&folder(&[("10-bridge.conflist", &broken)])), (vec![], vec![]));

    let ours = broken.replace("portmap\"", "adit-cni\"");
    let (edits, refusals) = uninstall(&folder(&[("10-bridge.conflist", &ours)]));
    assert_eq!((edits.len(), refusals.len()), (0, 1), "{refusals:?}");
}

#[test]
fn a_network_to_which_nothing_can_be_chained_is_named_with_the_reason() {
    let list = |head: &str, plugins: &str| format!("{{{head} \"plugins\": {plugins}}}");
    let named = r#""cniVersion": "1.0.0", "name": "n","#;
    let one = r#"[{"type": "bridge"}]"#;
    for (text, told) in [
        (list(r#""cniVersion": "1.0.0","#, one), "n.conflist: it has no \"name\" that CNI allows"),
        (
            list(r#""cniVersion": "1.0.0", "name": "../n","#, one),
            "n.conflist: it has no \"name\" that CNI allows",
        ),
        (
            list(r#""name": "n","#, one),
            "n.conflist: its cniVersion is missing, but a plugin is chained from 0.3.1 to 1.1.0",
        ),
        (
            list(r#""cniVersion": "0.2.0", "name": "n","#, one),
            "n.conflist: its cniVersion is \"0.2.0\", but a plugin is chained from 0.3.1 to 1.1.0",
        ),
        (
            list(r#""cniVersion": "1.0.0", "cniVersions": ["1.0.0", "1.10.0"], "name": "n","#, one),
            "n.conflist: its cniVersion is \"1.10.0\", but a plugin is chained from 0.3.1 to 1.1.0",
        ),
        (list(named, "[]"), "n.conflist: it lists no plugin to be chained to"),
        (list(named, r#"[{"type": "adit-cni"}]"#), "n.conflist: it lists no plugin to be chained to"),
        ("[]".into(), "n.conflist:1:1: not a JSON object"),
    ] {
        assert_eq!(refused("n.conflist", &text, Chains::No), told);
    }
    let told = refused("00-a.conf", PLAIN, Chains::No);
    assert_eq!(
        told,
        "00-a.conf: the runtime would take it before 00-adit.conflist, which has to wrap it; rename it"
    );
    assert_eq!(
        refused("n.conf", BRIDGE, Chains::No),
        "n.conf: it has no \"type\", so it configures no plugin"
    );
}

#[test]
fn every_version_that_the_plugin_speaks_is_kept() {
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let list = BRIDGE.replace("1.0.0", version);
        let (after, _) = installed(&[("10-bridge.conflist", &list)], Chains::No);
        assert!(text(&after, "10-bridge.conflist").contains(&format!("\"cniVersion\": \"{version}\"")));
    }
    let list = BRIDGE.replace("\"name\"", "\"cniVersions\": [\"0.3.1\", \"1.1.0\"], \"name\"");
    installed(&[("10-bridge.conflist", &list)], Chains::Perhaps);
}

#[test]
fn our_own_files_are_none_that_a_runtime_takes_for_a_network() {
    let (after, _) = installed(
        &[("x.conflist", &BRIDGE.replace("\"bridge\",\n  \"pl", "\"a.conf\",\n  \"pl"))],
        Chains::Yes,
    );
    let top = after.files.keys().filter(|name| !name.contains('/'));
    let networks = top.filter(|name| ENDINGS.iter().any(|ending| name.ends_with(ending)));
    assert_eq!(networks.collect::<Vec<_>>(), ["x.conflist"], "{:?}", after.files.keys());
}
