//! Counts what a connection carries, seen from its near side, and when the destination first answered.

use adit_core::report::Stage;
use adit_core::time::Mono;

use crate::clock::Clock;
use crate::telemetry::shard::Meter;

/// Who is on the near side of a copy: the socket that is named first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Near {
    /// The client (outbound; and every connection between two sockets).
    Client,
    /// The server (inbound).
    Server,
}

/// One connection's bytes, on their way into its report.
pub(super) struct Flow {
    meter: Meter,
    near: Near,
    /// When the destination answered the connect, until its first byte.
    since: Option<Mono>,
    clock: Clock,
}

impl Flow {
    /// Begins to count; the destination has just answered the connect.
    pub(super) fn new(meter: Meter, near: Near, clock: Clock) -> Self {
        Self { meter, near, since: Some(clock.now().mono), clock }
    }

    /// Bytes read from the near side.
    pub(super) fn near_sent(&mut self, count: usize) {
        match self.near {
            Near::Client => self.meter.to_server(count as u64),
            Near::Server => self.server_sent(count),
        }
    }

    /// Bytes written to the near side.
    pub(super) fn near_got(&mut self, count: usize) {
        match self.near {
            Near::Client => self.server_sent(count),
            Near::Server => self.meter.to_server(count as u64),
        }
    }

    /// All bytes so far.
    pub(super) fn total(&self) -> u64 {
        self.meter.total()
    }

    fn server_sent(&mut self, count: usize) {
        if let Some(since) = self.since.take() {
            self.meter.stage(Stage::FirstByte, self.clock.now().mono.since(since));
        }
        self.meter.to_client(count as u64);
    }
}
