//! The driver: tick by tick takes up what has changed (other replicas' state, token file, requests, what is given by
//! hand, agents' acknowledgements, the clock), stores the next state, and only then shows it to the agents and to the
//! service.
//!
//! What comes next is decided by [`crate::lifecycle`]; this file only carries it out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::bundle::{Bundle, CRL_RENEWED};
use crate::cluster::shared::Stored;
use crate::counts::Counts;
use crate::fresh::Fresh;
use crate::home::{Home, Unread, Wish};
use crate::issue::{LIFE_MAX, Life, ServerNames};
use crate::lifecycle::{Agents, Due, Outside};
use crate::root::{Authority, RootError};
use crate::signing::{self, Signing, TlsError};
use crate::stamp::Stamp;
use crate::state::{Rotation, State};
use crate::status::{Outcome, Progress};
use crate::store::StoreError;

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
    /// Until when this CA may sign after it last saw what is stored.
    pub(crate) fresh: Fresh,
}

impl Settings {
    /// How long a leaf may be in use after the state that signs it has been replaced: its life, and as long as a
    /// replica may not have noticed.
    fn longest_leaf(&self) -> Duration {
        longest_leaf(self.leaf_life, &self.fresh)
    }
}

fn longest_leaf(life: Life, fresh: &Fresh) -> Duration {
    life.duration() + fresh.bound().unwrap_or_default()
}

/// Keeps the state, and what follows from it, up to date.
#[derive(Debug)]
pub(crate) struct Keeper {
    settings: Settings,
    home: Home,
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
    /// The last complaint about each thing, so that it is logged once and not at every tick.
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

/// Why the keeper cannot begin, or could not carry out a step (it tries again at the next tick).
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

impl KeepError {
    /// Whether the API server could not be asked, or another replica was faster: then the next attempt may succeed.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::Store(StoreError::Cluster(error)) if error.may_pass())
    }
}

/// The state that is stored at `home`; the first one is made if there never was one.
pub(crate) fn open_state(
    home: &mut Home,
    domain: &adit_proto::TrustDomain,
    settings: (Life, &Fresh),
    now: Stamp,
) -> Result<State, KeepError> {
    if let Some(state) = home.load(domain)? {
        return Ok(state);
    }
    let authority = match home.given()? {
        Some(given) => {
            given.check(domain).map_err(KeepError::Given)?;
            given
        }
        None => Authority::make(domain, now)?,
    };
    let (life, fresh) = settings;
    let state = State::first(domain.clone(), authority, longest_leaf(life, fresh));
    match home.save(&state) {
        Ok(()) => Ok(state),
        // Another replica has begun meanwhile: its state counts, and ours was never used.
        Err(StoreError::Cluster(error)) if error.is_conflict() => {
            let theirs = home.load(domain)?;
            theirs.ok_or_else(|| StoreError::Cluster(error).into())
        }
        Err(error) => Err(error.into()),
    }
}

impl Keeper {
    /// Makes everything that requests need out of `state`, and publishes it.
    pub(crate) fn new(
        settings: Settings,
        home: Home,
        state: State,
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
            home,
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
        if let Some(callers) = self.home.callers() {
            callers.reload();
        }
        let looked = self.look(now);
        let is_seen = looked.is_ok();
        self.note("store", looked);
        // Whoever does not know what is stored stores nothing, and asks no more of a server that is away.
        if is_seen {
            let done = self.take_requests(now);
            let is_clear = done.is_ok();
            self.note("requests", done);
            let done = self.adopt_given(now);
            self.note("given", done);
            // A request that is still there is taken up before the state goes on, or it would be done once more.
            if is_clear {
                let done = self.take_steps(now);
                self.note("steps", done);
            }
        }
        self.look_at_issuer();
        let done = self.renew(now);
        self.note("renewal", done);
        if is_seen {
            self.write_progress(now);
        }
    }

    /// Takes up what another replica has stored.
    fn look(&mut self, now: Stamp) -> Result<(), KeepError> {
        let began = Fresh::now();
        match self.home.look()? {
            Stored::Same => {}
            Stored::Other(state) => {
                let generation = state.generation;
                if let Err(error) = self.take_up(*state, now) {
                    self.home.refuse();
                    return Err(error);
                }
                tracing::info!(generation, "another replica's state is taken up");
            }
            Stored::Gone => {
                tracing::warn!("the stored state is gone: what is known here is stored again");
                self.home.save(&self.state)?;
            }
        }
        self.settings.fresh.seen(began);
        Ok(())
    }

    /// Takes up what users ask for. The state that has done a request from a file also says so, so that none is done
    /// twice. One that cannot be read now stays for the next time, and holds up no other.
    fn take_requests(&mut self, now: Stamp) -> Result<(), KeepError> {
        let wishes = self.home.wishes()?;
        let names: Vec<String> = wishes.iter().map(|wish| wish.name.clone()).collect();
        let mut unread = None;
        for wish in wishes {
            if let Err(Unread::ForNow(why)) = &wish.request {
                unread = Some(why.clone());
                continue;
            }
            let outcome = match self.state.taken.contains(&wish.name) {
                true => None,
                false => {
                    let refused = self.take_request(&wish, &names, now)?.err();
                    match &refused {
                        None => tracing::info!(request = wish.name, "request done"),
                        Some(why) => tracing::warn!(request = wish.name, why, "request refused"),
                    }
                    Some(Outcome { request: wish.name.clone(), at: now, refused })
                }
            };
            self.outcomes.extend(outcome.clone());
            let surplus = self.outcomes.len().saturating_sub(OUTCOMES_MAX);
            self.outcomes.drain(..surplus);
            self.home.close(&wish, outcome.as_ref())?;
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
        wish: &Wish,
        still_there: &[String],
        now: Stamp,
    ) -> Result<Result<(), String>, KeepError> {
        let request = match &wish.request {
            Ok(request) => request,
            Err(Unread::ForNow(why) | Unread::ForGood(why)) => return Ok(Err(why.clone())),
        };
        match self.state.asked(request, now) {
            Ok(mut next) => {
                if self.home.remembers_wishes() {
                    next.taken.retain(|name| still_there.contains(name));
                    next.taken.push(wish.name.clone());
                }
                self.become_state(next, now)?;
                Ok(Ok(()))
            }
            Err(declined) => Ok(Err(crate::report(&declined))),
        }
    }

    fn adopt_given(&mut self, now: Stamp) -> Result<(), KeepError> {
        let Some(given) = self.home.given()? else {
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
            self.publish(now);
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

    fn outside(&mut self, now: Stamp) -> Outside {
        Outside {
            now,
            published: self.published,
            agents: self.agents(now),
            patience: self.settings.patience,
            leaf_life: self.settings.longest_leaf(),
        }
    }

    /// The agents are asked only while a change of root waits for them: there may be many.
    fn agents(&mut self, now: Stamp) -> Agents {
        match &self.state.rotation {
            Rotation::Announced { .. } => self.home.agents(now),
            Rotation::Steady | Rotation::Overlap { .. } => {
                Agents::Unknown("nothing waits for them".to_owned())
            }
        }
    }

    /// Stores `next`, and only then signs and publishes with it.
    fn become_state(&mut self, next: State, now: Stamp) -> Result<(), KeepError> {
        // What cannot be signed or published with is not stored either.
        Signing::of(&next, self.settings.leaf_life)?;
        Bundle::of(&next, now)?;
        self.home.save(&next)?;
        self.take_up(next, now)
    }

    /// Signs and publishes with `next`, which is stored.
    fn take_up(&mut self, next: State, now: Stamp) -> Result<(), KeepError> {
        let signing = Signing::of(&next, self.settings.leaf_life)?;
        let bundle = Bundle::of(&next, now)?;
        let reissue = signing.issuer.chain != self.signing.borrow().issuer.chain;
        self.state = next;
        self.bundle = bundle;
        self.bundle_since = now;
        self.signing.send_replace(Arc::new(signing));
        if reissue {
            self.renew_tls(now)?;
        }
        self.publish(now);
        Ok(())
    }

    fn renew(&mut self, now: Stamp) -> Result<(), KeepError> {
        if now >= self.bundle_since.plus(CRL_RENEWED) || now < self.bundle_since {
            self.bundle = Bundle::of(&self.state, now)?;
            self.bundle_since = now;
            self.publish(now);
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
    fn publish(&mut self, now: Stamp) {
        match self.home.publish(&self.bundle, now) {
            None => {}
            Some(Ok(written)) => {
                self.published = Some(self.bundle.generation);
                self.complaints.remove("bundle");
                if written {
                    tracing::info!(generation = self.bundle.generation, "trust bundle published");
                }
            }
            Some(Err(error)) => self.note("bundle", Err(error.into())),
        }
    }

    fn write_progress(&mut self, now: Stamp) {
        let agents = self.agents(now);
        let progress =
            match Progress::of(&self.state, &agents, self.published, self.counts.now(), &self.outcomes) {
                Ok(progress) => progress,
                Err(error) => return self.complain("status", crate::report(&error)),
            };
        if self.progress.as_ref() == Some(&progress) {
            return;
        }
        let shown = self.home.show(&progress);
        if shown.is_ok() {
            self.progress = Some(progress);
        }
        self.note("status", shown.map_err(KeepError::from));
    }

    fn note(&mut self, what: &'static str, result: Result<(), KeepError>) {
        match result {
            Ok(()) => drop(self.complaints.remove(what)),
            // Not a fault: the next tick goes on from what the other has stored.
            Err(KeepError::Store(StoreError::Cluster(error))) if error.is_conflict() => {
                tracing::debug!(what, error = crate::report(&error), "another replica was faster");
            }
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
