//! HBONE as this data plane speaks it: HTTP/2 settings with their bounds, the CONNECT, and its answer.
//!
//! Names and ports are `adit_proto::hbone`'s. Makes and reads values; opens nothing.

use std::net::SocketAddr;
use std::time::Duration;

use adit_core::draw::Seed;
use adit_core::report::TraceId;
use adit_core::workload::Workload;
use adit_proto::Reason;
use adit_proto::hbone::{
    HEADER_ADIT_REASON, HEADER_BAGGAGE, HEADER_FORWARDED, HEADER_TRACEPARENT, Refusal, format_authority,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};

/// Unread bytes of one stream. What bulk needs at 10 Gb/s over 3 ms; held only for a reader that stalls.
pub(super) const STREAM_WINDOW: u32 = 4 * 1024 * 1024;
/// Unread bytes of a whole tunnel: four stalled streams; it grows by what is held (see [`super::account`]). Must exceed
/// the stream's, or one stalled stream stops the tunnel.
pub(super) const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
/// A stream's window once half of the pod's share is held: with the default budget of 256 MiB that is after 85 MiB of a
/// pod alone, and 340 further stalled streams fit until it takes on no more.
pub(super) const STREAM_WINDOW_UNDER_PRESSURE: u32 = 128 * 1024;
/// The largest DATA frame: with HTTP/2's default of 16 KiB the work per frame costs 60 % more CPU per byte.
const FRAME_LEN_MAX: u32 = 1024 * 1024;
/// Headers of one CONNECT or answer. Ours have some 400 B.
const HEADER_LIST_LEN_MAX: u32 = 16 * 1024;
/// Bytes that one stream may queue for a tunnel that is slower than its app.
const SEND_BUFFER_MAX: usize = 1024 * 1024;
/// Streams of one tunnel: the least that a peer should allow (RFC 9113, 6.5.2).
pub(super) const STREAMS_MAX: u32 = 100;
/// Frames below 256 B that may wait unread cost up to 255 each of this: 65,000 of them, about 26 MiB in a tunnel. Copying
/// takes them out at once, so they wait for one turn of the event loop. h2's own bound of 32 KiB ends a tunnel whose
/// one reader stalls for 129 small writes.
const SMALL_FRAMES_BUDGET: usize = 16 * 1024 * 1024;
/// Streams reset by us whose late frames are still expected, and for how long.
const RESETS_REMEMBERED: usize = 1024;
const RESETS_REMEMBERED_FOR: Duration = Duration::from_secs(1);
/// Streams that a peer may open and reset before they were accepted (CVE-2023-44487): a tunnel's whole number.
const RESETS_UNACCEPTED_MAX: usize = STREAMS_MAX as usize;
/// Stream errors made by a peer, over a tunnel's life, after which it is ended. Late frames of streams reset longer ago
/// than [`RESETS_REMEMBERED_FOR`] count too, so the bound is far above h2's 1,024; each costs about 100 B at most.
const STREAM_ERRORS_MAX: usize = 16 * 1024;
/// What the reset of a stream says whose connection policy or revocation ended: the other side then knows that it
/// was refused, not lost.
pub(super) const RESET_REFUSED: h2::Reason = h2::Reason::INADEQUATE_SECURITY;

/// Settings of the side that opens streams.
pub(super) fn client() -> h2::client::Builder {
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_LEN_MAX)
        .max_header_list_size(HEADER_LIST_LEN_MAX)
        .max_send_buffer_size(SEND_BUFFER_MAX)
        .initial_max_send_streams(STREAMS_MAX as usize)
        .max_concurrent_reset_streams(RESETS_REMEMBERED)
        .reset_stream_duration(RESETS_REMEMBERED_FOR)
        .max_local_error_reset_streams(Some(STREAM_ERRORS_MAX))
        .data_frame_budget(SMALL_FRAMES_BUDGET)
        .enable_push(false);
    builder
}

/// Settings of the side that accepts streams.
pub(super) fn server() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_LEN_MAX)
        .max_header_list_size(HEADER_LIST_LEN_MAX)
        .max_send_buffer_size(SEND_BUFFER_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .max_concurrent_reset_streams(RESETS_REMEMBERED)
        .reset_stream_duration(RESETS_REMEMBERED_FOR)
        .max_pending_accept_reset_streams(RESETS_UNACCEPTED_MAX)
        .max_local_error_reset_streams(Some(STREAM_ERRORS_MAX))
        .data_frame_budget(SMALL_FRAMES_BUDGET);
    builder
}

/// A trace id that no other connection has.
pub(super) fn new_trace(seed: &mut Seed) -> TraceId {
    let id = (u128::from(seed.draw()) << 64) | u128::from(seed.draw());
    TraceId(id.max(1))
}

/// What a CONNECT tells the other side.
pub(super) struct Head<'a> {
    /// The address that the app is dialled at.
    pub(super) destination: SocketAddr,
    /// The client's address: a hint.
    pub(super) client: SocketAddr,
    /// The connection's trace id.
    pub(super) trace: TraceId,
    /// Any number but 0.
    pub(super) span: u64,
    /// See [`baggage`].
    pub(super) baggage: &'a HeaderValue,
}

/// The CONNECT.
pub(super) fn request(head: &Head<'_>) -> Request<()> {
    let authority = format_authority(head.destination);
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = Uri::builder().authority(authority).build().expect("ip:port is an authority");
    let headers = request.headers_mut();
    headers.reserve(3);
    headers.insert(HEADER_TRACEPARENT, ascii(&format!("00-{}-{:016x}-00", head.trace, head.span.max(1))));
    headers.insert(HEADER_FORWARDED, ascii(&format!("for=\"{}\"", head.client)));
    headers.insert(HEADER_BAGGAGE, head.baggage.clone());
    request
}

/// A workload as a baggage header: hints for the other side's telemetry, never trusted for a decision.
pub(super) fn baggage(workload: &Workload) -> HeaderValue {
    let pod = &workload.pod;
    let owner = pod.owner.kind.to_ascii_lowercase();
    ascii(&format!(
        "k8s.namespace.name={},k8s.pod.name={},k8s.{owner}.name={}",
        pod.name.namespace, pod.name.name, pod.owner.name
    ))
}

/// A header value of what is ASCII by construction; anything else (no Kubernetes name) becomes empty.
fn ascii(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// The trace id of a CONNECT (W3C Trace Context, 3.2): version 00, or a later one that begins alike.
pub(super) fn trace_of(headers: &HeaderMap) -> Option<TraceId> {
    let text = headers.get(HEADER_TRACEPARENT)?.to_str().ok()?;
    let (version, rest) = text.split_once('-')?;
    let id = rest.get(..32)?;
    let lower_hex = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let well_formed = version.len() == 2
        && lower_hex(version)
        && version != "ff"
        && lower_hex(id)
        && rest.as_bytes().get(32) == Some(&b'-');
    let id = u128::from_str_radix(id, 16).ok().filter(|id| well_formed && *id != 0)?;
    Some(TraceId(id))
}

/// Opens the tunnel's stream.
pub(super) fn accepted() -> Response<()> {
    Response::new(())
}

/// Refuses a CONNECT. The reason goes to verified peers only, which is all that have a tunnel.
pub(super) fn refused(status: StatusCode, refusal: &Refusal) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    response.headers_mut().insert(HEADER_ADIT_REASON, ascii(&refusal.format()));
    response
}

/// Why a peer refused a CONNECT.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Refused {
    /// Its status: 400, 401, 403, 503 or anything else but a success.
    pub(super) status: StatusCode,
    /// What it said, where it is a peer that says why.
    pub(super) refusal: Option<Refusal>,
}

impl Refused {
    /// Reads an answer; `Ok` opens the stream.
    pub(super) fn of<T>(response: &Response<T>) -> Result<(), Self> {
        if response.status().is_success() {
            return Ok(());
        }
        let header = response.headers().get(HEADER_ADIT_REASON).and_then(|value| value.to_str().ok());
        Err(Self { status: response.status(), refusal: header.and_then(Refusal::parse) })
    }

    /// This side's word for it.
    pub(super) fn reason(&self) -> Reason {
        let said = self.refusal.as_ref().map(|refusal| refusal.reason);
        match self.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Reason::PeerDenied,
            StatusCode::SERVICE_UNAVAILABLE => Reason::PeerAppUnreachable,
            StatusCode::BAD_REQUEST if said == Some(Reason::BadConnect) => Reason::PeerProtocol,
            StatusCode::BAD_REQUEST => Reason::PeerNotThisPod,
            _ => Reason::PeerProtocol,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(text: &'static str) -> Option<TraceId> {
        trace_of(&HeaderMap::from_iter([(
            HEADER_TRACEPARENT.parse().unwrap(),
            HeaderValue::from_static(text),
        )]))
    }

    #[test]
    fn a_connect_says_where_to_who_for_and_which_trace() {
        let request = request(&Head {
            destination: "[fd00::1]:80".parse().unwrap(),
            client: "10.0.0.1:4321".parse().unwrap(),
            trace: TraceId(0xabc),
            span: 7,
            baggage: &HeaderValue::from_static("k8s.pod.name=a"),
        });
        assert_eq!(request.uri().authority().unwrap().as_str(), "[fd00::1]:80");
        assert!(request.uri().scheme().is_none() && request.uri().path().is_empty());
        assert_eq!(request.headers()[HEADER_FORWARDED], "for=\"10.0.0.1:4321\"");
        assert_eq!(trace_of(request.headers()), Some(TraceId(0xabc)));
    }

    #[test]
    fn only_a_well_formed_traceparent_is_taken() {
        assert_eq!(trace("00-0000000000000000000000000000000f-0000000000000001-00"), Some(TraceId(15)));
        for text in [
            "",
            "-------------------------------------------------------",
            "00-00000000000000000000000000000000-0000000000000001-00",
            "ff-0000000000000000000000000000000f-0000000000000001-00",
            "00-000000000000000000000000000000Ff-0000000000000001-00",
            "00-+000000000000000000000000000000f-0000000000000001-00",
            "00-0000000000000000000000000000000f",
            "0-00000000000000000000000000000000f-0000000000000001-00",
        ] {
            assert_eq!(trace(text), None, "{text}");
        }
    }

    #[test]
    fn each_refusal_has_this_sides_word() {
        let word = |status, said: Option<Reason>| {
            let refusal = said.map(Refusal::of);
            Refused { status, refusal }.reason()
        };
        assert_eq!(word(StatusCode::UNAUTHORIZED, None), Reason::PeerDenied);
        assert_eq!(word(StatusCode::FORBIDDEN, Some(Reason::PolicyDenied)), Reason::PeerDenied);
        assert_eq!(word(StatusCode::SERVICE_UNAVAILABLE, None), Reason::PeerAppUnreachable);
        assert_eq!(word(StatusCode::BAD_REQUEST, None), Reason::PeerNotThisPod);
        assert_eq!(word(StatusCode::BAD_REQUEST, Some(Reason::BadConnect)), Reason::PeerProtocol);
        assert_eq!(word(StatusCode::IM_A_TEAPOT, None), Reason::PeerProtocol);
    }
}
