//! One collection of the API server, followed: listed in pages, then watched, from now to the end of the agent.
//!
//! What is said of it comes as [`News`], in order. Whatever goes wrong changes nothing of what was said before: the
//! source goes on from the last version that it knows, or lists anew where that is too old (410), and it waits between
//! attempts by [`Backoff`]. 401 and 403 are as passing as a connection that is cut: an API server answers so for a
//! second after its start. Knows JSON, not what it means.

#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::time::Duration;

use adit_core::draw::Seed;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::backoff::Backoff;
use super::client::{Api, ApiError, Lines};
use super::watched::Watched;

/// How long a watch may say nothing. The API server sends a bookmark every 60 s; one that is stopped sends nothing, and
/// closes nothing either.
const IDLE_MAX: Duration = Duration::from_secs(75);
/// How long a watch is asked to last, in seconds, and how much longer by chance, so that a thousand agents do not all
/// come back at once.
const WATCH_SECONDS: u64 = 300;
const WATCH_SECONDS_MORE: u64 = 300;
/// How long a watch must have lasted when it says something, to count as one that goes well: as long as the longest
/// wait between attempts, so that those which end sooner are not asked for more often than those which are refused.
const LASTS_MIN: Duration = Duration::from_secs(10);

/// What is said of a collection.
#[derive(Debug)]
pub(super) struct News {
    pub(super) of: Watched,
    pub(super) what: What,
}

/// What can be said.
#[derive(Debug)]
pub(super) enum What {
    /// From here to [`What::ListEnds`], everything that there is.
    ListBegins,
    /// Objects that are there, each new or changed or, in a list, as it was.
    There(Vec<Value>),
    /// An object that is there no more, as it was last.
    Gone(Value),
    /// What was not in the list since [`What::ListBegins`] is there no more.
    ListEnds,
    /// Nothing new up to now, as the API server says itself.
    Heard,
    /// It is not followed at the moment, and why.
    Lost(ApiError),
}

/// Follows a collection for as long as somebody takes the news, and lists it anew whenever `anew` says so.
pub(super) async fn follow(
    api: Api,
    of: Watched,
    path: String,
    mut seed: Seed,
    news: mpsc::Sender<News>,
    mut anew: watch::Receiver<()>,
) {
    let (limit, backoff) = (of.page_len(), Backoff::default());
    let mut source = Source { api, of, path, limit, news, was_refused: false, backoff };
    let mut version = None;
    loop {
        let step = async {
            match version.take() {
                None => source.list().await,
                Some(from) => source.watch(from, &mut seed).await,
            }
        };
        let result = tokio::select! {
            biased;
            // A list that is cut off here begins again, so nothing of it counts.
            Ok(()) = anew.changed() => {
                version = None;
                continue;
            }
            result = step => result,
        };
        match result {
            Ok(next) => version = Some(next),
            Err(Ended::NobodyListens) => return,
            Err(Ended::TooOld) => {
                // Listed anew, but never in a tight loop: a server that always says so is as good as away.
                tokio::time::sleep(source.backoff.next(&mut seed)).await;
            }
            Err(Ended::Early(from)) => {
                version = Some(from);
                tokio::time::sleep(source.backoff.next(&mut seed)).await;
            }
            Err(Ended::Failed(error, from)) => {
                version = from;
                if source.tell(What::Lost(error)).await.is_err() {
                    return;
                }
                tokio::time::sleep(source.backoff.next(&mut seed)).await;
            }
        }
    }
}

/// Why a list or a watch came to an end that is not its own.
enum Ended {
    /// The version is too old: list anew.
    TooOld,
    /// It said something, and ended soon after; goes on from this version.
    Early(String),
    /// It failed; goes on from this version, or with a list.
    Failed(ApiError, Option<String>),
    /// Nobody takes the news any more.
    NobodyListens,
}

struct Source {
    api: Api,
    of: Watched,
    path: String,
    /// How many objects a page has. A page that is too long is asked for in smaller ones.
    limit: u32,
    news: mpsc::Sender<News>,
    /// Whether the last watch was not even begun: one that is, is then news.
    was_refused: bool,
    /// Begins anew only when a watch has lasted: a list may be too old at once, and a watch end after its first line,
    /// again and again.
    backoff: Backoff,
}

impl Source {
    /// Lists everything, page by page. Returns the version from which to watch.
    async fn list(&mut self) -> Result<String, Ended> {
        let mut held = Vec::new();
        let mut next: Option<String> = None;
        if !self.of.is_told_whole() {
            self.tell(What::ListBegins).await?;
        }
        loop {
            let page = self.page(next.as_deref()).await?;
            let objects = page.items.iter().map(|item| self.of.read(item.get())).collect();
            match self.of.is_told_whole() {
                true => held.extend(objects),
                false => self.tell(What::There(objects)).await?,
            }
            match page.metadata.next.filter(|next| !next.is_empty()) {
                Some(more) => next = Some(more),
                None if page.metadata.resource_version.is_empty() => {
                    let error = ApiError::Garbled("a list without a version".into());
                    return Err(Ended::Failed(error, None));
                }
                None => {
                    if self.of.is_told_whole() {
                        self.tell(What::ListBegins).await?;
                        self.tell(What::There(held)).await?;
                    }
                    self.tell(What::ListEnds).await?;
                    return Ok(page.metadata.resource_version);
                }
            }
        }
    }

    async fn page(&mut self, next: Option<&str>) -> Result<Page, Ended> {
        let mut query = form(&[("limit", &self.limit.to_string())]);
        if let Some(next) = next {
            query = format!("{query}&{}", form(&[("continue", next)]));
        }
        let answer = match self.api.get(&self.at(&query)).await {
            Ok(answer) => answer,
            Err(error) if error.code() == Some(410) => return Err(Ended::TooOld),
            Err(error) => {
                if matches!(error, ApiError::TooLong(_)) {
                    self.limit = (self.limit / 4).max(1);
                }
                return Err(Ended::Failed(error, None));
            }
        };
        serde_json::from_slice(&answer)
            .map_err(|error| Ended::Failed(ApiError::Garbled(error.to_string()), None))
    }

    /// Watches from a version until the API server ends that. Returns the version from which to go on.
    async fn watch(&mut self, from: String, seed: &mut Seed) -> Result<String, Ended> {
        let seconds = (WATCH_SECONDS + seed.below(WATCH_SECONDS_MORE)).to_string();
        let query = form(&[
            ("watch", "1"),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", &seconds),
            ("resourceVersion", &from),
        ]);
        match self.api.watch(&self.at(&query)).await {
            Ok(lines) => {
                if std::mem::take(&mut self.was_refused) {
                    self.tell(What::Heard).await?;
                }
                self.hear(lines, from).await
            }
            Err(error) if error.code() == Some(410) => Err(Ended::TooOld),
            Err(error) => {
                self.was_refused = true;
                Err(Ended::Failed(error, Some(from)))
            }
        }
    }

    /// Hands on what a watch says until it ends. Returns the version from which to go on.
    async fn hear(&mut self, mut lines: Lines, from: String) -> Result<String, Ended> {
        let begun = Instant::now();
        let (mut version, mut has_said, mut has_lasted) = (from, false, false);
        loop {
            let line = match tokio::time::timeout(IDLE_MAX, lines.next()).await {
                Err(_) => return Err(Ended::Failed(ApiError::Silent(IDLE_MAX), Some(version))),
                // Asked for again, the same line would come again: so everything is listed.
                Ok(Some(Err(error @ ApiError::TooLong(_)))) => return Err(Ended::Failed(error, None)),
                Ok(Some(Err(error))) => return Err(Ended::Failed(error, Some(version))),
                Ok(None) if has_lasted => return Ok(version),
                Ok(None) if has_said => return Err(Ended::Early(version)),
                // A server that ends every watch at once is no better than one that refuses it.
                Ok(None) => {
                    let error = ApiError::Unreachable("a watch ended before it said anything".into());
                    return Err(Ended::Failed(error, Some(version)));
                }
                Ok(Some(Ok(line))) => line,
            };
            if let Some(next) = self.take(&line).await? {
                version = next;
            }
            has_said = true;
            if begun.elapsed() >= LASTS_MIN {
                has_lasted = true;
                self.backoff.reset();
            }
        }
    }

    /// Hands on what one line of a watch says. Returns the version that is known by it.
    async fn take(&self, line: &Bytes) -> Result<Option<String>, Ended> {
        // Asked for again, the same line would come again: so everything is listed.
        let garbled = |what: String| Ended::Failed(ApiError::Garbled(what), None);
        let event: Event<'_> = serde_json::from_slice(line).map_err(|error| garbled(error.to_string()))?;
        let version = || {
            let head: Head = serde_json::from_str(event.object.get()).unwrap_or_default();
            head.metadata.resource_version
        };
        let what = match event.kind.as_ref() {
            "ADDED" | "MODIFIED" => What::There(vec![self.of.read(event.object.get())]),
            "DELETED" => What::Gone(self.of.read(event.object.get())),
            "BOOKMARK" => What::Heard,
            "ERROR" => return Err(refused(event.object.get())),
            other => return Err(garbled(format!("a watch says {other:?}"))),
        };
        let version = version();
        self.tell(what).await?;
        Ok(Some(version).filter(|version| !version.is_empty()))
    }

    async fn tell(&self, what: What) -> Result<(), Ended> {
        let news = News { of: self.of, what };
        self.news.send(news).await.map_err(|_| Ended::NobodyListens)
    }

    fn at(&self, query: &str) -> String {
        let separator = if self.path.contains('?') { '&' } else { '?' };
        format!("{}{separator}{query}", self.path)
    }
}

/// What an event of type ERROR carries: a Status.
fn refused(status: &str) -> Ended {
    let status: Status = serde_json::from_str(status).unwrap_or_default();
    match status.code {
        410 => Ended::TooOld,
        code => Ended::Failed(ApiError::Status { code, message: status.message }, None),
    }
}

/// A query of such pairs.
fn form(pairs: &[(&str, &str)]) -> String {
    let mut query = String::new();
    for (key, value) in pairs {
        if !query.is_empty() {
            query.push('&');
        }
        query.push_str(key);
        query.push('=');
        for byte in value.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                    query.push(byte.into())
                }
                // Writing to a String does not fail.
                other => drop(write!(query, "%{other:02X}")),
            }
        }
    }
    query
}

/// A page of a list; its objects are decoded one by one.
#[derive(Deserialize)]
struct Page {
    metadata: PageMetadata,
    #[serde(default, deserialize_with = "nothing")]
    items: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMetadata {
    #[serde(default)]
    resource_version: String,
    #[serde(rename = "continue")]
    next: Option<String>,
}

/// A line of a watch.
#[derive(Deserialize)]
struct Event<'l> {
    #[serde(rename = "type", borrow)]
    kind: std::borrow::Cow<'l, str>,
    #[serde(borrow)]
    object: &'l RawValue,
}

#[derive(Default, Deserialize)]
struct Head {
    metadata: HeadMetadata,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct HeadMetadata {
    resource_version: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    code: u16,
    message: String,
}

/// `null` for a list that has nothing in it, as Go writes it.
fn nothing<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<Box<RawValue>>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
