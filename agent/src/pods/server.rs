//! The CNI socket: takes requests of the plugin, hands them to the driver, and writes what it answers.
//!
//! Knows frames and clients, not pods. The socket is bound under a temporary name and renamed into place, so that a new
//! agent takes it over from an old one without a moment in which nobody listens. Nobody unlinks it but at an uninstall.
//! Whose socket is in place owns the node's pods: [`Claim`].

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use adit_proto::cni::{self, FRAME_LEN_MAX, FrameError, HEADER_LEN, Reply, Request};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// The most clients served at once; further ones wait in the socket's backlog. After a node's start every pod's ADD
/// comes at once and waits: 1,000 pods are the most that are seen on a node. A client holds 4 KiB, and up to
/// [`FRAME_LEN_MAX`] while its request comes in; only root gets so far.
const CLIENTS_MAX: usize = 1024;
/// How long a client may take to send its request, and to take the answer. A plugin does both at once.
const CLIENT_WAIT: Duration = Duration::from_secs(5);
/// How long accepting pauses after an error that another attempt would only repeat (no descriptor left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A request, and who waits for its answer. Dropped unanswered, the client asks again.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) request: Request,
    pub(super) reply: oneshot::Sender<Reply>,
    /// Ends when the client has been served; one that asks for the handover, when it has gone.
    pub(super) gone: oneshot::Receiver<()>,
}

/// Says whether the socket in place is still this one.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    path: PathBuf,
    /// Device and inode: of no other socket while this one is open.
    id: (u64, u64),
}

impl Claim {
    fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::metadata(path)?;
        Ok(Self { path: path.to_owned(), id: (meta.dev(), meta.ino()) })
    }

    /// Whether nobody else has put a socket in its place; 1 µs. Where none is there, nobody has.
    pub(super) fn is_ours(&self) -> bool {
        fs::metadata(&self.path).map_or(true, |meta| (meta.dev(), meta.ino()) == self.id)
    }
}

/// Why there is no CNI socket.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen at {}", path.display())]
pub struct ListenError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Why a client gets no answer.
#[derive(Debug, thiserror::Error)]
enum ClientError {
    #[error("it is run by uid {0}")]
    NotRoot(u32),
    #[error("it took longer than {} s", CLIENT_WAIT.as_secs())]
    Slow,
    #[error("it went away")]
    Gone,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Listens at `path`: mode 0600, in place of whoever listened there before.
pub(super) fn listen(path: &Path) -> Result<(UnixListener, Claim), ListenError> {
    let failed = |source| ListenError { path: path.to_owned(), source };
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(failed)?;
    }
    let mut temp = path.as_os_str().to_owned();
    temp.push(format!(".{}", std::process::id()));
    // Left behind by a killed agent with the same process id.
    match fs::remove_file(&temp) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&temp).map_err(failed)?;
    fs::set_permissions(&temp, Permissions::from_mode(0o600)).map_err(failed)?;
    let claim = Claim { path: path.to_owned(), ..Claim::of(Path::new(&temp)).map_err(failed)? };
    fs::rename(&temp, path).map_err(failed)?;
    Ok((listener, claim))
}

/// Serves clients until the driver is gone.
pub(super) async fn serve(listener: UnixListener, asks: mpsc::Sender<Asked>) {
    let places = Arc::new(Semaphore::new(CLIENTS_MAX));
    let mut clients = JoinSet::new();
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = asks.closed() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let asks = asks.clone();
                clients.spawn(async move {
                    if let Err(error) = client(stream, &asks).await {
                        tracing::warn!(%error, "a client of the CNI socket got no answer");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::error!(%error, "cannot accept on the CNI socket");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        while clients.try_join_next().is_some() {}
    }
}

async fn client(mut stream: UnixStream, asks: &mpsc::Sender<Asked>) -> Result<(), ClientError> {
    let uid = stream.peer_cred()?.uid();
    // The mode of the socket says so already; a socket moved or made readable by mistake does not.
    if uid != 0 && uid != nix::unistd::geteuid().as_raw() {
        return Err(ClientError::NotRoot(uid));
    }
    let request: Request = timeout(CLIENT_WAIT, read(&mut stream)).await.map_err(|_| ClientError::Slow)??;
    let stays = request == Request::Handover;
    let (reply, answer) = oneshot::channel();
    let (_served, gone) = oneshot::channel();
    asks.send(Asked { request, reply, gone }).await.map_err(|_| ClientError::Gone)?;
    // Bounded by the deadlines of the pod machine. A plugin that has given up meanwhile is found out by the write.
    let answer = answer.await.map_err(|_| ClientError::Gone)?;
    let frame = cni::encode(&answer)?;
    timeout(CLIENT_WAIT, stream.write_all(&frame)).await.map_err(|_| ClientError::Slow)??;
    if stays {
        // It says nothing more. How it ends is no matter.
        let _ = stream.read(&mut [0]).await;
    }
    Ok(())
}

/// Asks whoever listens on `stream`. Bounded by the caller.
pub(super) async fn exchange(stream: &mut UnixStream, request: &Request) -> io::Result<Reply> {
    let frame = cni::encode(request).map_err(io::Error::other)?;
    stream.write_all(&frame).await?;
    read(stream).await.map_err(io::Error::other)
}

/// Reads one message.
async fn read<T: DeserializeOwned>(stream: &mut UnixStream) -> Result<T, ClientError> {
    let mut bytes = Vec::with_capacity(4096);
    loop {
        if let Some((message, _)) = cni::decode(&bytes)? {
            return Ok(message);
        }
        debug_assert!(bytes.len() < HEADER_LEN + FRAME_LEN_MAX, "a longer frame does not decode");
        // Never more than one frame.
        let room = u64::try_from(HEADER_LEN + FRAME_LEN_MAX - bytes.len()).unwrap_or(u64::MAX);
        if (&mut *stream).take(room).read_buf(&mut bytes).await? == 0 {
            return Err(ClientError::Gone);
        }
    }
}

#[cfg(test)]
mod tests {
    use adit_proto::cni::{Code, Failure};

    use super::*;

    struct Served {
        _dir: tempfile::TempDir,
        path: PathBuf,
        asks: mpsc::Receiver<Asked>,
        claim: Claim,
    }

    fn served() -> Served {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/cni.sock");
        let (sender, asks) = mpsc::channel(8);
        let (listener, claim) = listen(&path).unwrap();
        tokio::spawn(serve(listener, sender));
        Served { _dir: dir, path, asks, claim }
    }

    async fn reply_of(stream: &mut UnixStream) -> Option<Reply> {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.ok()?;
        cni::decode(&bytes).ok()?.map(|(reply, _)| reply)
    }

    #[tokio::test]
    async fn a_request_in_pieces_is_asked_once_and_its_answer_written() {
        let mut served = served();
        let mut stream = UnixStream::connect(&served.path).await.unwrap();
        for byte in cni::encode(&Request::Status).unwrap() {
            stream.write_all(&[byte]).await.unwrap();
        }
        let asked = served.asks.recv().await.unwrap();
        assert_eq!(asked.request, Request::Status);
        let answer =
            Reply::Failed(Failure { code: Code::TryAgainLater, message: "m".into(), details: "d".into() });
        asked.reply.send(answer.clone()).unwrap();
        assert_eq!(reply_of(&mut stream).await, Some(answer));
    }

    #[tokio::test]
    async fn garbage_and_half_requests_end_their_own_client_only() {
        let mut served = served();
        let mut garbage = UnixStream::connect(&served.path).await.unwrap();
        garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert_eq!(reply_of(&mut garbage).await, None);
        let mut half = UnixStream::connect(&served.path).await.unwrap();
        half.write_all(&[0, 1, 0, 0]).await.unwrap();
        half.shutdown().await.unwrap();
        assert_eq!(reply_of(&mut half).await, None);
        let mut good = UnixStream::connect(&served.path).await.unwrap();
        good.write_all(&cni::encode(&Request::Status).unwrap()).await.unwrap();
        served.asks.recv().await.unwrap().reply.send(Reply::Ok).unwrap();
        assert_eq!(reply_of(&mut good).await, Some(Reply::Ok));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_nothing_is_let_go() {
        let served = served();
        let mut stream = UnixStream::connect(&served.path).await.unwrap();
        assert_eq!(reply_of(&mut stream).await, None);
    }

    #[tokio::test]
    async fn a_request_that_the_driver_drops_closes_the_connection_so_that_the_plugin_asks_again() {
        let mut served = served();
        let mut stream = UnixStream::connect(&served.path).await.unwrap();
        stream.write_all(&cni::encode(&Request::Status).unwrap()).await.unwrap();
        drop(served.asks.recv().await.unwrap());
        assert_eq!(reply_of(&mut stream).await, None);
    }

    #[tokio::test]
    async fn the_socket_is_roots_only_and_taken_over_from_a_former_agent() {
        let served = served();
        let mode = fs::metadata(&served.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let (sender, mut asks) = mpsc::channel(8);
        assert!(served.claim.is_ours());
        let (listener, claim) = listen(&served.path).unwrap();
        tokio::spawn(serve(listener, sender));
        assert!(!served.claim.is_ours() && claim.is_ours());
        let mut stream = UnixStream::connect(&served.path).await.unwrap();
        stream.write_all(&cni::encode(&Request::Status).unwrap()).await.unwrap();
        asks.recv().await.unwrap().reply.send(Reply::Ok).unwrap();
        assert_eq!(reply_of(&mut stream).await, Some(Reply::Ok));
        fs::remove_file(&served.path).unwrap();
        assert!(claim.is_ours(), "nobody else has it");
    }

    #[tokio::test]
    async fn who_asks_for_the_handover_is_known_to_be_there_until_it_goes() {
        let mut served = served();
        let mut stream = UnixStream::connect(&served.path).await.unwrap();
        stream.write_all(&cni::encode(&Request::Handover).unwrap()).await.unwrap();
        let mut asked = served.asks.recv().await.unwrap();
        asked.reply.send(Reply::Ok).unwrap();
        assert_eq!(read::<Reply>(&mut stream).await.unwrap(), Reply::Ok);
        assert_eq!(asked.gone.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        drop(stream);
        assert!(asked.gone.await.is_err());
    }

    #[tokio::test]
    async fn a_path_that_cannot_be_bound_is_named() {
        let path = Path::new("/proc/none/cni.sock");
        assert!(listen(path).unwrap_err().to_string().contains("/proc/none/cni.sock"));
    }
}
