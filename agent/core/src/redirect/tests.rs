//! What is written, on top of what stands; the golden files were printed by iptables 1.8.9, both back ends.

use std::sync::Arc;

use super::*;
use crate::workload::Skip;

/// (back end, family, save text of a namespace that holds exactly [`wanted`]).
const APPLIED: [(&str, Family, &str); 4] = [
    ("nft", Family::V4, include_str!("golden/nft-v4.save")),
    ("nft", Family::V6, include_str!("golden/nft-v6.save")),
    ("legacy", Family::V4, include_str!("golden/legacy-v4.save")),
    ("legacy", Family::V6, include_str!("golden/legacy-v6.save")),
];

/// A pod's own rules, of every kind that must survive us, printed by both back ends.
const OWN_RULES: [&str; 2] = [include_str!("golden/nft-own.save"), include_str!("golden/legacy-own.save")];

fn wanted() -> Wanted {
    let skip = Skip {
        outbound_ports: vec![5432..=5432, 6000..=6010],
        outbound_cidrs: vec!["10.9.8.7/16".parse().unwrap(), "fd00:9::/32".parse().unwrap()],
        inbound_ports: vec![9100..=9100],
        ..Skip::default()
    };
    Wanted::new(Mark::new(0x89ab_cdef).unwrap(), Arc::new(skip))
}

fn text(edits: &[Edit]) -> String {
    edits.iter().map(|edit| edit.text.as_str()).collect()
}

fn tables(edits: &[Edit]) -> Vec<Table> {
    edits.iter().map(|edit| edit.table).collect()
}

#[test]
fn an_empty_namespace_gets_every_table_in_order() {
    for (family, golden) in [
        (Family::V4, include_str!("golden/apply-v4.restore")),
        (Family::V6, include_str!("golden/apply-v6.restore")),
    ] {
        let edits = plan("", &wanted(), family);
        assert_eq!(text(&edits), golden);
        assert_eq!(tables(&edits), [Table::Raw, Table::Mangle, Table::Nat, Table::Filter]);
        assert!(edits.iter().all(|edit| edit.family == family));
    }
}

#[test]
fn a_namespace_that_is_as_wanted_gets_no_edit_whatever_back_end_printed_it() {
    for (backend, family, save) in APPLIED {
        assert_eq!(plan(save, &wanted(), family), [], "{backend} {family}");
        assert_eq!(compare(save, &wanted(), family), [], "{backend} {family}");
        assert!(holds_ours(save) && !holds_others(save), "{backend} {family}");
    }
}

#[test]
fn another_version_s_way_of_printing_is_no_drift() {
    let (_, family, save) = APPLIED[0];
    let other = save.replace(" --mark 0x89abcdef", " --mark 0x89ABCDEF/0xffffffff").replace(
        "-m tcp ! --dport 15008 --tcp-flags FIN,SYN,RST,ACK SYN",
        "-m tcp --tcp-flags FIN,SYN,RST,ACK SYN ! --dport 15008",
    );
    assert_ne!(other, save);
    assert_eq!(compare(&other, &wanted(), family), []);
}

#[test]
fn every_line_that_is_taken_away_or_changed_is_seen_and_its_table_written_again() {
    for (backend, family, save) in APPLIED {
        let lines: Vec<&str> = save.lines().collect();
        let ours = |line: &str| line.contains("ADIT_") && line.starts_with("-A");
        for gone in (0..lines.len()).filter(|at| ours(lines[*at])) {
            let without: Vec<&str> =
                lines.iter().enumerate().filter(|(at, _)| *at != gone).map(|(_, line)| *line).collect();
            let without = without.join("\n");
            let table = lines[..gone].iter().rev().find_map(|line| line.strip_prefix('*')).unwrap();
            let edits = plan(&without, &wanted(), family);
            assert_eq!(edits.len(), 1, "{backend} {family} without {}", lines[gone]);
            assert_eq!(edits[0].table.name(), table);
            assert_eq!(compare(&without, &wanted(), family).len(), 1, "without {}", lines[gone]);

            let mut changed = lines.clone();
            let line = format!("{} -m comment --comment \"x\"", lines[gone]);
            changed[gone] = &line;
            assert_eq!(plan(&changed.join("\n"), &wanted(), family).len(), 1, "changed {}", lines[gone]);
        }
    }
}

#[test]
fn a_right_jump_is_not_touched_when_rules_are_repaired() {
    let (_, family, save) = APPLIED[0];
    let flushed: Vec<&str> = save
        .lines()
        .filter(|line| !(line.starts_with("-A ADIT_OUTPUT") && line.contains("RETURN")))
        .collect();
    let edits = plan(&flushed.join("\n"), &wanted(), family);
    assert_eq!(tables(&edits), [Table::Nat]);
    assert!(!edits[0].text.contains("-I ") && !edits[0].text.contains("-D "), "{}", edits[0].text);
}

#[test]
fn a_doubled_or_displaced_jump_becomes_one_at_the_top() {
    let (_, family, save) = APPLIED[0];
    for (before, after) in [
        ("-A OUTPUT -j ADIT_OUTPUT\n", "-A OUTPUT -j ADIT_OUTPUT\n-A OUTPUT -j ADIT_OUTPUT\n"),
        ("-A OUTPUT -j ADIT_OUTPUT\n", "-A OUTPUT -p udp -j ACCEPT\n-A OUTPUT -j ADIT_OUTPUT\n"),
        ("-A OUTPUT -j ADIT_OUTPUT\n", "-A OUTPUT -p tcp -j ADIT_OUTPUT\n"),
    ] {
        let nat = save.find("*nat").unwrap();
        let (head, tail) = save.split_at(nat);
        let edits = plan(&format!("{head}{}", tail.replacen(before, after, 1)), &wanted(), family);
        assert_eq!(tables(&edits), [Table::Nat], "{after}");
        let written = &edits[0].text;
        assert_eq!(written.matches("-I OUTPUT 1 -j ADIT_OUTPUT").count(), 1, "{written}");
        assert_eq!(
            written.matches("-D OUTPUT").count(),
            after.matches("-j ADIT_OUTPUT").count(),
            "{written}"
        );
        assert!(!written.contains("udp"), "{written}");
    }
}

#[test]
fn removal_takes_every_copy_of_every_jump_and_leaves_the_rest_of_the_table() {
    let (_, family, save) = APPLIED[0];
    let twice = save.replace(
        "-A OUTPUT -j ADIT_OUTPUT\n",
        "-A OUTPUT -j ADIT_OUTPUT\n-A OUTPUT -j ACCEPT\n-A OUTPUT -j ADIT_OUTPUT\n",
    );
    let first = removal(&twice, Part::FilterAndNat, family);
    assert_eq!(tables(&first), [Table::Filter, Table::Nat]);
    let rest = removal(&twice, Part::Rest, family);
    assert_eq!(tables(&rest), [Table::Mangle, Table::Raw]);
    assert_eq!(
        first[1].text,
        "*nat\n-D PREROUTING -j ADIT_PREROUTING\n-D OUTPUT -j ADIT_OUTPUT\n-D OUTPUT -j ADIT_OUTPUT\n\
         -F ADIT_OUTPUT\n-F ADIT_PREROUTING\n-X ADIT_OUTPUT\n-X ADIT_PREROUTING\nCOMMIT\n"
    );
    assert_eq!(removal("", Part::FilterAndNat, family), []);
}

#[test]
fn a_pods_own_rules_are_neither_deleted_nor_taken_for_ours() {
    for save in OWN_RULES {
        assert!(holds_others(save) && holds_others_nat(save) && !holds_ours(save));
        let edits = plan(save, &wanted(), Family::V4);
        assert_eq!(edits.len(), 4);
        assert!(!text(&edits).contains("-D "), "{}", text(&edits));
        assert_eq!(removal(save, Part::FilterAndNat, Family::V4), []);
    }
}

#[test]
fn a_comment_that_names_our_chain_is_no_jump() {
    let save = "*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -m comment --comment \"a \\\" -j ADIT_OUTPUT\" -j ACCEPT\nCOMMIT\n";
    assert!(!text(&plan(save, &wanted(), Family::V4)).contains("-D "));
    assert!(holds_others_nat(save));
}

#[test]
fn chains_of_another_version_of_ours_go_with_the_jumps_to_them() {
    let (_, family, save) = APPLIED[0];
    let older = save.replacen(
        "*nat\n",
        "*nat\n:ADIT_OLD - [0:0]\n-A POSTROUTING -j ADIT_OLD\n-A ADIT_OLD -j ACCEPT\n",
        1,
    );
    let stale = Drift::Stale { family, table: Table::Nat, chain: "ADIT_OLD".to_owned() };
    assert_eq!(compare(&older, &wanted(), family), [stale]);
    let edits = plan(&older, &wanted(), family);
    assert!(
        edits[0].text.contains("-D POSTROUTING -j ADIT_OLD\n-F ADIT_OLD\n-X ADIT_OLD\n"),
        "{}",
        edits[0].text
    );
}

#[test]
fn without_the_socket_match_every_port_is_redirected() {
    let edits = plan("", &wanted().without_socket_match(), Family::V4);
    assert!(!text(&edits).contains("-m socket"));
    assert_eq!(text(&plan("", &wanted(), Family::V4)).replace("-m socket --nowildcard ", ""), text(&edits));
}

#[test]
fn skips_that_cover_all_or_nothing_are_written_as_iptables_prints_them() {
    let skip = Skip {
        outbound_ports: vec![0..=0, 0..=3],
        outbound_cidrs: vec!["0.0.0.0/0".parse().unwrap()],
        inbound_ports: vec![1..=65535],
        ..Skip::default()
    };
    let written = text(&plan("", &Wanted::new(Mark::from_draw(0), Arc::new(skip)), Family::V4));
    assert!(written.contains("-A ADIT_OUTPUT -j RETURN\n"));
    assert!(written.contains("-A ADIT_OUTPUT -p tcp -m tcp --dport 1:3 -j RETURN\n"));
    assert!(written.contains("-A ADIT_INPUT -p tcp -m tcp --dport 1:65535 -j RETURN\n"));
    assert!(!written.contains("--dport 0"));
}

#[test]
fn a_mark_is_neither_none_nor_the_connections_and_shows_itself_nowhere() {
    assert_eq!(Mark::new(0), None);
    assert_eq!(Mark::new(CONN_MARK), None);
    for draw in [0, u64::MAX, u64::from(CONN_MARK) << 32, 1 << 32] {
        let mark = Mark::from_draw(draw);
        assert_eq!(Mark::new(mark.value()), Some(mark));
    }
    assert_eq!(format!("{:?}", Mark::from_draw(u64::MAX)), "Mark(..)");
}

#[test]
fn no_text_makes_the_reader_panic() {
    for text in [
        "",
        "*",
        ":",
        "-A",
        "-A ",
        "*nat\n-A",
        "*nat\n-A OUTPUT",
        "*nat\n:\n-A X -j",
        "\"",
        "*nat\n-A X -j \"",
        "*raw\n-A X \\",
    ] {
        let _edits = plan(text, &wanted(), Family::V6);
        let _edits = removal(text, Part::Rest, Family::V6);
    }
}

proptest::proptest! {
    #[test]
    fn what_was_planned_on_any_text_is_never_empty_while_something_differs(text in "(\\*(nat|raw|filter)\n|:(OUTPUT|ADIT_OUTPUT|X) (-|ACCEPT)\n|-A (OUTPUT|ADIT_OUTPUT|X) -j (ADIT_OUTPUT|ACCEPT|\"\\\\)\n| ?){0,12}") {
        let drifted = !compare(&text, &wanted(), Family::V4).is_empty();
        proptest::prop_assert_eq!(drifted, !plan(&text, &wanted(), Family::V4).is_empty());
    }
}
