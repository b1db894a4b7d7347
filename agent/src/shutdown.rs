//! How the process ends: what a signal is to it, and a panic in what it cannot do without.
//!
//! What follows from a signal is `adit_core::life`'s.

use std::future::poll_fn;
use std::io;
use std::pin::pin;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that tell the process to end.
#[derive(Debug)]
pub struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    /// Takes them from now on: none ends the process by itself any more.
    pub fn new() -> io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    /// Returns when the next one has come. Cancel-safe.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}

/// Exit code after a panic in a vital part (sysexits.h, EX_SOFTWARE).
const PANICKED: i32 = 70;

/// Does `work`, without which the process must not go on: a panic in it ends the process, to be started again.
///
/// Without this the runtime would keep the panic to itself, and the agent would look alive while nobody answers ADDs,
/// follows the objects or renews certificates. What is captured stays captured.
pub async fn vital<T>(part: &'static str, work: impl Future<Output = T>) -> T {
    ends_with_panic(part, || std::process::exit(PANICKED), work).await
}

/// Calls `end` if `work` itself panics. Not if it is dropped because something else did: that has its own end, and its own
/// words, which a test's must not be silenced by this.
async fn ends_with_panic<T>(part: &'static str, end: impl Fn(), work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    poll_fn(|cx| {
        let _ends = EndsWithPanic { part, end: &end };
        work.as_mut().poll(cx)
    })
    .await
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
            ends_with_panic("a test", move || ended.store(true, Ordering::Relaxed), async move {
                if rests {
                    std::future::pending::<()>().await;
                }
                assert!(!panics, "on purpose");
            })
        };
        tokio::spawn(guarded(false, false)).await.unwrap();
        let aborted = tokio::spawn(guarded(false, true));
        aborted.abort();
        assert!(aborted.await.unwrap_err().is_cancelled());
        assert!(!ended.load(Ordering::Relaxed));
        let resting = guarded(false, true);
        let elsewhere = std::thread::spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                tokio::spawn(resting);
                tokio::task::yield_now().await;
                panic!("on purpose, and not in the vital part");
            });
        });
        assert!(elsewhere.join().is_err());
        assert!(!ended.load(Ordering::Relaxed));
        assert!(tokio::spawn(guarded(true, false)).await.unwrap_err().is_panic());
        assert!(ended.load(Ordering::Relaxed));
    }
}
