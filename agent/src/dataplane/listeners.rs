//! A pod's listeners on one worker, and the loops that accept and serve until they are told to stop.

use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use adit_core::redirect::Family;
use adit_proto::Reason;
use adit_proto::hbone::{PORT_INBOUND_HBONE, PORT_INBOUND_PLAINTEXT, PORT_OUTBOUND};
use futures_util::FutureExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinSet, yield_now};
use tokio::time::{sleep, timeout};

use super::legs::Legs;
use super::model::{OpenError, ServedPod};
use super::pod::{Live, Pod, log_panic};
use super::shared::Worker;
use super::{inbound, outbound, plaintext};
use crate::sockets::{self, ListenError, Options};

/// Connections accepted in a row before the worker's other tasks get their turn.
const ACCEPTS_IN_A_ROW: usize = 16;
/// How long the end of a pod waits for its connections' tasks to be gone: they are told at once, some 60 a turn.
const END_WAIT: Duration = Duration::from_secs(2);
/// How long accepting pauses after an error that another attempt would only repeat (no descriptor left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A pod being served, with its accept loops; these own its connections.
pub(super) struct Serving {
    pod: Rc<Pod>,
    tasks: JoinSet<()>,
}

impl Serving {
    /// Opens the pod's listeners on this worker, in its namespace, and serves them.
    pub(super) fn open(worker: &Rc<Worker>, served: &ServedPod, live: Arc<Live>) -> Result<Self, OpenError> {
        let legs = Legs::of_pod(served.netns.clone(), served.mark, worker.config.legs());
        let pod = Pod::new(worker, served, legs, live);
        let mut tasks = JoinSet::new();
        for family in [Family::V4, Family::V6] {
            let door = |port| Door::open(Rc::clone(worker), served.clone(), family, port, &pod.legs);
            let Some(outbound) = door(PORT_OUTBOUND)? else { continue };
            let Some(plaintext) = door(PORT_INBOUND_PLAINTEXT)? else { continue };
            let Some(tunnel) = door(PORT_INBOUND_HBONE)? else { continue };
            tasks.spawn_local(accept(Rc::clone(&pod), outbound, outbound::serve));
            tasks.spawn_local(accept(Rc::clone(&pod), plaintext, plaintext::serve));
            tasks.spawn_local(accept(Rc::clone(&pod), tunnel, inbound::serve));
        }
        Ok(Self { pod, tasks })
    }

    /// The pod.
    pub(super) fn pod(&self) -> &Rc<Pod> {
        &self.pod
    }

    /// Ends everything at once; open connections report `reason`.
    pub(super) async fn end(mut self, reason: Reason) {
        self.pod.end_for(reason);
        self.tasks.shutdown().await;
        self.pod.pool.close();
        let gone = async {
            while Rc::strong_count(&self.pod) > 1 {
                yield_now().await;
            }
        };
        if timeout(END_WAIT, gone).await.is_err() {
            tracing::warn!(pod = %self.pod.key.uid, "connections of an ended pod are still being taken down");
        }
    }
}

/// Where connections come in: a listener, and how to open it again.
pub(super) struct Door {
    listener: TcpListener,
    /// None for one that nobody can open again.
    origin: Option<Origin>,
}

/// What a listener was opened with.
struct Origin {
    worker: Rc<Worker>,
    served: ServedPod,
    family: Family,
    port: u16,
}

impl Door {
    fn open(
        worker: Rc<Worker>,
        served: ServedPod,
        family: Family,
        port: u16,
        legs: &Legs,
    ) -> Result<Option<Self>, OpenError> {
        let origin = Origin { worker, served, family, port };
        let listener = origin.listen(legs)?;
        Ok(listener.map(|listener| Self { listener, origin: Some(origin) }))
    }

    /// Takes the place of a listener that was destroyed from outside (SOCK_DESTROY by whoever has CAP_NET_ADMIN there).
    fn reopen(&mut self, legs: &Legs) -> Result<(), OpenError> {
        let Some(origin) = &self.origin else { return Ok(()) };
        if let Some(listener) = origin.listen(legs)? {
            self.listener = listener;
            tracing::warn!(pod = %origin.served.key.uid, port = origin.port, "a listener was destroyed, and is opened again");
        }
        Ok(())
    }
}

impl From<TcpListener> for Door {
    fn from(listener: TcpListener) -> Self {
        Self { listener, origin: None }
    }
}

impl Origin {
    fn listen(&self, legs: &Legs) -> Result<Option<TcpListener>, OpenError> {
        let congestion = &self.worker.config.tunnel_congestion;
        let congestion: Vec<&str> = congestion.iter().map(String::as_str).collect();
        let options =
            if self.port == PORT_INBOUND_HBONE { legs.tunnel_listener(&congestion) } else { legs.local() };
        listen(&self.served, self.family, self.port, &options)
    }
}

/// A listener in the pod's namespace; `None` where the kernel has no such family.
fn listen(
    served: &ServedPod,
    family: Family,
    port: u16,
    options: &Options<'_>,
) -> Result<Option<TcpListener>, OpenError> {
    let listener = match sockets::listen(&served.netns, family, port, options) {
        Ok(listener) => listener,
        Err(ListenError::NoIpv6) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let socket =
        TcpListener::from_std(listener.socket).map_err(|source| OpenError::Register { port, source })?;
    Ok(Some(socket))
}

/// Accepts and serves until nothing more shall be accepted and what was has ended. Dropped, it ends all of it.
pub(super) async fn accept<F>(pod: Rc<Pod>, mut door: Door, serve: fn(Rc<Pod>, TcpStream, SocketAddr) -> F)
where
    F: Future<Output = ()> + 'static,
{
    let mut connections = JoinSet::new();
    let mut in_a_row = 0;
    // Said once, until one is accepted again: out of descriptors, every door of every pod fails 20 times a second.
    let mut said = false;
    let refusing = pod.refusing();
    tokio::pin!(refusing);
    loop {
        tokio::select! {
            biased;
            () = &mut refusing => break,
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                in_a_row = 0;
                log_panic(ended);
            }
            accepted = door.listener.accept() => match accepted {
                Ok((stream, client)) => {
                    connections.spawn_local(serve(Rc::clone(&pod), stream, client));
                    in_a_row += 1;
                    said = false;
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    let error = match is_of_no_listener(&error) {
                        true => door.reopen(&pod.legs).err().map(|error| format!("cannot open a listener again: {error}")),
                        false => Some(format!("cannot accept: {error}")),
                    };
                    if let Some(error) = error.filter(|_| !said) {
                        said = true;
                        tracing::warn!(pod = %pod.key.uid, "{error}");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
        if in_a_row >= ACCEPTS_IN_A_ROW {
            in_a_row = 0;
            yield_now().await;
        }
    }
    // What waits already is taken: the kernel hands it on to another listener of the port only where it was told to.
    for _ in 0..sockets::BACKLOG {
        let Some(Ok((stream, client))) = door.listener.accept().now_or_never() else { break };
        connections.spawn_local(serve(Rc::clone(&pod), stream, client));
    }
    drop(door);
    while let Some(ended) = connections.join_next().await {
        log_panic(ended);
    }
}

/// Whether an accept failed because the socket listens no more (EINVAL).
fn is_of_no_listener(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::InvalidInput
}

/// Whether an accept failed only because that client has gone (accept(2), "Error handling").
fn is_of_one_connection(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::ConnectionAborted | Kind::ConnectionReset | Kind::Interrupted | Kind::HostUnreachable
    )
}
