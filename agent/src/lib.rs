//! The node agent's IO: drivers, sources and executors around `adit-core`.
