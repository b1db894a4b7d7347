//! The harness: nodes and pods as network namespaces, real servers and clients in them, and a mesh over it.
//!
//! Everything runs inside one [`sandbox`]: PID, mount, IPC and network namespaces of the run's own, so that nothing
//! outlives it, however it ends. In it, a [`topology`] of [`netns`]; in its pods, [`process`]es, real [`servers`] and the
//! in-process [`apps`]; on its links, [`sniffer`]s; over it all, a [`mesh`]. Tests hold a [`slot`], one of which is exclusive.

pub mod apps;
pub mod bench;
pub mod cluster;
pub mod demo;
pub mod mesh;
pub mod netns;
mod not_run;
pub mod peers;
pub mod process;
pub mod sandbox;
pub mod servers;
pub mod slot;
pub mod sniffer;
pub mod topology;

pub use not_run::has_real_root;

/// The bound of every wait on an event in a test. Nothing waited for takes a tenth of it; a loaded CI machine may.
pub const WAIT_MAX: std::time::Duration = std::time::Duration::from_secs(60);
