//! An API server for tests: keeps objects, lists and watches them as the real one does, and fails as it is told to.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// What the next request with a certain path and query comes to.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// An answer of this status.
    Status(u16),
    /// The first half of the answer, and the end of the connection.
    Half,
    /// This in place of the answer's body.
    Body(String),
    /// No answer at all, with the connection kept.
    Silence,
    /// The end of the connection, without an answer.
    Cut,
}

#[derive(Debug, Default)]
struct State {
    version: u64,
    /// By path of the object.
    objects: BTreeMap<String, Value>,
    /// Every change: version, path of the object, line.
    log: Vec<(u64, String, String)>,
    /// What is older than this is forgotten.
    oldest: u64,
    faults: VecDeque<(String, Fault)>,
    /// `METHOD path?query` of each request.
    requests: Vec<String>,
}

/// The server. Ends when it is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    _serving: AbortOnDropHandle<()>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let (changed, _) = watch::channel(0);
        let (shared, news) = (Arc::clone(&state), changed.clone());
        let serving = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&shared), news.clone()));
            }
        });
        Self { address, state, changed, _serving: AbortOnDropHandle::new(serving) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Puts an object at `path`, as a user's change.
    pub(crate) fn put(&self, path: &str, object: Value) {
        let version = put(&mut self.state(), path, object).0;
        self.changed.send_replace(version);
    }

    pub(crate) fn delete(&self, path: &str) {
        let mut state = self.state();
        let object = state.objects.remove(path).unwrap();
        state.version += 1;
        let line = json!({"type": "DELETED", "object": object}).to_string();
        let version = state.version;
        state.log.push((version, path.to_owned(), line));
        drop(state);
        self.changed.send_replace(version);
    }

    /// A line that every watch of a collection is sent, whatever it is.
    pub(crate) fn say(&self, collection: &str, line: &str) {
        let mut state = self.state();
        state.version += 1;
        let version = state.version;
        state.log.push((version, format!("{collection}/x"), line.to_owned()));
        drop(state);
        self.changed.send_replace(version);
    }

    pub(crate) fn object(&self, path: &str) -> Option<Value> {
        self.state().objects.get(path).cloned()
    }

    /// What the next request comes to whose method, path and query contain `wanted`; several are taken in turn.
    pub(crate) fn fail(&self, wanted: &str, fault: Fault) {
        self.state().faults.push_back((wanted.to_owned(), fault));
    }

    pub(crate) fn faults_left(&self) -> usize {
        self.state().faults.len()
    }

    /// Forgets every change up to now: a watch from before is answered by 410.
    pub(crate) fn compact(&self) {
        let mut state = self.state();
        state.oldest = state.version + 1;
        state.version += 1;
    }

    /// How many requests there were whose method, path and query contain this.
    pub(crate) fn requests(&self, wanted: &str) -> usize {
        self.state().requests.iter().filter(|request| request.contains(wanted)).count()
    }
}

fn put(state: &mut State, path: &str, mut object: Value) -> (u64, Value) {
    state.version += 1;
    let version = state.version;
    object["metadata"]["resourceVersion"] = version.to_string().into();
    let known = state.objects.insert(path.to_owned(), object.clone()).is_some();
    let line = json!({"type": if known { "MODIFIED" } else { "ADDED" }, "object": object}).to_string();
    state.log.push((version, path.to_owned(), line));
    (version, object)
}

/// One connection, one request.
async fn serve(stream: TcpStream, state: Arc<Mutex<State>>, changed: watch::Sender<u64>) -> Option<()> {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    let mut words = head.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let length = head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await.ok()?;
    let mut stream = stream.into_inner();
    let request = format!("{method} {target}");
    let fault = {
        let mut state = state.lock().unwrap();
        state.requests.push(request.clone());
        let at = state.faults.iter().position(|(wanted, _)| request.contains(wanted));
        at.and_then(|at| state.faults.remove(at)).map(|(_, fault)| fault)
    };
    match &fault {
        Some(Fault::Cut) => return None,
        Some(Fault::Silence) => std::future::pending::<()>().await,
        Some(Fault::Status(code)) => {
            let said = json!({"kind": "Status", "code": code, "message": "as told"}).to_string();
            return respond(&mut stream, *code, &said, said.len()).await;
        }
        Some(Fault::Body(body)) => return respond(&mut stream, 200, body, body.len()).await,
        Some(Fault::Half) | None => {}
    }
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let asked: BTreeMap<_, _> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
    if asked.contains_key("watch") {
        return watch_on(&mut stream, path, &asked, &state, changed.subscribe()).await;
    }
    let (code, said) = answer(&mut state.lock().unwrap(), &method, path, &asked, &body);
    if let Ok(said) = serde_json::from_str::<Value>(&said)
        && method != "GET"
        && code < 300
    {
        changed.send_replace(said["metadata"]["resourceVersion"].as_str()?.parse().ok()?);
    }
    let sent = if matches!(fault, Some(Fault::Half)) { said.len() / 2 } else { said.len() };
    respond(&mut stream, code, &said, sent).await
}

fn answer(
    state: &mut State,
    method: &str,
    path: &str,
    asked: &BTreeMap<&str, &str>,
    body: &[u8],
) -> (u16, String) {
    let refuse = |code: u16| (code, json!({"kind": "Status", "code": code, "message": "no"}).to_string());
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    match method {
        "GET" if state.objects.contains_key(path) => (200, state.objects[path].to_string()),
        "GET" if is_collection(path) => (200, list(state, path, asked)),
        "POST" => {
            let path = format!("{path}/{}", body["metadata"]["name"].as_str().unwrap());
            if state.objects.contains_key(&path) {
                return refuse(409);
            }
            let (_, object) = put(state, &path, body);
            (201, object.to_string())
        }
        "PATCH" => match state.objects.get(path).cloned() {
            None => refuse(404),
            Some(object)
                if body["metadata"]["uid"].is_string()
                    && body["metadata"]["uid"] != object["metadata"]["uid"] =>
            {
                refuse(422)
            }
            Some(mut object) => {
                merge(&mut object, &body);
                let (_, object) = put(state, path, object);
                (200, object.to_string())
            }
        },
        _ => refuse(404),
    }
}

/// What is no object's path, by where it ends.
fn is_collection(path: &str) -> bool {
    let last = path.rsplit('/').next().unwrap_or_default();
    last.ends_with('s') && !path.contains("/pods/")
}

fn within(path: &str, collection: &str, asked: &BTreeMap<&str, &str>) -> bool {
    let (group, kind) = collection.rsplit_once('/').unwrap();
    let name = asked.get("fieldSelector").and_then(|selector| selector.strip_prefix("metadata.name%3D"));
    let is_named = name.is_none_or(|name| path.ends_with(&format!("/{name}")));
    path.starts_with(group) && path.rsplit('/').nth(1) == Some(kind) && is_named
}

fn list(state: &State, path: &str, asked: &BTreeMap<&str, &str>) -> String {
    let all: Vec<_> =
        state.objects.iter().filter(|(at, _)| within(at, path, asked)).map(|(_, object)| object).collect();
    let from: usize = asked.get("continue").map_or(0, |at| at.parse().unwrap());
    let limit: usize = asked.get("limit").map_or(usize::MAX, |limit| limit.parse().unwrap());
    let items: Vec<_> = all.iter().skip(from).take(limit).collect();
    let mut metadata = json!({"resourceVersion": state.version.to_string()});
    if from + items.len() < all.len() {
        metadata["continue"] = (from + limit).to_string().into();
    }
    json!({"kind": "List", "metadata": metadata, "items": items}).to_string()
}

fn merge(into: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            into.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut into[key.as_str()], value);
        }
    }
}

async fn respond(stream: &mut TcpStream, code: u16, body: &str, sent: usize) -> Option<()> {
    let head = format!(
        "HTTP/1.1 {code} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.ok()?;
    stream.write_all(&body.as_bytes()[..sent]).await.ok()?;
    stream.shutdown().await.ok()
}

async fn watch_on(
    stream: &mut TcpStream,
    path: &str,
    asked: &BTreeMap<&str, &str>,
    state: &Mutex<State>,
    mut changed: watch::Receiver<u64>,
) -> Option<()> {
    let head = "HTTP/1.1 200 X\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.ok()?;
    let mut version: u64 = asked["resourceVersion"].parse().unwrap();
    if version < state.lock().unwrap().oldest {
        let gone = json!({"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}});
        return chunk(stream, &format!("{gone}\n")).await;
    }
    loop {
        changed.borrow_and_update();
        let lines: Vec<String> = {
            let state = state.lock().unwrap();
            let news = state.log.iter().filter(|(at, of, _)| *at > version && within(of, path, asked));
            let lines = news.map(|(_, _, line)| line.clone()).collect();
            version = state.version;
            lines
        };
        for line in lines {
            if line == CUT {
                // Once: whoever watches again from before it is not cut again.
                state.lock().unwrap().log.retain(|(_, _, line)| line != CUT);
                return None;
            }
            chunk(stream, &format!("{line}\n")).await?;
        }
        tokio::select! {
            changed = changed.changed() => changed.ok()?,
            // Nothing is sent by the client: it has gone.
            _ = stream.readable() => {
                let read = stream.try_read(&mut [0]);
                if !read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock) {
                    return None;
                }
            }
        }
    }
}

async fn chunk(stream: &mut TcpStream, text: &str) -> Option<()> {
    stream.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).await.ok()
}

/// What to [`Server::say`] to end the watches of a collection in the midst of a line.
pub(crate) const CUT: &str = "cut";
/// How long something that must happen may take.
pub(crate) const BOUND: Duration = Duration::from_secs(30);
