//! Why a request is refused: a closed set, each with its step, its word and its gRPC code.

use adit_proto::spiffe::SpiffeIdError;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::attest::NotGranted;
use crate::caller::Unauthenticated;
use crate::csr::CsrError;
use crate::issue::{IssueError, LifeError};
use crate::serial::NoRandomness;

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Too many requests at once.
    #[error("too many requests at once; come back")]
    Busy,
    /// It is not known who asks.
    #[error(transparent)]
    Unauthenticated(#[from] Unauthenticated),
    /// The request names no identity.
    #[error("metadata.ImpersonatedIdentity is missing or no string")]
    NoIdentity,
    /// What it names is no SPIFFE ID.
    #[error("metadata.ImpersonatedIdentity is no SPIFFE ID: {0}")]
    Identity(#[from] SpiffeIdError),
    /// The life asked for is none.
    #[error("validity_duration: {0}")]
    Life(#[from] LifeError),
    /// The public key is not taken.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The caller may not have the identity.
    #[error(transparent)]
    NotGranted(#[from] NotGranted),
    /// Nothing could be signed.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// No serial could be drawn.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

impl Refusal {
    /// Every word that [`Refusal::word`] gives, for counting.
    pub const WORDS: [&'static str; 18] = [
        "busy",
        "no_authorization",
        "not_bearer",
        "unknown_token",
        "no_identity",
        "bad_identity",
        "bad_validity",
        "csr_too_long",
        "csr_not_pem",
        "csr_malformed",
        "csr_key",
        "csr_signature",
        "trust_domain",
        "not_allowed",
        "revoked",
        "issuer_ends",
        "cannot_sign",
        "no_randomness",
    ];

    /// The step of the line at which it was refused.
    pub fn step(&self) -> &'static str {
        match self {
            Self::Busy => "admit",
            Self::Unauthenticated(_) => "authenticate",
            Self::NoIdentity | Self::Identity(_) => "identity",
            Self::Life(_) => "validity",
            Self::Csr(_) => "csr",
            Self::NotGranted(_) => "attest",
            Self::Issue(_) | Self::NoRandomness(_) => "issue",
        }
    }

    /// One word for log, counter and the reply's metadata `adit-refusal`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Unauthenticated(Unauthenticated::Absent) => "no_authorization",
            Self::Unauthenticated(Unauthenticated::NotBearer) => "not_bearer",
            Self::Unauthenticated(Unauthenticated::Unknown) => "unknown_token",
            Self::NoIdentity => "no_identity",
            Self::Identity(_) => "bad_identity",
            Self::Life(_) => "bad_validity",
            Self::Csr(CsrError::TooLong) => "csr_too_long",
            Self::Csr(CsrError::Pem) => "csr_not_pem",
            Self::Csr(CsrError::Der) => "csr_malformed",
            Self::Csr(CsrError::Key) => "csr_key",
            Self::Csr(CsrError::Signature) => "csr_signature",
            Self::NotGranted(NotGranted::TrustDomain { .. }) => "trust_domain",
            Self::NotGranted(NotGranted::NotAllowed { .. }) => "not_allowed",
            Self::NotGranted(NotGranted::Revoked { .. }) => "revoked",
            Self::Issue(IssueError::IssuerEnds(_)) => "issuer_ends",
            Self::Issue(IssueError::Build(_)) => "cannot_sign",
            Self::NoRandomness(_) => "no_randomness",
        }
    }

    /// The gRPC code: what the caller can do about it.
    pub fn code(&self) -> Code {
        match self {
            Self::Busy | Self::Issue(IssueError::IssuerEnds(_)) | Self::NoRandomness(_) => Code::Unavailable,
            Self::Unauthenticated(_) => Code::Unauthenticated,
            Self::NoIdentity | Self::Identity(_) | Self::Life(_) | Self::Csr(_) => Code::InvalidArgument,
            Self::NotGranted(_) => Code::PermissionDenied,
            Self::Issue(IssueError::Build(_)) => Code::Internal,
        }
    }

    /// As the caller gets it: the code, the step and the text, and the word as metadata `adit-refusal`.
    pub fn status(&self) -> Status {
        let mut status = Status::new(self.code(), format!("{}: {self}", self.step()));
        status.metadata_mut().insert("adit-refusal", MetadataValue::from_static(self.word()));
        status
    }
}
