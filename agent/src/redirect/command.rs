//! Runs a program of iptables inside a pod's namespace: bounded in time, input and output.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::error::RedirectError;
use crate::netns::Netns;

/// How long one program may take: 3 ms as measured, and up to 5 s for the lock (`-w 5`) of iptables-legacy.
pub(super) const RUN_TIME_MAX: Duration = Duration::from_secs(10);
/// What is read of a program's output: 4 MiB, at 100 bytes a rule, is 40,000 rules in one pod.
pub(super) const OUTPUT_LEN_MAX: u64 = 4 << 20;
/// What is read, and what is kept, of a program's complaint.
const STDERR_LEN_MAX: u64 = 4096;
const STDERR_SHOWN_MAX: usize = 400;
/// Where iptables is on Debian, Alpine and Fedora; a service's PATH may lack them.
const PROGRAM_DIRS: &str = "/usr/sbin:/sbin:/usr/local/sbin:/usr/bin:/bin";

/// Runs `program` with `input` as its standard input, and returns its output. Killed when dropped.
pub(super) async fn run(
    netns: &Netns,
    program: &'static str,
    args: &[&str],
    input: &str,
) -> Result<String, RedirectError> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let path = std::env::var("PATH")
        .map_or_else(|_| PROGRAM_DIRS.to_owned(), |path| format!("{path}:{PROGRAM_DIRS}"));
    command.env("PATH", path).env("LC_ALL", "C").kill_on_drop(true);
    if let Some(lock) = lock_file() {
        command.env("XTABLES_LOCKFILE", lock);
    }
    // The child is made by this thread, and inherits its namespace.
    let child =
        netns.run(|| command.spawn())?.map_err(|source| RedirectError::Program { program, source })?;
    match tokio::time::timeout(RUN_TIME_MAX, finished(child, input)).await {
        Err(_) => Err(RedirectError::Slow { program, within: RUN_TIME_MAX }),
        Ok(Err(source)) => Err(RedirectError::Program { program, source }),
        Ok(Ok(Finished { output, .. })) if output.len() as u64 > OUTPUT_LEN_MAX => {
            Err(RedirectError::TooLong { program, limit: OUTPUT_LEN_MAX })
        }
        Ok(Ok(Finished { output, good: true, .. })) => Ok(String::from_utf8_lossy(&output).into_owned()),
        Ok(Ok(Finished { stderr, good: false, .. })) => {
            Err(RedirectError::Refused { program, stderr: one_line(&String::from_utf8_lossy(&stderr)) })
        }
    }
}

struct Finished {
    good: bool,
    output: Vec<u8>,
    stderr: Vec<u8>,
}

/// Writes and reads at once: a program that prints before it has read all would otherwise stand still.
async fn finished(mut child: Child, input: &str) -> io::Result<Finished> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let written = async {
        if let Some(mut stdin) = stdin {
            // A program that stops reading says why on stderr.
            let _closed = stdin.write_all(input.as_bytes()).await;
        }
    };
    let ((), output, stderr) =
        tokio::join!(written, read(stdout, OUTPUT_LEN_MAX + 1), read(stderr, STDERR_LEN_MAX));
    let (output, stderr) = (output?, stderr?);
    // A program that still has more to print is not waited for: it is killed as the child is dropped.
    let good = output.len() as u64 <= OUTPUT_LEN_MAX && child.wait().await?.success();
    Ok(Finished { good, output, stderr })
}

async fn read(pipe: Option<impl AsyncRead + Unpin>, len_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(len_max).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// Where the lock is first looked for else.
pub const LOCK: &str = "/run/adit/xtables.lock";

/// The lock of iptables-legacy, where its own (`/run/xtables.lock`) cannot be written: a read-only root, or a user
/// namespace. It belongs to the mount namespace, not to the pod's network namespace.
fn lock_file() -> Option<PathBuf> {
    let writable = |path: &Path| std::fs::OpenOptions::new().create(true).append(true).open(path).is_ok();
    if writable(Path::new("/run/xtables.lock")) {
        return None;
    }
    [PathBuf::from(LOCK), std::env::temp_dir().join("adit-xtables.lock")]
        .into_iter()
        .find(|path| writable(path))
}

fn one_line(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(STDERR_SHOWN_MAX).collect()
}
