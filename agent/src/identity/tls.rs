//! TLS as the mesh speaks it: one provider, the two configurations, what a finished handshake proved, and the closed
//! reason for one that failed.
//!
//! TLS 1.3 only, AES-GCM only, ALPN `h2`, no SNI, no resumption: a resumed session would skip the chain, the kill
//! list and expiry. Does not choose certificates: see [`super::certs`].

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use adit_proto::{Reason, SpiffeId};
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::{cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, CommonState, HandshakeKind, NamedGroup,
    ProtocolVersion, ServerConfig,
};
use rustls_pki_types::UnixTime;

use super::leaf::{Leaf, serials, unix_time};
use super::missing::NoCertificate;
use super::unproven::VerifyError;
use super::verify::{AnyPeer, ExpectPeer, Trust};
use crate::clock::Clock;

/// The only protocol inside the tunnel's TLS.
pub(crate) const ALPN: &[u8] = b"h2";

/// Who is at the other end of a finished handshake, and what protects the connection. Read off the handshake, never
/// assumed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Peer {
    /// The identity that its certificate proved.
    pub id: SpiffeId,
    /// The serial of its certificate: lower-case hex without leading zeros.
    pub serial: Arc<str>,
    /// The serials of what it showed to lead to its root: all that its proof rests on is among them.
    pub above: Arc<[Arc<str>]>,
    /// When its certificate expires.
    pub not_after: SystemTime,
    /// What was negotiated.
    pub tls: TlsFacts,
}

/// What a handshake negotiated, in the names of the RFCs.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct TlsFacts {
    /// `TLSv1.3`.
    pub version: &'static str,
    /// As `TLS13_AES_128_GCM_SHA256`.
    pub suite: &'static str,
    /// As `X25519MLKEM768`.
    pub group: &'static str,
}

/// Why a finished handshake cannot carry a tunnel.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer did not choose `h2`; one that offers no ALPN at all passes rustls' own check.
    #[error("peer did not agree on h2")]
    Alpn,
    /// The peer showed no certificate.
    #[error("peer showed no certificate")]
    NoCertificate,
    /// What was negotiated is not what this side offers: not TLS 1.3, or resumed.
    #[error("handshake is not a full TLS 1.3 handshake")]
    NotFull,
    /// The certificate breaks a rule; cannot follow on a verified handshake.
    #[error("peer certificate breaks a rule")]
    Certificate(#[from] VerifyError),
}

impl HandshakeError {
    /// The closed reason. Exhaustive: a new variant must pick its word here.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Alpn => Reason::Alpn,
            Self::NoCertificate => Reason::NoClientCertificate,
            Self::NotFull => Reason::PeerProtocol,
            Self::Certificate(error) => error.reason(),
        }
    }
}

impl From<HandshakeError> for io::Error {
    fn from(error: HandshakeError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// Reads off a finished handshake who the peer is. Costs one parse of each certificate (about 2 µs).
pub fn peer_of(tls: &CommonState) -> Result<Peer, HandshakeError> {
    if tls.alpn_protocol() != Some(ALPN) {
        return Err(HandshakeError::Alpn);
    }
    let full =
        matches!(tls.handshake_kind(), Some(HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest));
    if tls.protocol_version() != Some(ProtocolVersion::TLSv1_3) || !full {
        return Err(HandshakeError::NotFull);
    }
    let chain = tls.peer_certificates().unwrap_or_default();
    let (leaf, above) = chain.split_first().ok_or(HandshakeError::NoCertificate)?;
    let leaf = Leaf::read(leaf)?;
    let suite = tls.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str());
    let group = tls.negotiated_key_exchange_group().map(|group| group_name(group.name()));
    Ok(Peer {
        id: leaf.id,
        serial: leaf.serial,
        above: serials(above).collect(),
        not_after: leaf.validity.not_after,
        tls: TlsFacts {
            version: "TLSv1.3",
            suite: suite.ok_or(HandshakeError::NotFull)?,
            group: group.ok_or(HandshakeError::NotFull)?,
        },
    })
}

#[expect(clippy::wildcard_enum_match_arm, reason = "rustls' enum; the provider offers only the named three")]
fn group_name(group: NamedGroup) -> &'static str {
    match group {
        NamedGroup::X25519MLKEM768 => "X25519MLKEM768",
        NamedGroup::X25519 => "X25519",
        NamedGroup::secp256r1 => "secp256r1",
        other => other.as_str().unwrap_or("unknown"),
    }
}

/// The closed reason for a handshake, or a record after it, that failed with this error.
///
/// An alert from the peer is told from this side's view: it refused *our* certificate, so what to look at is here.
/// TLS 1.3 lets a server refuse a client after the client has finished: its alert then comes with the first read.
pub fn reason_of(error: &io::Error) -> Reason {
    let Some(inner) = error.get_ref() else {
        return of_kind(error.kind());
    };
    if let Some(error) = inner.downcast_ref::<rustls::Error>() {
        of_tls(error)
    } else if let Some(error) = inner.downcast_ref::<HandshakeError>() {
        error.reason()
    } else if inner.is::<NoCertificate>() {
        Reason::OwnCertificateMissing
    } else {
        of_kind(error.kind())
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "std's enum; what is no known way to lose a connection is protocol"
)]
fn of_kind(kind: io::ErrorKind) -> Reason {
    match kind {
        io::ErrorKind::TimedOut => Reason::HandshakeTimeout,
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::NotConnected
        | io::ErrorKind::UnexpectedEof
        | io::ErrorKind::WriteZero => Reason::TunnelLost,
        io::ErrorKind::ConnectionRefused => Reason::Refused,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable | io::ErrorKind::NetworkDown => {
            Reason::Unreachable
        }
        _ => Reason::PeerProtocol,
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "rustls' enum; all that is not about certificates is protocol"
)]
fn of_tls(error: &rustls::Error) -> Reason {
    match error {
        rustls::Error::InvalidCertificate(error) => of_certificate(error),
        rustls::Error::NoCertificatesPresented => Reason::NoClientCertificate,
        rustls::Error::NoApplicationProtocol => Reason::Alpn,
        rustls::Error::AlertReceived(alert) => of_alert(*alert),
        _ => Reason::PeerProtocol,
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "rustls' enum; every other defect of a certificate is distrust"
)]
fn of_certificate(error: &CertificateError) -> Reason {
    match error {
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => Reason::PeerExpired,
        CertificateError::Revoked => Reason::PeerRevoked,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            Reason::PeerIdentity
        }
        CertificateError::Other(other) => {
            other.0.downcast_ref::<VerifyError>().map_or(Reason::PeerUntrusted, VerifyError::reason)
        }
        _ => Reason::PeerUntrusted,
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "rustls' enum; every other alert says that TLS itself failed"
)]
fn of_alert(alert: AlertDescription) -> Reason {
    match alert {
        AlertDescription::NoApplicationProtocol => Reason::Alpn,
        // The peer judged our certificate out of date or missing.
        AlertDescription::CertificateExpired | AlertDescription::CertificateRequired => {
            Reason::OwnCertificateMissing
        }
        AlertDescription::CertificateRevoked => Reason::IdentityRevoked,
        AlertDescription::AccessDenied => Reason::PeerDenied,
        // The two bundles differ, or a rule of SPIFFE is broken; who trusts whom is the thing to compare.
        AlertDescription::UnknownCA
        | AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown => Reason::PeerUntrusted,
        AlertDescription::CloseNotify | AlertDescription::UserCanceled => Reason::TunnelLost,
        _ => Reason::PeerProtocol,
    }
}

/// Makes configurations. Cheap to clone; all of them share the provider.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    provider: Arc<CryptoProvider>,
    clock: Arc<WallClock>,
}

/// Rustls' clock is ours, so that a test's time is one time.
#[derive(Debug)]
struct WallClock(Clock);

impl TimeProvider for WallClock {
    fn current_time(&self) -> Option<UnixTime> {
        unix_time(self.0.now().wall)
    }
}

impl Tls {
    pub(crate) fn new(clock: Clock) -> Self {
        let provider = CryptoProvider {
            // The 128-bit suite first: both are AES-GCM in hardware, the shorter key has fewer rounds.
            cipher_suites: vec![
                cipher_suite::TLS13_AES_128_GCM_SHA256,
                cipher_suite::TLS13_AES_256_GCM_SHA384,
            ],
            kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
            ..rustls::crypto::aws_lc_rs::default_provider()
        };
        Self { provider: Arc::new(provider), clock: Arc::new(WallClock(clock)) }
    }

    pub(crate) fn algorithms(&self) -> WebPkiSupportedAlgorithms {
        self.provider.signature_verification_algorithms
    }

    pub(crate) fn provider(&self) -> &Arc<CryptoProvider> {
        &self.provider
    }

    /// The inbound side: any workload of a known trust domain may finish the handshake.
    pub(crate) fn server(&self, key: Arc<CertifiedKey>, trust: Arc<Trust>) -> ServerConfig {
        let mut config = ServerConfig::builder_with_details(self.provider.clone(), self.clock.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has suites and groups of TLS 1.3")
            .with_client_cert_verifier(Arc::new(AnyPeer { trust }))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.enable_secret_extraction = true; // the data plane seals and opens the records itself
        config
    }

    /// The outbound side towards one expected peer.
    pub(crate) fn client(
        &self,
        key: Arc<CertifiedKey>,
        trust: Arc<Trust>,
        expected: SpiffeId,
    ) -> ClientConfig {
        let mut config = ClientConfig::builder_with_details(self.provider.clone(), self.clock.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has suites and groups of TLS 1.3")
            .dangerous() // rustls' word for a verifier that is not its own: ours checks a URI SAN, not a DNS name
            .with_custom_certificate_verifier(Arc::new(ExpectPeer { trust, expected }))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        mesh_client(&mut config);
        config.enable_secret_extraction = true; // as for the server
        config
    }

    /// Towards the CA: an ordinary server certificate, checked by name against these roots; no certificate of ours.
    pub(crate) fn ca_client(&self, roots: rustls::RootCertStore) -> Result<ClientConfig, rustls::Error> {
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
            Arc::new(roots),
            self.provider.clone(),
        )
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
        let mut config = ClientConfig::builder_with_details(self.provider.clone(), self.clock.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_webpki_verifier(verifier)
            .with_no_client_auth();
        mesh_client(&mut config);
        Ok(config)
    }
}

fn mesh_client(config: &mut ClientConfig) {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
}

#[cfg(test)]
mod tests;
