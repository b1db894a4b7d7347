//! The pages that Prometheus and the kubelet read: what was issued and refused since the start, when what signs ends,
//! and whether this CA can issue.
//!
//! Plain HTTP, `GET` of `/metrics`, `/healthz/ready` and `/healthz/live` and nothing else, no secret on them. There are
//! none unless `metrics-address` is configured.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::cluster::callers::Agents;
use crate::counts::Counts;
use crate::fresh::Fresh;
use crate::issue::LIFE_MIN;
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
    /// Set once the CA has begun.
    pub(crate) signing: Arc<OnceLock<watch::Receiver<Arc<Signing>>>>,
    pub(crate) fresh: Fresh,
    /// In a cluster: who may ask.
    pub(crate) agents: Option<Arc<Agents>>,
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
        let (status, text) = match request.uri().path() {
            "/metrics" | "/healthz/ready" | "/healthz/live" if request.method() != Method::GET => {
                (StatusCode::METHOD_NOT_ALLOWED, String::new())
            }
            "/metrics" => (StatusCode::OK, self.text()),
            // Whoever gets this answer has been served by the thread that serves all.
            "/healthz/live" => (StatusCode::OK, "alive\n".to_owned()),
            "/healthz/ready" => {
                let lacking = self.lacking(Stamp::of(SystemTime::now()));
                match lacking.is_empty() {
                    true => (StatusCode::OK, "ready: it can issue\n".to_owned()),
                    false => {
                        (StatusCode::SERVICE_UNAVAILABLE, format!("not ready:\n{}\n", lacking.join("\n")))
                    }
                }
            }
            _ => (StatusCode::NOT_FOUND, String::new()),
        };
        let mut response = Response::new(text);
        *response.status_mut() = status;
        if status == StatusCode::OK {
            let kind = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, kind);
        }
        response
    }

    /// What it lacks to issue at `now`, one line each.
    fn lacking(&self, now: Stamp) -> Vec<String> {
        let mut lacking = Vec::new();
        match self.signing.get() {
            None => lacking.push("nothing to sign with yet: the store has not been read".to_owned()),
            Some(signing) => {
                let ends = signing.borrow().issuer.not_after;
                if ends.since(now) < LIFE_MIN {
                    lacking.push(format!("the issuing certificate ends at {ends}"));
                }
            }
        }
        if let Some(lost) = self.fresh.lost_for() {
            lacking.push(format!("what is stored has not been seen for {} s", lost.as_secs()));
        }
        if self.agents.as_ref().is_some_and(|agents| !agents.pods().are_current()) {
            lacking.push("the cluster's pods are not known".to_owned());
        }
        lacking
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
            "adit_build_info",
            "gauge",
            "1, with the version as label.",
            &mut std::iter::once((format!("{{version=\"{}\"}}", self.version), 1)),
        );
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
        let is_ready = self.lacking(Stamp::of(SystemTime::now())).is_empty();
        family("adit_ca_ready", "gauge", "Whether it can issue.", &mut gauge(u64::from(is_ready)));
        if let Some(agents) = &self.agents {
            let lists = agents.lists().now().into_iter();
            family(
                "adit_ca_placement_misses_total",
                "counter",
                "Requests for which the watch of pods did not suffice, by what a list of the node's pods then showed.",
                &mut lists.map(|(result, count)| (format!("{{result=\"{result}\"}}"), count)),
            );
            let (pods, age) = agents.pods().size_and_age();
            let pods = u64::try_from(pods).unwrap_or(u64::MAX);
            family("adit_ca_pods", "gauge", "Scheduled pods that the watch knows.", &mut gauge(pods));
            family(
                "adit_ca_pods_heard_seconds",
                "gauge",
                "How long ago the watch of pods was last heard of.",
                &mut age.into_iter().map(|age| (String::new(), age)),
            );
        }
        let Some(signing) = self.signing.get().map(|signing| signing.borrow().clone()) else {
            return text;
        };
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
        text
    }
}

fn seconds(at: Stamp) -> u64 {
    at.since(Stamp::of(UNIX_EPOCH)).as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ca_says_what_it_lacks_to_issue() {
        let page = Page {
            version: "1",
            counts: Arc::default(),
            signing: Arc::default(),
            fresh: Fresh::within(Duration::from_secs(100)),
            agents: None,
        };
        let now = Stamp::of(SystemTime::now());
        let lacking = page.lacking(now);
        assert_eq!(lacking.len(), 2, "{lacking:?}");
        assert!(lacking[0].starts_with("nothing to sign with yet"), "{lacking:?}");
        assert!(lacking[1].starts_with("what is stored has not been seen"), "{lacking:?}");
        page.fresh.seen(Fresh::now());
        assert_eq!(page.lacking(now).len(), 1);
        assert!(page.text().contains("\nadit_ca_ready 0\n"), "the page is there before the CA has begun");
        let authority = crate::root::Authority::make(&"cluster.local".parse().unwrap(), now).unwrap();
        let state = crate::state::State::first("cluster.local".parse().unwrap(), authority, Duration::ZERO);
        let signing = Arc::new(Signing::of(&state, crate::issue::Life::DEFAULT).unwrap());
        let (_keep, shown) = watch::channel(signing);
        page.signing.set(shown).unwrap();
        assert_eq!(page.lacking(now), [""; 0]);
        let ends = now.plus(Duration::from_secs(366 * 24 * 3600));
        assert!(
            page.lacking(ends)[0].starts_with("the issuing certificate ends at "),
            "{:?}",
            page.lacking(ends)
        );
    }
}
