//! The driver: once a second takes up what has changed (token file, requests, files given by hand, agents'
//! acknowledgements, the clock), stores the next state, and only then shows it to the agents and to the service.
//!
//! What comes next is decided by [`crate::lifecycle`]; this file only carries it out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use crate::bundle::{Bundle, CRL_RENEWED};
use crate::caller::{Callers, Reloaded};
use crate::config::Config;
use crate::counts::Counts;
use crate::disk::Disk;
use crate::issue::{LIFE_MAX, Life, ServerNames};
use crate::lifecycle::{Agents, Due, Outside};
use crate::publish::Mesh;
use crate::root::{Authority, RootError};
use crate::signing::{self, Signing, TlsError};
use crate::stamp::Stamp;
use crate::state::{Rotation, State};
use crate::status::{Outcome, Progress};
use crate::store::{RequestError, Store, StoreError};

/// The CA's own certificate is replaced when half of its life is over.
const TLS_RENEWED: Duration = Duration::from_secs(LIFE_MAX.as_secs() / 2);
/// Steps taken in one go. A whole change of root without agents takes four; more means that steps undo each other.
const STEPS_MAX: usize = 8;
/// How many outcomes of requests are remembered for `adit-ca status`.
const OUTCOMES_MAX: usize = 16;

/// What the keeper is told once.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) leaf_life: Life,
    pub(crate) patience: Duration,
    pub(crate) names: ServerNames,
}

/// Keeps the state, and what follows from it, up to date.
#[derive(Debug)]
pub(crate) struct Keeper {
    settings: Settings,
    store: Store,
    mesh: Option<Mesh>,
    callers: Callers,
    counts: Arc<Counts>,
    state: State,
    signing: watch::Sender<Arc<Signing>>,
    tls: watch::Sender<Arc<rustls::ServerConfig>>,
    tls_since: Stamp,
    bundle: Bundle,
    bundle_since: Stamp,
    published: Option<u64>,
    outcomes: Vec<Outcome>,
    progress: Option<Progress>,
    /// The last complaint about each thing, so that it is logged once and not every second.
    complaints: BTreeMap<&'static str, Complaint>,
}

/// What is wrong with a thing.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Complaint {
    error: String,
    mended_by: MendedBy,
}

/// Who can mend what is complained of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum MendedBy {
    /// The next tick, which tries again.
    Tick,
    /// Whoever gave root or intermediate by hand: no tick replaces those.
    Giver,
}

/// What the keeper shows to the service and the listener.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) signing: watch::Receiver<Arc<Signing>>,
    pub(crate) tls: watch::Receiver<Arc<rustls::ServerConfig>>,
}

/// Why the keeper cannot begin, or could not carry out a step (it tries again a second later).
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Certificates cannot be made.
    #[error(transparent)]
    Root(#[from] RootError),
    /// What was given by hand cannot be used.
    #[error("what was given by hand (tls.crt, tls.key, ca.crt) cannot be used")]
    Given(#[source] RootError),
    /// No TLS certificate of its own.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The state of a store; the first one is made if there never was one.
pub(crate) fn open_state(
    store: &Store,
    domain: &adit_proto::TrustDomain,
    life: Life,
    now: Stamp,
) -> Result<State, KeepError> {
    if let Some(state) = store.load(domain)? {
        return Ok(state);
    }
    let authority = match store.given()? {
        Some(given) => {
            given.check(domain).map_err(KeepError::Given)?;
            given
        }
        None => Authority::make(domain, now)?,
    };
    let state = State::first(domain.clone(), authority, life);
    store.save(&state)?;
    Ok(state)
}

/// Makes the store that `config` names, with root and intermediate, if it has none; returns the root's serial.
pub fn init(config: &Config) -> Result<String, KeepError> {
    let store = Store::open(&config.store, Disk::real())?;
    let now = Stamp::of(SystemTime::now());
    let state = open_state(&store, &config.trust_domain, config.leaf_life, now)?;
    Ok(state.root_serial().map_err(RootError::from)?)
}

impl Keeper {
    /// Makes everything that requests need out of `state`, and publishes it.
    pub(crate) fn new(
        settings: Settings,
        store: Store,
        state: State,
        mesh: Option<Mesh>,
        callers: Callers,
        counts: Arc<Counts>,
        now: Stamp,
    ) -> Result<(Self, Shown), KeepError> {
        let signing = Arc::new(Signing::of(&state, settings.leaf_life)?);
        let tls = signing::tls(&signing, &settings.names, now)?;
        let bundle = Bundle::of(&state, now)?;
        let (signing, signing_shown) = watch::channel(signing);
        let (tls, tls_shown) = watch::channel(tls);
        let mut keeper = Self {
            settings,
            store,
            mesh,
            callers,
            counts,
            state,
            signing,
            tls,
            tls_since: now,
            bundle,
            bundle_since: now,
            published: None,
            outcomes: Vec::new(),
            progress: None,
            complaints: BTreeMap::new(),
        };
        keeper.tick(now);
        let shown = Shown { signing: signing_shown, tls: tls_shown };
        Ok((keeper, shown))
    }

    /// Does all that has fallen due. What fails is logged once and tried again at the next tick.
    pub(crate) fn tick(&mut self, now: Stamp) {
        self.reload_callers();
        let done = self.take_requests(now);
        self.note("requests", done);
        let done = self.adopt_given(now);
        self.note("given", done);
        let done = self.take_steps(now);
        self.note("steps", done);
        self.look_at_issuer();
        let done = self.renew(now);
        self.note("renewal", done);
        self.write_progress();
    }

    fn reload_callers(&mut self) {
        match self.callers.reload() {
            Reloaded::Same => {}
            Reloaded::New(callers) => tracing::info!(callers, "token file taken up"),
            Reloaded::Refused(error) => {
                let error = crate::report(&error);
                tracing::error!(error, "token file refused; the last good version stays in force");
            }
        }
    }

    /// Takes up the request files. The state that has done a request also says so, so that none is done twice. One
    /// that cannot be read now stays for the next time, and holds up no other.
    fn take_requests(&mut self, now: Stamp) -> Result<(), KeepError> {
        let left = self.store.requests()?;
        let names: Vec<String> = left.iter().map(|left| left.name.clone()).collect();
        let mut unread = None;
        for left in left {
            if let Err(error) = &left.request
                && error.may_pass()
            {
                unread = Some(crate::report(error));
                continue;
            }
            if !self.state.taken.contains(&left.name) {
                let result = self.take_request(&left.name, &names, left.request, now)?;
                match &result {
                    Ok(()) => tracing::info!(request = left.name, "request done"),
                    Err(why) => tracing::warn!(request = left.name, why, "request refused"),
                }
                self.outcomes.push(Outcome { request: left.name.clone(), at: now, refused: result.err() });
                let surplus = self.outcomes.len().saturating_sub(OUTCOMES_MAX);
                self.outcomes.drain(..surplus);
            }
            self.store.forget_request(&left.name)?;
        }
        match unread {
            Some(error) => self.complain("request", error),
            None => drop(self.complaints.remove("request")),
        }
        Ok(())
    }

    /// `Ok(Err(why))`: the request is refused for good.
    fn take_request(
        &mut self,
        name: &str,
        still_there: &[String],
        request: Result<crate::lifecycle::Request, RequestError>,
        now: Stamp,
    ) -> Result<Result<(), String>, KeepError> {
        let request = match request {
            Ok(request) => request,
            Err(error) => return Ok(Err(crate::report(&error))),
        };
        match self.state.asked(&request, now) {
            Ok(mut next) => {
                next.taken.retain(|name| still_there.contains(name));
                next.taken.push(name.to_owned());
                self.become_state(next, now)?;
                Ok(Ok(()))
            }
            Err(declined) => Ok(Err(crate::report(&declined))),
        }
    }

    fn adopt_given(&mut self, now: Stamp) -> Result<(), KeepError> {
        let Some(given) = self.store.given()? else {
            return Ok(());
        };
        if let Some(next) = self.state.adopting(&given, now).map_err(RootError::from)? {
            given.check(&self.state.trust_domain).map_err(KeepError::Given)?;
            tracing::info!("root or intermediate given by hand is taken up");
            self.become_state(next, now)?;
        }
        Ok(())
    }

    fn take_steps(&mut self, now: Stamp) -> Result<(), KeepError> {
        for _ in 0..STEPS_MAX {
            self.publish();
            let outside = self.outside(now);
            let Some(due) = self.state.due(&outside).map_err(RootError::from)? else {
                return Ok(());
            };
            let next = self.state.after(due, &outside)?;
            self.become_state(next, now)?;
            let generation = self.state.generation;
            if due == Due::SignWithNewAnyway {
                tracing::warn!(
                    generation,
                    "signing with the new root: the time bound has passed, not every agent knows it"
                );
            } else {
                tracing::info!(step = ?due, generation, "step taken");
            }
        }
        Ok(())
    }

    /// An issuer of ours that is revoked has been replaced by now, unless a step failed; one that was given by hand can
    /// only be complained of.
    fn look_at_issuer(&mut self) {
        let serial = match self.state.revoked_issuer() {
            Ok(None) => return drop(self.complaints.remove("issuer")),
            Ok(Some(serial)) => serial,
            Err(error) => return self.complain("issuer", crate::report(&error)),
        };
        let wrong = format!(
            "{serial} signs leaves or leads them to the root, and is revoked: every new leaf is refused until"
        );
        let (error, mended_by) = if self.state.authority.root_key.is_some() {
            (format!("{wrong} it is replaced"), MendedBy::Tick)
        } else {
            (format!("{wrong} another is given (tls.crt, tls.key, ca.crt) and signs"), MendedBy::Giver)
        };
        self.complain_of("issuer", Complaint { error, mended_by });
    }

    fn outside(&self, now: Stamp) -> Outside {
        Outside {
            now,
            published: self.published,
            agents: self.agents(),
            patience: self.settings.patience,
            leaf_life: self.settings.leaf_life,
        }
    }

    /// The agents are asked only while a change of root waits for them: there may be many files.
    fn agents(&self) -> Agents {
        match (&self.state.rotation, &self.mesh) {
            (Rotation::Announced { .. }, Some(mesh)) => mesh.agents(),
            (Rotation::Announced { .. } | Rotation::Steady | Rotation::Overlap { .. }, _) => {
                Agents::Unknown("there is no mesh directory to publish to".to_owned())
            }
        }
    }

    /// Stores `next`, and only then signs and publishes with it.
    fn become_state(&mut self, next: State, now: Stamp) -> Result<(), KeepError> {
        let signing = Signing::of(&next, self.settings.leaf_life)?;
        let bundle = Bundle::of(&next, now)?;
        self.store.save(&next)?;
        let reissue = signing.issuer.chain != self.signing.borrow().issuer.chain;
        self.state = next;
        self.bundle = bundle;
        self.bundle_since = now;
        self.signing.send_replace(Arc::new(signing));
        if reissue {
            self.renew_tls(now)?;
        }
        self.publish();
        Ok(())
    }

    fn renew(&mut self, now: Stamp) -> Result<(), KeepError> {
        if now >= self.bundle_since.plus(CRL_RENEWED) || now < self.bundle_since {
            self.bundle = Bundle::of(&self.state, now)?;
            self.bundle_since = now;
            self.publish();
        }
        if now >= self.tls_since.plus(TLS_RENEWED) || now < self.tls_since {
            self.renew_tls(now)?;
        }
        Ok(())
    }

    fn renew_tls(&mut self, now: Stamp) -> Result<(), KeepError> {
        let config = signing::tls(&self.signing.borrow(), &self.settings.names, now)?;
        self.tls.send_replace(config);
        self.tls_since = now;
        Ok(())
    }

    /// Makes the published bundle be the present one. A failure leaves the agents with the last one.
    fn publish(&mut self) {
        let Some(mesh) = &self.mesh else {
            return;
        };
        match mesh.publish(&self.bundle.manifest()) {
            Ok(written) => {
                self.published = Some(self.bundle.generation);
                self.complaints.remove("bundle");
                if written {
                    tracing::info!(generation = self.bundle.generation, "trust bundle published");
                }
            }
            Err(error) => {
                let path = mesh.bundle_path();
                self.complain("bundle", format!("cannot write {}: {error}", path.display()));
            }
        }
    }

    fn write_progress(&mut self) {
        let progress = match Progress::of(
            &self.state,
            &self.agents(),
            self.published,
            self.counts.now(),
            &self.outcomes,
        ) {
            Ok(progress) => progress,
            Err(error) => return self.complain("status", crate::report(&error)),
        };
        if self.progress.as_ref() == Some(&progress) {
            return;
        }
        match self.store.save_progress(&progress) {
            Ok(()) => {
                self.complaints.remove("status");
                self.progress = Some(progress);
            }
            Err(error) => self.complain("status", crate::report(&error)),
        }
    }

    fn note(&mut self, what: &'static str, result: Result<(), KeepError>) {
        match result {
            Ok(()) => drop(self.complaints.remove(what)),
            Err(error) => self.complain(what, crate::report(&error)),
        }
    }

    fn complain(&mut self, what: &'static str, error: String) {
        self.complain_of(what, Complaint { error, mended_by: MendedBy::Tick });
    }

    fn complain_of(&mut self, what: &'static str, complaint: Complaint) {
        if self.complaints.get(what) == Some(&complaint) {
            return;
        }
        let error = &complaint.error;
        match complaint.mended_by {
            MendedBy::Tick => tracing::error!(what, error, "failed; will be tried again"),
            MendedBy::Giver => tracing::error!(what, error, "given by hand, and has to be replaced by hand"),
        }
        self.complaints.insert(what, complaint);
    }
}

#[cfg(test)]
mod tests;
