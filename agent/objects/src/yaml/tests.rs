use proptest::prelude::*;
use serde_json::json;

use super::*;

fn values(text: &str) -> Vec<(serde_json::Value, String)> {
    read(text).unwrap().into_iter().map(|document| (document.value, document.at.to_string())).collect()
}

#[test]
fn every_document_says_where_it_begins() {
    let text = "# a comment\nkind: A\n---\n---\n  kind: B\n  list: [1, x, true, null]\n...\n";
    assert_eq!(
        values(text),
        [
            (json!({"kind": "A"}), "2:1".into()),
            (json!({"kind": "B", "list": [1, "x", true, null]}), "5:3".into())
        ]
    );
    assert_eq!(values("# nothing\n"), []);
    assert_eq!(values(""), []);
}

#[test]
fn elements_of_a_list_are_documents() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- kind: A\n- kind: B\n";
    assert_eq!(values(text), [(json!({"kind": "A"}), "4:3".into()), (json!({"kind": "B"}), "5:3".into())]);
}

#[test]
fn a_text_may_have_many_documents_and_a_list_many_elements() {
    let pod = "kind: Pod\nmetadata: {name: p, labels: {a: b, c: d, e: f}}\n";
    assert_eq!(read(&format!("{pod}---\n").repeat(5000)).unwrap().len(), 5000);
    let items = "- kind: Pod\n  metadata: {name: p, labels: {a: b, c: d, e: f}}\n".repeat(20_000);
    let list = format!("apiVersion: v1\nkind: List\nitems:\n{items}");
    assert_eq!(read(&list).unwrap().len(), 20_000);
}

#[test]
fn a_field_is_found_in_its_text_or_else_its_parent() {
    let text = "spec:\n  rules:\n  - to:\n    - ports: [80,\n        99999]\n";
    let document = &read(text).unwrap()[0];
    let rule = FieldPath::of(["spec", "rules"]).index(0);
    let ports = rule.key("to").index(0).key("ports");
    for (field, at) in [
        (ports.index(1), "5:9"),
        (ports.index(0), "4:15"),
        (rule.key("from"), "3:5"),
        (FieldPath::ROOT, "1:1"),
        (FieldPath::of(["status"]), "1:1"),
    ] {
        assert_eq!(document.locate(&field).to_string(), at, "{field}");
    }
}

#[test]
fn an_error_says_where_on_one_line() {
    for (text, line) in [
        ("kind: A\n---\nkind: [B\n", 4),
        ("a: 1\na: 2\n", 2),
        ("a:\n\tb: 1\n", 2),
        ("kind: A\n---\nx: *nowhere\n", 3),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.at.line.abs_diff(line) <= 1, "{text:?}: {error}");
        assert!(!error.message.is_empty() && !error.message.contains('\n'), "{error}");
    }
}

#[test]
fn words_of_old_yaml_stay_words() {
    assert_eq!(
        values("a: yes\nb: off\nc: 10\nd: \"80\"\ne: 80\n")[0].0,
        json!({"a": "yes", "b": "off", "c": 10, "d": "80", "e": 80})
    );
}

#[test]
fn a_bomb_of_aliases_is_refused() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for at in 1..12 {
        let inner = vec![format!("*a{}", at - 1); 10].join(", ");
        text.push_str(&format!("a{at}: &a{at} [{inner}]\n"));
    }
    read(&text).unwrap_err();
}

proptest! {
    #[test]
    fn reading_never_panics(text in "[a-c:\\- \n\\[\\]{}&*!|>'\"#,?%@`\t0-9]{0,80}") {
        let _ = read(&text);
    }
}
