//! The line of a request: authenticate → place (in a cluster) → attest → issue → reply; nothing else.
//!
//! Every refusal has one word, one gRPC code and one text; every request one line in the log, without tokens or keys.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use adit_proto::SpiffeId;
use tokio::sync::{Semaphore, watch};
use tonic::{Request, Response, Status};

use crate::attest::{Caller, Evidence, Grant, attest, of_domain};
use crate::caller::Callers;
use crate::cluster::callers::Agents;
use crate::counts::Counts;
use crate::csr::SubjectKey;
use crate::fresh::Fresh;
use crate::issue::{self, Leaf};
use crate::places::{Place, Places};
use crate::refusal::Refusal;
use crate::serial::Serial;
use crate::server::Peer;
use crate::signing::Signing;
use crate::stamp::Stamp;
use crate::wire::istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer};
use crate::wire::{IstioCertificateRequest, IstioCertificateResponse};

/// How long a request message may be, in bytes: the request for a certificate (8 KiB at most), and as much again for
/// its metadata.
pub const MESSAGE_LEN_MAX: usize = 16 * 1024;

/// How many requests are worked on at once. One takes 100 µs of CPU; 256 in line are 25 ms, and the next is told to
/// come back.
pub const REQUESTS_MAX: usize = 256;

/// How many requests in a cluster may wait for the API server to say whose token theirs is, on connections on which
/// nobody known has asked yet: half of [`REQUESTS_MAX`], so that those who are known have the other half whatever
/// others send. The API server takes milliseconds for one.
pub const STRANGERS_MAX: usize = 128;

/// How many of them may come from one address: as many as an agent's connection has streams.
pub const STRANGERS_PER_SOURCE_MAX: usize = 16;

/// Issues certificates over gRPC.
#[derive(Clone, Debug)]
pub struct Service {
    askers: Askers,
    signing: watch::Receiver<Arc<Signing>>,
    fresh: Fresh,
    counts: Arc<Counts>,
    room: Arc<Semaphore>,
    strangers: Arc<Places>,
}

/// Who may ask.
#[derive(Clone, Debug)]
pub(crate) enum Askers {
    /// Those in the token file, for what it says.
    TokenFile(Callers),
    /// The agents of a cluster, for what runs on their node.
    Cluster(Arc<Agents>),
}

impl Service {
    /// A service that answers `askers` with what `signing` signs, as long as that is `fresh`.
    pub(crate) fn new(
        askers: Askers,
        signing: watch::Receiver<Arc<Signing>>,
        fresh: Fresh,
        counts: Arc<Counts>,
    ) -> Self {
        let strangers = Places::new(STRANGERS_MAX, STRANGERS_PER_SOURCE_MAX);
        Self { askers, signing, fresh, counts, room: Arc::new(Semaphore::new(REQUESTS_MAX)), strangers }
    }

    /// As tonic routes to it, with its bounds.
    pub fn into_server(self) -> IstioCertificateServiceServer<Self> {
        IstioCertificateServiceServer::new(self).max_decoding_message_size(MESSAGE_LEN_MAX)
    }

    /// One request, from what the wire says to the certificate.
    async fn answer(&self, asked: &Asked<'_>, trace: &mut Trace) -> Result<(Leaf, Arc<Signing>), Refusal> {
        let _room = self.room.try_acquire().map_err(|_| Refusal::Busy)?;
        let (grant, key) = match &self.askers {
            Askers::TokenFile(callers) => self.by_token_file(callers, asked, trace)?,
            Askers::Cluster(agents) => self.by_cluster(agents, asked, trace).await?,
        };
        // Of this moment, not of when the request came: what signs may have been replaced while it waited.
        let signing = Arc::clone(&self.signing.borrow());
        if let Some(lost) = self.fresh.lost_for() {
            return Err(Refusal::Stale(lost));
        }
        let grant = grant.still(&signing.revoked)?;
        let life = signing.leaf_life.asked(asked.message.validity_duration)?;
        let leaf = issue::leaf(&signing.issuer, &grant, &key, Serial::draw()?, Stamp::of(asked.now), life)?;
        Ok((leaf, signing))
    }

    /// By the token file, which is read again before a caller is refused: it may have been changed a moment ago.
    fn by_token_file(
        &self,
        callers: &Callers,
        asked: &Asked<'_>,
        trace: &mut Trace,
    ) -> Result<(Grant, SubjectKey), Refusal> {
        let caller = authenticate(callers, asked)?;
        let (wanted, key) = self.read(asked, &caller.node, trace)?;
        let signing = Arc::clone(&self.signing.borrow());
        let judge = |caller: &Caller| {
            let evidence = Evidence::Token(Arc::clone(&caller.allowed));
            attest(&caller.node, &evidence, wanted.clone(), &signing.trust_domain, &signing.revoked)
        };
        let grant = match judge(&caller) {
            Ok(grant) => grant,
            Err(_) => {
                callers.reload_if_changed();
                judge(&authenticate(callers, asked)?)?
            }
        };
        Ok((grant, key))
    }

    /// By what the API server says of the token, and what runs on the caller's node.
    async fn by_cluster(
        &self,
        agents: &Agents,
        asked: &Asked<'_>,
        trace: &mut Trace,
    ) -> Result<(Grant, SubjectKey), Refusal> {
        let stranger = admit(&self.strangers, asked.peer)?;
        let claim = agents.authenticate(asked.authorization, asked.now).await?;
        drop(stranger);
        let (wanted, key) = self.read(asked, &claim.node, trace)?;
        let signing = Arc::clone(&self.signing.borrow());
        let wanted = of_domain(wanted, &signing.trust_domain)?;
        agents.place(&claim, &wanted).await?;
        let evidence = Evidence::Placed(wanted.clone());
        let grant = attest(&claim.node, &evidence, wanted, &signing.trust_domain, &signing.revoked)?;
        Ok((grant, key))
    }

    /// What a known caller asks for.
    fn read(
        &self,
        asked: &Asked<'_>,
        node: &Arc<str>,
        trace: &mut Trace,
    ) -> Result<(SpiffeId, SubjectKey), Refusal> {
        if let Some(peer) = asked.peer {
            peer.is_known();
        }
        trace.node = Some(Arc::clone(node));
        let wanted = wanted(asked.message)?;
        trace.identity = Some(wanted.clone());
        self.signing.borrow().leaf_life.asked(asked.message.validity_duration)?;
        Ok((wanted, SubjectKey::from_csr_pem(&asked.message.csr)?))
    }
}

/// Gives a place to a request of whom nobody knows anything. Others need none.
fn admit(strangers: &Arc<Places>, peer: Option<&Peer>) -> Result<Option<Place>, Refusal> {
    match peer {
        Some(peer) if peer.was_known() => Ok(None),
        peer => {
            let from = peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.from.ip());
            strangers.take(from).map(Some).map_err(|_| Refusal::Busy)
        }
    }
}

fn authenticate(callers: &Callers, asked: &Asked<'_>) -> Result<Caller, Refusal> {
    callers
        .authenticate(asked.authorization)
        .or_else(|_| {
            callers.reload_if_changed();
            callers.authenticate(asked.authorization)
        })
        .map_err(Refusal::from)
}

/// A request as it came.
struct Asked<'a> {
    authorization: Option<&'a [u8]>,
    message: &'a IstioCertificateRequest,
    now: SystemTime,
    peer: Option<&'a Peer>,
}

/// What the log line says beside the result.
#[derive(Default)]
struct Trace {
    node: Option<Arc<str>>,
    identity: Option<SpiffeId>,
}

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let began = Instant::now();
        let peer = request.extensions().get::<Peer>().cloned();
        let authorization = request.metadata().get("authorization").cloned();
        let message = request.into_inner();
        let asked = Asked {
            authorization: authorization.as_ref().map(|value| value.as_bytes()),
            message: &message,
            now: SystemTime::now(),
            peer: peer.as_ref(),
        };
        let mut trace = Trace::default();
        let result = self.answer(&asked, &mut trace).await;
        log(peer.map(|peer| peer.from), &trace, &result, began);
        self.counts.request(&result);
        match result {
            Ok((leaf, signing)) => Ok(Response::new(signing.reply(&leaf))),
            Err(refusal) => Err(refusal.status()),
        }
    }
}

/// The identity that the request asks for.
fn wanted(message: &IstioCertificateRequest) -> Result<SpiffeId, Refusal> {
    const KEY: &str = "ImpersonatedIdentity";
    let fields = message.metadata.as_ref().map(|metadata| &metadata.fields);
    let kind =
        fields.and_then(|fields: &BTreeMap<_, _>| fields.get(KEY)).and_then(|value| value.kind.as_ref());
    match kind {
        Some(prost_types::value::Kind::StringValue(uri)) => Ok(uri.parse()?),
        Some(_) | None => Err(Refusal::NoIdentity),
    }
}

fn log(
    peer: Option<SocketAddr>,
    trace: &Trace,
    result: &Result<(Leaf, Arc<Signing>), Refusal>,
    began: Instant,
) {
    let peer = peer.map(|peer| peer.to_string()).unwrap_or_default();
    let node = trace.node.as_deref().unwrap_or_default();
    let identity = trace.identity.as_ref().map(SpiffeId::as_str).unwrap_or_default();
    let us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    match result {
        Ok((leaf, _)) => tracing::info!(
            target: "access", peer, node, identity, serial = %leaf.serial, not_after = %leaf.not_after, us, "issued"
        ),
        Err(refusal) => tracing::warn!(
            target: "access", peer, node, identity, step = refusal.step(), refusal = refusal.word(),
            reason = crate::report(refusal), us, "refused"
        ),
    }
}

#[cfg(test)]
mod tests;
