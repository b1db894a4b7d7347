//! Resync and increments, claims, generations.
