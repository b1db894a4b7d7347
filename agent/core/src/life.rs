//! The agent's own life, from the signal that is to end it: a machine.
//!
//! What a signal means is not in it: an upgrade (another agent takes over, or soon will), the pod's deletion (its
//! successor is made at once), an uninstall, or the end of a mesh without a cluster. So nothing is given up before it is
//! known who goes on with it:
//!
//! ```text
//!           told to end          another is ready
//!  Serving ─────────────▶ Awaiting ─────────────▶ Draining ──▶ Over
//!                          │    │ nobody came         ▲
//!                          │    └──▶ Stopping ────────┘ ──────▶ Over
//!                          │ Adit leaves the node
//!                          └──▶ Leaving ──────────────────────▶ Over
//! ```
//! It knows nothing of pods: `agent::app` tells it what is so, and does what each phase wants.

use std::time::Duration;

use crate::time::Mono;

/// How much longer than its connections an uninstall may take: rules, routes and sysctls of every pod.
pub const LEAVING_GRACE: Duration = Duration::from_secs(30);

/// The machine's spans.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Spans {
    /// How long another agent is waited for, with everything going on as before.
    pub await_successor: Duration,
    /// Then, how long what is open may go on without one.
    pub stop: Duration,
    /// How long what is open may go on once another agent has taken over.
    pub drain: Duration,
    /// The same where Adit leaves the node.
    pub uninstall: Duration,
}

/// What is so.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Facts {
    /// The process was told to end.
    pub told_to_end: bool,
    /// Another agent has the node's pods, and whether it serves all of them.
    pub succeeded: Option<Ready>,
    /// Adit is being taken off the node.
    pub leaves: bool,
    /// Nothing of ours stands in any pod.
    pub released: bool,
    /// Connections that this agent carries.
    pub open: usize,
}

/// Whether a successor serves every pod.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ready(pub bool);

/// What the agent is at.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Phase {
    /// It serves: nobody told it to end.
    #[default]
    Serving,
    /// It was told to end and goes on as before, until another agent is ready.
    Awaiting,
    /// No other agent came: what is open may end by itself, and what is new is still served meanwhile.
    Stopping,
    /// Another agent has taken over: nothing new is taken, and what is open may end by itself.
    Draining,
    /// Adit leaves the node: every pod goes out of the mesh.
    Leaving,
    /// It is time to end.
    Over(End),
}

/// How it ends.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum End {
    /// Pods stay captured, for the next agent.
    Captured,
    /// What is still open is to be cut as `drained`; pods stay captured, by the successor.
    Drained,
    /// Nothing of ours stands in any pod: what lies on the node goes too.
    Left,
    /// The time for that is up. What lies on the node stays, for whoever comes to end it.
    Stuck,
}

/// The machine.
#[derive(Debug)]
pub struct Life {
    spans: Spans,
    phase: Phase,
    until: Option<Mono>,
    /// Draining has been cut short, since Adit leaves.
    hurried: bool,
}

impl Life {
    /// An agent that serves.
    pub fn new(spans: Spans) -> Self {
        Self { spans, phase: Phase::Serving, until: None, hurried: false }
    }

    /// What the agent is at by what is so at `now`. Goes forward only.
    pub fn look(&mut self, now: Mono, facts: &Facts) -> Phase {
        // Each turn is a step forward, of which there are four at most.
        while let Some((phase, span)) = self.step(now, facts) {
            self.phase = phase;
            self.until = span.map(|span| now + span);
            // First nothing new must be taken: what was open before that says little.
            if phase == Phase::Draining {
                break;
            }
        }
        if self.phase == Phase::Draining && facts.leaves && !self.hurried {
            self.hurried = true;
            let sooner = now + self.spans.uninstall;
            self.until = self.until.map(|until| until.min(sooner));
        }
        self.phase
    }

    /// When to look again at the latest; `None` while time alone changes nothing.
    pub fn deadline(&self) -> Option<Mono> {
        self.until
    }

    fn step(&self, now: Mono, facts: &Facts) -> Option<(Phase, Option<Duration>)> {
        let is_up = self.until.is_some_and(|until| until <= now);
        let is_ready = facts.succeeded == Some(Ready(true));
        let over = |end| Some((Phase::Over(end), None));
        match self.phase {
            Phase::Serving => {
                facts.told_to_end.then_some((Phase::Awaiting, Some(self.spans.await_successor)))
            }
            // The owner of the pods lets them go; one before it only has to end its connections.
            Phase::Awaiting | Phase::Stopping if facts.leaves && facts.succeeded.is_none() => {
                Some((Phase::Leaving, Some(self.spans.uninstall + LEAVING_GRACE)))
            }
            Phase::Awaiting | Phase::Stopping if is_ready || (facts.leaves && facts.succeeded.is_some()) => {
                Some((Phase::Draining, Some(self.spans.drain)))
            }
            Phase::Awaiting => is_up.then_some((Phase::Stopping, Some(self.spans.stop))),
            Phase::Stopping if is_up || facts.open == 0 => over(End::Captured),
            Phase::Draining if is_up || facts.open == 0 => over(End::Drained),
            Phase::Leaving if facts.released => over(End::Left),
            Phase::Leaving if is_up => over(End::Stuck),
            Phase::Stopping | Phase::Draining | Phase::Leaving | Phase::Over(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPANS: Spans = Spans {
        await_successor: Duration::from_secs(100),
        stop: Duration::from_secs(5),
        drain: Duration::from_secs(3600),
        uninstall: Duration::from_secs(30),
    };
    const SERVES: Facts =
        Facts { told_to_end: false, succeeded: None, leaves: false, released: false, open: 3 };
    const TOLD: Facts = Facts { told_to_end: true, ..SERVES };

    fn at(seconds: u64) -> Mono {
        Mono::from_millis(seconds * 1000)
    }

    fn told() -> Life {
        let mut life = Life::new(SPANS);
        assert_eq!(life.look(at(0), &TOLD), Phase::Awaiting);
        life
    }

    #[test]
    fn an_agent_that_nobody_told_to_end_serves_whatever_is_so() {
        let mut life = Life::new(SPANS);
        let all = Facts { succeeded: Some(Ready(true)), leaves: true, released: true, open: 0, ..SERVES };
        assert_eq!(life.look(at(1_000_000), &all), Phase::Serving);
        assert_eq!(life.deadline(), None);
    }

    #[test]
    fn one_goes_on_until_another_is_ready_then_drains_what_is_open_and_ends() {
        let mut life = told();
        let taken = |ready| Facts { succeeded: Some(Ready(ready)), ..TOLD };
        assert_eq!(life.look(at(50), &Facts { open: 0, ..taken(false) }), Phase::Awaiting);
        assert_eq!(life.look(at(60), &Facts { open: 0, ..taken(true) }), Phase::Draining, "first it lets go");
        assert_eq!(life.deadline(), Some(at(3660)));
        // What becomes of the other by then is not this one's any more.
        assert_eq!(life.look(at(61), &TOLD), Phase::Draining);
        assert_eq!(life.look(at(62), &Facts { open: 0, ..TOLD }), Phase::Over(End::Drained));
        assert_eq!(life.look(at(63), &TOLD), Phase::Over(End::Drained), "it stays so");
    }

    #[test]
    fn what_outlives_the_drain_is_cut() {
        let mut life = told();
        let taken = Facts { succeeded: Some(Ready(true)), ..TOLD };
        life.look(at(1), &taken);
        assert_eq!(life.look(at(3600), &taken), Phase::Draining);
        assert_eq!(life.look(at(3601), &taken), Phase::Over(End::Drained));
    }

    #[test]
    fn where_nobody_comes_it_ends_as_one_without_a_successor_does() {
        let mut life = told();
        assert_eq!(life.look(at(99), &Facts { open: 0, ..TOLD }), Phase::Awaiting, "one may come");
        assert_eq!(life.look(at(100), &TOLD), Phase::Stopping);
        assert_eq!(life.look(at(104), &TOLD), Phase::Stopping);
        assert_eq!(life.look(at(105), &TOLD), Phase::Over(End::Captured));
        let mut idle = Life::new(Spans { await_successor: Duration::ZERO, ..SPANS });
        assert_eq!(idle.look(at(0), &Facts { open: 0, ..TOLD }), Phase::Over(End::Captured));
    }

    #[test]
    fn one_that_comes_late_is_handed_over_to_all_the_same() {
        let mut life = told();
        life.look(at(100), &TOLD);
        assert_eq!(life.look(at(103), &Facts { succeeded: Some(Ready(true)), ..TOLD }), Phase::Draining);
    }

    #[test]
    fn an_uninstall_may_become_known_before_or_after_the_signal() {
        let leaves = Facts { leaves: true, ..TOLD };
        for late in [0, 50, 103] {
            let mut life = Life::new(SPANS);
            if late > 0 {
                life.look(at(0), &TOLD);
                life.look(at(100.min(late)), &TOLD);
            }
            assert_eq!(life.look(at(late), &leaves), Phase::Leaving, "{late}");
            assert_eq!(life.deadline(), Some(at(late + 60)));
            let done = Facts { released: true, ..leaves };
            assert_eq!(life.look(at(late + 1), &done), Phase::Over(End::Left));
        }
        let mut stuck = Life::new(SPANS);
        stuck.look(at(0), &leaves);
        assert_eq!(stuck.look(at(60), &leaves), Phase::Over(End::Stuck));
    }

    #[test]
    fn an_agent_before_the_one_that_takes_adit_off_only_ends_its_connections_in_time() {
        let mut life = told();
        let taken = Facts { succeeded: Some(Ready(true)), ..TOLD };
        life.look(at(1), &taken);
        let leaves = Facts { leaves: true, ..taken };
        assert_eq!(life.look(at(10), &leaves), Phase::Draining);
        assert_eq!(life.look(at(39), &leaves), Phase::Draining, "told again, it has no more time");
        assert_eq!(life.look(at(40), &leaves), Phase::Over(End::Drained));
        let mut early = told();
        let unready = Facts { leaves: true, succeeded: Some(Ready(false)), ..TOLD };
        assert_eq!(early.look(at(1), &unready), Phase::Draining);
        assert_eq!(early.deadline(), Some(at(31)));
    }
}
