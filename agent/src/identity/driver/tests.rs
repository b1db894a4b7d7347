//! The driver under paused time, with a CA that answers from a script.

use std::collections::VecDeque;
use std::path::Path;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::super::certs::{self, CertSource};
use super::super::journal::Keeping;
use super::super::testing::{Authority, Spec, bundle, id, wall};
use adit_core::trust::TrustBundle;
use adit_proto::Reason;

use super::*;

/// A request as the CA gets it, with the place for its answer.
pub(in super::super) struct Asked {
    id: SpiffeId,
    csr: String,
    reply: oneshot::Sender<Result<Vec<String>, CaError>>,
}

pub(in super::super) async fn ask(
    asked: &mpsc::UnboundedSender<Asked>,
    id: &SpiffeId,
    csr: String,
) -> Result<Vec<String>, CaError> {
    let (reply, answer) = oneshot::channel();
    asked.send(Asked { id: id.clone(), csr, reply }).map_err(|_| CaError::TimedOut)?;
    answer.await.unwrap_or(Err(CaError::TimedOut))
}

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Longer than anything waits for here, in virtual time.
const EVER: Duration = Duration::from_secs(10 * 24 * 3600);

/// A running driver and the hands on all its inputs.
struct Bench {
    root: Authority,
    issuing: Authority,
    clock: Clock,
    needs: Needs,
    certs: CertSource,
    trust: watch::Sender<Arc<TrustBundle>>,
    acknowledged: watch::Receiver<u64>,
    status: watch::Receiver<Arc<[IdentityStatus]>>,
    asked: mpsc::UnboundedReceiver<Asked>,
    serials: u8,
    _running: JoinSet<()>,
}

impl Bench {
    fn new() -> Self {
        let root = Authority::root("root");
        let issuing = root.intermediate("issuing", &[0x70]);
        Self::start(root, issuing, Clock::paused(wall()), None)
    }

    fn start(root: Authority, issuing: Authority, clock: Clock, journal: Option<&Path>) -> Self {
        let tls = Tls::new(clock);
        let (asked_tx, asked) = mpsc::unbounded_channel();
        let (trust, trust_seen) = watch::channel(Arc::new(bundle(1, &[&root])));
        let (publish, certs) = {
            let first = Trust::new(trust_seen.borrow().clone(), tls.algorithms()).unwrap();
            certs::channel(tls.clone(), Arc::new(first))
        };
        let (driver, outlets) = Driver::new(Inlets {
            clock,
            tls,
            ca: Issuer::Script(asked_tx),
            trust: trust_seen,
            journal: Journal::open(journal).0,
            publish,
            policy: Policy::default(),
            seed: Seed(7),
        });
        let mut running = JoinSet::new();
        running.spawn(driver.run());
        Self {
            root,
            issuing,
            clock,
            needs: outlets.needs,
            certs,
            trust,
            acknowledged: outlets.acknowledged,
            status: outlets.status,
            asked,
            serials: 0,
            _running: running,
        }
    }

    async fn next(&mut self) -> Asked {
        timeout(EVER, self.asked.recv()).await.expect("nothing is asked any more").expect("driver is gone")
    }

    /// Answers with a sound certificate of this life.
    fn grant(&mut self, asked: Asked, life: Duration) {
        let spec = self.spec(&asked.id, life);
        let answer = self.issuing.answer(&spec, &asked.csr, &self.root);
        asked.reply.send(Ok(answer)).unwrap();
    }

    fn spec(&mut self, id: &SpiffeId, life: Duration) -> Spec {
        self.serials += 1;
        let now = self.since_start().as_secs();
        Spec {
            from: i64::try_from(now).unwrap() - 300,
            to: i64::try_from(now + life.as_secs()).unwrap(),
            serial: vec![self.serials],
            ..Spec::of(id)
        }
    }

    fn since_start(&self) -> Duration {
        self.clock.now().wall.duration_since(wall()).unwrap()
    }

    fn serial(&self, name: &str) -> Option<String> {
        self.certs.certificate(&id(name)).map(|served| served.serial.to_string())
    }

    /// The first certificate of an identity.
    async fn obtain(&mut self, name: &str) {
        self.needs.need(id(name));
        let asked = self.next().await;
        assert_eq!(asked.id, id(name));
        self.grant(asked, DAY);
        timeout(EVER, self.certs.wait_for(&id(name))).await.unwrap();
    }

    async fn settled(&mut self, condition: impl Fn(&[IdentityStatus]) -> bool) {
        timeout(EVER, self.status.wait_for(|status| condition(status)))
            .await
            .expect("never settles")
            .unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_needed_identity_is_requested_served_and_renewed_at_half_of_its_life() {
    let mut bench = Bench::new();
    assert_eq!(bench.certs.server(&id("web")).unwrap_err().id, id("web"));
    bench.obtain("web").await;
    assert_eq!(bench.serial("web").as_deref(), Some("1"));
    let (before, first) = (bench.certs.generation(&id("web")), bench.certs.server(&id("web")).unwrap());
    assert!(Arc::ptr_eq(&first, &bench.certs.server(&id("web")).unwrap()), "made once per generation");

    let renewal = bench.next().await;
    let at = bench.since_start();
    assert!(at >= DAY.mul_f64(0.4) && at <= DAY.mul_f64(0.6), "{at:?}");
    assert_eq!(
        bench.serial("web").as_deref(),
        Some("1"),
        "the old one serves while the new one is asked for"
    );
    bench.grant(renewal, DAY);
    bench.settled(|status| status[0].serial.as_deref() == Some("2")).await;
    assert_ne!(bench.certs.generation(&id("web")), before);
    assert!(!Arc::ptr_eq(&first, &bench.certs.server(&id("web")).unwrap()));
}

#[tokio::test(start_paused = true)]
async fn without_a_ca_the_old_certificate_serves_to_its_expiry_and_the_ca_is_asked_for_ever() {
    let mut bench = Bench::new();
    bench.obtain("web").await;
    let mut refused = 0;
    while bench.serial("web").is_some() {
        bench.next().await.reply.send(Err(CaError::TimedOut)).unwrap();
        refused += 1;
        bench.settled(|status| status[0].failures > 0 || status[0].serial.is_none()).await;
    }
    let expired = bench.since_start();
    assert!(expired >= DAY && expired <= DAY + Duration::from_secs(61), "{expired:?}");
    assert!(refused > 500, "twelve hours of retries within a minute of each other, not {refused}");
    let (kind, text) = bench.status.borrow()[0].last_failure.clone().unwrap();
    assert_eq!((kind, &*text), (Failure::Unreachable, "CA did not answer within 10s"));
    let asked = bench.next().await;
    bench.grant(asked, DAY);
    timeout(EVER, bench.certs.wait_for(&id("web"))).await.unwrap();
    assert_eq!(bench.status.borrow()[0].last_failure, None);
}

#[tokio::test(start_paused = true)]
async fn what_peers_would_refuse_is_not_served_and_says_why() {
    let mut bench = Bench::new();
    let stranger = Authority::root("stranger");
    bench.needs.need(id("web"));
    let mut failures: VecDeque<&str> = VecDeque::from([
        "certificate is for spiffe://cluster.local/ns/shop/sa/cart",
        "leads to no root of its trust domain",
        "expired at",
        "certificate is a CA's",
        "answer is no chain of PEM certificates",
        "does not match the key",
        "more than 16 certificates",
    ]);
    for round in 0..failures.len() {
        let asked = bench.next().await;
        let sound = bench.spec(&id("web"), DAY);
        let answer = match round {
            0 => bench.issuing.answer(
                &Spec { uris: Spec::of(&id("cart")).uris, ..sound },
                &asked.csr,
                &bench.root,
            ),
            1 => stranger.answer(&sound, &asked.csr, &stranger),
            2 => bench.issuing.answer(&Spec { from: -400, to: -1, ..sound }, &asked.csr, &bench.root),
            3 => {
                let is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
                bench.issuing.answer(&Spec { is_ca, ..sound }, &asked.csr, &bench.root)
            }
            4 => vec!["no PEM at all".into()],
            5 => {
                let other = csr::new_key_and_request(&id("web")).unwrap();
                bench.issuing.answer(&sound, &other.pem, &bench.root)
            }
            _ => vec![bench.root.pem().repeat(17)],
        };
        asked.reply.send(Ok(answer)).unwrap();
        let count = u32::try_from(round).unwrap() + 1;
        bench.settled(|status| status[0].failures == count).await;
        let (kind, text) = bench.status.borrow()[0].last_failure.clone().unwrap();
        let wanted = failures.pop_front().unwrap();
        assert_eq!(kind, Failure::Unusable);
        assert!(text.contains(wanted), "{text} should contain {wanted}");
        assert_eq!(bench.serial("web"), None);
    }
    let asked = bench.next().await;
    bench.grant(asked, DAY);
    timeout(EVER, bench.certs.wait_for(&id("web"))).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_identity_is_withdrawn_and_a_late_answer_is_thrown_away() {
    let mut bench = Bench::new();
    bench.obtain("web").await;
    bench.needs.forget(id("web"));
    bench.settled(<[_]>::is_empty).await;
    assert_eq!(bench.certs.generation(&id("web")), 0);
    bench.needs.need(id("api"));
    let late = bench.next().await;
    bench.needs.forget(id("api"));
    bench.settled(<[_]>::is_empty).await;
    bench.grant(late, DAY);
    bench.obtain("cart").await;
    assert_eq!(bench.serial("api"), None);
}

#[tokio::test(start_paused = true)]
async fn a_changed_bundle_is_used_then_acknowledged_and_replaces_what_it_revokes() {
    let mut bench = Bench::new();
    bench.obtain("web").await;
    bench.obtain("api").await;
    assert_eq!(*bench.acknowledged.borrow(), 1);
    let (web, api) = (bench.certs.generation(&id("web")), bench.certs.generation(&id("api")));
    let mut waiting = bench.certs.clone();

    // Lists that are only signed anew change nothing but the acknowledged generation.
    let mut same = bundle(2, &[&bench.root]);
    same.crls.push(bench.root.crl(&[]));
    bench.trust.send_replace(Arc::new(same));
    timeout(EVER, bench.acknowledged.wait_for(|generation| *generation == 2)).await.unwrap().unwrap();
    assert_eq!(bench.certs.generation(&id("web")), web);

    // What cannot be read is neither used nor acknowledged.
    let mut broken = bundle(9, &[&bench.root]);
    broken.crls.push(Arc::from([1, 2, 3]));
    bench.trust.send_replace(Arc::new(broken));
    assert!(timeout(DAY / 100, bench.acknowledged.changed()).await.is_err());

    let mut killing = bundle(3, &[&bench.root]);
    killing.crls.push(bench.root.crl(&[&[1]]));
    bench.trust.send_replace(Arc::new(killing));
    timeout(EVER, bench.acknowledged.wait_for(|generation| *generation == 3)).await.unwrap().unwrap();
    timeout(Duration::from_millis(1), waiting.trust_changed()).await.expect("the change is told");
    assert!(timeout(DAY / 100, waiting.trust_changed()).await.is_err(), "and told once");
    assert_ne!(bench.certs.generation(&id("api")), api, "configurations hold the new kill list");
    let peer = |serial: &str, of: &str| super::super::Peer {
        id: of.parse().unwrap(),
        serial: serial.into(),
        above: [].into(),
        not_after: SystemTime::UNIX_EPOCH,
        tls: super::super::TlsFacts { version: "", suite: "", group: "" },
    };
    let revoked = Some(Reason::IdentityRevoked);
    assert_eq!(bench.certs.distrusts(&peer("1", id("web").as_str())), revoked);
    assert_eq!(bench.certs.distrusts(&peer("2", id("api").as_str())), None);
    assert_eq!(bench.certs.distrusts(&peer("2", "spiffe://gone.local/ns/shop/sa/api")), revoked);

    let asked = timeout(Duration::from_secs(2), bench.asked.recv()).await.expect("replaced at once").unwrap();
    assert_eq!(asked.id, id("web"), "only what is revoked is replaced");
    bench.grant(asked, DAY);
    bench.settled(|status| status[1].serial.as_deref() == Some("3")).await;
}

#[tokio::test(start_paused = true)]
async fn calls_are_bounded_and_stuck_renewals_do_not_keep_a_new_identity_waiting() {
    let mut bench = Bench::new();
    for n in 0..20 {
        bench.needs.need(id(&format!("a{n}")));
    }
    let mut open = Vec::new();
    while let Ok(Some(asked)) = timeout(Duration::from_secs(60), bench.asked.recv()).await {
        open.push(asked);
    }
    assert_eq!(open.len(), FIRST_CALLS_MAX);
    for asked in open {
        bench.grant(asked, DAY);
    }
    for _ in FIRST_CALLS_MAX..20 {
        let asked = bench.next().await;
        bench.grant(asked, DAY);
    }
    bench.settled(|status| status.iter().all(|status| status.serial.is_some())).await;
    let mut stuck = Vec::new();
    while bench.since_start() < DAY.mul_f64(0.9) {
        if let Ok(asked) = timeout(DAY / 10, bench.asked.recv()).await {
            stuck.push(asked);
        }
    }
    assert_eq!(stuck.len(), RENEWAL_CALLS_MAX);
    bench.obtain("late").await;
}

/// A directory on tmpfs; the tests' own temporary directory is on disk.
fn tmpfs() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_restarted_agent_serves_from_tmpfs_without_the_ca_and_forgets_with_the_last_need() {
    let dir = tmpfs();
    let clock = Clock::paused(wall());
    let root = Authority::root("root");
    let issuing = root.intermediate("issuing", &[0x70]);
    let mut first = Bench::start(root, issuing, clock, Some(dir.path()));
    first.obtain("web").await;
    first.obtain("api").await;
    let Bench { root, issuing, .. } = first;

    let mut second = Bench::start(root, issuing, clock, Some(dir.path()));
    second.needs.need(id("web"));
    timeout(Duration::from_secs(1), second.certs.wait_for(&id("web"))).await.expect("served without the CA");
    assert_eq!(second.serial("web").as_deref(), Some("1"));
    assert!(second.asked.try_recv().is_err(), "nothing was asked");
    let renewal = second.next().await;
    assert!(second.since_start() <= DAY.mul_f64(0.6), "renewed by its own age");
    drop(renewal);

    // Nobody needed api for ten minutes after the restart: its key is gone. With the last need, web's is.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    second.needs.forget(id("web"));
    second.settled(<[_]>::is_empty).await;
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_kept_certificate_waits_for_the_bundle_that_it_leads_to() {
    let dir = tmpfs();
    let clock = Clock::paused(wall());
    let root = Authority::root("root");
    let issuing = root.intermediate("issuing", &[0x70]);
    let mut first = Bench::start(root, issuing, clock, Some(dir.path()));
    first.obtain("web").await;
    let Bench { root, issuing, .. } = first;

    let mut second = Bench::start(root, issuing, clock, Some(dir.path()));
    second.trust.send_replace(Arc::default());
    timeout(EVER, second.acknowledged.wait_for(|generation| *generation == 0)).await.unwrap().unwrap();
    second.needs.need(id("web"));
    let _unanswered = second.next().await;
    assert_eq!(second.serial("web"), None, "without a bundle nothing can be checked");
    second.trust.send_replace(Arc::new(bundle(1, &[&second.root])));
    timeout(Duration::from_secs(1), second.certs.wait_for(&id("web"))).await.unwrap();
}

#[test]
fn the_journal_is_private_and_only_on_tmpfs() {
    use std::os::unix::fs::PermissionsExt;

    let on_disk = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let (journal, keeping) = Journal::open(Some(on_disk.path()));
    assert!(journal.is_none());
    assert_eq!(keeping, Keeping::NotTmpfs(on_disk.path().to_owned()));
    assert_eq!(Journal::open(None).1, Keeping::Off);

    let dir = tmpfs();
    let within = dir.path().join("identity");
    let (journal, keeping) = Journal::open(Some(&within));
    assert_eq!(keeping, Keeping::Tmpfs(within.clone()));
    let journal = journal.unwrap();
    let tls = Tls::new(Clock::paused(wall()));
    let root = Authority::root("root");
    let made = super::super::testing::unchecked(&id("web"), &Spec::of(&id("web")), &root, &tls);
    journal.keep(&made).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&within), 0o700);
    let file = std::fs::read_dir(&within).unwrap().next().unwrap().unwrap().path();
    assert_eq!(mode(&file), 0o600);
    let kept = journal.kept(&id("web")).unwrap();
    assert_eq!((&*kept.chain, kept.secret.expose()), (&*made.chain.cert, made.secret.expose()));
    assert_eq!(kept.at, wall());

    // What was planted where the next one is written is replaced, and not written through.
    let elsewhere = dir.path().join("elsewhere");
    std::fs::write(&elsewhere, "not a key").unwrap();
    std::os::unix::fs::symlink(&elsewhere, file.with_extension("new")).unwrap();
    journal.keep(&made).unwrap();
    assert_eq!(std::fs::read(&elsewhere).unwrap(), b"not a key");
    assert!(std::fs::symlink_metadata(&file).unwrap().is_file());

    // A file that others can read is no secret any more; a damaged one is none either. Both are removed.
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(journal.kept(&id("web")).is_none() && !file.exists());
    journal.keep(&made).unwrap();
    std::fs::write(&file, b"{").unwrap();
    assert!(journal.kept(&id("web")).is_none() && !file.exists());

    journal.keep(&made).unwrap();
    journal.leave(true);
    journal.remove(&id("web"));
    journal.sweep(|_| false).unwrap();
    assert!(file.exists(), "left to the successor");
}

#[test]
fn the_journal_touches_nothing_that_is_not_its_own() {
    use std::os::unix::fs::PermissionsExt;

    let dir = tmpfs();
    let mode = |mode: u32| {
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        Journal::open(Some(dir.path()))
    };
    let refused = Keeping::Unusable(dir.path().to_owned(), std::io::ErrorKind::PermissionDenied);
    assert_eq!(mode(0o777).1, refused, "anybody may write there");
    let journal = mode(0o755).0.unwrap();
    assert_eq!(std::fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777, 0o755);

    let root = Authority::root("root");
    let tls = Tls::new(Clock::paused(wall()));
    journal.keep(&super::super::testing::unchecked(&id("web"), &Spec::of(&id("web")), &root, &tls)).unwrap();
    let own = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
    std::fs::write(own.with_extension("new"), "half written").unwrap();
    let others = ["namespaces.json", "0123.json", "notes"].map(|name| dir.path().join(name));
    for other in &others {
        std::fs::write(other, "{}").unwrap();
    }
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("admin.sock")).unwrap();
    journal.sweep(|_| false).unwrap();
    assert!(!own.exists() && !own.with_extension("new").exists());
    assert!(others.iter().all(|other| other.exists()) && dir.path().join("admin.sock").exists());
}
