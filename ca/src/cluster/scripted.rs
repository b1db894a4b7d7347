//! For tests: an API server in memory that keeps objects, compares resourceVersions, and answers by a script where one is
//! given. And a runtime that is driven while the test's own thread waits.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use http::{Method, Request, Response};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::client::ApiServer;

/// The server. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub(crate) struct Scripted {
    inner: Arc<Mutex<Inner>>,
    /// Told of each question.
    is_asked: Arc<Notify>,
}

type Hook = Box<dyn FnMut(&Asked, &mut Inner) + Send>;

/// One question.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) body: String,
}

#[derive(Default)]
pub(crate) struct Inner {
    pub(crate) objects: BTreeMap<String, Value>,
    version: u64,
    /// What is answered to a path, whatever it holds.
    pub(crate) fixed: BTreeMap<String, (u16, Value)>,
    /// What is answered, once each, to questions of a path: status and text.
    pub(crate) once: BTreeMap<String, VecDeque<(u16, String)>>,
    pub(crate) asked: Vec<Asked>,
    pub(crate) is_down: bool,
    hook: Option<Hook>,
}

impl Inner {
    /// Puts an object there, as somebody else does.
    pub(crate) fn put(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(path.to_owned(), object.clone());
        object
    }

    fn ask(&mut self, asked: Asked) -> std::io::Result<(u16, String)> {
        if let Some(mut hook) = self.hook.take() {
            hook(&asked, self);
            self.hook.get_or_insert(hook);
        }
        self.asked.push(asked.clone());
        if self.is_down {
            return Err(std::io::ErrorKind::ConnectionRefused.into());
        }
        Ok(self.answer(&asked))
    }

    fn answer(&mut self, asked: &Asked) -> (u16, String) {
        if let Some(answer) = self.once.get_mut(&asked.path).and_then(VecDeque::pop_front) {
            return answer;
        }
        if let Some((status, value)) = self.fixed.get(&asked.path) {
            return (*status, value.to_string());
        }
        let (status, value) = self.keep(asked);
        (status, value.to_string())
    }

    fn keep(&mut self, asked: &Asked) -> (u16, Value) {
        let refuse = |code: u16| {
            let message = format!("{} {}", asked.method, asked.path);
            (code, json!({"kind": "Status", "status": "Failure", "code": code, "message": message}))
        };
        let body: Value = serde_json::from_str(&asked.body).unwrap_or_default();
        let version = |value: &Value| value["metadata"]["resourceVersion"].as_str().map(str::to_owned);
        match asked.method {
            Method::POST => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                let path = format!("{}/{name}", asked.path);
                if self.objects.contains_key(&path) { refuse(409) } else { (201, self.put(&path, body)) }
            }
            Method::PUT => match self.objects.get(&asked.path) {
                None => refuse(404),
                Some(known) if version(&body).is_some() && version(known) != version(&body) => refuse(409),
                Some(_) => (200, self.put(&asked.path.clone(), body)),
            },
            _ => match self.objects.get(&asked.path) {
                Some(known) => (200, known.clone()),
                None => {
                    let below = format!("{}/", asked.path);
                    let items: Vec<&Value> = self
                        .objects
                        .iter()
                        .filter(|(path, _)| path.starts_with(&below))
                        .map(|(_, v)| v)
                        .collect();
                    let is_list = ["leases", "pods", "secrets"].iter().any(|kind| asked.path.ends_with(kind));
                    if is_list {
                        (200, json!({"metadata": {"resourceVersion": "1"}, "items": items}))
                    } else {
                        refuse(404)
                    }
                }
            },
        }
    }
}

impl Scripted {
    /// A way to it. On a runtime only.
    pub(crate) fn api(&self) -> ApiServer {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body =
                    body.collect_bytes().await.map_err(|error| std::io::Error::other(error.to_string()))?;
                let asked = Asked {
                    method: parts.method,
                    path: parts.uri.path().to_owned(),
                    query: parts.uri.query().unwrap_or_default().to_owned(),
                    body: String::from_utf8_lossy(&body).into_owned(),
                };
                let answer = server.inner().ask(asked);
                server.is_asked.notify_one();
                let (status, text) = answer?;
                let response = Response::builder().status(status).body(Body::from(text.into_bytes()));
                response.map_err(std::io::Error::other)
            }
        });
        ApiServer::of(kube::Client::new(service, "default"))
    }

    pub(crate) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// Waits until it was asked so often, in all. For one at a time.
    pub(crate) async fn until_asked(&self, times: usize) {
        while self.inner().asked.len() < times {
            self.is_asked.notified().await;
        }
    }

    /// Has `hook` see, and change, what is there before each question is answered.
    pub(crate) fn before_each(&self, hook: impl FnMut(&Asked, &mut Inner) + Send + 'static) {
        self.inner().hook = Some(Box::new(hook));
    }

    /// The questions with this method to a path that ends so.
    pub(crate) fn count(&self, method: Method, path: &str) -> usize {
        self.inner().asked.iter().filter(|asked| asked.method == method && asked.path.ends_with(path)).count()
    }
}

/// A runtime on a thread of its own, for as long as the test's process lives.
pub(crate) fn driven() -> Handle {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tell.send(runtime.handle().clone()).unwrap();
        runtime.block_on(std::future::pending::<()>());
    });
    told.recv().unwrap()
}
