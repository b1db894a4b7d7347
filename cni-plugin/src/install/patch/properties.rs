//! Of any lists with any style: what holds of every installation, whole or broken off.

use proptest::prelude::*;

use super::tests::{apply, entry, folder, uninstalled};
use super::*;

/// Any JSON value, as text with any white space.
fn json() -> impl Strategy<Value = String> {
    let white = "[ \n\t]{0,3}";
    let leaf = prop_oneof![
        "-?[1-9][0-9]{0,4}(\\.5)?(e[1-9])?",
        Just("true".to_owned()),
        Just("null".to_owned()),
        any::<String>().prop_map(|text| Value::String(text).to_string()),
        Just(r#""\u007b\\\"]},""#.to_owned()),
    ];
    leaf.prop_recursive(3, 16, 4, move |inner| {
        let spaced = (white, inner, white).prop_map(|(before, value, after)| before + &value + &after);
        prop_oneof![
            proptest::collection::vec(spaced.clone(), 0..4).prop_map(|all| format!("[{}]", all.join(","))),
            proptest::collection::vec(("[a-z]{1,6}", spaced), 0..4).prop_map(|all| {
                let members = all.into_iter().map(|(key, value)| format!("\"{key}\":{value}"));
                format!("{{{}}}", members.collect::<Vec<_>>().join(","))
            }),
        ]
    })
}

/// Any list, or plain configuration, of one of a few names.
fn network_file() -> impl Strategy<Value = (String, String)> {
    let names = prop_oneof![
        Just("05-a.conflist"),
        Just("10-b.conflist"),
        Just("10-c.conf"),
        Just("20-d.json"),
        Just("30-e.conflist")
    ];
    let white = "[ \n\t]{0,4}";
    let parts = (
        names,
        prop_oneof![Just("n"), Just("x.conf"), Just("net-2")],
        prop_oneof![Just("0.3.1"), Just("0.4.0"), Just("1.0.0"), Just("1.1.0")],
        proptest::collection::vec((white, json(), white), 0..3),
        proptest::collection::vec(("[k-o]{2}", json()), 0..3),
        white,
    );
    parts.prop_map(|(file, name, version, plugins, more, white)| {
        let mut members =
            vec![format!("{white}\"name\":{white}\"{name}\""), format!("\"cniVersion\":\"{version}\"")];
        members
            .extend(more.into_iter().map(|(key, value)| format!("{white}\"{key}\"{white}:{value}{white}")));
        if file.ends_with(".conflist") {
            let plugins = plugins
                .into_iter()
                .map(|(before, more, after)| format!("{before}{{\"type\":\"p\",\"x\":{more}}}{after}"));
            let plugins: Vec<String> = plugins.collect();
            members.insert(1, format!("\"plugins\":{white}[{}]", plugins.join(",")));
        } else {
            members.push("\"type\":\"p\"".to_owned());
        }
        (file.to_owned(), format!("{white}{{{}}}{white}", members.join(",")))
    })
}

proptest! {
    #[test]
    fn an_uninstall_after_an_install_leaves_every_byte_as_it_was(
        files in proptest::collection::vec(network_file(), 0..4),
        first in prop_oneof![Just(Chains::Perhaps), Just(Chains::Yes), Just(Chains::No)],
        second in prop_oneof![Just(Chains::Perhaps), Just(Chains::Yes), Just(Chains::No)],
    ) {
        let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        let before = folder(&files);
        let mut after = before.clone();
        for chains in [first, second] {
            let Ok(plan) = install(&after, &entry(), chains) else { continue };
            apply(&mut after, &plan.edits);
            prop_assert_eq!(install(&after, &entry(), chains).unwrap().edits, vec![], "{:?}", after);
        }
        prop_assert_eq!(uninstalled(after), before);
    }

    #[test]
    fn an_install_that_breaks_off_after_any_edit_is_completed_by_the_next(
        files in proptest::collection::vec(network_file(), 1..4),
        former in prop_oneof![Just(Chains::Yes), Just(Chains::No)],
        chains in prop_oneof![Just(Chains::Yes), Just(Chains::No)],
        done in 0_usize..8,
    ) {
        let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        let before = folder(&files);
        let mut whole = before.clone();
        if let Ok(plan) = install(&whole, &entry(), former) {
            apply(&mut whole, &plan.edits);
        }
        if let Ok(plan) = install(&whole, &entry(), chains) {
            let mut broken = whole.clone();
            apply(&mut broken, &plan.edits[..done.min(plan.edits.len())]);
            apply(&mut whole, &plan.edits);
            let rest = install(&broken, &entry(), chains).unwrap();
            apply(&mut broken, &rest.edits);
            prop_assert_eq!(&broken, &whole);
        }
        let (edits, _) = uninstall(&whole);
        let mut broken = whole;
        apply(&mut broken, &edits[..done.min(edits.len())]);
        prop_assert_eq!(uninstalled(broken), before);
    }

    #[test]
    fn no_bytes_make_a_plan_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), text in json()) {
        for bytes in [bytes, text.into_bytes()] {
            let mut folder = Folder::default();
            folder.files.insert("a.conflist".into(), bytes);
            let _ = install(&folder, &entry(), Chains::No);
            let _ = uninstall(&folder);
        }
    }
}
