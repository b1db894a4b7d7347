use proptest::prelude::*;

use super::*;

fn add() -> Add {
    Add {
        container_id: ContainerId::try_from("c0ffee".to_owned()).unwrap(),
        netns: "/var/run/netns/cni-1".into(),
        ifname: IfName::try_from("eth0".to_owned()).unwrap(),
        pod: PodRef { namespace: "shop".into(), name: "web-0".into(), uid: "6c7b".into() },
        ips: vec!["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
        annotations: Some(BTreeMap::from([("adit.dev/mesh".into(), "disabled".into())])),
        cgroup: Some("/kubepods/pod6c7b".into()),
    }
}

fn serving() -> Serving {
    Serving { agent: "7-1".into(), open: BTreeMap::from([(add().container_id, 3)]) }
}

fn requests() -> Vec<Request> {
    let Add { container_id, netns, ifname, .. } = add();
    vec![
        Request::Add(add()),
        Request::Add(Add { annotations: None, cgroup: None, ips: vec![], ..add() }),
        Request::Del(Del { container_id: container_id.clone(), ifname: ifname.clone() }),
        Request::Check(Check { container_id: container_id.clone(), netns, ifname: ifname.clone() }),
        Request::Gc(Gc { valid: vec![Attachment { container_id, ifname }] }),
        Request::Status,
        Request::Removal,
        Request::Handover,
        Request::Serving(serving()),
    ]
}

#[test]
fn every_request_survives_the_wire() {
    for request in requests() {
        let frame = encode(&request).unwrap();
        assert_eq!(decode(&frame).unwrap(), Some((request, frame.len())));
    }
}

#[test]
fn every_reply_survives_the_wire() {
    for reply in [
        Reply::Ok,
        Reply::Failed(Failure {
            code: Code::TryAgainLater,
            message: "no certificate yet".into(),
            details: "adit check".into(),
        }),
        Reply::Status { release: "0.1.0".into() },
        Reply::Removal { adit: Removal::Stays },
        Reply::Removal { adit: Removal::Undecided },
        Reply::Removal { adit: Removal::Leaves },
        Reply::Successor { ready: true, over: vec![add().container_id] },
    ] {
        let frame = encode(&reply).unwrap();
        assert_eq!(decode(&frame).unwrap(), Some((reply, frame.len())));
    }
}

#[test]
fn a_frame_cut_short_anywhere_is_not_whole_yet() {
    let frame = encode(&Request::Add(add())).unwrap();
    for end in 0..frame.len() {
        assert!(matches!(decode::<Request>(&frame[..end]), Ok(None)), "cut at {end}");
    }
}

#[test]
fn bytes_after_the_frame_are_left() {
    let mut bytes = encode(&Request::Status).unwrap();
    let length = bytes.len();
    bytes.extend_from_slice(b"more");
    assert_eq!(decode(&bytes).unwrap(), Some((Request::Status, length)));
}

#[test]
fn a_length_beyond_the_bound_is_refused_by_the_header_alone() {
    let header = [0, 1, 0xff, 0xff, 0xff, 0xff];
    assert!(matches!(decode::<Request>(&header), Err(FrameError::TooLong(0xffff_ffff))));
    let mut long = add();
    long.netns = "n".repeat(FRAME_LEN_MAX);
    assert!(matches!(encode(&Request::Add(long)), Err(FrameError::TooLong(_))));
}

#[test]
fn as_many_sandboxes_as_may_be_said_to_be_served_fit_a_frame() {
    let id = |number: usize| ContainerId::try_from(format!("{number:0>CONTAINER_ID_LEN_MAX$}")).unwrap();
    let open = (0..SERVING_MAX).map(|number| (id(number), u64::from(u32::MAX))).collect();
    encode(&Request::Serving(Serving { agent: "a".repeat(64), open })).unwrap();
    let over = (0..SERVING_MAX).map(id).collect();
    encode(&Reply::Successor { ready: false, over }).unwrap();
}

#[test]
fn another_version_is_refused_by_name() {
    let mut frame = encode(&Request::Status).unwrap();
    frame[1] = 2;
    assert!(matches!(decode::<Request>(&frame), Err(FrameError::Version(2))));
}

#[test]
fn fields_that_a_later_release_adds_are_ignored() {
    let body = br#"{"verb":"del","container-id":"c0ffee","ifname":"eth0","since":"2027"}"#;
    let mut frame = vec![0, 1, 0, 0, 0, u8::try_from(body.len()).unwrap()];
    frame.extend_from_slice(body);
    assert!(matches!(decode::<Request>(&frame), Ok(Some((Request::Del(_), _)))));
}

#[test]
fn the_question_of_the_installer_has_the_form_that_every_release_keeps() {
    assert_eq!(&encode(&Request::Removal).unwrap()[HEADER_LEN..], br#"{"verb":"removal"}"#);
    let reply = encode(&Reply::Removal { adit: Removal::Leaves }).unwrap();
    assert_eq!(&reply[HEADER_LEN..], br#"{"answer":"removal","adit":"leaves"}"#);
}

#[test]
fn a_request_or_an_answer_of_a_later_release_is_no_message_here() {
    for body in [br#"{"verb":"later"}"#.as_slice(), br#"{"answer":"removal","adit":"later"}"#] {
        let mut frame = vec![0, 1, 0, 0, 0, u8::try_from(body.len()).unwrap()];
        frame.extend_from_slice(body);
        assert!(matches!(decode::<Request>(&frame), Err(FrameError::Body(_))));
        assert!(matches!(decode::<Reply>(&frame), Err(FrameError::Body(_))));
    }
}

#[test]
fn a_container_id_that_is_no_file_name_does_not_parse() {
    for id in ["", "../x", ".", "-a", "a/b", "a b", "a\0", &"a".repeat(129)] {
        assert_eq!(ContainerId::try_from((*id).to_owned()), Err(NameError::ContainerId), "{id:?}");
    }
    assert!(ContainerId::try_from("0a_.-Z".to_owned()).is_ok());
}

#[test]
fn an_interface_name_that_the_kernel_refuses_does_not_parse() {
    for name in ["", ".", "..", "a/b", "a:b", "a b", "sixteen-bytes-xx"] {
        assert_eq!(IfName::try_from((*name).to_owned()), Err(NameError::IfName), "{name:?}");
    }
    assert!(IfName::try_from("fifteen-bytes-x".to_owned()).is_ok());
}

#[test]
fn only_a_namespace_known_to_have_nothing_enrolled_passes_without_the_agent() {
    let file = br#"{"version":1,"namespaces":{"a":"enrolled","b":"unenrolled","c":"excluded"}}"#;
    let known = Namespaces::parse(file).unwrap();
    let passes = ["a", "b", "c", "d"].map(|namespace| known.passes(namespace));
    assert_eq!(passes, [false, true, true, false]);
    assert_eq!(Namespaces::parse(&serde_json::to_vec(&known).unwrap()), Some(known));
}

#[test]
fn a_namespaces_file_that_is_broken_or_of_another_version_tells_nothing() {
    assert_eq!(Namespaces::parse(b"{"), None);
    assert_eq!(Namespaces::parse(br#"{"version":2,"namespaces":{"b":"unenrolled"}}"#), None);
}

proptest! {
    #[test]
    fn no_bytes_make_decode_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let _ = decode::<Request>(&bytes);
        let _ = decode::<Reply>(&bytes);
    }

    #[test]
    fn no_body_behind_a_good_header_makes_decode_panic(body in "\\PC{0,200}") {
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        let mut bytes = VERSION.to_be_bytes().to_vec();
        bytes.extend_from_slice(&length);
        bytes.extend_from_slice(body.as_bytes());
        let _ = decode::<Request>(&bytes);
    }
}
