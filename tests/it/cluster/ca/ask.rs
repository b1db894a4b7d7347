//! Asks a CA for a certificate as an agent does: TLS verified against the published roots, one gRPC call.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

use adit_tests::netns::Netns;

const NAME: &str = "adit-ca.adit-system.svc";
const PATH: &str = "https://adit-ca.adit-system.svc/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// What a CA answers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    /// The chain in PEM: the leaf first, the roots last.
    Chain(Vec<String>),
    /// The word, the gRPC code and the text of a refusal.
    Refused {
        /// `adit-refusal`.
        word: String,
        /// `grpc-status`.
        code: u32,
        /// `grpc-message`.
        text: String,
    },
}

/// gRPC's codes.
pub(super) const PERMISSION_DENIED: u32 = 7;
pub(super) const UNAVAILABLE: u32 = 14;
pub(super) const UNAUTHENTICATED: u32 = 16;

impl Answer {
    /// The chain, or what was said instead.
    pub(super) fn chain(self) -> Result<Vec<String>> {
        match self {
            Self::Chain(chain) => Ok(chain),
            Self::Refused { word, code, text } => bail!("refused: {word} ({code}): {text}"),
        }
    }
}

/// Asks the CA at `at`, reached from `netns`, for `identity`; `roots` are those that are published.
pub(super) fn ask(
    netns: &Netns,
    at: SocketAddr,
    roots: &[Arc<[u8]>],
    token: &str,
    identity: &str,
) -> Result<Answer> {
    let mut trusted = RootCertStore::empty();
    trusted.add_parsable_certificates(roots.iter().map(|root| root.to_vec().into()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(trusted)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream =
        netns.run(|| std::net::TcpStream::connect(at))?.with_context(|| format!("connect to {at}"))?;
    stream.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::from_std(stream)?;
        let stream =
            TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(NAME)?, stream).await?;
        let (sender, connection) = h2::client::handshake(stream).await?;
        let driving = tokio::spawn(connection);
        let answer = call(sender, token, identity).await;
        driving.abort();
        answer
    })
}

async fn call(sender: h2::client::SendRequest<Bytes>, token: &str, identity: &str) -> Result<Answer> {
    let request = http::Request::post(PATH)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", format!("Bearer {token}"))
        .body(())?;
    let (response, mut body) = sender.ready().await?.send_request(request, false)?;
    body.send_data(framed(&message(identity)?).into(), true)?;
    let response = response.await?;
    let mut headers = response.headers().clone();
    let mut stream = response.into_body();
    let mut read = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        read.extend_from_slice(&data);
    }
    headers.extend(stream.trailers().await?.unwrap_or_default());
    let said =
        |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    match said("grpc-status").as_str() {
        "0" => Ok(Answer::Chain(strings(read.get(5..).context("no message")?)?)),
        code => Ok(Answer::Refused {
            word: said("adit-refusal"),
            code: code.parse().with_context(|| format!("{code:?} is no status: {headers:?}"))?,
            text: said("grpc-message").replace("%20", " "),
        }),
    }
}

/// A request by `ca.proto`: `csr` = 1, `metadata` = 4, a Struct with `ImpersonatedIdentity`.
fn message(identity: &str) -> Result<Vec<u8>> {
    let key = rcgen::KeyPair::generate()?;
    let csr = rcgen::CertificateParams::default().serialize_request(&key)?.pem()?;
    let value = field(3, identity.as_bytes());
    let entry = [field(1, b"ImpersonatedIdentity"), field(2, &value)].concat();
    Ok([field(1, csr.as_bytes()), field(4, &field(1, &entry))].concat())
}

/// A field whose value has a length.
fn field(number: u8, value: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    let mut len = value.len();
    while len >= 0x80 {
        field.push(u8::try_from(len & 0x7f).unwrap_or_default() | 0x80);
        len >>= 7;
    }
    field.push(u8::try_from(len).unwrap_or_default());
    field.extend_from_slice(value);
    field
}

/// One gRPC message: not compressed, its length, itself.
fn framed(message: &[u8]) -> Vec<u8> {
    let len = u32::try_from(message.len()).unwrap_or_default();
    [&[0], &len.to_be_bytes()[..], message].concat()
}

/// The strings of field 1 of a message that has nothing else.
fn strings(mut message: &[u8]) -> Result<Vec<String>> {
    let mut strings = Vec::new();
    while let Some((&tag, rest)) = message.split_first() {
        anyhow::ensure!(tag == 0x0a, "field {tag:#x}");
        let (mut len, mut shift, mut rest) = (0_usize, 0, rest);
        loop {
            let (&byte, after) = rest.split_first().context("cut off")?;
            len |= usize::from(byte & 0x7f) << shift;
            (shift, rest) = (shift + 7, after);
            if byte & 0x80 == 0 {
                break;
            }
        }
        let (value, after) = rest.split_at_checked(len).context("cut off")?;
        strings.push(String::from_utf8(value.to_vec())?);
        message = after;
    }
    Ok(strings)
}
