//! `/healthz/ready` and `/healthz/live` for the kubelet, on port 15021.
//!
//! Runs on a data-plane worker, beside the connections that it vouches for: while that worker does not come round,
//! neither do the answers. Decides nothing: [`adit_core::readiness`] does.

use std::io;
use std::net::{self, SocketAddr};
use std::sync::Arc;

use adit_core::readiness::{Facts, unmet};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::sockets::bounded::BoundedListener;

/// Where the probes are answered.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Address and port. Default `[::]:15021`.
    pub address: SocketAddr,
}

impl Default for Config {
    fn default() -> Self {
        Self { address: "[::]:15021".parse().expect("[::]:15021 is an address") }
    }
}

/// Where the agent's parts say what holds. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Readiness(Arc<watch::Sender<Facts>>);

impl Default for Readiness {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Facts::default())))
    }
}

impl Readiness {
    /// Says what has changed.
    pub fn update(&self, change: impl FnOnce(&mut Facts)) {
        self.0.send_modify(change);
    }

    /// Everything that is missing, in words; empty if the agent is ready.
    pub fn unmet(&self) -> Vec<String> {
        unmet(&self.0.borrow()).iter().map(ToString::to_string).collect()
    }

    /// What the agent does without, ready or not, in words.
    pub fn without(&self) -> Vec<String> {
        self.0.borrow().without()
    }
}

/// Opens the listener, to be served on another runtime.
pub fn listen(address: SocketAddr) -> io::Result<net::TcpListener> {
    let listener = net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Answers probes, on the runtime that this is called on, until the listener fails.
pub async fn serve_here(listener: net::TcpListener, readiness: Readiness) {
    match TcpListener::from_std(listener) {
        Ok(listener) => serve(listener, readiness).await,
        Err(error) => tracing::error!(%error, "health probes are not answered"),
    }
}

async fn serve(listener: TcpListener, readiness: Readiness) {
    let router = Router::new()
        .route("/healthz/live", get(|| async { "live\n" }))
        .route("/healthz/ready", get(ready))
        .with_state(readiness);
    if let Err(error) = axum::serve(BoundedListener::new(listener), router).await {
        tracing::error!(%error, "health probes are no longer answered");
    }
}

async fn ready(State(readiness): State<Readiness>) -> (StatusCode, String) {
    let unmet = readiness.unmet();
    let (status, mut lines) = match unmet.is_empty() {
        true => (StatusCode::OK, vec!["ready".to_owned()]),
        false => (StatusCode::SERVICE_UNAVAILABLE, unmet),
    };
    lines.extend(readiness.without());
    (status, format!("{}\n", lines.join("\n")))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use adit_core::readiness::SysctlRefused;
    use adit_core::redirect::Sysctl;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        reply
    }

    #[tokio::test]
    async fn an_unready_agent_names_what_is_missing_and_is_live_all_the_same() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let readiness = Readiness::default();
        tokio::spawn(serve(listener, readiness.clone()));
        assert!(ask(address, "/healthz/live").await.starts_with("HTTP/1.1 200"));
        let reply = ask(address, "/healthz/ready").await;
        assert!(reply.starts_with("HTTP/1.1 503") && reply.contains("CNI socket"), "{reply}");
        readiness.update(|facts| {
            *facts = Facts { workers_running: true, cni_listening: true, ..Facts::default() }
        });
        let reply = ask(address, "/healthz/ready").await;
        assert!(reply.starts_with("HTTP/1.1 200") && reply.ends_with("\r\n\r\nready\n"), "{reply}");
        readiness.update(|facts| {
            facts.sysctls_refused =
                vec![SysctlRefused { sysctl: Sysctl::ConntrackBeLiberal, pods: NonZeroUsize::MIN }];
        });
        let reply = ask(address, "/healthz/ready").await;
        let detail = "ready\nnet/netfilter/nf_conntrack_tcp_be_liberal cannot be set in 1 pod\n";
        assert!(reply.starts_with("HTTP/1.1 200") && reply.ends_with(detail), "{reply}");
    }
}
