//! Peers that the test plays: certificates signed as the mesh's CA signs, an HBONE client and a server of one's own.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use adit_proto::hbone::HEADER_ADIT_REASON;
use adit_proto::status::NodeStatus;
use adit_tests::WAIT_MAX;
use adit_tests::netns::Netns;
use adit_tests::topology::Host;
use http::{Method, Request, StatusCode};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, ServerConnection, SignatureScheme, version};
use time::{Duration, OffsetDateTime};

use super::*;

/// A root that signs leaves with anything in them.
pub(super) struct Issuer {
    root: rcgen::Certificate,
    signer: rcgen::Issuer<'static, KeyPair>,
}

/// A leaf with its key.
pub(super) struct Leaf {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Issuer {
    pub(super) fn new(domain: &str) -> Result<Self> {
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, "a root given by hand");
        let mut params = CertificateParams::default();
        params.not_before = OffsetDateTime::now_utc() - Duration::days(2);
        params.not_after = OffsetDateTime::now_utc() + Duration::days(300);
        params.distinguished_name = name;
        params.subject_alt_names = vec![SanType::URI(format!("spiffe://{domain}").as_str().try_into()?)];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let root = params.self_signed(&key)?;
        Ok(Self { root, signer: rcgen::Issuer::new(params, key) })
    }

    /// Puts it into the store of a CA, as one given by hand.
    pub(super) fn give(&self, store: &Path) -> Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(store).context("the CA's store")?;
        let key = self.signer.key().serialize_pem();
        for (name, pem) in [("tls.crt", self.root.pem()), ("tls.key", key), ("ca.crt", self.root.pem())] {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(store.join(name))?;
            file.write_all(pem.as_bytes())?;
        }
        Ok(())
    }

    /// A leaf that is in force.
    pub(super) fn leaf(&self, identity: &str) -> Result<Leaf> {
        self.signed(identity, OffsetDateTime::now_utc() + Duration::hours(1))
    }

    /// One that was until a minute ago.
    pub(super) fn expired_leaf(&self, identity: &str) -> Result<Leaf> {
        self.signed(identity, OffsetDateTime::now_utc() - Duration::minutes(1))
    }

    fn signed(&self, identity: &str, until: OffsetDateTime) -> Result<Leaf> {
        let mut params = CertificateParams::default();
        params.not_before = OffsetDateTime::now_utc() - Duration::hours(1);
        params.not_after = until;
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.signer)?;
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        Ok(Leaf { chain: vec![certificate.der().clone(), self.root.der().clone()], key })
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Takes any server.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

fn client(leaf: Option<&Leaf>) -> Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody));
    let mut config = match leaf {
        Some(leaf) => builder.with_client_auth_cert(leaf.chain.clone(), leaf.key.clone_key())?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// What an agent answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// Its `adit-reason`.
    pub(super) said: String,
}

/// Opens a tunnel with this certificate, and asks one thing.
pub(super) fn ask(from: &Netns, to: SocketAddr, leaf: &Leaf, method: &Method, uri: &str) -> Result<Answer> {
    let config = client(Some(leaf))?;
    let request = Request::builder().method(method).uri(uri).body(())?;
    talk(from, to, config, async |tls| {
        let (mut requests, connection) = h2::client::Builder::new().handshake::<_, bytes::Bytes>(tls).await?;
        let driven = tokio::spawn(connection);
        let asked = async {
            requests = requests.ready().await?;
            let (response, _send) = requests.send_request(request, method != Method::CONNECT)?;
            response.await
        };
        let response = asked.await?;
        driven.abort();
        let said = response.headers().get(HEADER_ADIT_REASON).and_then(|value| value.to_str().ok());
        Ok(Answer { status: response.status(), said: said.unwrap_or_default().to_owned() })
    })
}

/// Finishes a handshake without a certificate; then the server refuses it.
pub(super) fn greet_without_certificate(from: &Netns, to: SocketAddr) -> Result<()> {
    talk(from, to, client(None)?, async |mut tls| {
        let read = tokio::io::AsyncReadExt::read(&mut tls, &mut [0; 64]).await;
        ensure!(read.is_err(), "{read:?}");
        Ok(())
    })
}

type Tls = tokio_rustls::client::TlsStream<tokio::net::TcpStream>;

fn talk<T>(
    from: &Netns,
    to: SocketAddr,
    config: ClientConfig,
    speak: impl AsyncFnOnce(Tls) -> Result<T>,
) -> Result<T> {
    let tcp = connect(from, to)?;
    tcp.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let talk = async {
        let tcp = tokio::net::TcpStream::from_std(tcp)?;
        let name = ServerName::IpAddress(to.ip().into());
        let tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
        speak(tls).await
    };
    runtime.block_on(async { tokio::time::timeout(WAIT_MAX, talk).await })?
}

/// What a server of the test's own does with a connection.
#[derive(Clone)]
pub(super) struct Manner(Option<Arc<ServerConfig>>);

impl std::fmt::Debug for Manner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some(config) = &self.0 else { return f.write_str("a server without TLS") };
        let alpn: Vec<String> =
            config.alpn_protocols.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        write!(f, "a server that speaks {alpn:?}")
    }
}

/// What listens on 15008 where there is no agent.
pub(super) struct Far(Arc<Mutex<Manner>>);

impl Far {
    pub(super) fn listen(netns: &Netns) -> Result<Self> {
        let listener = netns.run(|| TcpListener::bind("[::]:15008"))??;
        let manner = Arc::new(Mutex::new(Self::no_tls()));
        let now = Arc::clone(&manner);
        thread::spawn(move || {
            while let Ok((tcp, _)) = listener.accept() {
                let manner = now.lock().unwrap_or_else(PoisonError::into_inner).clone();
                thread::spawn(move || serve(tcp, &manner));
            }
        });
        Ok(Self(manner))
    }

    /// From now on it behaves like this.
    pub(super) fn behave(&self, manner: Manner) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = manner;
    }

    /// Shows this certificate and speaks these protocols.
    pub(super) fn tls(leaf: &Leaf, alpn: &[&[u8]]) -> Result<Manner> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(leaf.chain.clone(), leaf.key.clone_key())?;
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(Manner(Some(Arc::new(config))))
    }

    /// Says something else.
    pub(super) const fn no_tls() -> Manner {
        Manner(None)
    }
}

/// What the peer makes of it is what is tested; here errors are expected.
fn serve(mut tcp: TcpStream, manner: &Manner) {
    let _ = tcp.set_read_timeout(Some(WAIT_MAX));
    let Some(config) = &manner.0 else {
        let _ = tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        let _ = std::io::copy(&mut tcp, &mut std::io::sink());
        return;
    };
    let Ok(mut tls) = ServerConnection::new(Arc::clone(config)) else { return };
    while tls.complete_io(&mut tcp).is_ok_and(|(read, _)| read > 0) {}
    let _ = std::io::copy(&mut tcp, &mut std::io::sink());
}

/// Pods of a node without an agent, which its status file says are captured.
#[derive(Default)]
pub(super) struct Ghosts {
    captured: BTreeMap<String, String>,
}

impl Ghosts {
    /// One with a namespace and addresses of its own.
    pub(super) fn add(&mut self, mesh: &mut Mesh, name: &str, account: &str) -> Result<Host> {
        let host = mesh.topology.add_pod("n2", &format!("shop.{name}"))?;
        self.write(mesh, name, account, &host.ips())?;
        Ok(host)
    }

    /// One with these addresses, wherever they lead.
    pub(super) fn write(&mut self, mesh: &Mesh, name: &str, account: &str, ips: &[IpAddr]) -> Result<()> {
        let uid = format!("uid-of-{name}");
        let ips: Vec<Value> = ips.iter().map(|ip| json!({ "ip": ip })).collect();
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": name, "namespace": "shop", "uid": uid, "labels": {} },
            "spec": { "nodeName": "n3", "serviceAccountName": account, "containers": [{ "name": "main", "image": "test" }] },
            "status": { "phase": "Running", "podIP": ips[0]["ip"], "podIPs": ips },
        });
        mesh.apply(&format!("pod-{name}"), &pod.to_string())?;
        self.captured.insert(uid.clone(), uid);
        let status = NodeStatus {
            node: "n3".to_owned(),
            captured: self.captured.keys().cloned().collect(),
            ..NodeStatus::default()
        };
        let folder = mesh.directory().join("status");
        fs::write(folder.join(".n3.fresh"), serde_json::to_string(&status)?)?;
        fs::rename(folder.join(".n3.fresh"), folder.join("n3.yaml")).context("a status file")
    }
}

/// An app that accepts, and neither reads nor writes nor closes. It ends with the test's process.
pub(super) fn silent_server(netns: &Netns, port: u16) -> Result<thread::JoinHandle<()>> {
    let listener = netns.run(|| TcpListener::bind(("::", port)))??;
    Ok(thread::spawn(move || {
        let mut open = Vec::new();
        while let Ok((stream, _)) = listener.accept() {
            open.push(stream);
        }
    }))
}
