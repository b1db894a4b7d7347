//! Listeners of the agent's own HTTP ports (admin, metrics, probes): connections bounded in all and by source, idle
//! ones let go.
//!
//! Metrics and probes are reachable from every pod. Unbounded, one of them could hold so many connections that the
//! agent has no descriptor left for those that it serves.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep, sleep};

/// Connections of one port. At some 20 KiB each 5 MiB.
const CONNECTIONS_MAX: usize = 256;
/// Of these, from one address: a scraper or the kubelet holds one or two.
const CONNECTIONS_PER_SOURCE_MAX: usize = 16;
/// How long nothing may come or go. Longer than Prometheus' default interval of 60 s, so that it keeps its connection.
const IDLE_MAX: Duration = Duration::from_secs(90);
/// How long accepting pauses after an error that another attempt would only repeat (no descriptor left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listener whose connections are bounded. One that finds no place is closed at once.
#[derive(Debug)]
pub struct BoundedListener {
    listener: TcpListener,
    places: Arc<Places>,
}

impl BoundedListener {
    /// Bounds what `listener` accepts from now on.
    pub fn new(listener: TcpListener) -> Self {
        Self { listener, places: Arc::default() }
    }
}

impl axum::serve::Listener for BoundedListener {
    type Io = BoundedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (BoundedStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, from)) => match self.places.take(from.ip()) {
                    Some(place) => return (BoundedStream::new(stream, place), from),
                    None => tracing::debug!(%from, "too many connections to an HTTP port of the agent"),
                },
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on an HTTP port of the agent");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// How many connections are open, by address.
#[derive(Debug, Default)]
struct Places(Mutex<HashMap<IpAddr, usize>>);

impl Places {
    fn take(self: &Arc<Self>, from: IpAddr) -> Option<Place> {
        let mut open = self.lock();
        let all: usize = open.values().sum();
        let of_one = open.get(&from).copied().unwrap_or(0);
        if all >= CONNECTIONS_MAX || of_one >= CONNECTIONS_PER_SOURCE_MAX {
            return None;
        }
        open.insert(from, of_one + 1);
        Some(Place { places: Arc::clone(self), from })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        // Every change is one insert or remove, so a panic elsewhere cannot have left half of one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One open connection's place; given back when dropped.
#[derive(Debug)]
struct Place {
    places: Arc<Places>,
    from: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.places.lock();
        match open.get(&self.from).copied() {
            Some(count) if count > 1 => drop(open.insert(self.from, count - 1)),
            Some(_) | None => drop(open.remove(&self.from)),
        }
    }
}

/// A connection that has a place, and fails once nothing has come or gone for [`IDLE_MAX`].
#[derive(Debug)]
pub struct BoundedStream {
    stream: TcpStream,
    idle: Pin<Box<Sleep>>,
    _place: Place,
}

impl BoundedStream {
    fn new(stream: TcpStream, place: Place) -> Self {
        Self { stream, idle: Box::pin(sleep(IDLE_MAX)), _place: place }
    }

    /// Puts the deadline off if something went on; fails if it has passed.
    fn or_idle<T>(&mut self, cx: &mut Context<'_>, moved: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match moved {
            Poll::Ready(moved) => {
                self.idle.as_mut().reset(Instant::now() + IDLE_MAX);
                Poll::Ready(moved)
            }
            Poll::Pending => {
                ready!(self.idle.as_mut().poll(cx));
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl AsyncRead for BoundedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.or_idle(cx, read)
    }
}

impl AsyncWrite for BoundedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.or_idle(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use axum::serve::Listener as _;
    use tokio::io::AsyncReadExt;

    use super::*;

    #[test]
    fn places_are_bounded_by_source_and_in_all_and_come_back() {
        let places = Arc::new(Places::default());
        let from = |n: usize| IpAddr::from([10, 0, 0, u8::try_from(n).unwrap()]);
        let mut held = Vec::new();
        for source in 0..CONNECTIONS_MAX / CONNECTIONS_PER_SOURCE_MAX {
            held.extend((0..CONNECTIONS_PER_SOURCE_MAX).map(|_| places.take(from(source)).unwrap()));
            assert!(places.take(from(source)).is_none());
        }
        assert!(places.take(from(200)).is_none());
        held.pop();
        held.push(places.take(from(200)).unwrap());
        drop(held);
        assert!(places.lock().is_empty());
    }

    #[tokio::test]
    async fn one_source_that_holds_all_of_its_places_is_closed_and_gets_in_again_when_one_is_free() {
        let mut listener = BoundedListener::new(TcpListener::bind("127.0.0.1:0").await.unwrap());
        let address = listener.local_addr().unwrap();
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS_PER_SOURCE_MAX {
            held.push((TcpStream::connect(address).await.unwrap(), listener.accept().await.0));
        }
        let mut refused = TcpStream::connect(address).await.unwrap();
        let mut byte = [0];
        tokio::select! {
            _ = listener.accept() => panic!("accepted beyond the bound"),
            read = refused.read(&mut byte) => assert_eq!(read.unwrap_or(0), 0),
        }
        held.pop();
        let _again = TcpStream::connect(address).await.unwrap();
        listener.accept().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_on_which_nothing_comes_is_let_go() {
        let mut listener = BoundedListener::new(TcpListener::bind("127.0.0.1:0").await.unwrap());
        let _silent = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut accepted, _) = listener.accept().await;
        let before = Instant::now();
        let ended = accepted.read(&mut [0]).await.unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        assert!(before.elapsed() >= IDLE_MAX);
    }
}
