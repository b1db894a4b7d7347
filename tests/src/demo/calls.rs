//! Steps: the calls in clear before enrolment, and the same calls unreadable after it.

use adit_proto::hbone::PORT_INBOUND_HBONE;
use anyhow::{Context, Result, bail, ensure};

use super::Stage;
use super::shop::{NODES, Shop};
use super::wire::{self, Segment};
use crate::sniffer::{Captured, Sniffer};

/// How many calls of curl's are looked at.
const CALLS: usize = 3;
/// How much of a payload is shown, in rows of 16 bytes.
const ROWS: usize = 6;

/// The calls that are made on demand, beside curl's endless ones. All say the same marker.
#[derive(Debug)]
pub(super) struct Calls {
    marker: String,
    cart: Vec<String>,
    orders: Option<Vec<String>>,
}

impl Calls {
    pub(super) fn new(shop: &Shop, marker: &str) -> Result<Self> {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let cart = shop.vip("cart")?;
        let cart = words(&format!("-h {} -p {} SET cart:7 {marker}", cart.ip(), cart.port()));
        let orders = if shop.has_orders {
            let orders = shop.vip("orders")?;
            let mut args =
                words(&format!("-h {} -p {} -U test -d postgres -Atc", orders.ip(), orders.port()));
            args.push(format!("select 'order of {marker}'"));
            Some(args)
        } else {
            None
        };
        Ok(Self { marker: marker.to_owned(), cart, orders })
    }

    /// `redis-cli` and `psql`, each with the answer that proves that it was understood.
    fn make(&self, shop: &Shop) -> Result<Vec<String>> {
        let mut said = vec![call(shop, "redis-cli", &self.cart, "OK")?];
        if let Some(orders) = &self.orders {
            said.push(call(shop, "psql", orders, &format!("order of {}", self.marker))?);
        }
        Ok(said)
    }
}

fn call(shop: &Shop, program: &str, args: &[String], wanted: &str) -> Result<String> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let output = shop.call("frontend", program, &words)?;
    let answer = output.stdout.trim().to_owned();
    if answer != wanted {
        bail!("{program} was answered {answer:?}, {}", output.stderr.trim());
    }
    Ok(format!("{program} {} -> {answer}", words.join(" ")))
}

/// What the sniffers on both nodes saw while the calls were made.
struct Seen {
    nodes: Vec<(&'static str, usize, Captured)>,
    said: Vec<String>,
}

fn watch(stage: &Stage<'_>) -> Result<Seen> {
    let topology = &stage.shop.mesh.topology;
    let mut sniffers = Vec::new();
    for name in NODES {
        let netns = &topology.node(name)?.netns;
        sniffers.push((name, wire::interface(netns, "eth0")?, Sniffer::start(netns)?));
    }
    let answer = stage.caller.wait_for_answers(CALLS)?;
    let mut said = vec![format!("curl (pid {}), the last of {CALLS} calls: {answer}", stage.caller.id())];
    said.extend(stage.calls.make(stage.shop)?);
    let nodes = sniffers
        .into_iter()
        .map(|(name, link, sniffer)| Ok((name, link, sniffer.stop()?)))
        .collect::<Result<Vec<_>>>()?;
    Ok(Seen { nodes, said })
}

impl Seen {
    /// Packets with the marker, and all packets, on the interfaces of all nodes together.
    fn counts(&self, marker: &str) -> Result<(usize, usize)> {
        let mut counts = (0, 0);
        for (_, _, captured) in &self.nodes {
            counts.0 += captured.count_of(marker.as_bytes())?;
            counts.1 += captured.packets().len();
        }
        Ok(counts)
    }
}

/// Before enrolment everybody on the way can read along.
pub(super) fn in_clear(stage: &mut Stage<'_>) -> Result<()> {
    stage.say.step("Before enrolment: the calls are in clear")?;
    let seen = watch(stage)?;
    for line in &seen.said {
        stage.say.line(line)?;
    }
    let marker = &stage.calls.marker;
    let (node, link, captured) = seen.nodes.first().context("two nodes")?;
    let request = wire::first(captured, Some(*link), |segment| segment.payload.starts_with(b"GET /pay"));
    let request = request.context("no HTTP request was seen on the node's link")?;
    stage.say.line(format!("a sniffer on {node}'s link (eth0): {}", request.title()))?;
    stage.say.quote(wire::dump(request.payload, ROWS))?;
    let holds = |segment: &Segment<'_>, port: u16| {
        segment.to.port() == port && String::from_utf8_lossy(segment.payload).contains(&**marker)
    };
    let mut also = vec![("redis", 6379)];
    also.extend(stage.calls.orders.iter().map(|_| ("postgres", 5432)));
    for (name, port) in also {
        let found = wire::first(captured, None, |segment| holds(segment, port));
        let found = found.with_context(|| format!("the call to {name} was not seen in clear"))?;
        let text: String = String::from_utf8_lossy(found.payload)
            .chars()
            .map(|letter| if letter.is_control() { '.' } else { letter })
            .collect();
        stage.say.line(format!("and of {name}, {}: {text}", found.title()))?;
    }
    let (with, all) = seen.counts(marker)?;
    ensure!(with > 0, "no packet of {all} holds the marker: the sniffers see nothing");
    stage
        .say
        .line(format!("packets with the marker {marker} on all interfaces of both nodes: {with} of {all}"))
}

/// The same calls by the same process: nobody can.
pub(super) fn unreadable(stage: &mut Stage<'_>) -> Result<()> {
    stage.say.step("The same calls, same processes: unreadable on every link")?;
    let seen = watch(stage)?;
    for line in &seen.said {
        stage.say.line(line)?;
    }
    let (node, link, captured) = seen.nodes.first().context("two nodes")?;
    // RFC 8446, 5.1: application_data, legacy version 3.3. A handshake with the other replica may pass by as well.
    let to_tunnel = |segment: &Segment<'_>| {
        segment.to.port() == PORT_INBOUND_HBONE && segment.payload.starts_with(&[0x17, 3, 3])
    };
    let record =
        wire::first(captured, Some(*link), to_tunnel).context("no TLS record was seen on the link")?;
    stage.say.line(format!("the sniffer on {node}'s link (eth0): {}", record.title()))?;
    stage.say.quote(wire::dump(record.payload, ROWS))?;
    let (with, all) = seen.counts(&stage.calls.marker)?;
    let on_links: usize = seen.nodes.iter().map(|(_, link, captured)| wire::count(captured, *link)).sum();
    stage.say.line(format!(
        "packets with the marker on all interfaces of both nodes: {with} of {all} captured ({on_links} of them on the \
         links between the nodes)"
    ))?;
    ensure!(with == 0, "{with} packets of {all} hold the marker");
    Ok(())
}
