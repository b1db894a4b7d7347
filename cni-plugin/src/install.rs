//! `adit-cni install` and `adit-cni uninstall`: the plugin's file and its entry in the runtime's folders.
//!
//! `patch` decides what has to change, `pace` how often, `turn` which of two installers; `disk` executes. The order is
//! here, and holds at every instant: the binary before the entry, and the entry out before the binary. Where a runtime
//! finds an entry without its binary it can neither create nor delete a pod.

mod args;
mod disk;
mod entry;
mod json;
mod pace;
mod patch;
mod trial;
mod turn;

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use adit_proto::cni::{Removal, Reply, Request};
use nix::sys::signal::{SigSet, Signal};

pub(crate) use self::args::{Command, Then, USAGE, UsageError};
use self::args::{Dirs, Install};
use self::disk::{Applied, Binary, Disk, DiskError};
use self::entry::Entry;
use self::pace::Pace;
use self::patch::{Chains, Folder, Form, Place, Refusal};
use self::trial::{CALL_WAIT, Sight, Trial};
use self::turn::Turn;
use crate::call::{Patience, call};
use crate::log;

/// Between two looks: what another rewrites is repaired within two of them.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// Between the entry's removal and the binary's: containerd has read the folder again after 0.3 s.
const RELOAD_WAIT: Duration = Duration::from_secs(1);
/// How the agent is asked what SIGTERM means. It runs on this node; one that does not answer is gone.
const REMOVAL: Patience = Patience { dial: Duration::from_secs(1), answer: Duration::from_secs(5) };

/// Why an installation or a removal was not done.
#[derive(Debug)]
pub(crate) enum InstallError {
    /// A folder or file.
    Disk(DiskError),
    /// Lists that cannot be read and may hold an entry of ours; the binary stays for their sake.
    Unread(PathBuf, Vec<Refusal>),
    /// What two installers agree by.
    Turn(PathBuf, io::Error),
    /// SIGTERM cannot be waited for.
    Signals(io::Error),
}

impl fmt::Display for InstallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(error) => write!(f, "{error}"),
            Self::Unread(net, refusals) => {
                let told: Vec<String> =
                    refusals.iter().map(|refusal| format!("{}/{refusal}", net.display())).collect();
                write!(f, "the binary stays, since this may name it: {}", told.join("; "))
            }
            Self::Turn(dir, error) => {
                write!(f, "cannot agree with other installers beside {}: {error}", dir.display())
            }
            Self::Signals(error) => write!(f, "cannot wait for SIGTERM: {error}"),
        }
    }
}

impl From<DiskError> for InstallError {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

/// Reads the command line; without arguments it is the runtime that calls.
pub(crate) fn asked(
    arguments: impl ExactSizeIterator<Item = OsString>,
) -> Result<Option<Command>, UsageError> {
    if arguments.len() == 0 { Ok(None) } else { args::parse(arguments).map(Some) }
}

/// `adit-cni uninstall`: takes all of ours out, at once.
pub(crate) fn uninstall(dirs: Dirs, then: Then) -> Result<(), InstallError> {
    let ends = termination()?;
    let turn = take_turn(&dirs)?;
    let disk = Disk::new(dirs.bin, dirs.net);
    take_out(&disk, &dirs.socket, turn)?;
    if then == Then::Wait {
        log("waits for SIGTERM: nothing is left to do");
        // A thread that could not wait for the signal ends the wait as well.
        let _ = ends.recv();
    }
    Ok(())
}

/// `adit-cni install`: puts binary and entry in place and keeps them, until SIGTERM.
pub(crate) fn install(wanted: Install) -> Result<(), InstallError> {
    let ends = termination()?;
    let turn = take_turn(&wanted.dirs)?;
    let socket = wanted.dirs.socket.clone();
    let mut keeper = Keeper::new(wanted, turn);
    keeper.disk.clear()?;
    // What cannot be done at all is told by the exit code; what fails later may be mended meanwhile.
    keeper.look()?;
    while let Err(RecvTimeoutError::Timeout) = ends.recv_timeout(LOOK_PAUSE) {
        if let Err(error) = keeper.look() {
            keeper.say(error.to_string());
        }
    }
    loop {
        if !keeper.turn.is_ours().unwrap_or(false) {
            log("ends; another installer goes on");
            return Ok(());
        }
        match call(&socket, &Request::Removal, REMOVAL) {
            Ok(Reply::Removal { adit: Removal::Leaves }) => {
                return take_out(&keeper.disk, &socket, keeper.turn);
            }
            // The agent still looks, and ends before long, or another comes.
            Ok(Reply::Removal { adit: Removal::Undecided }) => thread::sleep(LOOK_PAUSE),
            Ok(
                Reply::Removal { adit: Removal::Stays }
                | Reply::Ok
                | Reply::Status { .. }
                | Reply::Successor { .. }
                | Reply::Failed(_),
            ) => {
                log("ends; Adit stays, and its plugin in place");
                return Ok(());
            }
            Err(error) => {
                log(&format!("ends, and leaves the plugin in place: {error}"));
                return Ok(());
            }
        }
    }
}

fn take_turn(dirs: &Dirs) -> Result<Turn, InstallError> {
    Turn::take(&dirs.socket).map_err(|error| InstallError::Turn(dirs.socket.clone(), error))
}

/// SIGTERM and SIGINT, as a message. Blocked in every thread, they stop nothing half way: each edit is whole.
fn termination() -> Result<mpsc::Receiver<()>, InstallError> {
    let failed = |errno: nix::errno::Errno| InstallError::Signals(errno.into());
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().map_err(failed)?;
    let (ended, ends) = mpsc::channel();
    // Left behind at exit.
    thread::spawn(move || {
        if signals.wait().is_ok() {
            let _ = ended.send(());
        }
    });
    Ok(ends)
}

/// Entry, reload, binary; the last only if no list that cannot be read may still name it.
fn take_out(disk: &Disk, socket: &Path, turn: Turn) -> Result<(), InstallError> {
    disk.clear()?;
    let refusals = loop {
        let (edits, refusals) = patch::uninstall(&disk.read()?);
        if disk.apply(&edits)? == Applied::All {
            break refusals;
        }
    };
    // Also where no entry was left: one before may have ended between its removal and the reload.
    if disk.binary()? != Binary::Missing {
        disk.reload()?;
        thread::sleep(RELOAD_WAIT);
    }
    if !refusals.is_empty() {
        return Err(InstallError::Unread(disk.net().to_owned(), refusals));
    }
    disk.remove_binary()?;
    // Made by the plugin, which nobody calls any more.
    let mark = entry::called_file(socket);
    if let Err(error) = fs::remove_file(&mark)
        && error.kind() != io::ErrorKind::NotFound
    {
        log(&format!("cannot remove {}: {error}", mark.display()));
    }
    // On tmpfs, and only for installers that stand by.
    if let Err(error) = turn.end() {
        log(&format!("cannot leave word of the uninstall: {error}"));
    }
    log("uninstalled: the entry and the plugin are gone");
    Ok(())
}

/// What keeps binary and entry in place.
struct Keeper {
    disk: Disk,
    turn: Turn,
    entry: Entry,
    chains: Chains,
    trial: Trial,
    start: Instant,
    binary: Pace,
    networks: Pace,
    /// Whether it was all in place once: what is done from then on is a repair.
    placed: Option<Place>,
    said: String,
}

impl Keeper {
    fn new(wanted: Install, turn: Turn) -> Self {
        Self {
            disk: Disk::new(wanted.dirs.bin, wanted.dirs.net),
            turn,
            entry: wanted.entry,
            chains: wanted.chains,
            trial: Trial::default(),
            start: Instant::now(),
            binary: Pace::default(),
            networks: Pace::default(),
            placed: None,
            said: String::new(),
        }
    }

    /// Looks once, and repairs what is due.
    fn look(&mut self) -> Result<(), InstallError> {
        let is_ours = self
            .turn
            .is_ours()
            .map_err(|error| InstallError::Turn(PathBuf::from(&self.entry.socket), error))?;
        if !is_ours {
            self.say("stands by for a newer installer".into());
            return Ok(());
        }
        let now = self.start.elapsed();
        self.look_at_binary(now)?;
        self.look_at_networks(now)
    }

    fn look_at_binary(&mut self, now: Duration) -> Result<(), InstallError> {
        let what = match self.disk.binary()? {
            Binary::Same => return Ok(()),
            // Never put off: without it no pod starts or ends. Once a second is no loop.
            Binary::Missing => "was missing",
            Binary::Other if self.binary.allows(now) => "had other bytes",
            Binary::Other => return Ok(()),
        };
        self.disk.put_binary()?;
        if self.placed.is_some() {
            self.binary.repaired(now);
            log(&format!("repaired {}, which {what}", self.disk.binary_path().display()));
        }
        Ok(())
    }

    fn look_at_networks(&mut self, now: Duration) -> Result<(), InstallError> {
        if !self.networks.allows(now) {
            return Ok(());
        }
        let folder = self.disk.read()?;
        let plan = match patch::install(&folder, &self.entry, self.chains) {
            Ok(plan) => plan,
            Err(refusal) => {
                self.say(format!("cannot be chained: {}/{refusal}", self.disk.net().display()));
                return Ok(());
            }
        };
        let Some(place) = plan.place else {
            self.disk.apply(&plan.edits)?;
            self.say(format!("waits for a network in {}", self.disk.net().display()));
            return Ok(());
        };
        let is_tried = self.chains == Chains::Perhaps && matches!(place.form, Form::DropIn { .. });
        if is_tried && self.try_drop_in(now, &folder) == Trial::Failed {
            // The next look edits the list.
            self.chains = Chains::No;
            return Ok(());
        }
        let done = match (&self.placed, plan.edits.is_empty()) {
            (Some(_), true) => None,
            (Some(_), false) => Some("repaired"),
            (None, true) => Some("in place"),
            (None, false) => Some("installed"),
        };
        if let Some(done) = done {
            if self.placed.is_some() {
                // Before any edit, since all of them are one attempt, and each may fail.
                self.networks.repaired(now);
            }
            if self.disk.apply(&plan.edits)? == Applied::Overtaken {
                return Ok(());
            }
            // Also where all was in place: one before may have ended between an edit and the reload.
            self.disk.reload()?;
            log(&format!("{done} in {}: {place}", self.disk.net().display()));
        }
        self.said.clear();
        self.placed = Some(place);
        Ok(())
    }

    /// What is known of the runtime by now; told when it is found out.
    fn try_drop_in(&mut self, now: Duration, folder: &Folder) -> Trial {
        let mark = entry::called_file(Path::new(&self.entry.socket));
        let sight = match (patch::has_drop_in(folder), mark.exists()) {
            (false, is_marked) => {
                if is_marked && self.trial == Trial::Ahead {
                    // From before an uninstall, and so no proof.
                    let _ = fs::remove_file(&mark);
                }
                Sight::NoDropIn
            }
            (true, true) => Sight::Called,
            (true, false) => Sight::Uncalled,
        };
        let after = self.trial.after(sight, now);
        if after != self.trial {
            match after {
                Trial::Passed => log("the runtime calls the plugin through the drop-in"),
                Trial::Failed => log(&format!(
                    "the runtime has not called the plugin through the drop-in within {} s: the list is edited",
                    CALL_WAIT.as_secs()
                )),
                Trial::Ahead | Trial::Since(_) => {}
            }
            self.trial = after;
        }
        after
    }

    /// Logs what is not the same as before.
    fn say(&mut self, line: String) {
        if self.said != line {
            log(&line);
            self.said = line;
        }
    }
}
