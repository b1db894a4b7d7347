//! The page that Prometheus reads: what was issued and refused since the start, and when what signs ends.
//!
//! Plain HTTP, `GET /metrics` and nothing else, no secret on it. There is none unless `metrics-address` is configured.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::counts::Counts;
use crate::server::ACCEPT_PAUSE;
use crate::signing::Signing;
use crate::stamp::Stamp;

/// Scrapes at once, at some 20 KiB each; further ones wait in the socket's backlog.
const SCRAPES_MAX: usize = 16;
/// How long one may take, from its connection to the last byte of the page.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(10);

/// What the page is made of.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    pub(crate) version: &'static str,
    pub(crate) counts: Arc<Counts>,
    pub(crate) signing: watch::Receiver<Arc<Signing>>,
}

/// Serves the page for as long as it is polled.
pub(crate) async fn serve(listener: TcpListener, page: Page) {
    let mut scrapes = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if scrapes.len() < SCRAPES_MAX => accepted,
            Some(_) = scrapes.join_next() => continue,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let page = page.clone();
        scrapes.spawn(async move {
            let answer = service_fn(|request: Request<Incoming>| {
                std::future::ready(Ok::<_, Infallible>(page.answer(&request)))
            });
            let scrape =
                http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), answer);
            // A scraper that broke off, or dawdles, comes again.
            let _ = tokio::time::timeout(SCRAPE_TIMEOUT, scrape).await;
        });
    }
}

impl Page {
    fn answer(&self, request: &Request<Incoming>) -> Response<String> {
        let mut response = Response::default();
        if request.uri().path() != "/metrics" {
            *response.status_mut() = StatusCode::NOT_FOUND;
        } else if request.method() != Method::GET {
            *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        } else {
            let kind = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, kind);
            *response.body_mut() = self.text();
        }
        response
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let mut family =
            |name: &str, kind: &str, help: &str, samples: &mut dyn Iterator<Item = (String, u64)>| {
                let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
                for (labels, value) in samples {
                    let _ = writeln!(text, "{name}{labels} {value}");
                }
            };
        let gauge = |value: u64| std::iter::once((String::new(), value));
        family(
            "adit_ca_requests_total",
            "counter",
            "Requests for certificates, by result: issued, or the word of the refusal.",
            &mut self.counts.requests().map(|(result, count)| (format!("{{result=\"{result}\"}}"), count)),
        );
        family(
            "adit_ca_connections_dropped_total",
            "counter",
            "Connections that the CA did not take or cut off, by cause.",
            &mut self.counts.drops().map(|(cause, count)| (format!("{{cause=\"{cause}\"}}"), count)),
        );
        let signing = self.signing.borrow().clone();
        family(
            "adit_ca_issuer_expiry_timestamp_seconds",
            "gauge",
            "When the first certificate on the way from a leaf to the root ends.",
            &mut gauge(seconds(signing.issuer.not_after)),
        );
        family(
            "adit_ca_root_expiry_timestamp_seconds",
            "gauge",
            "When the root that signs ends.",
            &mut gauge(seconds(signing.root_not_after)),
        );
        family(
            "adit_ca_bundle_generation",
            "gauge",
            "Generation of the trust bundle (spiffe_sequence).",
            &mut gauge(signing.generation),
        );
        family(
            "adit_build_info",
            "gauge",
            "1, with the version as label.",
            &mut std::iter::once((format!("{{version=\"{}\"}}", self.version), 1)),
        );
        text
    }
}

fn seconds(at: Stamp) -> u64 {
    at.since(Stamp::of(UNIX_EPOCH)).as_secs()
}
