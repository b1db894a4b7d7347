use super::*;

fn texts(annotation: &'static str, value: &str) -> Vec<String> {
    let text = |asked: Asked| match asked.request {
        Ok(Request::RotateRoot) => "rotate".to_owned(),
        Ok(Request::Revoke(Subject::Serial(serial))) => format!("revoke serial {serial}"),
        Ok(Request::Revoke(Subject::Identity(id))) => format!("revoke {id}"),
        Ok(Request::Restore(Subject::Serial(serial))) => format!("restore serial {serial}"),
        Ok(Request::Restore(Subject::Identity(id))) => format!("restore {id}"),
        Err(why) => format!("{}: {why}", asked.value),
    };
    asked(annotation, value).into_iter().map(text).collect()
}

#[test]
fn annotations_are_read_as_requests_and_what_is_none_is_told() {
    assert_eq!(texts(ROTATE, ""), ["rotate"]);
    assert_eq!(texts(ROTATE, "please"), ["rotate"]);
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    assert_eq!(
        texts(REVOKE, &format!("0A:0b, {web}\n")),
        ["revoke serial a0b".replace("a0b", "0a0b"), format!("revoke {web}")]
    );
    assert_eq!(texts(RESTORE, "ff"), ["restore serial ff"]);
    assert_eq!(
        texts(RESTORE, " , "),
        [" , : is empty: it takes serials and SPIFFE IDs, with commas between"]
    );
    assert!(texts(REVOKE, "web")[0].starts_with("web: is no serial: "));
    assert!(texts(REVOKE, "https://x")[0].starts_with("https://x: is no SPIFFE ID: "));
}

#[test]
fn what_is_done_leaves_the_rest_of_its_annotation() {
    let of = |annotation, value: &str| Asked {
        annotation,
        value: value.to_owned(),
        request: Ok(Request::RotateRoot),
    };
    assert_eq!(without(&of(ROTATE, "x"), "x"), None);
    assert_eq!(without(&of(REVOKE, "0a"), "0a, 0b,0c"), Some("0b,0c".to_owned()));
    assert_eq!(without(&of(REVOKE, "0c"), "0c"), None);
    assert_eq!(without(&of(REVOKE, "0d"), "0c"), Some("0c".to_owned()));
}

#[test]
fn a_long_text_is_cut() {
    assert_eq!(shortened("ä"), "ä");
    let long = shortened(&"ä".repeat(TEXT_LEN_MAX));
    assert!(long.len() <= TEXT_LEN_MAX + '…'.len_utf8() && long.ends_with('…'));
}
