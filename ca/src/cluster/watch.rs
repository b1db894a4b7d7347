//! A kind of object, listed and then watched, for ever: the source of what the CA knows of pods and policies.
//!
//! Lists come in pages, and replace all that was known. A watch goes on from where it broke off; one that says nothing
//! for too long is given up, as an API server that stopped would say nothing for ever. Refusals (401, 403) pass too:
//! an API server that has just started gives them to everybody.

use std::time::Duration;

use kube::core::WatchEvent;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::backoff;
use super::client::{ApiError, ApiServer, Depth};

/// Objects in one page of a list, at most: pods of 10 KiB make 5 MiB. A page that is too long is asked for in parts.
const PAGE_LEN_MAX: u32 = 500;
/// How long the API server is asked to keep a watch open, in seconds.
const WATCH_FOR_S: u32 = 290;
/// A watch without event or bookmark for so long is given up. Bookmarks come once a minute.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(150);

/// What a watch tells, in order.
#[derive(Debug)]
pub(crate) enum Heard<T> {
    /// This is all there is.
    All(Vec<T>),
    /// This one is there, or has changed.
    Put(T),
    /// This one is gone.
    Gone(T),
    /// Nothing has changed.
    Alive,
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "T: Deserialize<'de>"))]
struct Page<T> {
    #[serde(default)]
    metadata: PageMeta,
    #[serde(default = "Vec::new", deserialize_with = "nothing_is_empty")]
    items: Vec<T>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMeta {
    #[serde(default)]
    resource_version: String,
    #[serde(default, rename = "continue")]
    more: String,
}

fn nothing_is_empty<'de, D: serde::Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// What of an object says where a watch goes on.
pub(crate) trait Versioned {
    /// Its resourceVersion.
    fn version(&self) -> &str;
}

/// Follows the kind at `path` and tells all of it; never returns. `what` is the kind's name in the log.
pub(crate) async fn follow<T: DeserializeOwned + Versioned>(
    api: ApiServer,
    what: &'static str,
    path: &'static str,
    mut tell: impl FnMut(Heard<T>),
) {
    let mut failures: u32 = 0;
    // Where to go on; `None`: from the beginning.
    let mut from: Option<String> = None;
    loop {
        let done = match from.take() {
            None => match list(&api, what, path, Which::All).await {
                Ok((items, version)) => {
                    tell(Heard::All(items));
                    from = Some(version);
                    Ok(())
                }
                Err(error) => Err(error),
            },
            Some(mut version) => {
                let done = go_on(&api, what, path, &mut version, &mut failures, &mut tell).await;
                from = (!done.as_ref().is_err_and(ApiError::is_lasting)).then_some(version);
                done
            }
        };
        let Err(error) = done else {
            continue;
        };
        failures = failures.saturating_add(1);
        // Once, not at every attempt; the end of an outage is told by what follows.
        if failures == 1 {
            tracing::warn!(what, error = crate::report(&error), "watch broke off; it is tried again");
        }
        tokio::time::sleep(backoff::wait(failures, backoff::draw())).await;
    }
}

/// What of a collection is listed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Which<'a> {
    /// All objects, whole.
    All,
    /// The pods of this node.
    OnNode(&'a str),
    /// The names and annotations of all.
    Names,
}

/// Lists `path`, page by page; and as of which version.
pub(crate) async fn list<T: DeserializeOwned>(
    api: &ApiServer,
    what: &str,
    path: &str,
    which: Which<'_>,
) -> Result<(Vec<T>, String), ApiError> {
    let what = format!("list {what}");
    let mut items = Vec::new();
    let mut more = String::new();
    let mut limit = PAGE_LEN_MAX;
    loop {
        let mut query = format!("{path}?limit={limit}");
        let depth = match which {
            Which::All => Depth::Whole,
            Which::Names => Depth::Metadata,
            Which::OnNode(node) => {
                query.push_str("&fieldSelector=");
                query.push_str(&escaped(&format!("spec.nodeName={node}")));
                Depth::Whole
            }
        };
        if !more.is_empty() {
            query.push_str("&continue=");
            query.push_str(&escaped(&more));
        }
        let page: Page<T> = match api.page(&what, &query, depth).await {
            Err(error) if error.is_too_long() && limit > 1 => {
                limit /= 2;
                continue;
            }
            page => page?,
        };
        items.extend(page.items);
        if page.metadata.more.is_empty() {
            return Ok((items, page.metadata.resource_version));
        }
        more = page.metadata.more;
        // A few long objects lie together, or anywhere: the others need not come one by one.
        limit = (limit * 2).min(PAGE_LEN_MAX);
    }
}

/// Watches from `version` on, which it moves along, until the watch ends by itself (`Ok`) or fails.
async fn go_on<T: DeserializeOwned + Versioned>(
    api: &ApiServer,
    what: &'static str,
    path: &str,
    version: &mut String,
    failures: &mut u32,
    tell: &mut impl FnMut(Heard<T>),
) -> Result<(), ApiError> {
    let asked = format!("watch {what}");
    let uri = format!(
        "{path}?watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH_FOR_S}&resourceVersion={}",
        escaped(version)
    );
    let mut lines = api.watch(&asked, &uri).await?;
    let began = tokio::time::Instant::now();
    let mut is_first = true;
    loop {
        let line = tokio::time::timeout(SILENCE_MAX, lines.next()).await;
        let Some(line) = line.map_err(|_| ApiError::Timeout { what: asked.clone() })? else {
            // A server that ends every watch at once is one that fails.
            let at_once = is_first && began.elapsed() < Duration::from_secs(1);
            return if at_once { Err(ApiError::Timeout { what: asked }) } else { Ok(()) };
        };
        is_first = false;
        let event: WatchEvent<T> = ApiServer::line(&asked, line)?;
        match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                object.version().clone_into(version);
                tell(Heard::Put(object));
            }
            WatchEvent::Deleted(object) => {
                object.version().clone_into(version);
                tell(Heard::Gone(object));
            }
            WatchEvent::Bookmark(bookmark) => {
                *version = bookmark.metadata.resource_version;
                tell(Heard::Alive);
            }
            WatchEvent::Error(status) => return Err(ApiError::refused(asked, &status)),
        }
        // Not before: a list that is too old at once, again and again, must not be asked for in a tight loop.
        *failures = 0;
    }
}

/// A value of a query, by RFC 3986.
fn escaped(value: &str) -> String {
    let mut escaped = String::new();
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests;
