//! One request to the agent over its unix socket: dial, again and again if need be, send, read the answer.
//!
//! Knows frames, not CNI: what an unreachable agent means for a pod is `main`'s to say.

use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use adit_proto::cni::{self, FrameError, HEADER_LEN, Reply, Request};

/// Between two dials: a restarted agent listens again within a second, and a dial costs 20 µs.
const DIAL_PAUSE: Duration = Duration::from_millis(100);
/// Beyond what was asked for, how long a dial may hang in the kernel (a full backlog blocks connect()).
const DIAL_GRACE: Duration = Duration::from_secs(1);

/// How long a call may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Until the agent has been reached; zero means one dial.
    pub(crate) dial: Duration,
    /// From then until its answer.
    pub(crate) answer: Duration,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum CallError {
    /// Nobody took the request within the time for dialling; the last error, where there was one.
    Unreachable {
        /// Where the agent should listen.
        socket: PathBuf,
        /// What the last dial, or the exchange that broke off, ended with.
        last: Option<io::Error>,
    },
    /// The agent took the request and did not answer in time.
    NoAnswer {
        /// How long it was given.
        waited: Duration,
    },
    /// What was sent or came back is no frame.
    Frame(FrameError),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { socket, last: Some(error) } => {
                write!(f, "the agent is not reachable at {}: {error}", socket.display())
            }
            Self::Unreachable { socket, last: None } => {
                write!(f, "the agent does not take connections at {}", socket.display())
            }
            Self::NoAnswer { waited } => write!(f, "the agent did not answer within {} s", waited.as_secs()),
            Self::Frame(error) => {
                write!(f, "the agent and this plugin do not understand each other: {error}")
            }
        }
    }
}

/// What a dialling thread reports.
enum Progress {
    /// The request is about to be sent.
    Reached,
    /// No more to come.
    Ended(Result<Reply, CallError>),
}

/// Sends `request` and returns the answer.
///
/// An agent that goes away before it has answered (a restart) is dialled again while the time for dialling lasts:
/// every request may be repeated. Blocks at most `dial` + [`DIAL_GRACE`] + 2 × `answer`.
pub(crate) fn call(socket: &Path, request: &Request, patience: Patience) -> Result<Reply, CallError> {
    let frame = cni::encode(request).map_err(CallError::Frame)?;
    let (progress, reports) = mpsc::channel();
    let target = socket.to_owned();
    // A thread, since connect() on a unix socket blocks for as long as the backlog of a frozen agent is full, and
    // std has no deadline for it. It is left behind at exit.
    thread::spawn(move || exchange_until_answered(&target, &frame, patience, &progress));
    let unreachable = || CallError::Unreachable { socket: socket.to_owned(), last: None };
    let mut wait = patience.dial + DIAL_GRACE;
    let mut reached = false;
    loop {
        match reports.recv_timeout(wait) {
            Ok(Progress::Reached) => {
                reached = true;
                // The socket's own deadlines end the exchange; this one is for a kernel that does not.
                wait = patience.answer + patience.dial + DIAL_GRACE;
            }
            Ok(Progress::Ended(result)) => return result,
            Err(_) if reached => {
                return Err(CallError::NoAnswer { waited: patience.answer });
            }
            Err(_) => return Err(unreachable()),
        }
    }
}

/// Dials until an exchange has come to its end, and reports it. A caller that has gone is no concern.
fn exchange_until_answered(
    socket: &Path,
    frame: &[u8],
    patience: Patience,
    progress: &mpsc::Sender<Progress>,
) {
    let give_up = Instant::now() + patience.dial;
    let result = loop {
        let broken = match UnixStream::connect(socket) {
            Ok(stream) => {
                let _ = progress.send(Progress::Reached);
                match exchange(stream, frame, patience.answer) {
                    Ok(reply) => break Ok(reply),
                    Err(Broken::Final(error)) => break Err(error),
                    Err(Broken::Gone(error)) => error,
                }
            }
            Err(error) => error,
        };
        let left = give_up.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break Err(CallError::Unreachable { socket: socket.to_owned(), last: Some(broken) });
        }
        thread::sleep(DIAL_PAUSE.min(left));
    };
    let _ = progress.send(Progress::Ended(result));
}

/// How an exchange came to nothing.
enum Broken {
    /// The agent went away: dial again.
    Gone(io::Error),
    /// Dialling again would not help.
    Final(CallError),
}

fn exchange(mut stream: UnixStream, frame: &[u8], answer: Duration) -> Result<Reply, Broken> {
    let give_up = Instant::now() + answer;
    stream.set_write_timeout(Some(answer)).map_err(Broken::Gone)?;
    stream.write_all(frame).map_err(|error| broken(error, answer))?;
    let mut bytes = Vec::with_capacity(256);
    let mut chunk = [0; 4096];
    loop {
        if let Some((reply, _)) =
            cni::decode(&bytes).map_err(|error| Broken::Final(CallError::Frame(error)))?
        {
            return Ok(reply);
        }
        let left = give_up.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Broken::Final(CallError::NoAnswer { waited: answer }));
        }
        stream.set_read_timeout(Some(left)).map_err(Broken::Gone)?;
        match stream.read(&mut chunk) {
            Ok(0) => return Err(Broken::Gone(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(broken(error, answer)),
        }
        // decode() fails on a longer frame as soon as its header is there.
        debug_assert!(bytes.len() <= HEADER_LEN + cni::FRAME_LEN_MAX + chunk.len());
    }
}

fn broken(error: io::Error, answer: Duration) -> Broken {
    #[expect(clippy::wildcard_enum_match_arm, reason = "ErrorKind is std's and grows")]
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            Broken::Final(CallError::NoAnswer { waited: answer })
        }
        _ => Broken::Gone(error),
    }
}
