//! That there is no certificate to show.

use std::io;

use adit_proto::{Reason, SpiffeId};

/// There is no certificate for an identity: none was issued yet, or the last one has expired.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no certificate for {id}")]
pub struct NoCertificate {
    /// Whose.
    pub id: SpiffeId,
}

impl NoCertificate {
    /// [`Reason::OwnCertificateMissing`].
    pub fn reason(&self) -> Reason {
        Reason::OwnCertificateMissing
    }
}

impl From<NoCertificate> for io::Error {
    fn from(error: NoCertificate) -> Self {
        Self::other(error)
    }
}
