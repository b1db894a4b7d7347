//! What answers requests now: the issuer, and what goes with its certificates. Replaced as a whole when the state
//! changes.

use std::collections::BTreeSet;
use std::sync::Arc;

use adit_proto::{SpiffeId, TrustDomain};
use rcgen::KeyPair;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::issue::{self, Issuer, Leaf, Life, ServerNames};
use crate::root::{Facts, RootError, pem_text};
use crate::serial::Serial;
use crate::stamp::Stamp;
use crate::state::State;
use crate::wire::IstioCertificateResponse;

/// One generation of what signs.
#[derive(Debug)]
pub(crate) struct Signing {
    /// Whose identities are issued.
    pub(crate) trust_domain: TrustDomain,
    /// What signs.
    pub(crate) issuer: Issuer,
    /// Identities for which nothing is issued.
    pub(crate) revoked: BTreeSet<SpiffeId>,
    /// The life of a leaf whose request does not shorten it.
    pub(crate) leaf_life: Life,
    /// When the root that it leads to ends.
    pub(crate) root_not_after: Stamp,
    /// The bundle's, as of this state.
    pub(crate) generation: u64,
    /// What follows the leaf in a reply.
    tail: Vec<String>,
}

impl Signing {
    /// What signs in `state`.
    pub(crate) fn of(state: &State, leaf_life: Life) -> Result<Self, RootError> {
        let issuer = state.authority.issuer()?;
        let mut tail: Vec<String> = issuer.chain.iter().map(|der| pem_text("CERTIFICATE", der)).collect();
        // While the root is changed, the last entry holds both, that of the leaf first: callers that take their roots
        // from the reply (Istio's) then learn the other in time.
        tail.push(state.roots().iter().map(|root| root.pem()).collect());
        Ok(Self {
            trust_domain: state.trust_domain.clone(),
            issuer,
            revoked: state.revoked_identities(),
            leaf_life,
            root_not_after: Facts::read(state.authority.root()?)?.not_after,
            generation: state.generation,
            tail,
        })
    }

    /// The reply that carries `leaf`.
    pub(crate) fn reply(&self, leaf: &Leaf) -> IstioCertificateResponse {
        let mut cert_chain = vec![leaf.pem.clone()];
        cert_chain.extend_from_slice(&self.tail);
        IstioCertificateResponse { cert_chain }
    }
}

/// Why this CA has no TLS certificate of its own.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// It could not be issued.
    #[error("cannot issue the CA's own certificate")]
    Issue(#[from] RootError),
    /// rustls does not take it.
    #[error("cannot use the CA's own certificate")]
    Tls(#[from] rustls::Error),
}

/// The TLS configuration with a fresh certificate of the CA's own.
pub(crate) fn tls(
    signing: &Signing,
    names: &ServerNames,
    now: Stamp,
) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(RootError::from)?;
    let serial = Serial::draw().map_err(RootError::from)?;
    let leaf =
        issue::server(&signing.issuer, names, &key, serial, now, Life::DEFAULT).map_err(RootError::from)?;
    let mut chain = vec![leaf.der];
    chain.extend_from_slice(&signing.issuer.chain);
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // No resumption: each handshake verifies the certificate that is valid then.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}
