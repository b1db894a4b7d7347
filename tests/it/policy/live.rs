//! Changes while connections are open: cut is what is no longer allowed, and nothing else.

use super::*;
use crate::talk::wait_cut;

/// A connection that is held open.
struct Held {
    way: Way,
    stream: TcpStream,
}

impl Held {
    fn open(stage: &Stage, way: Way) -> Result<Self> {
        let mut stream = connect(&stage.client(way).host.netns, stage.server(way))?;
        ensure!(echoes(&mut stream), "{way:?} is not answered");
        Ok(Self { way, stream })
    }

    fn open_all(stage: &Stage) -> Result<Vec<Self>> {
        WAYS.into_iter().map(|way| Self::open(stage, way)).collect()
    }
}

/// Waits until these are cut, and then shows that all others still carry.
fn only_cut(held: &mut Vec<Held>, ways: &[Way]) -> Result<()> {
    for held in held.iter_mut().filter(|held| ways.contains(&held.way)) {
        wait_cut(&mut held.stream).with_context(|| format!("{:?}", held.way))?;
    }
    held.retain(|held| !ways.contains(&held.way));
    for held in held {
        ensure!(echoes(&mut held.stream), "{:?} was cut too", held.way);
    }
    Ok(())
}

#[test]
fn a_policy_cuts_what_it_forbids_and_leaves_the_rest() -> Result<()> {
    with_stage(|mesh, stage| {
        let mut held = Held::open_all(stage)?;
        policy(mesh, "everyone", "{ action: ALLOW, rules: [{}] }")?;
        only_cut(&mut held, &[])?;
        let (near, far) = (mesh.agent("n1")?.process().next_line(), mesh.agent("n2")?.process().next_line());
        policy(mesh, "no-cart", "{ action: DENY, rules: [{from: [{source: {namespaces: [other]}}]}] }")?;
        only_cut(&mut held, &[Way::Cart])?;
        let inbound = mesh.agent("n2")?.wait_for_flow(far, "the cut", |flow| flow.state == "failed")?;
        assert_eq!(inbound.reason.as_deref(), Some("policy_changed"));
        assert_eq!(inbound.decision, Some(decision(false, Some("shop/no-cart"), Some(0))));
        assert_eq!(inbound.source.identity.as_deref(), Some(&*stage.cart.identity()));
        let outbound = mesh.agent("n1")?.wait_for_flow(near, "the cut", |flow| flow.state == "failed")?;
        assert_eq!(outbound.reason.as_deref(), Some("peer_denied"));
        // The reset of a stream has no room for a name (RFC 9113, 6.4): the trace leads to the side that knows it.
        assert_eq!((outbound.decision, outbound.trace), (None, inbound.trace));
        assert!(outbound.detail.is_some_and(|detail| detail.contains("report of the same trace")));
        assert!(inbound.detail.is_some_and(|detail| detail.contains("shop/no-cart")));

        // An ALLOW policy goes: what it alone allowed is cut.
        policy(mesh, "web", "{ rules: [{from: [{source: {serviceAccounts: [web]}}]}] }")?;
        only_cut(&mut held, &[])?;
        unpolicy(mesh, "everyone")?;
        only_cut(&mut held, &[Way::Plain])?;
        // With no ALLOW policy at all everything is allowed again.
        unpolicy(mesh, "web")?;
        only_cut(&mut held, &[])?;
        policy(mesh, "no-admin", "{ action: DENY, rules: [{to: [{operation: {ports: ['9090']}}]}] }")?;
        only_cut(&mut held, &[Way::WebAdminV6])?;
        assert!(stage.attempt(mesh, Way::Web)?.answered);
        Ok(())
    })
}

#[test]
fn what_only_watches_cuts_nothing_until_it_is_enforced() -> Result<()> {
    with_stage(|mesh, stage| {
        let mut held = Held::open_all(stage)?;
        let cart = |dry_run: bool| {
            format!(
                "{{ dryRun: {dry_run}, action: DENY, rules: [{{from: [{{source: {{namespaces: [other]}}}}]}}] }}"
            )
        };
        policy(mesh, "no-cart", &cart(true))?;
        only_cut(&mut held, &[])?;
        policy(mesh, "watched", "{ action: AUDIT, rules: [{}] }")?;
        only_cut(&mut held, &[])?;
        policy(mesh, "nobody", "{ dryRun: true, action: ALLOW }")?;
        only_cut(&mut held, &[])?;
        policy(mesh, "no-cart", &cart(false))?;
        only_cut(&mut held, &[Way::Cart])?;
        policy(mesh, "nobody", "{ action: ALLOW }")?;
        only_cut(&mut held, &[Way::Web, Way::WebAdminV6, Way::Plain])
    })
}

#[test]
fn a_label_that_brings_a_pod_under_a_policy_cuts_what_that_forbids() -> Result<()> {
    with_stage(|mesh, stage| {
        let gold = "{ action: DENY, selector: { matchLabels: { tier: gold } }, \
                      rules: [{from: [{source: {notPrincipals: [cluster.local/ns/shop/sa/web]}}]}] }";
        policy(mesh, "gold", gold)?;
        let mut held = Held::open_all(stage)?;
        // Labels of clients decide nothing.
        mesh.change_pod(&stage.cart, |spec| drop(spec.labels.insert("tier".to_owned(), "gold".to_owned())))?;
        mesh.settle()?;
        only_cut(&mut held, &[])?;
        mesh.change_pod(&stage.api, |spec| drop(spec.labels.insert("tier".to_owned(), "gold".to_owned())))?;
        mesh.settle()?;
        only_cut(&mut held, &[Way::Cart, Way::Plain])?;
        assert_eq!(stage.open_ways(mesh)?, [true, true, false, false]);
        mesh.change_pod(&stage.api, |_| {})?;
        mesh.settle()?;
        assert_eq!(stage.open_ways(mesh)?, [true; 4]);
        Ok(())
    })
}

#[test]
fn strict_cuts_open_plaintext_by_name_and_no_tunnel() -> Result<()> {
    with_stage(|mesh, stage| {
        let mut held = Held::open_all(stage)?;
        let mut admin = connect(&stage.outsider.host.netns, stage.api.at(ADMIN))?;
        ensure!(echoes(&mut admin), "plaintext is not answered");
        let first = mesh.agent("n2")?.process().next_line();
        let spec = "{ selector: { matchLabels: { app: api } }, portLevelMtls: { '8080': { mode: STRICT } } }";
        mesh.apply("strict", &object("PeerAuthentication", "shop", "strict", spec))?;
        mesh.settle()?;
        only_cut(&mut held, &[Way::Plain])?;
        assert!(echoes(&mut admin), "the other port's plaintext was cut too");
        let flow = mesh.agent("n2")?.wait_for_flow(first, "the cut", |flow| flow.state == "failed")?;
        assert_eq!(flow.reason.as_deref(), Some("plaintext_refused"));
        assert_eq!(flow.decision, Some(decision(false, Some("shop/strict"), None)));
        Ok(())
    })
}

#[test]
fn a_pod_that_leaves_and_joins_live_keeps_its_open_connections() -> Result<()> {
    with_stage(|mesh, stage| {
        let mut held = Held::open_all(stage)?;
        let transports = |mesh: &Mesh| -> Result<Vec<String>> {
            let ways = [Way::Web, Way::Cart];
            ways.into_iter()
                .map(|way| Ok(stage.attempt_at_client(mesh, way)?.transport.into_owned()))
                .collect()
        };
        assert_eq!(transports(mesh)?, ["mtls", "mtls"]);
        // The server leaves: what is open goes on under its tunnel, what is new comes in clear.
        mesh.change_pod(&stage.api, |spec| {
            drop(spec.labels.insert("adit.dev/mesh".to_owned(), "disabled".to_owned()))
        })?;
        mesh.wait_released(&stage.api)?;
        mesh.settle()?;
        only_cut(&mut held, &[])?;
        assert_eq!(transports(mesh)?, ["plaintext", "plaintext"]);
        let mut meanwhile = Held::open_all(stage)?;
        // It joins again: what began in clear goes on, what is new is tunnelled.
        mesh.change_pod(&stage.api, |_| {})?;
        mesh.wait_captured(&stage.api)?;
        mesh.settle()?;
        assert_eq!(transports(mesh)?, ["mtls", "mtls"]);
        only_cut(&mut held, &[])?;
        only_cut(&mut meanwhile, &[])?;
        // A client leaves and joins.
        mesh.change_pod(&stage.web, |spec| {
            drop(spec.labels.insert("adit.dev/mesh".to_owned(), "disabled".to_owned()))
        })?;
        mesh.wait_released(&stage.web)?;
        only_cut(&mut held, &[])?;
        only_cut(&mut meanwhile, &[])?;
        assert!(answers(&stage.web, stage.api.at(HTTP)), "in clear");
        mesh.change_pod(&stage.web, |_| {})?;
        mesh.wait_captured(&stage.web)?;
        mesh.settle()?;
        only_cut(&mut held, &[])?;
        only_cut(&mut meanwhile, &[])?;
        assert_eq!(transports(mesh)?, ["mtls", "mtls"]);
        Ok(())
    })
}

#[test]
fn a_pod_that_joins_under_strict_loses_what_came_in_clear_before_and_nothing_else() -> Result<()> {
    with_stage(|mesh, stage| {
        mesh.change_pod(&stage.api, |spec| {
            drop(spec.labels.insert("adit.dev/mesh".to_owned(), "disabled".to_owned()))
        })?;
        mesh.wait_released(&stage.api)?;
        let spec = "{ selector: { matchLabels: { app: api } }, portLevelMtls: { '8080': { mode: STRICT } } }";
        mesh.apply("strict", &object("PeerAuthentication", "shop", "strict", spec))?;
        mesh.settle()?;
        let mut held = Held::open_all(stage)?;
        mesh.change_pod(&stage.api, |_| {})?;
        mesh.wait_captured(&stage.api)?;
        only_cut(&mut held, &[Way::Web, Way::Cart, Way::Plain])?;
        mesh.settle()?;
        assert!(stage.attempt(mesh, Way::Web)?.answered, "by tunnel");
        Ok(())
    })
}

impl Stage {
    /// Connects once; what the client's agent says of it.
    fn attempt_at_client(&self, mesh: &Mesh, way: Way) -> Result<Flow<'static>> {
        let (client, to) = (self.client(way), self.server(way));
        let agent = mesh.agent("n1")?;
        let first = agent.process().next_line();
        ensure!(answers(client, to), "{way:?} is not answered");
        agent.wait_for_flow(first, "the client's report", |flow| {
            flow.direction == "outbound" && is_between(flow, client, to)
        })
    }
}
