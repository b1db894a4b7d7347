//! How the process ends: one signal starts the drain, a deadline or a second signal ends it. And a panic in what the
//! agent cannot do without ends it too.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How often somebody who drains looks whether anything is left.
pub const LOOK: Duration = Duration::from_millis(100);

/// The end that starts the drain.
#[derive(Debug)]
pub struct Drain {
    phase: watch::Sender<Phase>,
}

/// What components hold to hear of the drain. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Draining {
    phase: watch::Receiver<Phase>,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Phase {
    Serving,
    Draining,
    Over,
}

/// A drain that has not started, and what hears of it.
pub fn channel() -> (Drain, Draining) {
    let (sender, receiver) = watch::channel(Phase::Serving);
    (Drain { phase: sender }, Draining { phase: receiver })
}

impl Drain {
    /// Starts the drain; what is open may go on until [`Drain::end`].
    pub fn start(&self) {
        self.phase.send_if_modified(|phase| {
            std::mem::replace(phase, (*phase).max(Phase::Draining)) < Phase::Draining
        });
    }

    /// Ends the drain: what is still open is cut.
    pub fn end(&self) {
        self.phase.send_replace(Phase::Over);
    }
}

impl Draining {
    /// Returns once the drain has started, or its starter is gone. Cancel-safe.
    pub async fn started(&self) {
        self.reached(Phase::Draining).await;
    }

    /// Returns once the drain is over, or its starter is gone. Cancel-safe.
    pub async fn over(&self) {
        self.reached(Phase::Over).await;
    }

    /// Whether the drain has started.
    pub fn has_started(&self) -> bool {
        *self.phase.borrow() >= Phase::Draining
    }

    async fn reached(&self, wanted: Phase) {
        // An error means that the Drain is gone: nobody will serve any more.
        let _ = self.phase.clone().wait_for(|phase| *phase >= wanted).await;
    }
}

/// Drives `drain` by signals: the first SIGTERM or SIGINT starts it, `deadline` or a second one ends it.
///
/// Returns when the drain is over or `idle` resolves (nothing is open any more).
pub async fn on_signal(drain: Drain, deadline: Duration, idle: impl Future<Output = ()>) -> io::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    drain.start();
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        () = tokio::time::sleep(deadline) => {}
        () = idle => {}
    }
    drain.end();
    Ok(())
}

/// Exit code after a panic in a vital part (sysexits.h, EX_SOFTWARE).
const PANICKED: i32 = 70;

/// Does `work`, without which the process must not go on: a panic in it ends the process, to be started again.
///
/// Without this the runtime would keep the panic to itself, and the agent would look alive while nobody answers ADDs,
/// follows the objects or renews certificates. What is captured stays captured.
pub async fn vital<T>(part: &'static str, work: impl Future<Output = T>) -> T {
    let _ends = EndsWithPanic { part, end: || std::process::exit(PANICKED) };
    work.await
}

/// The same for what a thread of its own does.
pub fn vital_thread<T>(part: &'static str, work: impl FnOnce() -> T) -> T {
    let _ends = EndsWithPanic { part, end: || std::process::exit(PANICKED) };
    work()
}

struct EndsWithPanic<F: Fn()> {
    part: &'static str,
    end: F,
}

impl<F: Fn()> Drop for EndsWithPanic<F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(part = self.part, "a vital part of the agent panicked; the process ends");
            (self.end)();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_panic_of_a_vital_part_ends_the_process_and_its_end_or_abort_does_not() {
        let ended = Arc::new(AtomicBool::new(false));
        let guarded = |panics: bool, rests: bool| {
            let ended = Arc::clone(&ended);
            async move {
                let _ends = EndsWithPanic { part: "a test", end: || ended.store(true, Ordering::Relaxed) };
                if rests {
                    std::future::pending::<()>().await;
                }
                assert!(!panics, "on purpose");
            }
        };
        tokio::spawn(guarded(false, false)).await.unwrap();
        let aborted = tokio::spawn(guarded(false, true));
        aborted.abort();
        assert!(aborted.await.unwrap_err().is_cancelled());
        assert!(!ended.load(Ordering::Relaxed));
        assert!(tokio::spawn(guarded(true, false)).await.unwrap_err().is_panic());
        assert!(ended.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn a_late_listener_still_hears_of_the_drain() {
        let (drain, draining) = channel();
        assert!(!draining.has_started());
        drain.start();
        let late = draining.clone();
        late.started().await;
        drain.end();
        drain.start();
        late.over().await;
        assert!(draining.has_started());
    }

    #[tokio::test]
    async fn a_dropped_starter_counts_as_over() {
        let (drain, draining) = channel();
        drop(drain);
        draining.over().await;
    }
}
