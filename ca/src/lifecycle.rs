//! Decides what becomes of roots, intermediates and the kill list, and when.
//!
//! Pure but for the keys that a new authority draws: from one [`State`], the instant and what is known of the agents
//! to the next state. Every step is one whole state, so a CA that is killed goes on from the last one stored. Nothing
//! here writes, publishes or waits: see [`crate::keeper`].

use std::time::Duration;

use adit_proto::SpiffeId;

use crate::issue::LIFE_MAX;
use crate::root::{Authority, Broken, Certificate, Facts, ROOT_LIFE, RootError};
use crate::serial::Serial;
use crate::stamp::Stamp;
use crate::state::{Former, REVOKED_MAX, Revocation, Rotation, State, Subject};

/// A root with less than a fifth of its life left is replaced without being asked.
const ROOT_LEFT_MIN: Duration = Duration::from_secs(ROOT_LIFE.as_secs() / 5);

/// Added to the longest leaf life before an issuer's leaves are called expired: a leaf's end is cut to whole seconds,
/// and one may be signed in the second of the change.
const LEAF_MARGIN: Duration = Duration::from_secs(1);

/// What is known of the world around, at one instant.
#[derive(Clone, Debug)]
pub struct Outside {
    /// The instant.
    pub now: Stamp,
    /// The bundle generation that lies published; `None` before the first time, or if it could not be written.
    pub published: Option<u64>,
    /// Which bundle the agents know.
    pub agents: Agents,
    /// How long to wait for agents that do not acknowledge.
    pub patience: Duration,
    /// How long a leaf that is given now may be in use at most, from the moment when the state by which it is signed
    /// has been replaced.
    pub leaf_life: Duration,
}

/// Which bundle generation the agents have acknowledged.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Agents {
    /// They cannot be asked; only the time bound counts. The text says why.
    Unknown(String),
    /// Node and generation of each; 0 where the agent has not said.
    Known(Vec<(String, u64)>),
}

impl Agents {
    /// How many there are; `None` if that cannot be known.
    pub fn count(&self) -> Option<usize> {
        match self {
            Self::Unknown(_) => None,
            Self::Known(nodes) => Some(nodes.len()),
        }
    }

    /// The nodes that have not acknowledged `generation`; `None` if that cannot be known.
    pub fn behind(&self, generation: u64) -> Option<Vec<&str>> {
        match self {
            Self::Unknown(_) => None,
            Self::Known(nodes) => {
                let behind = nodes.iter().filter(|(_, known)| *known < generation);
                Some(behind.map(|(node, _)| node.as_str()).collect())
            }
        }
    }
}

/// A step that has fallen due.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Due {
    /// The intermediate has lived half its life, or is revoked; or its life has not begun: the clock was ahead when it
    /// was made.
    RenewIntermediate,
    /// The root nears its end.
    AnnounceRoot,
    /// The announced root lies published for the first time.
    NotePublished,
    /// Every agent has acknowledged the announced root.
    SignWithNew,
    /// Some agent has not acknowledged the announced root within the time bound.
    SignWithNewAnyway,
    /// The previous root's leaves have all expired.
    DropOld,
    /// A retired intermediate's leaves have all expired.
    DropRetired,
    /// A revoked serial is listed for another time than it has to be: an earlier version stored it, or it has turned
    /// out to be an issuing certificate's.
    NoteUntil,
    /// A revoked certificate has expired.
    DropRevoked,
    /// Leaves are now given a longer life than before.
    NoteLeafLife,
}

/// What a user can ask of a running CA.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Request {
    /// Replace the root.
    RotateRoot,
    /// Put on the kill list.
    Revoke(Subject),
    /// Take off the kill list.
    Restore(Subject),
}

/// Why a request is not done.
#[derive(Debug, thiserror::Error)]
pub enum Declined {
    /// One change of root at a time.
    #[error("a root rotation is already in progress")]
    Rotating,
    /// The root is not ours to replace.
    #[error("the root was given by hand (tls.crt, tls.key, ca.crt): replace those files to rotate it")]
    ByHand,
    /// Already so.
    #[error("nothing to do: it is so already")]
    Already,
    /// The kill list is full.
    #[error("the kill list is full ({REVOKED_MAX} entries)")]
    Full,
    /// An identity that this CA does not issue.
    #[error("{0} is not in this CA's trust domain")]
    TrustDomain(SpiffeId),
    /// A serial that agents never ask for: what a root is trusted for, it is by being in the bundle.
    #[error("{0} is a root's serial: what it signed is trusted until the root is replaced (rotate)")]
    Root(Serial),
    /// A certificate that is kept cannot be read.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// The new root could not be made.
    #[error("cannot make the new root")]
    Make(#[from] RootError),
}

impl State {
    /// The most urgent step that has fallen due, if any. After it is applied, ask again.
    pub fn due(&self, outside: &Outside) -> Result<Option<Due>, Broken> {
        let now = outside.now;
        if self.longest_leaf() < outside.leaf_life {
            return Ok(Some(Due::NoteLeafLife));
        }
        if let Some(due) = self.rotation_due(outside)? {
            return Ok(Some(due));
        }
        let issuing = Facts::read(self.authority.issuing()?)?;
        let half = issuing.not_after.since(issuing.not_before) / 2;
        // One that was made while the clock was ahead would make every leaf useless until then.
        let is_early = now < issuing.not_before;
        let is_revoked = self.revoked_issuer()?.is_some();
        if self.authority.root_key.is_some()
            && (is_revoked || is_early || now >= issuing.not_before.plus(half))
        {
            return Ok(Some(Due::RenewIntermediate));
        }
        if self.authorities().flat_map(|authority| &authority.retired).any(|retired| now > retired.until) {
            return Ok(Some(Due::DropRetired));
        }
        if self.revoked.iter().map(|revocation| revocation.until).ne(self.revoked_until()?) {
            return Ok(Some(Due::NoteUntil));
        }
        if self.revoked.iter().any(|revocation| has_expired(revocation, now)) {
            return Ok(Some(Due::DropRevoked));
        }
        Ok(None)
    }

    fn rotation_due(&self, outside: &Outside) -> Result<Option<Due>, Broken> {
        let now = outside.now;
        Ok(match &self.rotation {
            Rotation::Steady => {
                let root = Facts::read(self.authority.root()?)?;
                let ends = self.authority.root_key.is_some() && root.not_after.since(now) < ROOT_LEFT_MIN;
                ends.then_some(Due::AnnounceRoot)
            }
            Rotation::Announced { generation, published: None, .. } => outside
                .published
                .is_some_and(|published| published >= *generation)
                .then_some(Due::NotePublished),
            Rotation::Announced { generation, published: Some(published), .. } => match outside
                .agents
                .behind(*generation)
            {
                Some(behind) if behind.is_empty() => Some(Due::SignWithNew),
                Some(_) | None => (now >= published.plus(outside.patience)).then_some(Due::SignWithNewAnyway),
            },
            Rotation::Overlap { until, .. } => (now > *until).then_some(Due::DropOld),
        })
    }

    /// The state after `due`.
    pub fn after(&self, due: Due, outside: &Outside) -> Result<Self, RootError> {
        let now = outside.now;
        let mut next = self.clone();
        match due {
            Due::RenewIntermediate => {
                let until = self.leaves_end(now);
                next.authority = self.authority.renewed(&self.trust_domain, now, until)?;
            }
            Due::AnnounceRoot => {
                next = self.announcing(Authority::make(&self.trust_domain, now)?, now);
            }
            Due::NotePublished => {
                if let Rotation::Announced { published, .. } = &mut next.rotation {
                    *published = Some(now);
                }
            }
            Due::SignWithNew | Due::SignWithNewAnyway => {
                if let Rotation::Announced { next: new, .. } = &self.rotation {
                    next.authority = (**new).clone();
                    next.rotation = Rotation::Overlap {
                        previous: Box::new(self.authority.clone()),
                        since: now,
                        until: self.leaves_end(now),
                    };
                }
            }
            Due::DropOld => {
                next.rotation = Rotation::Steady;
                next.longest_leaf_s = outside.leaf_life.as_secs();
                next.generation += 1;
            }
            Due::DropRetired => next.drop_retired(now),
            Due::NoteUntil => next.note_until()?,
            Due::DropRevoked => {
                next.revoked.retain(|revocation| !has_expired(revocation, now));
                next.generation += 1;
            }
            Due::NoteLeafLife => next.longest_leaf_s = outside.leaf_life.as_secs(),
        }
        next.remember(self, now)?;
        Ok(next)
    }

    /// The state after a user's request.
    pub fn asked(&self, request: &Request, now: Stamp) -> Result<Self, Declined> {
        match request {
            Request::RotateRoot => match (&self.rotation, &self.authority.root_key) {
                (Rotation::Announced { .. } | Rotation::Overlap { .. }, _) => Err(Declined::Rotating),
                (Rotation::Steady, None) => Err(Declined::ByHand),
                (Rotation::Steady, Some(_)) => {
                    Ok(self.announcing(Authority::make(&self.trust_domain, now)?, now))
                }
            },
            Request::Revoke(subject) => {
                self.check_subject(subject)?;
                if self.is_revoked(subject) {
                    return Err(Declined::Already);
                }
                if self.revoked.len() >= REVOKED_MAX {
                    return Err(Declined::Full);
                }
                let mut next = self.clone();
                let subject = subject.clone();
                next.revoked.push(Revocation { subject, at: now, until: None });
                next.note_until()?;
                next.generation += 1;
                Ok(next)
            }
            Request::Restore(subject) => {
                if !self.is_revoked(subject) {
                    return Err(Declined::Already);
                }
                let mut next = self.clone();
                next.revoked.retain(|revocation| revocation.subject != *subject);
                next.generation += 1;
                Ok(next)
            }
        }
    }

    /// The state once `given`, a root or intermediate given by hand, is taken up; `None` if it is in use already, or
    /// has to wait for a change of root to end.
    ///
    /// What leads to a root that agents trust already signs at once. Another root is announced first, like our own.
    pub fn adopting(&self, given: &Authority, now: Stamp) -> Result<Option<Self>, Broken> {
        let same = |authority: &Authority| authority.chain == given.chain && authority.roots == given.roots;
        match &self.rotation {
            Rotation::Announced { .. } | Rotation::Overlap { .. } => return Ok(None),
            Rotation::Steady if same(&self.authority) => return Ok(None),
            Rotation::Steady => {}
        }
        let trusted = given.roots.first().is_some_and(|root| self.authority.roots.contains(root));
        if !trusted {
            return Ok(Some(self.announcing(given.clone(), now)));
        }
        let mut next = self.clone();
        next.authority = if self.authority.chain == given.chain {
            self.authority.clone()
        } else {
            self.authority.reissued(given.chain.clone(), given.key.clone(), self.leaves_end(now))
        };
        next.authority.root_key = None;
        if next.authority.roots != given.roots {
            next.authority.roots.clone_from(&given.roots);
            next.generation += 1;
        }
        next.remember(self, now)?;
        Ok(Some(next))
    }

    fn announcing(&self, next: Authority, now: Stamp) -> Self {
        let generation = self.generation + 1;
        Self {
            generation,
            rotation: Rotation::Announced { next: Box::new(next), generation, since: now, published: None },
            ..self.clone()
        }
    }

    /// When the last leaf that is signed before `now` has expired.
    fn leaves_end(&self, now: Stamp) -> Stamp {
        now.plus(self.longest_leaf()).plus(LEAF_MARGIN)
    }

    fn drop_retired(&mut self, now: Stamp) {
        let keep = |authority: &mut Authority| authority.retired.retain(|retired| now <= retired.until);
        keep(&mut self.authority);
        match &mut self.rotation {
            Rotation::Steady => {}
            Rotation::Announced { next, .. } => keep(next),
            Rotation::Overlap { previous, .. } => keep(previous),
        }
    }

    /// Notes every certificate of `before`'s chains that is not kept here: its key is in other hands (a middle one's
    /// always was) or may be, and agents believe what it signs for as long as any root that it leads to is trusted,
    /// which may be the second of `ca.crt` long after its own change of root.
    fn remember(&mut self, before: &Self, now: Stamp) -> Result<(), Broken> {
        for certificate in before.chains() {
            if self.chains().any(|kept| kept == certificate) {
                continue;
            }
            let gone = former(certificate)?;
            if !self.former.contains(&gone) {
                self.former.push(gone);
            }
        }
        self.former.retain(|former| now <= former.not_after);
        Ok(())
    }

    /// Until when each entry of the kill list is needed. One of a chain's certificate: to that one's end, as whatever
    /// its key signs is believed until then. Any other serial is a leaf's, which had been given when it was listed.
    fn revoked_until(&self) -> Result<Vec<Option<Stamp>>, Broken> {
        let mut issuing = self.former.clone();
        if !self.revoked.is_empty() {
            for certificate in self.chains() {
                issuing.push(former(certificate)?);
            }
        }
        let until = |revocation: &Revocation| match &revocation.subject {
            Subject::Identity(_) => None,
            Subject::Serial(serial) => {
                let listed =
                    revocation.until.unwrap_or_else(|| revocation.at.plus(LIFE_MAX).plus(LEAF_MARGIN));
                let ends = issuing.iter().filter(|issuing| issuing.serial == *serial);
                ends.map(|issuing| issuing.not_after).chain([listed]).max()
            }
        };
        Ok(self.revoked.iter().map(until).collect())
    }

    fn note_until(&mut self) -> Result<(), Broken> {
        let until = self.revoked_until()?;
        for (revocation, until) in self.revoked.iter_mut().zip(until) {
            revocation.until = until;
        }
        Ok(())
    }

    fn check_subject(&self, subject: &Subject) -> Result<(), Declined> {
        for root in self.roots() {
            let serial = Facts::read(root)?.serial;
            if *subject == Subject::Serial(serial.clone()) {
                return Err(Declined::Root(serial));
            }
        }
        match subject {
            Subject::Identity(id) if id.trust_domain() != self.trust_domain.as_str() => {
                Err(Declined::TrustDomain(id.clone()))
            }
            Subject::Identity(_) | Subject::Serial(_) => Ok(()),
        }
    }
}

/// A serial need not be listed once no certificate of it can be valid. An identity stays until it is restored.
fn has_expired(revocation: &Revocation, now: Stamp) -> bool {
    revocation.until.is_some_and(|until| now > until)
}

fn former(certificate: &Certificate) -> Result<Former, Broken> {
    let Facts { serial, not_after, .. } = Facts::read(certificate)?;
    Ok(Former { serial, not_after })
}

#[cfg(test)]
mod tests;
