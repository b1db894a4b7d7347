//! Asks the CA for one certificate: gRPC over TLS, Istio's wire, a bearer token.
//!
//! The CA's server certificate is checked by name, against the bundle of the own trust domain or a configured PEM
//! file, and against all that is revoked; a channel that was opened before a change of trust is not used after it.
//! Makes no key and checks no answer: see [`super::csr`] and [`super::cert`].

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use adit_core::rotation::Failure;
use adit_proto::{SpiffeId, TrustDomain};
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, InvalidDnsNameError, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::metadata::errors::InvalidMetadataValue;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};
use zeroize::Zeroizing;

use super::certs::CertSource;
use super::leaf::serials;
use super::stub::IstioCertificateRequest;
use super::stub::istio_certificate_service_client::IstioCertificateServiceClient;
use super::tls::Tls;
use super::verify::Trust;

/// How long one call may take, connecting included. A CA answers in milliseconds; a pod's ADD waits 30 s in all.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest answer. A chain of three is 3 KiB; a bundle of 16 RSA roots fits.
const ANSWER_LEN_MAX: usize = 64 * 1024;
/// The longest token file. A projected token is about 1 KiB.
const TOKEN_LEN_MAX: usize = 16 * 1024;
/// The longest file of roots: a whole store of public roots is 250 KiB.
const ROOT_FILE_LEN_MAX: usize = 1024 * 1024;
/// How long a connection stays silent before the kernel asks whether the CA is still there.
const TCP_KEEPALIVE: Duration = Duration::from_secs(30);
/// The metadata member that names the wanted identity (Istio's agents and CAs).
const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

/// Why the CA gave no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaError {
    #[error("token file {path:?} cannot be read")]
    TokenFile { path: PathBuf, source: io::Error },
    #[error("token file {path:?} holds no token")]
    Token { path: PathBuf, source: Option<InvalidMetadataValue> },
    #[error("the trust bundle of {0} is not known yet")]
    NoBundle(TrustDomain),
    #[error("CA did not answer within {CALL_TIMEOUT:?}")]
    TimedOut,
    #[error("CA cannot be reached")]
    Unreachable(#[source] Box<Status>),
    #[error("CA refused")]
    Refused(#[source] Box<Status>),
}

impl CaError {
    /// What it is to the rotation. Exhaustive.
    pub(crate) fn kind(&self) -> Failure {
        match self {
            Self::TokenFile { .. } | Self::Token { .. } | Self::NoBundle(_) => Failure::NotReady,
            Self::TimedOut | Self::Unreachable(_) => Failure::Unreachable,
            Self::Refused(_) => Failure::Refused,
        }
    }
}

/// Why a connection to the CA was not made.
#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error("cannot connect to {address}")]
    Tcp { address: Arc<str>, source: io::Error },
    #[error("TLS handshake with {address}")]
    Handshake { address: Arc<str>, source: io::Error },
    #[error("{address} shows a revoked certificate: {serial}")]
    Revoked { address: Arc<str>, serial: Arc<str> },
    #[error("CA root file {path:?} cannot be read")]
    RootFile { path: PathBuf, source: io::Error },
    #[error("no usable root certificate for the CA")]
    NoRoot,
    #[error("TLS configuration")]
    Config(#[source] rustls::Error),
}

/// Where the CA is and how it is known.
#[derive(Clone, Debug)]
pub(crate) struct Ca {
    /// `host:port`.
    pub(crate) address: Arc<str>,
    /// The DNS name in its certificate.
    pub(crate) server_name: ServerName<'static>,
    /// Roots in PEM, instead of the bundle's.
    pub(crate) root_file: Option<PathBuf>,
    pub(crate) token_file: PathBuf,
    pub(crate) trust_domain: TrustDomain,
    /// Wanted life of a certificate.
    pub(crate) life: Duration,
}

/// The client. Shared by all requests in flight.
#[derive(Debug)]
pub(crate) struct CaClient {
    ca: Arc<Ca>,
    tls: Tls,
    /// Whom the agent trusts, in the CA as in its peers.
    certs: CertSource,
    endpoint: Endpoint,
    /// Made on first use; dropped after a failed call, so that a dead connection fails one call and not the next.
    channel: Mutex<Option<Opened>>,
}

/// A channel, and the trust under which it was opened: the CA's certificate was held against what was revoked then, and
/// not against what has been since.
#[derive(Debug)]
struct Opened {
    channel: Channel,
    under: Arc<Trust>,
}

impl CaClient {
    /// Connects to nothing yet. Fails if the address is no `host:port`.
    pub(crate) fn new(ca: Ca, tls: Tls, certs: CertSource) -> Result<Self, tonic::transport::Error> {
        let endpoint =
            Endpoint::from_shared(format!("https://{}", ca.address))?.connect_timeout(CALL_TIMEOUT);
        Ok(Self { ca: Arc::new(ca), tls, certs, endpoint, channel: Mutex::new(None) })
    }

    /// Asks for a certificate; returns the chain as the CA sent it, in PEM. Takes at most [`CALL_TIMEOUT`].
    pub(crate) async fn issue(&self, id: &SpiffeId, csr: String) -> Result<Vec<String>, CaError> {
        if !self.certs.trust().bundle().roots.contains_key(&self.ca.trust_domain) {
            // Whatever the CA issued could not be checked.
            return Err(CaError::NoBundle(self.ca.trust_domain.clone()));
        }
        let mut request = Request::new(IstioCertificateRequest {
            csr,
            validity_duration: i64::try_from(self.ca.life.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(impersonating(id)),
        });
        request.metadata_mut().insert("authorization", self.bearer().await?);
        let mut client =
            IstioCertificateServiceClient::new(self.channel()).max_decoding_message_size(ANSWER_LEN_MAX);
        let answer = tokio::time::timeout(CALL_TIMEOUT, client.create_certificate(request)).await;
        match answer {
            Ok(Ok(answer)) => Ok(answer.into_inner().cert_chain),
            Ok(Err(status)) => Err(self.failed(status)),
            Err(_) => {
                self.drop_channel();
                Err(CaError::TimedOut)
            }
        }
    }

    fn failed(&self, status: Status) -> CaError {
        match status.code() {
            Code::Unauthenticated
            | Code::PermissionDenied
            | Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::NotFound
            | Code::OutOfRange
            | Code::Unimplemented => CaError::Refused(Box::new(status)),
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::AlreadyExists
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss => {
                self.drop_channel();
                CaError::Unreachable(Box::new(status))
            }
        }
    }

    /// The open channel, unless trust has changed since: the CA proves itself anew before it gets another token. One that
    /// held a leaked key before it was revoked would else keep the agent for as long as the connection lasts.
    fn channel(&self) -> Channel {
        let mut opened = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        let trust = self.certs.trust();
        opened.take_if(|opened| !Arc::ptr_eq(&opened.under, &trust));
        opened.get_or_insert_with(|| Opened { channel: self.connect_lazy(), under: trust }).channel.clone()
    }

    /// The next call connects anew.
    pub(crate) fn drop_channel(&self) {
        *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn connect_lazy(&self) -> Channel {
        let (ca, tls, certs) = (self.ca.clone(), self.tls.clone(), self.certs.clone());
        self.endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let (ca, tls, certs) = (ca.clone(), tls.clone(), certs.clone());
            async move { connect(&ca, &tls, &certs).await.map(TokioIo::new) }
        }))
    }

    /// The token, read anew: the kubelet replaces the file well before the token expires.
    async fn bearer(&self) -> Result<MetadataValue<Ascii>, CaError> {
        let path = || self.ca.token_file.clone();
        let text = read_limited(&self.ca.token_file, TOKEN_LEN_MAX)
            .await
            .map_err(|source| CaError::TokenFile { path: path(), source })?;
        let text = Zeroizing::new(text);
        let token = std::str::from_utf8(&text).unwrap_or_default().trim();
        if token.is_empty() {
            return Err(CaError::Token { path: path(), source: None });
        }
        let header = Zeroizing::new(format!("Bearer {token}"));
        let mut value = MetadataValue::try_from(header.as_str())
            .map_err(|source| CaError::Token { path: path(), source: Some(source) })?;
        value.set_sensitive(true);
        Ok(value)
    }
}

fn impersonating(id: &SpiffeId) -> prost_types::Struct {
    let value =
        prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(id.as_str().to_owned())) };
    prost_types::Struct {
        fields: BTreeMap::from([(IMPERSONATED_IDENTITY.to_owned(), value)]).into_iter().collect(),
    }
}

/// A connection with the CA's certificate verified.
async fn connect(
    ca: &Ca,
    tls: &Tls,
    certs: &CertSource,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, ConnectError> {
    let roots = roots(ca, &certs.trust()).await?;
    let config = tls.ca_client(roots).map_err(ConnectError::Config)?;
    let stream = TcpStream::connect(&*ca.address)
        .await
        .map_err(|source| ConnectError::Tcp { address: ca.address.clone(), source })?;
    let keepalive = socket2::TcpKeepalive::new().with_time(TCP_KEEPALIVE).with_interval(TCP_KEEPALIVE / 3);
    // Without keep-alive a dead connection costs one time-out, no more: an error here is no reason to fail.
    let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive);
    let _ = stream.set_nodelay(true);
    let stream = TlsConnector::from(Arc::new(config))
        .connect(ca.server_name.clone(), stream)
        .await
        .map_err(|source| ConnectError::Handshake { address: ca.address.clone(), source })?;
    let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
    // Before anything is sent: who holds a leaked intermediate's key can be the CA to whoever does not ask. By what is
    // trusted now, as the handshake may have taken a while.
    let revoked = certs.trust().first_revoked(serials(shown));
    match revoked {
        Some(serial) => Err(ConnectError::Revoked { address: ca.address.clone(), serial }),
        None => Ok(stream),
    }
}

async fn roots(ca: &Ca, trust: &Trust) -> Result<RootCertStore, ConnectError> {
    let mut store = RootCertStore::empty();
    match &ca.root_file {
        Some(path) => {
            let pem = read_limited(path, ROOT_FILE_LEN_MAX)
                .await
                .map_err(|source| ConnectError::RootFile { path: path.clone(), source })?;
            store.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).flatten());
        }
        None => {
            let roots = trust.bundle().roots.get(&ca.trust_domain).map(Vec::as_slice).unwrap_or_default();
            store.add_parsable_certificates(roots.iter().map(|der| CertificateDer::from(&der[..])));
        }
    }
    if store.is_empty() { Err(ConnectError::NoRoot) } else { Ok(store) }
}

/// A small file, whole; an error if it is longer than `len_max`.
async fn read_limited(path: &std::path::Path, len_max: usize) -> io::Result<Vec<u8>> {
    use tokio::io::AsyncReadExt;
    let mut text = Vec::with_capacity(1024);
    let file = tokio::fs::File::open(path).await?;
    file.take(len_max as u64 + 1).read_to_end(&mut text).await?;
    if text.len() > len_max {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(text)
}

/// Whether this is `host:port`.
pub(crate) fn is_address(address: &str) -> bool {
    let uri = format!("https://{address}").parse::<Uri>();
    uri.is_ok_and(|uri| uri.port_u16().is_some() && uri.path_and_query().is_none_or(|rest| rest == "/"))
}

/// The name in the CA's certificate, checked.
pub(crate) fn server_name(name: &str) -> Result<ServerName<'static>, InvalidDnsNameError> {
    ServerName::try_from(name.to_owned())
}

#[cfg(test)]
mod tests;
