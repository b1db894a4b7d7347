//! The question, asked of worlds that change, for clients with and without an identity.

use std::net::SocketAddr;
use std::rc::Rc;

use adit_core::net::{ObjectName, OriginalDst};
use adit_core::policy::{Action, PeerAuthentication, PeerMode, Scope};
use adit_core::report::Direction;
use adit_core::time::Mono;
use adit_core::workload::{MeshLabel, Pod as PodModel};
use adit_core::world::Change;

use super::super::Config;
use super::super::pod::{Pod, Reported};
use super::super::testing::{Rig, id, policy};
use super::*;
use crate::telemetry::registry::IDLE;

/// One connection to port 80 of a pod.
struct Coming {
    pod: Rc<Pod>,
    peer: Option<SpiffeId>,
    reported: Reported,
}

impl Coming {
    fn to(pod: &Rc<Pod>, peer: Option<SpiffeId>) -> Self {
        let client: SocketAddr = "127.0.0.1:4000".parse().unwrap();
        let dst = OriginalDst((pod.first_ip(), 80).into());
        let reported = pod.report(Direction::Inbound, client, dst, pod.new_trace());
        Self { pod: Rc::clone(pod), peer, reported }
    }

    fn ask(
        &self,
        rig: &Rig,
        question: impl Fn(&World, &Asked<'_>, &Shard, &Report) -> Result<(), Refusal>,
    ) -> Result<(), Reason> {
        let asked = Asked {
            pod: &self.pod.key.uid,
            peer: self.peer.as_ref(),
            client: "127.0.0.1".parse().unwrap(),
            destination: (self.pod.first_ip(), 80).into(),
        };
        let world = rig.worker.handles.view.world();
        question(&world, &asked, &rig.worker.shard, self.reported.get()).map_err(|refusal| refusal.reason)
    }

    /// What a new connection and one that is open already are told.
    fn answers(&self, rig: &Rig) -> [Result<(), Reason>; 2] {
        [self.ask(rig, admit), self.ask(rig, still_admitted)]
    }
}

/// The pod's label `adit.dev/mesh` says this now.
fn label(rig: &Rig, pod: &Pod, mesh: MeshLabel) {
    let world = rig.worker.handles.view.world();
    let known = PodModel::clone(&world.workload(&pod.key.uid).unwrap().pod);
    rig.change(Change::Pod(PodModel { mesh: Some(mesh), ..known }));
}

fn strict() -> Change {
    Change::PeerAuthentication(PeerAuthentication {
        name: ObjectName::new("shop", "strict"),
        created: 0,
        scope: Scope::Namespace("shop".into()),
        mode: Some(PeerMode::Strict),
        port_modes: [].into(),
    })
}

#[test]
fn a_pod_that_has_left_the_mesh_takes_plaintext_whatever_policy_says_and_tunnels_as_before() {
    let rig = Rig::new(Config::default());
    let api = rig.pod("api");
    let plain = Coming::to(&api, None);
    let tunnel = Coming::to(&api, Some(id("web")));
    rig.change(strict());
    rig.change(policy("no-one", Action::Deny, 1));
    assert_eq!(plain.answers(&rig), [Err(Reason::PlaintextRefused); 2]);
    label(&rig, &api, MeshLabel::Disabled);
    assert_eq!(plain.answers(&rig), [Ok(()); 2]);
    assert_eq!(tunnel.answers(&rig), [Err(Reason::PolicyDenied); 2]);
    label(&rig, &api, MeshLabel::Enabled);
    assert_eq!(plain.answers(&rig), [Err(Reason::PlaintextRefused); 2]);
}

#[test]
fn a_pod_that_joins_again_has_what_came_in_clear_meanwhile_judged() {
    let rig = Rig::new(Config::default());
    let api = rig.pod("api");
    rig.change(strict());
    label(&rig, &api, MeshLabel::Disabled);
    let before = rig.worker.handles.view.world().policy_generation();
    label(&rig, &api, MeshLabel::Enabled);
    assert_ne!(rig.worker.handles.view.world().policy_generation(), before);
}

#[test]
fn a_pod_that_nobody_knows_takes_nothing() {
    let rig = Rig::new(Config::default());
    let api = rig.pod("api");
    rig.change(Change::PodGone(ObjectName::new("shop", &*api.key.uid.0)));
    for peer in [None, Some(id("web"))] {
        assert_eq!(Coming::to(&api, peer).answers(&rig), [Err(Reason::PolicyNotSynced); 2]);
    }
}

#[test]
fn what_no_allow_policy_matches_is_refused_in_the_names_of_those_that_were_asked() {
    let rig = Rig::new(Config::default());
    let api = rig.pod("api");
    rig.change(policy("b", Action::Allow, 0));
    rig.change(policy("a", Action::Allow, 0));
    rig.change(policy("no-one", Action::Deny, 0));
    let web = Coming::to(&api, Some(id("web")));
    assert_eq!(web.ask(&rig, admit), Err(Reason::PolicyNoneMatched));
    let asked = web.reported.get().edit(|report| report.decision.take()).unwrap().unmatched.unwrap();
    assert_eq!(asked.named, [ObjectName::new("shop", "a"), ObjectName::new("shop", "b")]);
}

#[test]
fn a_policy_that_is_gone_takes_its_counts_off_the_page_and_one_that_is_there_keeps_them() {
    let rig = Rig::new(Config::default());
    let api = rig.pod("api");
    let (worker, registry) = (&rig.worker, rig.worker.handles.reporter.registry());
    let count = |policy, verdict, action| {
        let labels = [("policy", policy), ("action", action), ("verdict", verdict)];
        registry.counter_value("adit_policy_verdicts_total", &labels)
    };
    let look_after = |at| {
        worker.shard.forget_lost(&worker.handles.view.world());
        registry.expire(at);
    };
    rig.change(policy("b", Action::Allow, 1));
    rig.change(policy("no-one", Action::Deny, 1));
    rig.change(strict());
    assert_eq!(Coming::to(&api, Some(id("web"))).ask(&rig, admit), Err(Reason::PolicyDenied));
    assert_eq!(Coming::to(&api, None).ask(&rig, admit), Err(Reason::PlaintextRefused));
    look_after(Mono::from_millis(1));
    rig.change(Change::AuthorizationPolicyGone(ObjectName::new("shop", "no-one")));
    assert_eq!(Coming::to(&api, Some(id("web"))).ask(&rig, admit), Ok(()));
    look_after(Mono::from_millis(2));
    assert_eq!(count("shop/no-one", "denied", "DENY"), 1, "for a while");
    look_after(Mono(IDLE * 2));
    assert_eq!(count("shop/no-one", "denied", "DENY"), 0);
    assert_eq!(count("shop/b", "allowed", "ALLOW"), 1, "however long ago");
    assert_eq!(count("shop/strict", "denied", ""), 1);
    assert_eq!(Coming::to(&api, Some(id("web"))).ask(&rig, admit), Ok(()));
    assert_eq!(count("shop/b", "allowed", "ALLOW"), 2);
    // The same for what is counted by Service.
    worker.shard.ejected(&ObjectName::new("shop", "lost"));
    look_after(Mono(IDLE * 3));
    look_after(Mono(IDLE * 4));
    assert_eq!(registry.counter_value("adit_ejections_total", &[("service", "shop/lost")]), 0);
}

#[test]
fn a_policy_that_outlives_the_last_pod_it_selects_leaves_no_count_on_the_page() {
    let rig = Rig::new(Config::default());
    let (api, other) = (rig.pod("api"), rig.pod("other"));
    let (shard, view) = (&rig.worker.shard, &rig.worker.handles.view);
    let registry = rig.worker.handles.reporter.registry();
    let count = || {
        let labels = [("policy", "shop/p"), ("action", "ALLOW"), ("verdict", "allowed")];
        registry.counter_value("adit_policy_verdicts_total", &labels)
    };
    rig.change(policy("p", Action::Allow, 1));
    assert_eq!(Coming::to(&api, Some(id("web"))).ask(&rig, admit), Ok(()));
    let look_after = |at| {
        shard.forget_lost(&view.world());
        registry.expire(at);
    };
    look_after(Mono::from_millis(1));
    // As when a namespace is deleted: neither change is one of a live decision.
    let before = view.world().policy_generation();
    rig.change(Change::PodGone(rig.object(&api).name));
    look_after(Mono(IDLE * 2));
    assert_eq!(count(), 1, "it selects another pod");
    rig.change(Change::PodGone(rig.object(&other).name));
    rig.change(Change::AuthorizationPolicyGone(ObjectName::new("shop", "p")));
    assert_eq!(view.world().policy_generation(), before);
    look_after(Mono(IDLE * 3));
    look_after(Mono(IDLE * 5));
    assert_eq!(count(), 0);
}
