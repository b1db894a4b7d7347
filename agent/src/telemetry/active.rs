//! Connections open now, by edge: the very cells that `adit_connections_active` sums up.
//!
//! A worker adds its cell once per edge; counting costs its connections nothing further. So the number is right however
//! young a connection is, and whatever became of its reports.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::edge::EdgeKey;

/// The workers' cells by edge. A cell leaves when its worker has let go of it. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Active(Arc<Mutex<HashMap<EdgeKey, Vec<Weak<AtomicU64>>>>>);

impl Active {
    /// Has a worker's cell of an edge, the bits of an `f64`, counted.
    pub(super) fn add(&self, key: &EdgeKey, cell: &Arc<AtomicU64>) {
        self.lock().entry(key.clone()).or_default().push(Arc::downgrade(cell));
    }

    /// The edges that have open connections, and how many.
    #[expect(clippy::cast_possible_truncation, reason = "a count is a whole number far below 2^53")]
    pub fn read(&self) -> HashMap<EdgeKey, u64> {
        let count = |cells: &[Weak<AtomicU64>]| -> f64 {
            cells
                .iter()
                .filter_map(Weak::upgrade)
                .map(|cell| f64::from_bits(cell.load(Ordering::Relaxed)))
                .sum()
        };
        let all = self.lock();
        let counts = all.iter().map(|(key, cells)| (key.clone(), count(cells) as u64));
        counts.filter(|(_, count)| *count > 0).collect()
    }

    /// Lets go of the cells that are no more. To be called every few seconds.
    pub(super) fn expire(&self) {
        self.lock().retain(|_, cells| {
            cells.retain(|cell| cell.strong_count() > 0);
            !cells.is_empty()
        });
    }

    /// Edges that some worker keeps.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<EdgeKey, Vec<Weak<AtomicU64>>>> {
        // A panic while it was held can only have left one edge out.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
