//! Why a request is refused: a closed set, each with its step, its word and its gRPC code.

use std::time::Duration;

use adit_proto::spiffe::SpiffeIdError;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use crate::attest::NotGranted;
use crate::caller::Unauthenticated;
use crate::cluster::callers::{NotKnown, NotPlaced};
use crate::cluster::review::NotAnAgent;
use crate::csr::CsrError;
use crate::issue::{IssueError, LifeError};
use crate::placement::NotThere;
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
    /// In a cluster: it is not known who asks.
    #[error(transparent)]
    NotKnown(#[from] NotKnown),
    /// In a cluster: it is not known that the identity runs on the caller's node, or that the caller does.
    #[error(transparent)]
    NotPlaced(#[from] NotPlaced),
    /// What is stored has not been seen for so long.
    #[error("the CA has not seen what is stored for {} s: another replica may have replaced it", .0.as_secs())]
    Stale(Duration),
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
    pub const WORDS: [&'static str; 30] = [
        "busy",
        "no_authorization",
        "not_bearer",
        "unknown_token",
        "token_refused",
        "wrong_audience",
        "not_an_agent",
        "no_pod_claim",
        "api_away",
        "caller_gone",
        "caller_finished",
        "caller_elsewhere",
        "no_account",
        "not_on_node",
        "placement_busy",
        "store_unseen",
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
            Self::Unauthenticated(_) | Self::NotKnown(_) => "authenticate",
            Self::NotPlaced(NotPlaced::Caller { .. }) => "caller",
            Self::NotPlaced(
                NotPlaced::Absent { .. } | NotPlaced::NoAccount(_) | NotPlaced::Busy(_) | NotPlaced::Away(_),
            ) => "placement",
            Self::NoIdentity | Self::Identity(_) => "identity",
            Self::Life(_) => "validity",
            Self::Csr(_) => "csr",
            Self::NotGranted(_) => "attest",
            Self::Issue(_) | Self::NoRandomness(_) | Self::Stale(_) => "issue",
        }
    }

    /// One word for log, counter and the reply's metadata `adit-refusal`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Unauthenticated(error) | Self::NotKnown(NotKnown::Token(error)) => match error {
                Unauthenticated::Absent => "no_authorization",
                Unauthenticated::NotBearer => "not_bearer",
                Unauthenticated::Unknown => "unknown_token",
            },
            Self::NotKnown(NotKnown::Agent(error)) => match error {
                NotAnAgent::Refused(_) | NotAnAgent::Unfit(_) => "token_refused",
                NotAnAgent::Audience(_) => "wrong_audience",
                NotAnAgent::Account { .. } => "not_an_agent",
                NotAnAgent::NoClaim(_) => "no_pod_claim",
            },
            Self::NotKnown(NotKnown::Away(_)) | Self::NotPlaced(NotPlaced::Away(_)) => "api_away",
            Self::NotPlaced(NotPlaced::Caller { why, .. }) => match why {
                NotThere::Gone => "caller_gone",
                NotThere::Finished => "caller_finished",
                NotThere::Elsewhere => "caller_elsewhere",
            },
            Self::NotPlaced(NotPlaced::Absent { .. }) => "not_on_node",
            Self::NotPlaced(NotPlaced::NoAccount(_)) => "no_account",
            Self::NotPlaced(NotPlaced::Busy(_)) => "placement_busy",
            Self::Stale(_) => "store_unseen",
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
            Self::Busy
            | Self::NotKnown(NotKnown::Away(_))
            | Self::NotPlaced(NotPlaced::Busy(_) | NotPlaced::Away(_))
            | Self::Stale(_)
            | Self::Issue(IssueError::IssuerEnds(_))
            | Self::NoRandomness(_) => Code::Unavailable,
            Self::Unauthenticated(_)
            | Self::NotKnown(
                NotKnown::Token(_)
                | NotKnown::Agent(NotAnAgent::Refused(_) | NotAnAgent::Unfit(_) | NotAnAgent::Audience(_)),
            )
            | Self::NotPlaced(NotPlaced::Caller { .. }) => Code::Unauthenticated,
            // Another token of the same caller would change nothing.
            Self::NotKnown(NotKnown::Agent(NotAnAgent::Account { .. } | NotAnAgent::NoClaim(_)))
            | Self::NotPlaced(NotPlaced::Absent { .. } | NotPlaced::NoAccount(_)) => Code::PermissionDenied,
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
