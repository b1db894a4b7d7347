//! The driver of [`adit_core::rotation`]: needs, answers, time and trust in; requests, certificates and files out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use adit_core::draw::Seed;
use adit_core::rotation::{Effect, Event, Failure, Issue, Policy, Rotation, Source};
use adit_core::time::Mono;
use adit_proto::SpiffeId;
use tokio::sync::{Semaphore, watch};
use tokio::task::{Id, JoinError, JoinSet};

use super::ca_client::{CaClient, CaError};
use super::cert::{self, CertError, Certificate, Secret};
use super::certs::Publish;
use super::csr;
use super::journal::Journal;
use super::needs::{IdentityStatus, Needs, TrustInput};
use super::tls::Tls;
use super::verify::Trust;
use crate::clock::Clock;

/// Calls to the CA at once for identities that have no certificate: pods wait for them.
const FIRST_CALLS_MAX: usize = 5;
/// Calls to the CA at once for renewals, which have hours. With the others 8 in all: 100 identities are served in
/// 13 rounds, and renewals that time out cannot keep a new pod waiting.
const RENEWAL_CALLS_MAX: usize = 3;
/// When what is kept for identities that nobody needed is deleted: pods are adopted within seconds of a start.
const SWEEP_AFTER: Duration = Duration::from_secs(600);

/// What the driver is given.
pub(super) struct Inlets {
    pub(super) clock: Clock,
    pub(super) tls: Tls,
    pub(super) ca: Issuer,
    pub(super) trust: TrustInput,
    pub(super) journal: Option<Journal>,
    pub(super) publish: Publish,
    pub(super) policy: Policy,
    pub(super) seed: Seed,
}

/// What it is seen and spoken to by.
pub(super) struct Outlets {
    pub(super) needs: Needs,
    pub(super) acknowledged: watch::Receiver<u64>,
    pub(super) status: watch::Receiver<Arc<[IdentityStatus]>>,
}

/// Who issues.
#[derive(Clone, Debug)]
pub(super) enum Issuer {
    /// A CA over the network.
    Ca(Arc<CaClient>),
    /// A test's script: the request goes out, the answer comes back.
    #[cfg(test)]
    Script(tokio::sync::mpsc::UnboundedSender<tests::Asked>),
}

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("no key or request could be made")]
    Key(#[from] rcgen::Error),
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error("CA's answer cannot be used")]
    Answer(#[from] CertError),
    #[error("request was cut short")]
    Task(#[from] JoinError),
}

impl RequestError {
    fn kind(&self) -> Failure {
        match self {
            Self::Key(_) | Self::Task(_) => Failure::NotReady,
            Self::Ca(error) => error.kind(),
            Self::Answer(_) => Failure::Unusable,
        }
    }
}

/// A key and the chain that came back for it. Not checked yet.
#[derive(Debug)]
struct Answer {
    secret: Secret,
    chain: Vec<String>,
}

pub(super) struct Driver {
    clock: Clock,
    tls: Tls,
    ca: Issuer,
    trust: TrustInput,
    journal: Option<Journal>,
    publish: Publish,
    rotation: Rotation,
    needs: watch::Receiver<BTreeSet<SpiffeId>>,
    /// What the machine has been told is needed.
    told: BTreeSet<SpiffeId>,
    requests: JoinSet<Result<Answer, RequestError>>,
    asking: HashMap<Id, SpiffeId>,
    first_calls: Arc<Semaphore>,
    renewal_calls: Arc<Semaphore>,
    /// Checked, and handed to the machine, which says whether it is published. Empty between events.
    arrived: Option<Certificate>,
    last_failures: BTreeMap<SpiffeId, (Failure, Arc<str>)>,
    gauges: BTreeMap<SpiffeId, Gauges>,
    sweep_at: Option<Mono>,
    acknowledged: watch::Sender<u64>,
    status: watch::Sender<Arc<[IdentityStatus]>>,
}

impl Driver {
    pub(super) fn new(inlets: Inlets) -> (Self, Outlets) {
        let needed = watch::Sender::new(BTreeSet::new());
        let needs = needed.subscribe();
        let journal = inlets.journal.clone();
        let generation = inlets.publish.trust().bundle().generation;
        let (acknowledged, acknowledged_seen) = watch::channel(generation);
        let (status, status_seen) = watch::channel(Arc::from([]));
        let driver = Self {
            sweep_at: inlets.journal.as_ref().map(|_| inlets.clock.now().mono + SWEEP_AFTER),
            clock: inlets.clock,
            tls: inlets.tls,
            ca: inlets.ca,
            trust: inlets.trust,
            journal: inlets.journal,
            publish: inlets.publish,
            rotation: Rotation::new(inlets.policy, inlets.seed),
            needs,
            told: BTreeSet::new(),
            requests: JoinSet::new(),
            asking: HashMap::new(),
            first_calls: Arc::new(Semaphore::new(FIRST_CALLS_MAX)),
            renewal_calls: Arc::new(Semaphore::new(RENEWAL_CALLS_MAX)),
            arrived: None,
            last_failures: BTreeMap::new(),
            gauges: BTreeMap::new(),
            acknowledged,
            status,
        };
        let outlets = Outlets {
            needs: Needs { needed: Arc::new(needed), journal },
            acknowledged: acknowledged_seen,
            status: status_seen,
        };
        (driver, outlets)
    }

    /// Runs until every [`Needs`] is gone. Every branch is cancel-safe: each is a watch, a join or a timer.
    pub(super) async fn run(mut self) {
        let mut trust_lives = true;
        loop {
            tokio::select! {
                changed = self.needs.changed() => match changed {
                    Ok(()) => self.needs_changed(),
                    Err(_) => return,
                },
                changed = self.trust.changed(), if trust_lives => match changed {
                    Ok(()) => self.trust_changed(),
                    // The source of trust is gone with the component that owns it: the last bundle stays.
                    Err(_) => trust_lives = false,
                },
                Some(done) = self.requests.join_next_with_id() => self.answered(done),
                () = self.clock.sleep_until(self.rotation.deadline()) => {
                    let effects = self.rotation.tick(self.clock.now());
                    self.perform(effects);
                }
                () = self.clock.sleep_until(self.sweep_at) => self.sweep(),
            }
            self.show();
        }
    }

    /// Tells the machine how the set of needed identities differs from what it has been told.
    fn needs_changed(&mut self) {
        let needed = self.needs.borrow_and_update().clone();
        for id in self.told.difference(&needed).cloned().collect::<Vec<_>>() {
            self.handle(Event::Forget(id));
        }
        for id in needed.difference(&self.told).cloned().collect::<Vec<_>>() {
            // What is kept from before a restart spares the request, and serves even if the CA is away.
            if !self.restore(&id) {
                self.handle(Event::Need(id));
            }
        }
        self.told = needed;
    }

    fn trust_changed(&mut self) {
        let bundle = self.trust.borrow_and_update().clone();
        let generation = bundle.generation;
        let trust = match Trust::new(bundle, self.tls.algorithms()) {
            Ok(trust) => Arc::new(trust.after(&self.publish.trust(), self.clock.now().wall)),
            Err(error) => {
                tracing::error!(
                    generation,
                    error = chain(&error),
                    "trust bundle refused; the last good one stays"
                );
                return;
            }
        };
        if !trust.same_as(&self.publish.trust()) {
            self.trust_in(&trust);
        }
        // Only now: what is acknowledged is what handshakes use.
        self.acknowledged.send_replace(generation);
    }

    fn trust_in(&mut self, trust: &Arc<Trust>) {
        for id in self.publish.trust_in(trust, self.clock.now().wall) {
            tracing::warn!(%id, "own certificate is revoked or leads to no root of the bundle any more");
            self.handle(Event::Revoked(id));
        }
        // What is kept may lead to a root that was not known before.
        let without = self.told.iter().filter(|id| !self.publish.serves(id)).cloned().collect::<Vec<_>>();
        for id in without {
            self.restore(&id);
        }
        self.handle(Event::TrustChanged);
    }

    /// Hands the machine what the journal keeps for `id`, if it is still good. False if it is not.
    fn restore(&mut self, id: &SpiffeId) -> bool {
        let Some(journal) = &self.journal else {
            return false;
        };
        let Some(kept) = journal.kept(id) else {
            return false;
        };
        let now = self.clock.now().wall;
        let trust = self.publish.trust();
        match cert::check(id, kept.chain, kept.secret, kept.at, now, &trust, self.tls.provider()) {
            Ok(certificate) => {
                tracing::info!(%id, serial = &*certificate.serial, "serving the certificate kept from before");
                self.issued(certificate, Source::Kept);
                true
            }
            Err(error) => {
                // The bundle may only be late: what is kept is tried again when it comes, and replaced by the next.
                tracing::debug!(%id, error = chain(&error), "certificate kept from before is not used");
                false
            }
        }
    }

    fn answered(&mut self, done: Result<(Id, Result<Answer, RequestError>), JoinError>) {
        let (task, result) = match done {
            Ok((task, result)) => (task, result),
            Err(error) => (error.id(), Err(RequestError::Task(error))),
        };
        let Some(id) = self.asking.remove(&task) else {
            return;
        };
        let now = self.clock.now().wall;
        let trust = self.publish.trust();
        let checked = result.and_then(|answer| {
            let chain = cert::parse_chain(&answer.chain)?;
            Ok(cert::check(&id, chain, answer.secret, now, now, &trust, self.tls.provider())?)
        });
        match checked {
            Ok(certificate) => {
                metrics::counter!("adit_certificate_requests_total", "result" => "issued").increment(1);
                self.last_failures.remove(&id);
                self.issued(certificate, Source::Answer);
            }
            Err(error) => {
                let kind = error.kind();
                if kind == Failure::Unusable {
                    self.ca.doubt();
                }
                metrics::counter!("adit_certificate_requests_total", "result" => kind.label()).increment(1);
                let text = chain(&error);
                tracing::warn!(%id, kind = kind.label(), error = text, "no new certificate");
                self.last_failures.insert(id.clone(), (kind, text.into()));
                self.handle(Event::Failed { id, kind });
            }
        }
    }

    fn issued(&mut self, certificate: Certificate, from: Source) {
        let (id, issue) = (certificate.id.clone(), certificate.issue);
        self.arrived = Some(certificate);
        self.handle(Event::Issued { id, from, issue });
        self.arrived = None;
    }

    fn handle(&mut self, event: Event) {
        let effects = self.rotation.handle(self.clock.now(), event);
        self.perform(effects);
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Request(id) => self.request(id),
                Effect::Publish(id) => self.serve(&id),
                Effect::Expired(id) => {
                    self.publish.withdraw(&id);
                    tracing::error!(%id, "certificate has expired without a new one; its connections are refused");
                }
                Effect::Forget(id) => {
                    self.publish.withdraw(&id);
                    self.gauges.remove(&id);
                    self.last_failures.remove(&id);
                    if let Some(journal) = &self.journal {
                        journal.remove(&id);
                    }
                }
            }
        }
    }

    fn serve(&mut self, id: &SpiffeId) {
        let Some(certificate) = self.arrived.take().filter(|certificate| certificate.id == *id) else {
            debug_assert!(false, "the machine publishes only what it was just handed");
            return;
        };
        self.publish.publish(&certificate);
        self.gauges.entry(id.clone()).or_insert_with(|| Gauges::of(id)).set(certificate.issue);
        tracing::info!(%id, serial = &*certificate.serial, "certificate published");
        if let Some(journal) = &self.journal
            && let Err(error) = journal.keep(&certificate)
        {
            tracing::warn!(%id, %error, "certificate cannot be kept over a restart");
        }
    }

    fn request(&mut self, id: SpiffeId) {
        let calls =
            if self.publish.serves(&id) { self.renewal_calls.clone() } else { self.first_calls.clone() };
        let (ca, wanted) = (self.ca.clone(), id.clone());
        let task = self.requests.spawn(async move {
            // Never closed: both semaphores live as long as the driver. The wait is bounded by the callers' time-outs.
            let _permit = calls.acquire_owned().await;
            let made = csr::new_key_and_request(&wanted)?;
            Ok(Answer { chain: ca.issue(&wanted, made.pem).await?, secret: made.secret })
        });
        self.asking.insert(task.id(), id);
    }

    fn sweep(&mut self) {
        self.sweep_at = None;
        if let Some(journal) = &self.journal
            && let Err(error) = journal.sweep(|id| self.told.contains(id))
        {
            tracing::warn!(%error, "kept certificates cannot be swept");
        }
    }

    fn show(&self) {
        let status = self.rotation.status().map(|(id, status)| IdentityStatus {
            id: id.clone(),
            serial: self.publish.certificate(id).map(|certificate| certificate.serial),
            validity: status.validity,
            renew_at: status.renew_at,
            requesting: status.requesting,
            failures: status.failures,
            last_failure: self.last_failures.get(id).cloned(),
        });
        self.status.send_replace(status.collect());
    }
}

/// The dates of one served certificate, as metrics. Held while the identity is needed, so that its series stay.
struct Gauges {
    issued: metrics::Gauge,
    expiry: metrics::Gauge,
}

impl Gauges {
    fn of(id: &SpiffeId) -> Self {
        Self {
            issued: metrics::gauge!("adit_certificate_issued_timestamp_seconds", "identity" => id.to_string()),
            expiry: metrics::gauge!("adit_certificate_expiry_timestamp_seconds", "identity" => id.to_string()),
        }
    }

    fn set(&self, issue: Issue) {
        let secs = |at: SystemTime| at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        self.issued.set(secs(issue.at));
        self.expiry.set(secs(issue.validity.not_after));
    }
}

impl Issuer {
    async fn issue(&self, id: &SpiffeId, csr: String) -> Result<Vec<String>, CaError> {
        match self {
            Self::Ca(ca) => ca.issue(id, csr).await,
            #[cfg(test)]
            Self::Script(asked) => tests::ask(asked, id, csr).await,
        }
    }

    /// Who answers with what peers would refuse may be none of ours: it proves itself anew before the next request, and
    /// with it the next token.
    fn doubt(&self) {
        match self {
            Self::Ca(ca) => ca.drop_channel(),
            #[cfg(test)]
            Self::Script(_) => {}
        }
    }
}

/// An error with its causes, in one line.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
