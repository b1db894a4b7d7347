//! Reads the one thing that a certificate request may say: its public key.
//!
//! Pure. Names, extensions and attributes of the request are never looked at, so nothing of them can reach a
//! certificate.

use rcgen::{PublicKeyData, SignatureAlgorithm, SubjectPublicKeyInfo};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY};
use x509_parser::prelude::FromDer;
use x509_parser::x509;

/// The longest request that is read, in bytes of PEM. One for a P-256 key has about 500; 8 KiB leaves room for
/// extensions (which are ignored) and bounds what a caller can make us parse.
pub const CSR_LEN_MAX: usize = 8 * 1024;

/// An uncompressed point on P-256: one byte 4, two coordinates of 32 bytes (SEC 1, 2.3.3).
const POINT_LEN: usize = 65;

/// An ECDSA P-256 public key whose owner has shown, by signing the request, that they hold the private one.
#[derive(Debug)]
pub struct SubjectKey(SubjectPublicKeyInfo);

/// Why a request's public key is not taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CsrError {
    /// Longer than [`CSR_LEN_MAX`].
    #[error("the request is longer than {CSR_LEN_MAX} bytes")]
    TooLong,
    /// No PEM block `CERTIFICATE REQUEST`.
    #[error("the request is no PEM block CERTIFICATE REQUEST")]
    Pem,
    /// The PEM block is not one whole PKCS#10 request.
    #[error("the request is no PKCS#10 structure")]
    Der,
    /// Not an ECDSA key on P-256, or its point is compressed.
    #[error("the public key is not ECDSA P-256, uncompressed; no other kind is certified")]
    Key,
    /// The request is not signed with the key that it names.
    #[error("the request is not signed with its own key")]
    Signature,
}

impl SubjectKey {
    /// Takes the public key out of a PEM request, and checks that the request is signed with it.
    pub fn from_csr_pem(pem: &str) -> Result<Self, CsrError> {
        if pem.len() > CSR_LEN_MAX {
            return Err(CsrError::TooLong);
        }
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).map_err(|_| CsrError::Pem)?;
        let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|_| CsrError::Der)?;
        if !rest.is_empty() {
            return Err(CsrError::Der);
        }
        let spki = &request.certification_request_info.subject_pki;
        if !is_uncompressed_p256(spki) {
            return Err(CsrError::Key);
        }
        request.verify_signature().map_err(|_| CsrError::Signature)?;
        SubjectPublicKeyInfo::from_der(spki.raw).map(Self).map_err(|_| CsrError::Key)
    }
}

impl PublicKeyData for SubjectKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

fn is_uncompressed_p256(spki: &x509::SubjectPublicKeyInfo<'_>) -> bool {
    let algorithm = &spki.algorithm;
    let curve = algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    let point = &spki.subject_public_key;
    algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY
        && curve == Some(OID_EC_P256)
        && point.unused_bits == 0
        && point.data.len() == POINT_LEN
        && point.data[0] == 4
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn request_of(key: &KeyPair) -> String {
        let params = CertificateParams::new(vec!["example.org".to_owned()]).unwrap();
        params.serialize_request(key).unwrap().pem().unwrap()
    }

    #[test]
    fn the_key_of_a_p256_request_is_taken() {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let taken = SubjectKey::from_csr_pem(&request_of(&key)).unwrap();
        assert_eq!(taken.der_bytes(), key.public_key_raw());
    }

    #[test]
    fn every_other_kind_of_key_is_refused() {
        for kind in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519, &rcgen::PKCS_RSA_SHA256] {
            let key = KeyPair::generate_for(kind).unwrap();
            assert_eq!(SubjectKey::from_csr_pem(&request_of(&key)).err(), Some(CsrError::Key), "{kind:?}");
        }
    }

    #[test]
    fn a_request_signed_with_another_key_is_refused() {
        let key = KeyPair::generate().unwrap();
        let pem = request_of(&key);
        let mut der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
        let other = KeyPair::generate().unwrap();
        let at = der.windows(POINT_LEN).position(|window| window == key.public_key_raw()).unwrap();
        der[at..at + POINT_LEN].copy_from_slice(other.public_key_raw());
        assert_eq!(SubjectKey::from_csr_pem(&pem_of(&der)).err(), Some(CsrError::Signature));
        // A point that is not on the curve.
        der[at + 1] ^= 0xff;
        assert_eq!(SubjectKey::from_csr_pem(&pem_of(&der)).err(), Some(CsrError::Signature));
    }

    #[test]
    fn what_is_no_request_is_refused_by_name() {
        let good = request_of(&KeyPair::generate().unwrap());
        let mut trailing = CertificateSigningRequestDer::from_pem_slice(good.as_bytes()).unwrap().to_vec();
        trailing.push(0);
        for (pem, error) in [
            (String::new(), CsrError::Pem),
            ("x".repeat(CSR_LEN_MAX + 1), CsrError::TooLong),
            (good.replace("CERTIFICATE REQUEST", "CERTIFICATE"), CsrError::Pem),
            (pem_of(b"nothing"), CsrError::Der),
            (pem_of(&trailing), CsrError::Der),
        ] {
            assert_eq!(SubjectKey::from_csr_pem(&pem).err(), Some(error), "{pem}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(at in 0_usize..400, byte: u8, cut in 0_usize..400) {
            let pem = request_of(&KeyPair::generate().unwrap());
            let mut der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
            let len = der.len();
            der[at % len] = byte;
            der.truncate(len - cut % len);
            let _ = SubjectKey::from_csr_pem(&pem_of(&der));
        }
    }

    fn pem_of(der: &[u8]) -> String {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n")
    }
}
