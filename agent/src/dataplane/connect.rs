//! The connect phase: from an original destination to a stream or socket that carries, with retries.
//!
//! Nothing of the app has been read here, so a retry cannot duplicate anything. Which failure may be retried, after
//! which delay and within which budget is decided by `adit_core::retry`, which endpoint by `adit_core::balance`; this
//! is the loop between them. Never dials in plaintext what is to be reached by tunnel.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use adit_core::net::{ObjectName, OriginalDst};
use adit_core::report::{ConnectionReport, Stage, Transport, Unmatched};
use adit_core::resolve::{self, Candidate, Destination, PlaintextCause, Via};
use adit_core::retry::{self, Attempts, Backoff, Failure, Next};
use adit_core::time::Mono;
use adit_core::traffic::TrafficSettings;
use adit_core::workload::Workload;
use adit_core::world::World;
use adit_proto::hbone::Refusal;
use adit_proto::{Reason, SpiffeId};
use h2::{RecvStream, SendStream};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::endpoints::{Choice, InUse, Spender};
use super::error::{CarryError, ends_tunnel, is_of_the_endpoint, is_of_the_network};
use super::pod::Pod;
use super::pool::{Key, Lease, Origin};
use super::protocol::{self, Head};
use super::share::Chunk;
use super::tunnel::{Slot, StreamError};
use crate::telemetry::Report;
use crate::telemetry::shard::Budget;
use crate::view::View;

/// What carries a connection from here on.
pub(super) enum Carrier {
    /// A stream of a tunnel.
    Tunnel { slot: Slot, stream: (SendStream<Chunk>, RecvStream) },
    /// A plain connection.
    Plain(TcpStream),
}

/// A connection that is through its connect phase.
pub(super) struct Connected {
    /// What carries it.
    pub(super) carrier: Carrier,
    /// Counts it at its endpoint.
    pub(super) in_use: Option<InUse>,
}

/// Connects one captured connection. Bounded by its service's deadline; for plaintext only by the kernel.
pub(super) async fn connect(
    pod: &Pod,
    client: SocketAddr,
    dst: OriginalDst,
    report: &Report,
) -> Result<Connected, CarryError> {
    let mut view = pod.worker.handles.view.clone();
    let world = view.latest();
    let local = pod.local(&world);
    let begun = pod.worker.handles.clock.now().mono;
    match resolve::outbound(&world, &local, &pod.ips, dst)? {
        Destination::Outside(addr) => {
            report.edit(|report| report.transport = Transport::Passthrough);
            let stream = dial(pod, addr, report).await?;
            Ok(Connected { carrier: Carrier::Plain(stream), in_use: None })
        }
        Destination::Service(_) | Destination::Pod(_) => {
            let traffic = Arc::clone(&pod.worker.traffic_default);
            let mut phase = Phase {
                pod,
                client,
                dst,
                report,
                view,
                local,
                begun,
                attempts: Attempts::default(),
                tried: Vec::new(),
                route: Route::none(traffic),
            };
            phase.look_up(&world)?;
            phase.attempts = Attempts::new(&phase.route.traffic);
            phase.run().await
        }
    }
}

async fn dial(pod: &Pod, addr: SocketAddr, report: &Report) -> Result<TcpStream, CarryError> {
    let clock = pod.worker.handles.clock;
    report.edit(|report| {
        report.target = Some(addr);
        report.attempts = report.attempts.saturating_add(1);
    });
    let begun = clock.now().mono;
    let stream = pod.legs.outside(addr).await?;
    report.edit(|report| report.stages.set(Stage::Tcp, clock.now().mono.since(begun)));
    Ok(stream)
}

/// One connection's way through the phase.
struct Phase<'a> {
    pod: &'a Pod,
    client: SocketAddr,
    dst: OriginalDst,
    report: &'a Report,
    view: View,
    local: Arc<Workload>,
    begun: Mono,
    attempts: Attempts,
    /// Endpoints that failed; of a Service with many, only as many as attempts were made.
    tried: Vec<SocketAddr>,
    route: Route,
}

/// What the destination resolved to, last time.
struct Route {
    service: Option<ObjectName>,
    affinity: Option<Duration>,
    candidates: Candidates,
    traffic: Arc<TrafficSettings>,
}

enum Candidates {
    OfService(Arc<[Candidate]>),
    One(Box<[Candidate; 1]>),
    None,
}

impl Candidates {
    fn all(&self) -> &[Candidate] {
        match self {
            Self::OfService(all) => all,
            Self::One(one) => &**one,
            Self::None => &[],
        }
    }
}

impl Route {
    fn none(traffic: Arc<TrafficSettings>) -> Self {
        Self { service: None, affinity: None, candidates: Candidates::None, traffic }
    }
}

/// One attempt that failed.
struct Attempted {
    failure: Failure,
    error: CarryError,
}

impl Phase<'_> {
    /// Asks the world where the connection may go.
    fn look_up(&mut self, world: &World) -> Result<(), CarryError> {
        let traffic = Arc::clone(&self.pod.worker.traffic_default);
        self.route = match resolve::outbound(world, &self.local, &self.pod.ips, self.dst)? {
            Destination::Service(route) => {
                let name = route.service.name.clone();
                self.report.edit(|report| report.service = Some((name.clone(), route.port)));
                Route {
                    service: Some(name),
                    affinity: route.affinity,
                    candidates: Candidates::OfService(route.candidates),
                    traffic: route.traffic,
                }
            }
            Destination::Pod(candidate) => {
                Route { candidates: Candidates::One(Box::new([candidate])), ..Route::none(traffic) }
            }
            // The pod that had this address has gone since: what is outside now may be somebody else.
            Destination::Outside(_) => Route::none(traffic),
        };
        Ok(())
    }

    async fn run(mut self) -> Result<Connected, CarryError> {
        let mut again = None;
        let mut first = true;
        loop {
            let candidate = match again.take() {
                Some(candidate) => candidate,
                None => self.next_candidate().await?,
            };
            if std::mem::take(&mut first) {
                self.begin();
            }
            let attempted = match candidate.via.clone() {
                Via::Tunnel { expected } => self.attempt(&candidate, &expected).await,
                Via::Plaintext(cause) => return self.plaintext(&candidate, cause).await,
                Via::Unknown => {
                    Err(Attempted { failure: Failure::PodGone, error: CarryError::Unknown(candidate.addr) })
                }
            };
            let failed = match attempted {
                Ok(connected) => return Ok(connected),
                Err(failed) => failed,
            };
            again = self.after(failed, candidate).await?;
        }
    }

    /// The first attempt: what earns retries.
    fn begin(&self) {
        let now = self.now();
        self.report.edit(|report| report.stages.set(Stage::Resolve, now.since(self.begun)));
        if let Some(spender) = self.spender() {
            self.pod.worker.endpoints.attempted(&spender, &self.route.traffic, now);
        }
    }

    /// Chooses an endpoint; waits, within the deadline, while no pod behind the destination is known.
    async fn next_candidate(&mut self) -> Result<Candidate, CarryError> {
        loop {
            let chosen = {
                let worker = &self.pod.worker;
                let client = self.route.affinity.map(|_| self.client.ip());
                let candidates = self.route.candidates.all();
                let choice =
                    Choice { candidates, service: self.route.service.as_ref(), client, tried: &self.tried };
                let chosen = worker.endpoints.choose(&choice, self.now(), &mut worker.seed.borrow_mut());
                chosen.map(|at| candidates[at].clone())
            };
            if let Some(candidate) = chosen {
                return Ok(candidate);
            }
            let (clock, deadline) = (self.pod.worker.handles.clock, self.deadline());
            tokio::select! {
                () = self.view.changed() => {}
                () = clock.sleep_until(Some(deadline)) => return Err(CarryError::Unknown(self.dst.0)),
            }
            let world = self.view.latest();
            self.look_up(&world)?;
        }
    }

    /// One attempt by tunnel.
    async fn attempt(&mut self, candidate: &Candidate, expected: &SpiffeId) -> Result<Connected, Attempted> {
        let worker = &self.pod.worker;
        let Some(workload) = &candidate.workload else {
            let error = CarryError::Unknown(candidate.addr);
            return Err(Attempted { failure: Failure::PodGone, error });
        };
        let begun = self.now();
        self.report.edit(|report| {
            report.attempts = report.attempts.saturating_add(1);
            report.target = Some(candidate.addr);
            report.remote = Some(Arc::clone(workload));
        });
        let in_use = worker.endpoints.begin(candidate.addr, begun);
        let key = Key { pod: workload.pod.uid.clone(), ip: candidate.addr.ip(), expected: expected.clone() };
        let limit = self.attempt_limit(begun, candidate.addr);
        let mut reused = false;
        let opened = timeout(limit, self.open(&key, candidate.addr, &mut reused)).await;
        let error = match opened {
            Ok(Ok((slot, stream))) => {
                // A handshake says nothing of the endpoint: without this the first one dialled would stay the slow one.
                if reused {
                    in_use.connected(self.now().since(begun));
                }
                self.succeeded(candidate.addr);
                return Ok(Connected { carrier: Carrier::Tunnel { slot, stream }, in_use: Some(in_use) });
            }
            Ok(Err(error)) => error,
            Err(_) => CarryError::AttemptTimeout(candidate.addr),
        };
        let mut failure = error.failure(reused);
        if self.view.world().workload(&key.pod).is_none() && is_of_the_network(failure) {
            failure = Failure::PodGone;
        }
        if ends_tunnel(failure) {
            self.pod.pool.retire(&key);
        }
        Err(Attempted { failure, error })
    }

    /// Gets a place in a tunnel and opens a stream there.
    async fn open(
        &self,
        key: &Key,
        destination: SocketAddr,
        reused: &mut bool,
    ) -> Result<(Slot, (SendStream<Chunk>, RecvStream)), CarryError> {
        let asked = self.now();
        let Lease { slot, origin } = self.pod.pool.lease(key).await.map_err(CarryError::Tunnel)?;
        let leased = self.now();
        *reused = matches!(origin, Origin::Reused);
        let security = Arc::clone(&slot.tunnel().security);
        self.report.edit(|report| {
            report.transport = Transport::Mtls;
            report.security = Some(security);
            report.tunnel_reused = Some(!matches!(origin, Origin::Dialled(_)));
            match origin {
                Origin::Reused => {}
                Origin::Joined => report.stages.set(Stage::PoolWait, leased.since(asked)),
                Origin::Dialled(times) => {
                    report.stages.set(Stage::Tcp, times.tcp);
                    report.stages.set(Stage::Tls, times.tls);
                }
            }
        });
        let trace = self.report.edit(|report| report.trace);
        let span = self.pod.worker.seed.borrow_mut().draw();
        let baggage = self.pod.baggage(&self.local);
        let head = Head { destination, client: self.client, trace, span, baggage: &baggage };
        let stream = slot.open(protocol::request(&head)).await.map_err(CarryError::Stream)?;
        self.report.edit(|report| report.stages.set(Stage::Connect, self.now().since(leased)));
        Ok((slot, stream))
    }

    /// As the app would have reached it, once, with no deadline but the kernel's.
    async fn plaintext(&self, candidate: &Candidate, cause: PlaintextCause) -> Result<Connected, CarryError> {
        self.report.edit(|report| {
            report.transport = match cause {
                PlaintextCause::Outside => Transport::Passthrough,
                PlaintextCause::NotEnrolled
                | PlaintextCause::NotYetCaptured
                | PlaintextCause::SkippedPort
                | PlaintextCause::HostNetwork => Transport::Plaintext,
            };
            report.remote = candidate.workload.clone();
        });
        let begun = self.now();
        let in_use = self.pod.worker.endpoints.begin(candidate.addr, begun);
        match dial(self.pod, candidate.addr, self.report).await {
            Ok(stream) => {
                in_use.connected(self.now().since(begun));
                self.succeeded(candidate.addr);
                Ok(Connected { carrier: Carrier::Plain(stream), in_use: Some(in_use) })
            }
            Err(error) => {
                if is_of_the_endpoint(error.failure(false)) {
                    self.blame(candidate.addr);
                }
                Err(error)
            }
        }
    }

    /// Decides what follows a failed attempt: `Ok` goes on, with this endpoint or a new choice; `Err` gives up.
    async fn after(
        &mut self,
        failed: Attempted,
        candidate: Candidate,
    ) -> Result<Option<Candidate>, CarryError> {
        let Attempted { failure, error } = failed;
        self.report.edit(|report| {
            report.last_failure = Some(error.reason());
            refused_by_peer(&error, report);
        });
        if is_of_the_endpoint(failure) {
            self.blame(candidate.addr);
        }
        if self.now() >= self.deadline() {
            return Err(CarryError::Deadline { last: Box::new(error) });
        }
        let world = self.view.latest();
        if let Err(gone) = self.look_up(&world) {
            // Nothing is left to try; what failed says more than that.
            tracing::debug!("no endpoint is left: {gone}");
            return Err(error);
        }
        if failure != Failure::TunnelDead && failure != Failure::GoAway && failure != Failure::RefusedStream {
            self.tried.push(candidate.addr);
        }
        let others = self.pod.worker.endpoints.another_exists(self.route.candidates.all(), &self.tried);
        let next = retry::next(failure, &self.attempts, self.route.service.is_some(), others);
        match next {
            Next::Give => return Err(error),
            Next::AtOnce => {
                self.attempts.record(next);
                let same = failure != Failure::PodGone;
                return Ok(same.then_some(candidate));
            }
            Next::SameAfterLookup => self.tried.retain(|addr| *addr != candidate.addr),
            Next::Another => {}
        }
        self.wait(error).await?;
        self.attempts.record(next);
        let world = self.view.latest();
        self.look_up(&world)?;
        Ok(None)
    }

    /// Waits the drawn delay, then asks the budget.
    async fn wait(&self, error: CarryError) -> Result<(), CarryError> {
        let worker = &self.pod.worker;
        let draw = u32::try_from(worker.seed.borrow_mut().below(1 << 32)).unwrap_or(u32::MAX);
        let Some(delay) = Backoff::new(&self.route.traffic).delay(self.attempts.retries, draw) else {
            return Err(error);
        };
        let until = self.now() + delay;
        if until >= self.deadline() {
            return Err(CarryError::Deadline { last: Box::new(error) });
        }
        worker.handles.clock.sleep_until(Some(until)).await;
        let allowed = self
            .spender()
            .is_some_and(|spender| worker.endpoints.may_retry(&spender, &self.route.traffic, self.now()));
        worker.shard.asked_budget(if allowed { Budget::Granted } else { Budget::Denied });
        if allowed { Ok(()) } else { Err(CarryError::BudgetExhausted { last: Box::new(error) }) }
    }

    fn blame(&self, endpoint: SocketAddr) {
        let Some(service) = &self.route.service else { return };
        let worker = &self.pod.worker;
        let size = self.route.candidates.all().len();
        let ejected = worker.endpoints.failed(
            service,
            endpoint,
            size,
            &self.route.traffic,
            (self.now(), &mut worker.seed.borrow_mut()),
        );
        if let Some(length) = ejected {
            tracing::info!(%service, %endpoint, "ejected for {length:?} after repeated failures");
            worker.shard.ejected(service);
        }
    }

    fn succeeded(&self, endpoint: SocketAddr) {
        let Some(service) = &self.route.service else { return };
        let endpoints = &self.pod.worker.endpoints;
        endpoints.succeeded(service, endpoint);
        if let Some(affinity) = self.route.affinity {
            endpoints.pin(service, self.client.ip(), endpoint, self.now(), affinity);
        }
    }

    fn spender(&self) -> Option<Spender> {
        let namespace = Arc::clone(&self.local.pod.name.namespace);
        if let Some(service) = &self.route.service {
            return Some(Spender::Service(service.clone(), namespace));
        }
        let pod = self.route.candidates.all().first()?.workload.as_ref()?;
        Some(Spender::Pod(pod.pod.uid.clone(), namespace))
    }

    /// One attempt takes the rest of the phase, but where another endpoint exists no more than its own share.
    fn attempt_limit(&self, now: Mono, endpoint: SocketAddr) -> Duration {
        let rest = self.deadline().since(now);
        let others = self.route.candidates.all().iter().any(|candidate| {
            candidate.addr != endpoint
                && candidate.via != Via::Unknown
                && !self.tried.contains(&candidate.addr)
        });
        if others { rest.min(self.route.traffic.attempt_timeout) } else { rest }
    }

    fn deadline(&self) -> Mono {
        self.begun + self.route.traffic.connect_deadline
    }

    fn now(&self) -> Mono {
        self.pod.worker.handles.clock.now().mono
    }
}

/// What the peer said when it refused: its policy, for this side's report.
fn refused_by_peer(error: &CarryError, report: &mut ConnectionReport) {
    if let CarryError::Stream(StreamError::Refused(refused)) = error
        && refused.reason() == Reason::PeerDenied
    {
        let said = refused.refusal.as_ref();
        report.decision = Some(adit_core::report::Decision {
            allowed: false,
            policy: said.and_then(|said| said.policy.as_deref()).and_then(object_name),
            rule: said.and_then(|said| said.rule),
            unmatched: said.and_then(unmatched),
        });
    }
}

/// The ALLOW policies of the peer's, as far as it could name them.
fn unmatched(said: &Refusal) -> Option<Box<Unmatched>> {
    let named = said.unmatched.iter().filter_map(|name| object_name(name));
    (!said.unmatched.is_empty()).then(|| Box::new(Unmatched::of(named, said.more)))
}

fn object_name(text: &str) -> Option<ObjectName> {
    let (namespace, name) = text.split_once('/')?;
    Some(ObjectName::new(namespace, name))
}
