//! Reads a leaf certificate and checks the rules of X509-SVID that need no bundle.
//!
//! Nothing that is read here is proven: see [`super::verify`].

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use adit_core::time::Validity;
use adit_proto::SpiffeId;
use adit_proto::spiffe::SpiffeIdError;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::EndEntityCert;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::unproven::VerifyError;

/// What a leaf says of itself: nothing of it is proven yet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Leaf {
    /// Its one URI SAN.
    pub(crate) id: SpiffeId,
    /// Lower-case hex without leading zeros.
    pub(crate) serial: Arc<str>,
    /// Its dates.
    pub(crate) validity: Validity,
}

impl Leaf {
    /// Reads a leaf and checks the rules of X509-SVID that need no bundle.
    pub(crate) fn read(der: &[u8]) -> Result<Self, VerifyError> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| VerifyError::Encoding)?;
        if !rest.is_empty() {
            return Err(VerifyError::Encoding);
        }
        let constraints = certificate.basic_constraints().map_err(|_| VerifyError::Encoding)?;
        if constraints.is_some_and(|extension| extension.value.ca) {
            return Err(VerifyError::Ca);
        }
        let usage = certificate.key_usage().map_err(|_| VerifyError::Encoding)?;
        if usage.is_some_and(|extension| extension.value.key_cert_sign() || extension.value.crl_sign()) {
            return Err(VerifyError::SigningKeyUsage);
        }
        let names = certificate.subject_alternative_name().map_err(|_| VerifyError::Encoding)?;
        let names = names.ok_or(VerifyError::Identity(SpiffeIdError::NoUriSan))?;
        let empty_subject = certificate.subject().iter().next().is_none();
        if empty_subject && !names.critical {
            return Err(VerifyError::SanNotCritical);
        }
        // A name that cannot be read may be a second URI: it is refused, not skipped.
        if names.value.general_names.iter().any(|name| matches!(name, GeneralName::Invalid(..))) {
            return Err(VerifyError::Encoding);
        }
        let uris = names.value.general_names.iter().filter_map(uri);
        Ok(Self {
            id: SpiffeId::from_uri_sans(uris).map_err(VerifyError::Identity)?,
            serial: serial_hex(certificate.raw_serial()),
            validity: Validity {
                not_before: system_time(certificate.validity().not_before.timestamp()),
                not_after: system_time(certificate.validity().not_after.timestamp()),
            },
        })
    }
}

fn uri<'a>(name: &GeneralName<'a>) -> Option<&'a str> {
    if let GeneralName::URI(uri) = name { Some(uri) } else { None }
}

/// A serial as the kill list writes it: lower-case hex without leading zeros.
pub(crate) fn serial_hex(octets: &[u8]) -> Arc<str> {
    use std::fmt::Write;
    let mut hex = String::with_capacity(2 * octets.len());
    for octet in octets {
        write!(hex, "{octet:02x}").expect("writing to a String cannot fail");
    }
    match hex.trim_start_matches('0') {
        "" => "0".into(),
        digits => digits.into(),
    }
}

/// The serials of these certificates, but for what cannot be read: that proves nothing.
pub(crate) fn serials<'c>(chain: &'c [CertificateDer<'_>]) -> impl Iterator<Item = Arc<str>> + 'c {
    let read = chain.iter().filter_map(|der| EndEntityCert::try_from(der).ok());
    read.map(|certificate| serial_hex(certificate.serial()))
}

fn system_time(unix_secs: i64) -> SystemTime {
    match u64::try_from(unix_secs) {
        Ok(secs) => UNIX_EPOCH.checked_add(Duration::from_secs(secs)).unwrap_or(UNIX_EPOCH),
        Err(_) => UNIX_EPOCH,
    }
}

/// `None` before 1970.
pub(crate) fn unix_time(wall: SystemTime) -> Option<UnixTime> {
    wall.duration_since(UNIX_EPOCH).ok().map(UnixTime::since_unix_epoch)
}
