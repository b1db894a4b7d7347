//! Why the node could not be asked.

use std::io;

/// Why the kernel gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The addresses of the node cannot be read or followed.
    #[error("cannot read the node's own addresses")]
    Addresses(#[source] io::Error),
    /// A question about sockets failed.
    #[error("cannot ask the kernel for sockets")]
    Sockets(#[source] io::Error),
}
