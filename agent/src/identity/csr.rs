//! A fresh key and the request for a certificate that goes with it. The key never leaves this process but into the
//! journal on tmpfs.

use adit_proto::SpiffeId;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use zeroize::Zeroize;

use super::cert::Secret;

/// A key and its PKCS#10 request.
#[derive(Debug)]
pub(crate) struct KeyAndRequest {
    pub(crate) secret: Secret,
    /// PEM. It names the identity, as Istio's agents do; a sound CA takes only the public key from it.
    pub(crate) pem: String,
}

/// Makes an ECDSA P-256 key (14 µs) and signs a request for `id` with it.
pub(crate) fn new_key_and_request(id: &SpiffeId) -> Result<KeyAndRequest, rcgen::Error> {
    let mut key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let request = request(id, &key);
    let secret = Secret::new(key.serialize_der());
    key.zeroize();
    Ok(KeyAndRequest { secret, pem: request? })
}

fn request(id: &SpiffeId, key: &KeyPair) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
    params.serialize_request(key)?.pem()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_the_identity_and_nothing_else_and_its_key_is_never_shown() {
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        let made = new_key_and_request(&id).unwrap();
        let parsed = rcgen::CertificateSigningRequestParams::from_pem(&made.pem).unwrap();
        assert_eq!(parsed.params.subject_alt_names, [SanType::URI(id.as_str().try_into().unwrap())]);
        assert_eq!(parsed.params.distinguished_name, DistinguishedName::new());
        assert!(format!("{made:?}").contains("secret: Secret,"), "{made:?}");
    }

    #[test]
    fn every_request_has_a_key_of_its_own() {
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap();
        let keys = [new_key_and_request(&id).unwrap(), new_key_and_request(&id).unwrap()];
        assert_ne!(keys[0].secret.expose(), keys[1].secret.expose());
    }
}
