use super::*;

#[test]
fn three_lines_are_enough_and_the_rest_are_defaults() {
    let config = Config::parse("store: /s\ntokens: /t\npublish: /m\n").unwrap();
    let (store, tokens, publish) = ("/s".into(), "/t".into(), Some("/m".into()));
    assert_eq!(config.place, Place::Directory { store, tokens, publish });
    assert_eq!(config.listen.to_string(), "0.0.0.0:15012");
    assert_eq!(config.leaf_life, Life::DEFAULT);
    assert_eq!(config.acknowledge_within, Duration::from_secs(86_400));
    assert_eq!((config.poll, config.ready_file), (Duration::from_secs(1), None));
    assert_eq!(config.metrics_address, None);
}

#[test]
fn every_key_is_read() {
    let config = Config::parse(
        "store: /s\ntokens: /t\ntrust-domain: Example.ORG\nlisten: '[::1]:0'\nleaf-life: 10s\n\
         server-names: [ca.example, 127.0.0.1, '::1']\nacknowledge-within: 5m\npoll: 20ms\nready-file: /r\n\
         metrics-address: 127.0.0.1:15022\nlog-level: warn,access=info\nlog-format: json\n",
    )
    .unwrap();
    assert_eq!(config.trust_domain.as_str(), "example.org");
    assert_eq!(config.listen, "[::1]:0".parse().unwrap());
    assert_eq!(config.leaf_life.duration(), Duration::from_secs(10));
    assert_eq!(config.server_names.dns, ["ca.example"]);
    assert_eq!(config.server_names.ips, ["127.0.0.1".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()]);
    assert_eq!(config.acknowledge_within, Duration::from_secs(300));
    assert_eq!((config.poll, config.ready_file), (Duration::from_millis(20), Some("/r".into())));
    assert_eq!(config.metrics_address, Some("127.0.0.1:15022".parse().unwrap()));
    assert_eq!((config.log_level.as_str(), config.log_format), ("warn,access=info", LogFormat::Json));
}

#[test]
fn every_mistake_is_in_one_report_with_path_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca.yaml");
    fs::write(
        &path,
        "store: ''\n\
         leaf-life: 25h\n\
         leaf-live: 10s\n\
         listen: localhost\n\
         trust-domain: 1.10\n\
         server-names: [ok.example, 'not ok', [x]]\n\
         poll: 5m\n\
         log-format: {a: b}\n\
         acknowledge-within:\n\
         ready-file: [r]\n",
    )
    .unwrap();
    let text = Config::load(&path).unwrap_err().to_string();
    let lines: Vec<&str> =
        text.lines().map(|line| line.strip_prefix(&path.display().to_string()).unwrap()).collect();
    assert_eq!(
        lines,
        [
            ": tokens: is missing",
            ":1: store: is empty",
            ":2: leaf-life: a life of 90000 s is too long: the most is 86400 s",
            ":3: leaf-live: there is no such key",
            ":4: listen: \"localhost\": invalid socket address syntax",
            ":5: trust-domain: is read as a number: put it in quotes",
            ":6: server-names[1]: \"not ok\" is neither a DNS name nor an address",
            ":6: server-names[2]: must be one value, not a list",
            ":7: poll: \"5m\" is not between 10ms and 1m",
            ":8: log-format: must be one value, not a map",
            ":9: acknowledge-within: has no value",
            ":10: ready-file: must be one value, not a list",
        ]
    );
}

#[test]
fn what_is_no_yaml_map_is_refused_with_its_line() {
    for (text, line) in
        [("- a\n- b\n", 1), ("store: /s\ntokens: [\n", 0), ("store: /s\nstore: /t\n", 2), ("", 0)]
    {
        let mistakes = Config::parse(text).unwrap_err();
        assert!(line == 0 || mistakes[0].line == line, "{text:?}: {mistakes:?}");
    }
    let missing = Config::load(Path::new("/nowhere/ca.yaml")).unwrap_err().to_string();
    assert!(missing.starts_with("/nowhere/ca.yaml: cannot be read"), "{missing}");
}

#[test]
fn a_duration_has_a_unit() {
    for (text, ms) in
        [("500ms", 500), ("10s", 10_000), ("5m", 300_000), ("24h", 86_400_000), ("7d", 604_800_000)]
    {
        assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
    }
    for text in ["", "10", "s", "10 s", "-1s", "1h30m", "99999999999999999999s", "18446744073709551615d"] {
        assert!(duration(text).is_err(), "{text}");
    }
}

#[test]
fn a_cluster_needs_no_name_and_takes_every_one() {
    for text in ["store: {kubernetes: {}}\n", "store:\n  kubernetes:\n"] {
        let config = Config::parse(text).unwrap();
        assert_eq!(config.place, Place::Kubernetes(cluster::Settings::default()), "{text}");
        assert_eq!(config.poll, Duration::from_secs(5), "three questions to the API server each time");
    }
    let config = Config::parse(
        "store:\n  kubernetes:\n    kubeconfig: /k\n    namespace: mesh\n    secret: keys\n    given-secret: own.ca\n    \
         agent: mesh/agents\n    audience: https://ca\n    replica: one\npoll: 2s\n",
    )
    .unwrap();
    let settings = cluster::Settings {
        kubeconfig: Some("/k".into()),
        namespace: "mesh".into(),
        secret: "keys".into(),
        given_secret: "own.ca".into(),
        agent: cluster::Account { namespace: "mesh".into(), name: "agents".into() },
        audience: "https://ca".into(),
        replica: Some("one".into()),
    };
    assert_eq!((config.place, config.poll), (Place::Kubernetes(settings), Duration::from_secs(2)));
}

#[test]
fn what_contradicts_a_cluster_is_named_and_so_is_what_it_does_not_know() {
    let text = "store:\n  kubernetes:\n    secrets: x\n    namespace: a.b\n    agent: adit-agent\n  directory: /s\n\
                tokens: /t\npublish: /m\npoll: 6s\n";
    let mistakes = Config::parse(text).unwrap_err();
    let said: Vec<String> =
        mistakes.iter().map(|Mistake { line, at, what }| format!("{line} {at}: {what}")).collect();
    assert_eq!(
        said,
        [
            "3 store.kubernetes.secrets: there is no such key",
            "4 store.kubernetes.namespace: \"a.b\" is no name of a namespace",
            "5 store.kubernetes.agent: \"adit-agent\" is no ServiceAccount, NAMESPACE/NAME",
            "6 store.directory: there is no such key",
            "7 tokens: not with store.kubernetes: there the ServiceAccounts' tokens say who calls",
            "8 publish: not with store.kubernetes: there the bundle is a ConfigMap",
            "9 poll: \"6s\" is not between 10ms and 5s with store.kubernetes",
        ]
    );
    let said = Config::parse("store: {}\n").unwrap_err();
    assert_eq!((said[0].at.as_str(), said[0].what.as_str()), ("store.kubernetes", "is missing"));
    assert!(Config::parse("store: {kubernetes: x}\n").is_err());
}
