//! The current [`World`], handed from the sources of truth to everybody who decides.
//!
//! One writer ([`Publisher`], held by `cluster`), any number of readers ([`View`]). Reading is one atomic load. A reader
//! that waits is woken only by what it waits for: every snapshot, or only those that a live decision depends on.

use std::sync::Arc;

use adit_core::world::World;
use arc_swap::ArcSwap;
use tokio::sync::watch;

/// The writing end.
#[derive(Debug)]
pub struct Publisher {
    current: Arc<ArcSwap<World>>,
    generation: watch::Sender<u64>,
    policy_generation: watch::Sender<u64>,
}

/// A reading end. It remembers what it has seen, so that no change between a decision and the wait is lost.
#[derive(Clone, Debug)]
pub struct View {
    current: Arc<ArcSwap<World>>,
    generation: watch::Receiver<u64>,
    policy_generation: watch::Receiver<u64>,
}

/// A view that shows `first` until something is published.
pub fn channel(first: Arc<World>) -> (Publisher, View) {
    let (generation, generation_seen) = watch::channel(first.generation());
    let (policy_generation, policy_generation_seen) = watch::channel(first.policy_generation());
    let current = Arc::new(ArcSwap::new(first));
    let view = View {
        current: Arc::clone(&current),
        generation: generation_seen,
        policy_generation: policy_generation_seen,
    };
    (Publisher { current, generation, policy_generation }, view)
}

impl Publisher {
    /// Shows `world` to every reader, and wakes those for whom something changed.
    pub fn publish(&self, world: Arc<World>) {
        let (generation, policies) = (world.generation(), world.policy_generation());
        // First the snapshot, then the wake-up: a reader that wakes finds at least what it was woken for.
        self.current.store(world);
        set_if_changed(&self.generation, generation);
        set_if_changed(&self.policy_generation, policies);
    }
}

fn set_if_changed(sender: &watch::Sender<u64>, value: u64) {
    sender.send_if_modified(|old| std::mem::replace(old, value) != value);
}

impl View {
    /// The current snapshot. Does not count as having seen it.
    pub fn world(&self) -> Arc<World> {
        self.current.load_full()
    }

    /// The current snapshot; later waits are for what comes after it.
    pub fn latest(&mut self) -> Arc<World> {
        // Marked before it is read: what is published in between wakes the next wait once too often, never too seldom.
        self.generation.borrow_and_update();
        self.policy_generation.borrow_and_update();
        self.current.load_full()
    }

    /// Returns when something that a live inbound decision depends on changed since [`View::latest`]. Cancel-safe.
    ///
    /// Never returns once the publisher is gone.
    pub async fn policies_changed(&mut self) {
        if self.policy_generation.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Returns when anything changed since [`View::latest`]. Cancel-safe. Never returns once the publisher is gone.
    pub async fn changed(&mut self) {
        if self.generation.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The first snapshot from now on that is as wanted; none within `bound`.
    #[cfg(test)]
    pub(crate) async fn until(
        &mut self,
        bound: std::time::Duration,
        wanted: impl Fn(&World) -> bool,
    ) -> Option<Arc<World>> {
        let waiting = async {
            loop {
                let world = self.latest();
                if wanted(&world) {
                    return world;
                }
                self.changed().await;
            }
        };
        tokio::time::timeout(bound, waiting).await.ok()
    }
}
