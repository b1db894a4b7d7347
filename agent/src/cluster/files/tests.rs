use super::*;

const A: &str = "/mesh/objects/a.yaml";
const B: &str = "/mesh/objects/b.yaml";

fn namespace(name: &str, mesh: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels: {{adit.dev/mesh: {mesh}}}\n---\n"
    )
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: policy.adit.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}}}\nspec: {spec}\n---\n"
    )
}

fn files() -> Files {
    Files::new("adit-system".into())
}

fn text(path: &str, text: impl Into<String>) -> (PathBuf, Reading) {
    (path.into(), Reading::Text(text.into()))
}

fn gone(path: &str) -> (PathBuf, Reading) {
    (path.into(), Reading::Gone)
}

/// Changes of namespaces, in short: `+name` with its label, `-name`.
#[expect(clippy::wildcard_enum_match_arm, reason = "these tests have no other objects")]
fn short(update: Update) -> Vec<String> {
    assert!(update.again.is_empty(), "{:?}", update.again);
    let word = |change| match change {
        Change::Namespace(namespace) => format!("+{} {:?}", namespace.name, namespace.mesh),
        Change::NamespaceGone(name) => format!("-{name}"),
        other => panic!("{other:?}"),
    };
    update.changes.into_iter().map(word).collect()
}

fn troubles(files: &Files) -> Vec<String> {
    files.troubles().iter().map(ToString::to_string).collect()
}

#[test]
fn objects_come_change_and_go_with_their_file() {
    let mut files = files();
    let both = namespace("x", "enabled") + &namespace("y", "enabled");
    assert_eq!(short(files.update([text(A, both)])), ["+x Some(Enabled)", "+y Some(Enabled)"]);
    assert_eq!(
        short(files.update([text(A, namespace("y", "enabled") + &namespace("x", "disabled"))])),
        ["+x Some(Disabled)"]
    );
    assert_eq!(short(files.update([text(A, namespace("x", "disabled"))])), ["-y"]);
    assert_eq!(short(files.update([gone(A)])), ["-x"]);
    assert_eq!(short(files.update([gone(A)])), [""; 0]);
    assert_eq!(files.paths().count(), 0);
    assert!(files.places.is_empty());
}

#[test]
fn an_object_that_moves_between_files_does_not_go() {
    let mut files = files();
    files.update([text(A, namespace("x", "enabled"))]);
    assert_eq!(short(files.update([gone(A), text(B, namespace("x", "enabled"))])), [""; 0]);
    assert_eq!(short(files.update([text(A, namespace("x", "enabled")), gone(B)])), [""; 0]);
    assert_eq!(short(files.update([gone(A), text(B, namespace("x", "disabled"))])), ["+x Some(Disabled)"]);
}

#[test]
fn a_broken_file_keeps_its_objects_and_says_where() {
    let mut files = files();
    files.update([text(A, namespace("x", "enabled")), text(B, namespace("y", "enabled"))]);
    let changes = files.update([text(A, "kind: [\n"), text(B, namespace("y", "disabled"))]);
    assert_eq!(short(changes), ["+y Some(Disabled)"], "the others go on");
    let [trouble] = &troubles(&files)[..] else { panic!() };
    assert!(trouble.starts_with("/mesh/objects/a.yaml:"), "{trouble}");
    assert!(!files.is_good(Path::new(A)) && files.is_good(Path::new(B)));
    assert_eq!(short(files.update([(A.into(), Reading::Unreadable("no permission".into()))])), [""; 0]);
    assert_eq!(troubles(&files), ["/mesh/objects/a.yaml: cannot be read: no permission"]);
    assert_eq!(short(files.update([text(A, namespace("x", "enabled"))])), [""; 0]);
    assert_eq!(troubles(&files), [""; 0], "mended");
}

#[test]
fn a_broken_file_that_was_never_good_is_shown_and_has_nothing() {
    let mut files = files();
    assert_eq!(short(files.update([text(A, "a: b: c")])), [""; 0]);
    assert_eq!(troubles(&files).len(), 1);
    assert_eq!(short(files.update([gone(A)])), [""; 0]);
    assert_eq!(troubles(&files), [""; 0]);
}

#[test]
fn a_rejected_object_keeps_its_version_and_the_others_of_its_file_go_on() {
    let mut files = files();
    files.update([text(A, namespace("x", "enabled") + &namespace("y", "enabled"))]);
    let bad = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: x\n  labels: [a]\n---\n";
    let changes = files.update([text(A, format!("{bad}{}", namespace("y", "disabled")))]);
    assert_eq!(short(changes), ["+y Some(Disabled)"]);
    let [trouble] = &troubles(&files)[..] else { panic!() };
    assert!(trouble.starts_with("/mesh/objects/a.yaml:5:11: Namespace x: metadata.labels: "), "{trouble}");
    assert!(!files.is_good(Path::new(A)));
    assert_eq!(short(files.update([text(A, namespace("y", "disabled"))])), ["-x"]);
}

#[test]
fn a_rejected_object_without_a_namespace_is_found_in_default() {
    let mut files = files();
    let good = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: [{port: 80}]}\n";
    assert_eq!(files.update([text(A, good)]).changes.len(), 1);
    let bad = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec: {ports: 80}\n";
    assert_eq!(files.update([text(A, bad)]).changes, []);
    assert_eq!(troubles(&files).len(), 1);
}

#[test]
fn of_two_files_with_one_object_the_first_by_name_counts() {
    let mut files = files();
    files.update([text(B, namespace("x", "disabled"))]);
    assert_eq!(short(files.update([text(A, namespace("x", "enabled"))])), ["+x Some(Enabled)"]);
    assert_eq!(
        troubles(&files),
        ["/mesh/objects/b.yaml:1:1: Namespace x: is in /mesh/objects/a.yaml too, which counts"]
    );
    assert_eq!(short(files.update([text(B, namespace("x", "enabled"))])), [""; 0]);
    files.update([text(B, namespace("x", "disabled"))]);
    let update = files.update([gone(A)]);
    assert_eq!((update.changes, update.again), (vec![], BTreeSet::from([Path::new(B).into()])));
    assert_eq!(short(files.update([text(B, namespace("x", "disabled"))])), ["+x Some(Disabled)"]);
    assert_eq!(short(files.update([text(B, namespace("x", "disabled"))])), [""; 0]);
    assert_eq!(troubles(&files), [""; 0]);
    let twice = namespace("z", "enabled") + &namespace("z", "disabled");
    assert_eq!(short(files.update([text(A, twice)])), ["+z Some(Enabled)"]);
    assert_eq!(troubles(&files).len(), 1);
}

#[test]
fn a_finished_pod_is_gone() {
    let mut files = files();
    let pod = |phase: &str| {
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p, uid: u}}\nstatus: {{phase: {phase}}}\n")
    };
    assert!(matches!(files.update([text(A, pod("Running"))]).changes[..], [Change::Pod(_)]));
    assert_eq!(
        files.update([text(A, pod("Succeeded"))]).changes,
        [Change::PodGone(ObjectName::new("default", "p"))]
    );
    assert_eq!(files.update([gone(A)]).changes, []);
}

#[test]
fn each_policy_says_whether_it_is_accepted_and_why_not() {
    let mut files = files();
    let peers = |name: &str, created: &str| {
        format!(
            "apiVersion: policy.adit.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {{name: {name}, creationTimestamp: {created}}}\n---\n"
        )
    };
    let traffic = |name: &str| {
        format!(
            "apiVersion: policy.adit.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}}}\nspec: {{targetRefs: [{{kind: Service, name: s}}]}}\n---\n"
        )
    };
    let all = policy("good", "{}")
        + &policy("bad", "{rules: [{to: [{operation: {ports: [0]}}]}]}")
        + &peers("new", "2026-01-02T00:00:00Z")
        + &peers("old", "2026-01-01T00:00:00Z")
        + &traffic("a")
        + &traffic("b")
        + &namespace("x", "enabled");
    files.update([text(A, all)]);
    let said: Vec<_> = files
        .policies()
        .into_iter()
        .map(|status| {
            format!(
                "{} {}/{} {} {}",
                status.kind,
                status.namespace,
                status.name,
                status.accepted,
                status.problems.join("; ")
            )
        })
        .collect();
    assert_eq!(
        said,
        [
            "AuthorizationPolicy default/bad false spec.rules[0].to[0].operation.ports[0]: is \"0\", not a port (1 to 65535)",
            "AuthorizationPolicy default/good true ",
            "PeerAuthentication default/new false spec: does not count: default/old is for the same and older",
            "PeerAuthentication default/old true ",
            "TrafficPolicy default/a true ",
            "TrafficPolicy default/b false spec: does not count: default/a is for the same and older",
        ]
    );
    assert_eq!(
        troubles(&files),
        [
            "/mesh/objects/a.yaml:9:43: AuthorizationPolicy default/bad: spec.rules[0].to[0].operation.ports[0]: is \"0\", not a port (1 to 65535)"
        ]
    );
    assert!(files.is_good(Path::new(A)), "what is not understood is in force all the same");
}
