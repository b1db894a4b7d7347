//! What this component's tests share: pods on loopback addresses of their own, real certificates, and their reports.
//!
//! Everything runs on one thread, unprivileged: [`Rig::connect`] enters the outbound line behind the redirect, and a
//! pod's tunnels are accepted on its own loopback address.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use adit_core::draw::Seed;
use adit_core::net::{NodeName, ObjectName, OriginalDst, PodKey, PodUid, SandboxId};
use adit_core::policy::{Action, AuthorizationPolicy, Rule, Scope};
use adit_core::report::{Direction, End};
use adit_core::time::Now;
use adit_core::workload::{MeshLabel, Owner, Pod as PodModel, Skip};
use adit_core::world::builder::WorldBuilder;
use adit_core::world::{Change, Settings};
use adit_proto::hbone::PORT_INBOUND_HBONE;
use adit_proto::{Reason, SpiffeId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::LocalOptions;
use tokio::task::{spawn_local, yield_now};

use super::legs::Legs;
use super::listeners::accept;
use super::pod::{Live, Pod};
use super::shared::Worker;
use super::{Config, Handles, ServedPod, inbound, outbound};
use crate::identity::fixed::{self, Fixed};
use crate::netns::Netns;
use crate::telemetry::Reporter;
use crate::telemetry::said::Said;
use crate::view::{self, Publisher};

/// Every wait of a test ends here at the latest.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a test on a worker's kind of runtime.
pub(super) fn on_worker<F: Future<Output = ()>>(test: F) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build_local(LocalOptions::default()).unwrap();
    runtime.block_on(async {
        tokio::time::timeout(PATIENCE, test).await.expect("the test ends within its bound");
    });
}

/// An address of 127.77.0.0/16 that no other test of this process has.
pub(super) fn own_ip() -> IpAddr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    IpAddr::from([127, 77, u8::try_from(next / 250).unwrap(), u8::try_from(next % 250 + 1).unwrap()])
}

/// The identity of a service account in `shop`.
pub(super) fn id(account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
}

/// Two connected sockets.
pub(super) async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(near, listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// One byte each way: afterwards both sides know that they are connected.
pub(super) async fn greet(near: &mut TcpStream, far: &mut TcpStream) {
    near.write_all(b"?").await.unwrap();
    assert_eq!(far.read_u8().await.unwrap(), b'?');
    far.write_all(b"!").await.unwrap();
    assert_eq!(near.read_u8().await.unwrap(), b'!');
}

/// A mesh of one node, on the loopback.
pub(super) struct Rig {
    pub(super) worker: Rc<Worker>,
    pub(super) certs: RefCell<Fixed>,
    builder: RefCell<WorldBuilder>,
    publisher: Publisher,
    said: Receiver<Said>,
    unasked: RefCell<Vec<Said>>,
    /// A pod that goes takes its tunnels with it, in the middle of whatever they carry.
    pods: RefCell<Vec<Rc<Pod>>>,
}

impl Rig {
    pub(super) fn new(config: Config) -> Self {
        let settings = Settings {
            trust_domain: "cluster.local".parse().unwrap(),
            system_namespace: "adit-system".into(),
            excluded_namespaces: [].into(),
            node: NodeName("here".into()),
        };
        let mut builder = WorldBuilder::new(settings);
        let (publisher, view) = view::channel(builder.freeze());
        let clock = fixed::clock();
        let (certs, source) = fixed::certs(clock);
        let (sink, said) = sync_channel(65_536);
        let handles = Handles { view, certs: source, reporter: Reporter::to(sink), clock, node: None };
        let worker = Worker::new(config, handles, NonZeroU32::MIN, Seed(7));
        Self {
            worker,
            certs: RefCell::new(certs),
            builder: RefCell::new(builder),
            publisher,
            said,
            unasked: RefCell::default(),
            pods: RefCell::default(),
        }
    }

    /// Changes the world, and shows it.
    pub(super) fn change(&self, change: Change) {
        self.builder.borrow_mut().apply(change);
        self.publisher.publish(self.builder.borrow_mut().freeze());
    }

    /// A captured pod with a certificate, known to the world. Serves nothing yet.
    pub(super) fn pod(&self, account: &str) -> Rc<Pod> {
        self.pod_with(account, Legs::here(self.worker.config.legs()))
    }

    /// The same for a pod of which every socket has to be refused: the agent has no descriptor left.
    pub(super) fn pod_without_descriptors(&self, account: &str) -> Rc<Pod> {
        self.pod_with(account, Legs::nowhere(self.worker.config.legs()))
    }

    fn pod_with(&self, account: &str, legs: Legs) -> Rc<Pod> {
        let ip = own_ip();
        let uid = PodUid(format!("uid-{account}-{ip}").into());
        self.change(Change::Pod(model(account, &uid, ip)));
        self.certs.borrow().issue(&id(account));
        let served = ServedPod {
            key: PodKey { uid, sandbox: SandboxId("s".into()) },
            netns: Netns::open(std::path::Path::new("/proc/thread-self/ns/net")).unwrap(),
            ips: vec![ip],
            mark: 0,
            identity: id(account),
        };
        let pod = Pod::new(&self.worker, &served, legs, Arc::new(Live::default()));
        self.pods.borrow_mut().push(Rc::clone(&pod));
        pod
    }

    /// A captured pod whose object the world does not have yet; comes with it.
    pub(super) fn forget(&self, pod: &Pod) -> Change {
        let object = self.object(pod);
        self.change(Change::PodGone(object.name.clone()));
        Change::Pod(object)
    }

    /// Returns once so many connections of a pod sit.
    pub(super) async fn until_seated(&self, pod: &Pod, count: usize) {
        while pod.seats_taken() != count {
            yield_now().await;
        }
    }

    /// What the world says of a pod.
    pub(super) fn object(&self, pod: &Pod) -> PodModel {
        let world = self.worker.handles.view.world();
        PodModel::clone(&world.workload(&pod.key.uid).unwrap().pod)
    }

    /// Looks after a pod's tunnels as its worker does, so long from now; says how much later to look again.
    pub(super) fn sweep(&self, pod: &Pod, after: Duration) -> Option<Duration> {
        let now = self.worker.handles.clock.now();
        let then = Now { mono: now.mono + after, ..now };
        pod.sweep(&self.worker.handles.view.world(), then).map(|due| due.since(then.mono))
    }

    /// A pod whose tunnels are accepted.
    pub(super) async fn serving_pod(&self, account: &str) -> Rc<Pod> {
        let pod = self.pod(account);
        let listener = TcpListener::bind((pod.first_ip(), PORT_INBOUND_HBONE)).await.unwrap();
        spawn_local(accept(Rc::clone(&pod), listener.into(), inbound::serve));
        pod
    }

    /// An app connection of `pod` to `dst`, as it comes out of the redirect.
    pub(super) async fn connect(&self, pod: &Rc<Pod>, dst: SocketAddr) -> TcpStream {
        let (app, captured) = pair().await;
        let client = captured.peer_addr().unwrap();
        spawn_local(outbound::serve_to(Rc::clone(pod), captured, client, OriginalDst(dst)));
        app
    }

    /// The next closed report of a direction.
    pub(super) async fn report(&self, direction: Direction) -> Said {
        loop {
            self.unasked.borrow_mut().extend(self.said.try_iter().filter(|said| said.end != End::Open));
            let at = self.unasked.borrow().iter().position(|said| said.report.direction == direction);
            if let Some(at) = at {
                return self.unasked.borrow_mut().remove(at);
            }
            yield_now().await;
        }
    }

    /// Why the next connection of a direction ended.
    pub(super) async fn reason(&self, direction: Direction) -> Option<Reason> {
        self.report(direction).await.end.reason()
    }
}

/// A policy of `shop` for all its pods, whose one rule matches everything, if `action` has a rule at all.
pub(super) fn policy(name: &str, action: Action, rules: usize) -> Change {
    Change::AuthorizationPolicy(AuthorizationPolicy {
        name: ObjectName::new("shop", name),
        created: 0,
        scope: Scope::Namespace("shop".into()),
        action,
        dry_run: false,
        rules: vec![Rule::default(); rules],
    })
}

/// A captured pod's object.
fn model(account: &str, uid: &PodUid, ip: IpAddr) -> PodModel {
    PodModel {
        uid: uid.clone(),
        name: ObjectName::new("shop", &*uid.0),
        node: Some(NodeName("here".into())),
        ips: vec![ip],
        service_account: account.into(),
        labels: Arc::default(),
        mesh: Some(MeshLabel::Enabled),
        host_network: false,
        is_static: false,
        terminating: false,
        captured: true,
        ports: Vec::new(),
        probe_ports: Vec::new(),
        skip: Skip::default(),
        owner: Owner { kind: "Deployment".into(), name: account.into() },
    }
}

/// An app that listens on a pod's address, and where.
pub(super) async fn app(pod: &Pod) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((pod.first_ip(), 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

/// A connection from `web` to the app of `api` by tunnel, which has carried a byte each way.
pub(super) struct Carried {
    pub(super) rig: Rig,
    pub(super) web: Rc<Pod>,
    pub(super) api: Rc<Pod>,
    pub(super) app: TcpListener,
    pub(super) addr: SocketAddr,
    pub(super) near: TcpStream,
    pub(super) far: TcpStream,
}

impl Carried {
    pub(super) async fn begin() -> Self {
        Self::begin_with(Config::default()).await
    }

    pub(super) async fn begin_with(config: Config) -> Self {
        let rig = Rig::new(config);
        let web = rig.pod("web");
        let api = rig.serving_pod("api").await;
        let (app, addr) = app(&api).await;
        let mut near = rig.connect(&web, addr).await;
        let (mut far, _) = app.accept().await.unwrap();
        greet(&mut near, &mut far).await;
        Self { rig, web, api, app, addr, near, far }
    }
}
