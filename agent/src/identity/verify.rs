//! Decides whether a certificate chain proves a SPIFFE identity, and which.
//!
//! Path building is webpki's; the rules of X509-SVID come on top of it: the bundle is chosen by the peer's own trust
//! domain, a leaf is no CA, it has one URI SAN, and neither it nor what leads to it is revoked. Knows no socket and
//! no configuration of rustls but its two verifier traits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use adit_core::trust::TrustBundle;
use adit_proto::{SpiffeId, TrustDomain};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use super::leaf::{Leaf, serial_hex};
use super::proofs::Proofs;
use super::unproven::VerifyError;

/// A [`TrustBundle`] made ready for path building. Immutable; made anew when the bundle changes.
#[derive(Debug)]
pub(crate) struct Trust {
    bundle: Arc<TrustBundle>,
    /// By trust domain; one entry per entry of the bundle.
    anchors: BTreeMap<Box<str>, Vec<TrustAnchor<'static>>>,
    /// The kill list's serials and those of the revocation lists.
    revoked_serials: BTreeSet<Arc<str>>,
    /// By which roots peers have proved themselves; shared with the bundles before and after.
    proofs: Arc<Proofs>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Why a bundle cannot be used. The last good one stays in use: what was revoked stays revoked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BundleError {
    /// A root is no certificate.
    #[error("root {index} of trust domain {domain} is no certificate")]
    Root {
        domain: TrustDomain,
        index: usize,
        #[source]
        source: webpki::Error,
    },
    /// A revocation list is none.
    #[error("revocation list {index} cannot be read")]
    Crl { index: usize },
}

/// Which of the two purposes a certificate is shown for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Purpose {
    /// The dialled side.
    Server,
    /// The dialling side.
    Client,
}

impl Trust {
    /// Fails if a root or a revocation list cannot be read.
    ///
    /// The lists' own signatures are not asked for: a list comes in the same object as the roots, so whoever could
    /// forge it could replace those. Their serials count for every issuer, as the CA writes them: it draws 126 random
    /// bits a serial.
    pub(crate) fn new(
        bundle: Arc<TrustBundle>,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Result<Self, BundleError> {
        let mut anchors = BTreeMap::new();
        for (domain, roots) in &bundle.roots {
            let roots = roots.iter().enumerate().map(|(index, der)| {
                anchor(der).map_err(|source| BundleError::Root { domain: domain.clone(), index, source })
            });
            anchors.insert(domain.as_str().into(), roots.collect::<Result<_, _>>()?);
        }
        let mut revoked_serials = bundle.revoked_serials.clone();
        for (index, der) in bundle.crls.iter().enumerate() {
            let (_, list) =
                CertificateRevocationList::from_der(der).map_err(|_| BundleError::Crl { index })?;
            revoked_serials
                .extend(list.iter_revoked_certificates().map(|entry| serial_hex(entry.raw_serial())));
        }
        Ok(Self { bundle, anchors, revoked_serials, proofs: Arc::default(), algorithms })
    }

    /// The same, after `before`: it knows by which roots those peers proved themselves whose certificates are still valid.
    pub(crate) fn after(self, before: &Self, now: SystemTime) -> Self {
        before.proofs.forget_expired(now);
        Self { proofs: Arc::clone(&before.proofs), ..self }
    }

    /// Trusts nobody.
    pub(crate) fn nobody(algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self {
            bundle: Arc::default(),
            anchors: BTreeMap::new(),
            revoked_serials: BTreeSet::new(),
            proofs: Arc::default(),
            algorithms,
        }
    }

    /// Whether handshakes go the same way with both. Lists that are only signed anew, or another generation, change
    /// nothing.
    pub(crate) fn same_as(&self, other: &Self) -> bool {
        self.bundle.roots == other.bundle.roots
            && self.bundle.revoked_identities == other.bundle.revoked_identities
            && self.revoked_serials == other.revoked_serials
    }

    pub(crate) fn bundle(&self) -> &Arc<TrustBundle> {
        &self.bundle
    }

    /// Returns the identity that this chain proves at `time`.
    pub(crate) fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        purpose: Purpose,
        time: UnixTime,
    ) -> Result<Leaf, VerifyError> {
        let read = Leaf::read(leaf)?;
        let id = || read.id.clone();
        let anchors = self.anchors_of(&read.id)?;
        let certificate = EndEntityCert::try_from(leaf).map_err(|_| VerifyError::Encoding)?;
        let usage = match purpose {
            Purpose::Server => KeyUsage::server_auth(),
            Purpose::Client => KeyUsage::client_auth(),
        };
        let path = certificate
            .verify_for_usage(self.algorithms.all, anchors, intermediates, time, usage, None, None)
            .map_err(|error| untrusted(id(), error))?;
        if self.bundle.revoked_identities.contains(&read.id) {
            return Err(VerifyError::IdentityRevoked(read.id));
        }
        let above = path.intermediate_certificates().map(|certificate| serial_hex(certificate.serial()));
        for serial in std::iter::once(read.serial.clone()).chain(above) {
            if self.revoked_serials.contains(&serial) {
                return Err(VerifyError::SerialRevoked { id: id(), serial });
            }
        }
        let now = UNIX_EPOCH + Duration::from_secs(time.as_secs());
        self.proofs.note(&read, &path.anchor().subject_public_key_info, now);
        Ok(read)
    }

    /// Whether a peer verified before is on the kill list now: itself, its certificate or one that led to its root
    /// (`serials` are of all these); or its whole trust domain is revoked or gone.
    pub(crate) fn is_revoked<'s>(
        &self,
        id: &SpiffeId,
        mut serials: impl Iterator<Item = &'s Arc<str>>,
    ) -> bool {
        self.anchors_of(id).is_err()
            || self.bundle.revoked_identities.contains(id)
            || serials.any(|serial| self.revoked_serials.contains(serial))
    }

    /// The first of these serials that is revoked, by the kill list or by a revocation list.
    pub(crate) fn first_revoked(&self, mut serials: impl Iterator<Item = Arc<str>>) -> Option<Arc<str>> {
        serials.find(|serial| self.revoked_serials.contains(serial))
    }

    /// Whether the root is still there by which a peer's certificate was proven, as long as that has not expired.
    pub(crate) fn still_leads_to_a_root(&self, id: &SpiffeId, serial: &str) -> bool {
        let anchors = self.anchors_of(id).unwrap_or_default();
        let is_root = |root: &[u8]| anchors.iter().any(|anchor| *anchor.subject_public_key_info == *root);
        self.proofs.leads_to(id, serial, is_root)
    }

    /// The roots of this identity's own trust domain; never another's.
    fn anchors_of(&self, id: &SpiffeId) -> Result<&[TrustAnchor<'static>], VerifyError> {
        match self.anchors.get(id.trust_domain()) {
            None => Err(VerifyError::UnknownTrustDomain(id.trust_domain().into())),
            Some(anchors) if anchors.is_empty() => {
                Err(VerifyError::TrustDomainRevoked(id.trust_domain().into()))
            }
            Some(anchors) => Ok(anchors),
        }
    }
}

fn anchor(der: &[u8]) -> Result<TrustAnchor<'static>, webpki::Error> {
    let der = CertificateDer::from(der);
    webpki::anchor_from_trusted_cert(&der).map(|anchor| anchor.to_owned())
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "webpki's enum; only the dates have a reason of their own"
)]
fn untrusted(id: SpiffeId, error: webpki::Error) -> VerifyError {
    match error {
        webpki::Error::CertExpired { time, not_after } => VerifyError::Expired { id, time, not_after },
        webpki::Error::CertNotValidYet { time, not_before } => {
            VerifyError::NotYetValid { id, time, not_before }
        }
        source => VerifyError::Untrusted { id, source },
    }
}

/// Accepts servers that prove to be the expected peer.
#[derive(Debug)]
pub(crate) struct ExpectPeer {
    pub(crate) trust: Arc<Trust>,
    pub(crate) expected: SpiffeId,
}

impl ServerCertVerifier for ExpectPeer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let proven = self.trust.verify(end_entity, intermediates, Purpose::Server, now).map_err(refuse)?;
        if proven.id != self.expected {
            return Err(refuse(VerifyError::WrongPeer {
                expected: self.expected.clone(),
                actual: proven.id,
            }));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls13_only())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.trust.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.algorithms.supported_schemes()
    }
}

/// Accepts clients that prove to be any workload of a known trust domain; none is refused by name here, that is
/// policy's.
#[derive(Debug)]
pub(crate) struct AnyPeer {
    pub(crate) trust: Arc<Trust>,
}

impl ClientCertVerifier for AnyPeer {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // An agent has one certificate per identity and needs no hint; roots are nobody else's business.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.trust.verify(end_entity, intermediates, Purpose::Client, now).map_err(refuse)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(tls13_only())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.trust.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.algorithms.supported_schemes()
    }
}

fn tls13_only() -> rustls::Error {
    rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered)
}

/// The debug line is the only place that names who was refused where rustls' own variant cannot.
fn refuse(error: VerifyError) -> rustls::Error {
    tracing::debug!(reason = error.reason().label(), "peer certificate refused: {error}");
    error.into()
}

#[cfg(test)]
mod tests;
