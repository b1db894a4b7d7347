//! Connections of peers that do not read: nobody holds a place for as long as they like.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use adit_ca::server::{CLOSING_MAX, CONNECTION_AGE_MAX, UNKNOWN_FOR_MAX};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::common::{Files, TOKEN, tls};
use crate::serve::{Counting, until, with_patience};

#[tokio::test]
async fn a_stranger_that_asks_and_reads_no_answer_is_dropped_in_time() {
    let bound = UNKNOWN_FOR_MAX;
    dropped(Who::Stranger, "unknown", bound / 2, bound * 3 / 2).await;
}

#[tokio::test]
async fn a_caller_that_reads_nothing_any_more_is_dropped_once_its_connection_should_have_ended() {
    let (age, bound) = (CONNECTION_AGE_MAX, CONNECTION_AGE_MAX + CLOSING_MAX);
    dropped(Who::Caller, "stuck", age, bound + Duration::from_secs(60)).await;
}

/// Who does not read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Who {
    /// Somebody without a token.
    Stranger,
    /// The agent of node-a.
    Caller,
}

/// Looks on how a CA drops this one: under what name, and after how long.
async fn dropped(who: Who, cause: &str, from: Duration, to: Duration) {
    let files = Files::new();
    let mut config = files.config();
    // While the clock is paused, every look at the files only takes real time.
    config.poll = Duration::from_secs(60);
    with_patience(&files, config, to * 2, |address, counts| {
        let files = &files;
        async move {
            let mut deaf = Deaf::connect(address, files).await;
            if who == Who::Caller {
                deaf.ask(&counts).await;
            }
            deaf.send_until_the_ca_reads_no_more().await;
            // From here on time passes as fast as nothing else is to be done.
            tokio::time::pause();
            let began = tokio::time::Instant::now();
            deaf.sees_the_end().await;
            let waited = began.elapsed();
            assert!((from..=to).contains(&waited), "{waited:?}");
            assert_eq!(counts().dropped.get(cause), Some(&1), "{:?}", counts().dropped);
        }
    })
    .await;
}

/// A peer that speaks HTTP/2 and reads nothing of what it is told.
struct Deaf {
    stream: TlsStream<TcpStream>,
    /// The next request's.
    stream_id: u32,
}

impl Deaf {
    async fn connect(address: SocketAddr, files: &Files) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        // So that what it does not read soon fills what the kernel keeps for it.
        socket.set_recv_buffer_size(4096).unwrap();
        let stream = socket.connect(address).await.unwrap();
        let connector = TlsConnector::from(Arc::new(tls(&files.roots())));
        let name = "adit-ca.adit-system.svc".try_into().unwrap();
        let mut stream = connector.connect(name, stream).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        stream.flush().await.unwrap();
        Self { stream, stream_id: 1 }
    }

    /// Makes itself known: asks with a good token, and for nothing that there is.
    async fn ask(&mut self, counts: &Counting) {
        let request = self.request(Some(&format!("Bearer {TOKEN}")));
        self.stream.write_all(&request).await.unwrap();
        self.stream.flush().await.unwrap();
        until(|| counts().refused.get("no_identity").copied()).await;
    }

    /// A request with an empty message.
    fn request(&mut self, authorization: Option<&str>) -> Vec<u8> {
        let mut fields = vec![
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/istio.v1.auth.IstioCertificateService/CreateCertificate"),
            ("content-type", "application/grpc"),
        ];
        fields.extend(authorization.map(|value| ("authorization", value)));
        let mut headers = Vec::new();
        for (name, value) in fields {
            // A literal that is not indexed, its name and value as they are (RFC 7541, 6.2.2).
            headers.push(0);
            for text in [name, value] {
                headers.push(u8::try_from(text.len()).ok().filter(|len| *len < 127).unwrap());
                headers.extend(text.as_bytes());
            }
        }
        let mut request = frame(HEADERS, END_HEADERS, self.stream_id, &headers);
        // Not compressed, no bytes.
        request.extend(frame(DATA, END_STREAM, self.stream_id, &[0; 5]));
        self.stream_id += 2;
        request
    }

    /// Asks and pings until nothing more can be sent, as the answers that nobody takes have filled what lies between.
    ///
    /// Pings alone do not fill all of it: HTTP/2 hands its full buffer on to TLS, and would read once more when it is
    /// woken, as by the end of its time. The answer to a request wakes it until TLS is full too.
    async fn send_until_the_ca_reads_no_more(&mut self) {
        let pings = frame(PING, 0, 0, &[0; 8]).repeat(200);
        loop {
            let mut frames = self.request(None);
            frames.extend(&pings);
            match tokio::time::timeout(Duration::from_secs(1), self.stream.write_all(&frames)).await {
                Ok(sent) => sent.expect("the CA reads no more before it ends the connection"),
                Err(_) => return,
            }
        }
    }

    async fn sees_the_end(&mut self) {
        while self.stream.write_all(&[0]).await.is_ok() {}
    }
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A frame of HTTP/2 (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}
