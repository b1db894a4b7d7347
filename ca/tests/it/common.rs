//! A CA's files, and a client that speaks to it as an agent does: TLS verified against the published bundle, the
//! agent's own generated stub.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

#[rustfmt::skip]
#[path = "../../../agent/src/identity/gen/istio.v1.auth.rs"]
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    reason = "generated"
)]
pub(crate) mod wire;

use wire::istio_certificate_service_client::IstioCertificateServiceClient;
use wire::{IstioCertificateRequest, IstioCertificateResponse};

pub(crate) const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
pub(crate) const TOKEN: &str = "token-of-node-a-0123456789";

/// A directory with all that a CA needs.
pub(crate) struct Files {
    pub(crate) dir: tempfile::TempDir,
}

impl Files {
    pub(crate) fn new() -> Self {
        let files = Self { dir: tempfile::tempdir().unwrap() };
        files.tokens(&format!("nodes:\n  node-a:\n    token: {TOKEN}\n    identities: [{WEB}]\n"));
        files
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn tokens(&self, text: &str) {
        replace(&self.path("tokens.yaml"), text);
    }

    pub(crate) fn config(&self) -> adit_ca::Config {
        let mut config = adit_ca::Config::standalone(
            self.path("store"),
            self.path("tokens.yaml"),
            Some(self.path("mesh")),
        );
        config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        config.poll = Duration::from_millis(10);
        config
    }

    /// The roots that lie published.
    pub(crate) fn roots(&self) -> Vec<CertificateDer<'static>> {
        let keys = self.bundle()["keys"].as_array().unwrap().clone();
        let der = |key: serde_json::Value| {
            let text = key["x5c"][0].as_str().unwrap().to_owned();
            base64::engine::general_purpose::STANDARD.decode(text).unwrap().into()
        };
        keys.into_iter().map(der).collect()
    }

    /// The generation that lies published.
    pub(crate) fn generation(&self) -> u64 {
        self.bundle()["spiffe_sequence"].as_u64().unwrap()
    }

    fn bundle(&self) -> serde_json::Value {
        let manifest = fs::read_to_string(self.path("mesh/trust-bundle.yaml")).unwrap();
        let line = manifest.lines().find(|line| line.contains("trust_domains")).unwrap();
        let bundle: serde_json::Value = serde_json::from_str(line.trim()).unwrap();
        bundle["trust_domains"]["cluster.local"].clone()
    }
}

/// Writes a file of its owner's only, as a whole.
pub(crate) fn replace(path: &Path, text: &str) {
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, text).unwrap();
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(temporary, path).unwrap();
}

/// How an agent's rustls is set up.
pub(crate) fn tls(roots: &[CertificateDer<'static>]) -> rustls::ClientConfig {
    let mut store = rustls::RootCertStore::empty();
    store.add_parsable_certificates(roots.to_vec());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Connects as an agent does.
pub(crate) async fn connect(
    address: SocketAddr,
    config: rustls::ClientConfig,
) -> Result<Channel, tonic::transport::Error> {
    let connector = TlsConnector::from(Arc::new(config));
    Endpoint::from_static("http://adit-ca.adit-system.svc:15012")
        .connect_with_connector(tower::service_fn(move |_| {
            let connector = connector.clone();
            async move {
                let stream = TcpStream::connect(address).await?;
                let name = ServerName::try_from("adit-ca.adit-system.svc").unwrap();
                connector.connect(name, stream).await.map(TokioIo::new)
            }
        }))
        .await
}

/// What is asked.
pub(crate) struct Ask {
    pub(crate) authorization: Option<String>,
    pub(crate) identity: Option<prost_types::Value>,
    pub(crate) csr: String,
    pub(crate) validity: i64,
}

impl Ask {
    /// What node-a may ask for.
    pub(crate) fn good() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
        Self {
            authorization: Some(format!("Bearer {TOKEN}")),
            identity: Some(text(WEB)),
            csr: csr.pem().unwrap(),
            validity: 0,
        }
    }

    pub(crate) async fn of(self, channel: &Channel) -> Result<IstioCertificateResponse, Status> {
        let fields = self.identity.map(|id| ("ImpersonatedIdentity".to_owned(), id)).into_iter().collect();
        let mut request = Request::new(IstioCertificateRequest {
            csr: self.csr,
            validity_duration: self.validity,
            metadata: Some(prost_types::Struct { fields }),
        });
        if let Some(authorization) = self.authorization {
            request.metadata_mut().insert("authorization", authorization.parse().unwrap());
        }
        let mut client = IstioCertificateServiceClient::new(channel.clone());
        client.create_certificate(request).await.map(tonic::Response::into_inner)
    }
}

/// A string as protobuf's Struct holds it.
pub(crate) fn text(text: &str) -> prost_types::Value {
    prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(text.to_owned())) }
}
