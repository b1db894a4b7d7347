//! The TLS handshake of a tunnel: rustls says what to send, this sends it; then the keys are [`MeshStream`]'s.
//!
//! Both sides. The caller bounds the time, and what is done with the peer's identity.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError, UnbufferedStatus,
};
use rustls::{ClientConfig, CommonState, ExtractedSecrets, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::buffers::Buffers;
use super::inbox::Early;
use super::records::Schedule;
use super::stream::MeshStream;
use crate::identity::tls::{self, HandshakeError, Peer};

#[cfg(test)]
mod tests;

/// Bytes of one read: more than a flight of the mesh's certificates has.
const READ_LEN: usize = 16 * 1024;
/// What may have come and not be understood yet. Rustls takes no message above 64 KiB.
const INCOMING_MAX: usize = 128 * 1024;

/// What a finished handshake leaves.
pub(super) struct Secured {
    /// What goes on.
    pub(super) stream: MeshStream,
    /// What it proved; an error where it proved too little.
    pub(super) peer: Result<Peer, HandshakeError>,
}

/// Opens a tunnel on `tcp` to whom the configuration expects. By address: no name is sent (SNI).
pub(super) async fn connect(
    tcp: TcpStream,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    buffers: &Rc<Buffers>,
) -> io::Result<Secured> {
    run(tcp, UnbufferedClientConnection::new(config, name).map_err(invalid)?, buffers).await
}

/// Answers one that is opened on `tcp`.
pub(super) async fn accept(
    tcp: TcpStream,
    config: Arc<ServerConfig>,
    buffers: &Rc<Buffers>,
) -> io::Result<Secured> {
    run(tcp, UnbufferedServerConnection::new(config).map_err(invalid)?, buffers).await
}

/// As `tls::reason_of` finds it.
fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// One side of a handshake.
pub(super) trait Side {
    type Data;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn facts(&self) -> &CommonState;
    fn hand_over(self) -> Result<(ExtractedSecrets, Schedule), rustls::Error>;
}

impl Side for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn facts(&self) -> &CommonState {
        self
    }

    fn hand_over(self) -> Result<(ExtractedSecrets, Schedule), rustls::Error> {
        self.dangerous_into_kernel_connection().map(|(secrets, keys)| (secrets, Schedule::Client(keys)))
    }
}

impl Side for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn facts(&self) -> &CommonState {
        self
    }

    fn hand_over(self) -> Result<(ExtractedSecrets, Schedule), rustls::Error> {
        self.dangerous_into_kernel_connection().map(|(secrets, keys)| (secrets, Schedule::Server(keys)))
    }
}

/// What rustls wants next.
pub(super) enum Step {
    /// To be asked again.
    Again,
    /// What was encoded is to be sent.
    Send,
    /// Something to read.
    Read,
    /// The peer has closed TLS.
    Closed,
}

async fn run(mut tcp: TcpStream, mut side: impl Side, buffers: &Rc<Buffers>) -> io::Result<Secured> {
    let (mut incoming, mut outgoing, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        match advance(&mut side, &mut incoming, &mut outgoing, &mut plain) {
            Ok(Step::Again) => {}
            Ok(Step::Send) => {
                send(&mut tcp, &outgoing).await?;
                outgoing.clear();
            }
            Ok(Step::Read) if !side.facts().is_handshaking() => break,
            Ok(Step::Read) => read(&mut tcp, &mut incoming, buffers).await?,
            Ok(Step::Closed) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) => {
                tell(&mut tcp, &outgoing).await;
                return Err(error);
            }
        }
    }
    let peer = tls::peer_of(side.facts());
    let (secrets, schedule) = side.hand_over().map_err(invalid)?;
    let early = Early { plain, sealed: incoming };
    let stream = MeshStream::new(tcp, secrets, schedule, early, Rc::clone(buffers)).map_err(invalid)?;
    Ok(Secured { stream, peer })
}

/// Lets rustls take from `incoming` what it understands. What is to be sent is added to `outgoing`, also after an error:
/// then it is the alert that says so.
pub(super) fn advance(
    side: &mut impl Side,
    incoming: &mut Vec<u8>,
    outgoing: &mut Vec<u8>,
    plain: &mut Vec<u8>,
) -> io::Result<Step> {
    let status = side.process(incoming);
    let discard = status.discard;
    let error = match status.state {
        Ok(state) => {
            let step = step(state, outgoing, plain);
            drop(incoming.drain(..discard));
            return step;
        }
        Err(error) => error,
    };
    // No further: asked for more than that after an error, rustls reads on where it stood, and panics.
    while side.facts().wants_write() {
        let Ok(ConnectionState::EncodeTlsData(alert)) = side.process(&mut []).state else { break };
        encode(alert, outgoing)?;
    }
    Err(invalid(error))
}

fn step<D>(
    state: ConnectionState<'_, '_, D>,
    outgoing: &mut Vec<u8>,
    plain: &mut Vec<u8>,
) -> io::Result<Step> {
    Ok(match state {
        ConnectionState::EncodeTlsData(message) => {
            encode(message, outgoing)?;
            Step::Again
        }
        ConnectionState::TransmitTlsData(sending) => {
            sending.done();
            Step::Send
        }
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                plain.extend_from_slice(record.map_err(invalid)?.payload);
            }
            Step::Again
        }
        ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) => Step::Read,
        ConnectionState::PeerClosed | ConnectionState::Closed => Step::Closed,
        // Early data is never offered; whatever else may come to be is not handled either.
        ConnectionState::ReadEarlyData(_) | _ => {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "peer sent early data"));
        }
    })
}

fn encode<D>(mut message: EncodeTlsData<'_, D>, outgoing: &mut Vec<u8>) -> io::Result<()> {
    let start = outgoing.len();
    let required_size = match message.encode(&mut []) {
        Ok(_) => return Ok(()),
        Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => required_size,
        Err(error @ EncodeError::AlreadyEncoded) => return Err(io::Error::other(error)),
    };
    outgoing.resize(start + required_size, 0);
    message.encode(&mut outgoing[start..]).map(drop).map_err(io::Error::other)
}

/// Sends the alert for what failed, as far as the socket takes it at once.
async fn tell(tcp: &mut TcpStream, alert: &[u8]) {
    poll_fn(|cx| {
        // The failure is the news; that it could not be told is none.
        let _ = Pin::new(&mut *tcp).poll_write(cx, alert);
        Poll::Ready(())
    })
    .await;
}

async fn send(tcp: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    let mut sent = 0;
    poll_fn(|cx| {
        while sent < bytes.len() {
            match ready!(Pin::new(&mut *tcp).poll_write(cx, &bytes[sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => sent += count,
            }
        }
        Poll::Ready(Ok(()))
    })
    .await
}

async fn read(tcp: &mut TcpStream, incoming: &mut Vec<u8>, buffers: &Rc<Buffers>) -> io::Result<()> {
    if incoming.len() >= INCOMING_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "peer's handshake is too long"));
    }
    poll_fn(|cx| buffers.with_scratch(|scratch| poll_read(tcp, cx, &mut scratch[..READ_LEN], incoming))).await
}

fn poll_read(
    tcp: &mut TcpStream,
    cx: &mut Context<'_>,
    scratch: &mut [u8],
    incoming: &mut Vec<u8>,
) -> Poll<io::Result<()>> {
    let mut buf = ReadBuf::new(scratch);
    ready!(Pin::new(tcp).poll_read(cx, &mut buf))?;
    if buf.filled().is_empty() {
        return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
    }
    incoming.extend_from_slice(buf.filled());
    Poll::Ready(Ok(()))
}
