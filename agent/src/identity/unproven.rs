//! Why a certificate chain proves no identity, or not the one that was expected.

use std::sync::Arc;

use adit_proto::spiffe::SpiffeIdError;
use adit_proto::{Reason, SpiffeId};
use rustls::{CertificateError, OtherError};
use rustls_pki_types::UnixTime;

/// Why a certificate chain proves no identity, or not the one that was expected.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// No X.509 certificate.
    #[error("certificate cannot be read")]
    Encoding,
    /// It names no identity, several, or a malformed one.
    #[error("certificate names no workload")]
    Identity(#[source] SpiffeIdError),
    /// Its subject is empty and its SAN is not critical (RFC 5280, 4.2.1.6).
    #[error("subject is empty and the subject alternative name is not critical")]
    SanNotCritical,
    /// A CA's certificate, which never authenticates (X509-SVID.md, 5.2).
    #[error("certificate is a CA's")]
    Ca,
    /// Its key may sign certificates or CRLs, which a leaf's must not (X509-SVID.md, 5.2).
    #[error("key usage has keyCertSign or cRLSign")]
    SigningKeyUsage,
    /// There is no bundle for its trust domain.
    #[error("trust domain {0:?} is not known")]
    UnknownTrustDomain(Box<str>),
    /// The bundle of its trust domain is empty: all of its certificates are revoked.
    #[error("all of trust domain {0:?} is revoked")]
    TrustDomainRevoked(Box<str>),
    /// Its validity has ended.
    #[error("{id} expired at {not_after:?}, it is {time:?}")]
    Expired {
        /// Whose certificate.
        id: SpiffeId,
        /// The time of judgement.
        time: UnixTime,
        /// The end of validity.
        not_after: UnixTime,
    },
    /// Its validity has not begun.
    #[error("{id} is valid from {not_before:?}, it is {time:?}")]
    NotYetValid {
        /// Whose certificate.
        id: SpiffeId,
        /// The time of judgement.
        time: UnixTime,
        /// The begin of validity.
        not_before: UnixTime,
    },
    /// It does not lead to a root of its trust domain, or something on the way breaks RFC 5280.
    #[error("{id} leads to no root of its trust domain")]
    Untrusted {
        /// Who it claims to be.
        id: SpiffeId,
        /// What webpki says.
        #[source]
        source: webpki::Error,
    },
    /// Its serial, or that of a certificate on the way to the root, is on the kill list.
    #[error("{id}: certificate {serial} is revoked")]
    SerialRevoked {
        /// Whose certificate.
        id: SpiffeId,
        /// The serial.
        serial: Arc<str>,
    },
    /// Its identity is on the kill list.
    #[error("{0} is revoked")]
    IdentityRevoked(SpiffeId),
    /// A sound certificate of somebody else.
    #[error("peer is {actual}, expected {expected}")]
    WrongPeer {
        /// Whom the route leads to.
        expected: SpiffeId,
        /// Who answered.
        actual: SpiffeId,
    },
}

impl VerifyError {
    /// The closed reason. Exhaustive: a new variant must pick its word here.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Encoding
            | Self::Identity(_)
            | Self::SanNotCritical
            | Self::Ca
            | Self::SigningKeyUsage
            | Self::UnknownTrustDomain(_)
            | Self::Untrusted { .. } => Reason::PeerUntrusted,
            Self::Expired { .. } | Self::NotYetValid { .. } => Reason::PeerExpired,
            Self::TrustDomainRevoked(_) | Self::SerialRevoked { .. } | Self::IdentityRevoked(_) => {
                Reason::PeerRevoked
            }
            Self::WrongPeer { .. } => Reason::PeerIdentity,
        }
    }
}

/// For rustls: the standard variants where they make it send a telling alert, our own error inside the others.
///
/// The peer learns from the alert that its certificate is expired, revoked or of an unknown CA; who was named in it
/// stays here, in the debug log.
impl From<VerifyError> for rustls::Error {
    fn from(error: VerifyError) -> Self {
        let certificate = match error {
            VerifyError::Expired { time, not_after, .. } => {
                CertificateError::ExpiredContext { time, not_after }
            }
            VerifyError::NotYetValid { time, not_before, .. } => {
                CertificateError::NotValidYetContext { time, not_before }
            }
            VerifyError::TrustDomainRevoked(_)
            | VerifyError::SerialRevoked { .. }
            | VerifyError::IdentityRevoked(_) => CertificateError::Revoked,
            VerifyError::Untrusted { source: webpki::Error::UnknownIssuer, .. } => {
                CertificateError::UnknownIssuer
            }
            VerifyError::Encoding => CertificateError::BadEncoding,
            VerifyError::Identity(_)
            | VerifyError::SanNotCritical
            | VerifyError::Ca
            | VerifyError::SigningKeyUsage
            | VerifyError::UnknownTrustDomain(_)
            | VerifyError::Untrusted { .. }
            | VerifyError::WrongPeer { .. } => CertificateError::Other(OtherError(Arc::new(error))),
        };
        Self::InvalidCertificate(certificate)
    }
}
