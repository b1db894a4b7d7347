//! The copy of what was accepted, for an agent that starts while the API server is away.
//!
//! One file for each thing that is followed, under RUN_DIR, which is on tmpfs: lines of JSON, each an object that is
//! there or one that is gone, in the order in which they were told. A file comes into its place when its list has ended,
//! so one that is there is whole. Its first line names the boot: what another boot left is dropped, as no pod of it is
//! captured any more. Beside them `captured/UID`, an empty file for each pod that this node's agents announced; two
//! agents at once, as in an upgrade, share these. The rest is the one's that `owner` names: the other writes nothing.
//!
//! A copy that cannot be written costs the next agent its start without the API server, and nothing else.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, BufWriter, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use adit_core::net::PodUid;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use tracing::warn;

use super::watched::{Watched, kept};

/// A file is written anew when it has grown by as much as it then had, and by this at least.
const GROWTH_MIN: u64 = 1024 * 1024;
const CAPTURED: &str = "captured";
const OWNER: &str = "owner";
/// How the name of a copy ends that is not whole yet.
const FRESH: &str = "fresh";

/// Where the copy is.
#[derive(Debug)]
pub(super) struct Kept {
    dir: PathBuf,
    boot: String,
    /// Who writes it, as the file of that name says.
    owner: String,
    claim: Claim,
    files: BTreeMap<Watched, Journal>,
    fresh: BTreeMap<Watched, Fresh>,
}

/// Whether this agent writes the copy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Claim {
    /// With its first list that ends.
    NotYet,
    Made,
    /// Not any more: another agent does.
    Lost,
}

/// A copy that is written on.
#[derive(Debug)]
struct Journal {
    file: BufWriter<File>,
    len: u64,
    /// How long it was when it was last written anew.
    len_anew: u64,
}

/// A copy that is being written anew.
#[derive(Debug)]
struct Fresh {
    journal: Journal,
    /// Objects that cannot be read now, and go on as they were.
    carried: BTreeSet<Name>,
}

type Name = (String, String);

/// A line of a copy.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Line<T> {
    /// An object that is there.
    There(T),
    /// One that is no more; its metadata at least.
    Gone(T),
}

#[derive(Deserialize, Serialize)]
struct Header {
    boot: String,
}

/// What of a line says which object it is of.
#[derive(Default, Deserialize)]
struct Named {
    #[serde(default)]
    metadata: Names,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Names {
    namespace: String,
    name: String,
}

impl Kept {
    /// Opens the directory, making it if it is missing, and drops what another boot left; 0700: the objects may be
    /// nobody else's to read.
    ///
    /// With the first list that has ended the copy is `owner`'s: another agent that still runs, as in an upgrade, writes
    /// nothing more to it.
    pub(super) fn open(dir: PathBuf, boot: &str, owner: &str) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let kept = Self {
            dir,
            boot: boot.to_owned(),
            owner: owner.to_owned(),
            claim: Claim::NotYet,
            files: BTreeMap::new(),
            fresh: BTreeMap::new(),
        };
        let marker = kept.dir.join("boot");
        if fs::read_to_string(&marker).ok().as_deref() != Some(boot) {
            for old in fs::read_dir(&kept.dir)?.flatten() {
                let path = old.path();
                if path.is_dir() { fs::remove_dir_all(&path)? } else { fs::remove_file(&path)? }
            }
            fs::write(&marker, boot)?;
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(kept.dir.join(CAPTURED))?;
        kept.forget_unfinished();
        Ok(kept)
    }

    /// Removes what agents that were killed left unfinished; not what the owner, which may still run, has in hand.
    fn forget_unfinished(&self) {
        let owner = fs::read_to_string(self.dir.join(OWNER)).unwrap_or_default();
        let Ok(files) = fs::read_dir(&self.dir) else { return };
        for file in files.flatten() {
            let name = file.file_name();
            let unfinished = name.to_str().and_then(|name| name.strip_suffix(FRESH)?.strip_suffix('.'));
            if unfinished.is_some_and(|name| owner.is_empty() || !name.ends_with(&owner))
                && let Err(error) = fs::remove_file(file.path())
            {
                warn!(%error, "cannot remove a copy that was never finished");
            }
        }
    }

    /// Hands over every line of a copy. `false`: there is none, and nothing was handed over.
    pub(super) fn recall(&self, of: Watched, mut line: impl FnMut(Line<Value>)) -> bool {
        let Ok(file) = File::open(self.path(of)) else { return false };
        let mut reader = BufReader::new(file);
        let mut text = String::new();
        let header =
            reader.read_line(&mut text).ok().and_then(|_| serde_json::from_str::<Header>(&text).ok());
        if header.is_none_or(|header| header.boot != self.boot) {
            return false;
        }
        loop {
            text.clear();
            match reader.read_line(&mut text) {
                Ok(read) if read > 0 => {
                    // One that was cut off is the last of an agent that was killed; the list that comes next has it.
                    if let Ok(said) = serde_json::from_str(&text) {
                        line(said);
                    }
                }
                Ok(_) | Err(_) => return true,
            }
        }
    }

    /// From here to [`Kept::list_ends`], what is told is everything.
    pub(super) fn list_begins(&mut self, of: Watched) {
        if !self.is_owned() {
            return;
        }
        match self.fresh(of) {
            Ok(journal) => drop(self.fresh.insert(of, Fresh { journal, carried: BTreeSet::new() })),
            Err(error) => self.give_up(of, &error),
        }
    }

    /// An object is there.
    pub(super) fn there(&mut self, of: Watched, value: &Value) {
        self.write(of, &Line::There(value));
    }

    /// An object is there that cannot be read: it goes on as it was.
    pub(super) fn as_it_was(&mut self, of: Watched, namespace: &str, name: &str) {
        if let Some(fresh) = self.fresh.get_mut(&of) {
            fresh.carried.insert((namespace.to_owned(), name.to_owned()));
        }
    }

    /// An object is no more.
    pub(super) fn gone(&mut self, of: Watched, namespace: &str, name: &str) {
        let value = serde_json::json!({"metadata": {"namespace": namespace, "name": name}});
        self.write(of, &Line::Gone(&value));
    }

    /// The list has ended: its copy counts from now on.
    pub(super) fn list_ends(&mut self, of: Watched) {
        if !self.is_owned() {
            return;
        }
        let Some(mut fresh) = self.fresh.remove(&of) else { return };
        if let Err(error) = self.claim() {
            return self.give_up(of, &error);
        }
        let carried = match fresh.carried.is_empty() {
            true => Ok(()),
            false => self.carry(of, &mut fresh),
        };
        let placed = carried
            .and_then(|()| fresh.journal.file.flush())
            .and_then(|()| fs::rename(self.fresh_path(of), self.path(of)));
        match placed {
            Ok(()) => {
                fresh.journal.len_anew = fresh.journal.len;
                self.files.insert(of, fresh.journal);
            }
            Err(error) => self.give_up(of, &error),
        }
    }

    /// Puts what was told on the disk, and shortens files that have grown long.
    pub(super) fn flush(&mut self) {
        if !self.is_owned() {
            return;
        }
        let mut failed = Vec::new();
        let mut long = Vec::new();
        for (of, journal) in &mut self.files {
            if let Err(error) = journal.file.flush() {
                failed.push((*of, error));
            } else if journal.len > journal.len_anew * 2 && journal.len > journal.len_anew + GROWTH_MIN {
                long.push(*of);
            }
        }
        for of in long {
            if let Err(error) = self.shorten(of) {
                failed.push((of, error));
            }
        }
        for (of, error) in failed {
            self.give_up(of, &error);
        }
    }

    /// Whether an agent of this node announced a pod, in this boot.
    pub(super) fn is_announced(&self, uid: &PodUid) -> bool {
        self.captured(uid).is_some_and(|path| path.exists())
    }

    /// Writes down that a pod is about to be announced, or that it is not any more.
    pub(super) fn announce(&self, uid: &PodUid, captured: bool) -> io::Result<()> {
        let path = self.captured(uid).ok_or(io::ErrorKind::InvalidFilename)?;
        let done = if captured { fs::write(path, "") } else { fs::remove_file(path) };
        match done {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !captured => Ok(()),
            done => done,
        }
    }

    /// Forgets that pods which are no more were announced.
    pub(super) fn forget_strangers(&self, is_there: impl Fn(&PodUid) -> bool) {
        let Ok(files) = fs::read_dir(self.dir.join(CAPTURED)) else { return };
        for file in files.flatten() {
            let uid = file.file_name().to_str().map(|name| PodUid(name.into()));
            if !uid.is_some_and(|uid| is_there(&uid))
                && let Err(error) = fs::remove_file(file.path())
            {
                warn!(%error, "cannot forget a pod that is gone");
            }
        }
    }

    /// Makes the copy this agent's own, once. Not earlier: one that cannot start must not take it from one that runs.
    fn claim(&mut self) -> io::Result<()> {
        if self.claim == Claim::NotYet {
            fs::write(self.dir.join(OWNER), &self.owner)?;
            self.claim = Claim::Made;
        }
        Ok(())
    }

    /// Leaves the copy to another agent that is about to take it; what this one has made its own, it writes until then.
    pub(super) fn stand_aside(&mut self) {
        if self.claim == Claim::NotYet {
            self.lose();
        }
    }

    /// Takes the copy back from another agent that has ended. `true`: it lacks what was told meanwhile, so it is removed,
    /// and everything has to be listed anew.
    pub(super) fn claim_again(&mut self) -> bool {
        if self.is_owned() {
            return false;
        }
        for of in kept() {
            if let Err(error) = fs::remove_file(self.path(of))
                && error.kind() != io::ErrorKind::NotFound
            {
                warn!(%error, kind = of.word(), "cannot remove a copy that lacks something");
            }
        }
        self.claim = Claim::NotYet;
        if let Err(error) = self.claim() {
            warn!(%error, "cannot take the copy back; the first list that ends does it");
        }
        true
    }

    /// Whether the copy is still this agent's, or still to be. If not, it leaves it alone until it claims it again.
    pub(super) fn is_owned(&mut self) -> bool {
        if self.claim == Claim::Made && self.has_successor() {
            self.lose();
        }
        self.claim != Claim::Lost
    }

    /// Whether the copy names another owner. An agent that cannot read that has not been succeeded for it, and neither
    /// has one that finds nothing there.
    fn has_successor(&self) -> bool {
        let owner = fs::read_to_string(self.dir.join(OWNER));
        owner.is_ok_and(|owner| !owner.is_empty() && owner != self.owner)
    }

    fn lose(&mut self) {
        self.claim = Claim::Lost;
        self.files.clear();
        for of in std::mem::take(&mut self.fresh).into_keys() {
            // One that cannot be removed goes when the next agent starts.
            let _ = fs::remove_file(self.fresh_path(of));
        }
    }

    fn captured(&self, uid: &PodUid) -> Option<PathBuf> {
        let is_name = !uid.0.is_empty() && !uid.0.starts_with('.') && !uid.0.contains(['/', '\0']);
        is_name.then(|| self.dir.join(CAPTURED).join(&*uid.0))
    }

    fn write(&mut self, of: Watched, line: &Line<&Value>) {
        let fresh = self.fresh.get_mut(&of).map(|fresh| &mut fresh.journal);
        let Some(journal) = fresh.or_else(|| self.files.get_mut(&of)) else { return };
        if let Err(error) = journal.line(line) {
            self.give_up(of, &error);
        }
    }

    /// Brings over the last word on every object that could not be read.
    fn carry(&self, of: Watched, fresh: &mut Fresh) -> io::Result<()> {
        let wanted = &fresh.carried;
        let lines = last_lines(&self.path(of), |name| wanted.contains(name));
        let (mut old, offsets) = match lines {
            Ok(lines) => lines,
            // Nothing was kept of them.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        copy_lines(&mut old, offsets, &mut fresh.journal)
    }

    /// Writes a copy anew, without what is no longer so.
    fn shorten(&mut self, of: Watched) -> io::Result<()> {
        let mut journal = self.fresh(of)?;
        let (mut old, offsets) = last_lines(&self.path(of), |_| true)?;
        copy_lines(&mut old, offsets, &mut journal)?;
        journal.file.flush()?;
        fs::rename(self.fresh_path(of), self.path(of))?;
        journal.len_anew = journal.len;
        self.files.insert(of, journal);
        Ok(())
    }

    fn fresh(&self, of: Watched) -> io::Result<Journal> {
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(true).write(true).mode(0o600).open(self.fresh_path(of))?;
        let mut journal = Journal { file: BufWriter::new(file), len: 0, len_anew: 0 };
        journal.line(&Header { boot: self.boot.clone() })?;
        Ok(journal)
    }

    /// A copy that lacks something must not be there: the next agent would take it for all there is.
    fn give_up(&mut self, of: Watched, error: &io::Error) {
        warn!(%error, kind = of.word(), "cannot keep a copy; the next list begins a new one");
        self.fresh.remove(&of);
        self.files.remove(&of);
        // Nothing to remove is what is wanted.
        let _ = fs::remove_file(self.path(of));
    }

    fn path(&self, of: Watched) -> PathBuf {
        self.dir.join(format!("{}.jsonl", of.word()))
    }

    fn fresh_path(&self, of: Watched) -> PathBuf {
        // By the owner: another agent of this node may have one in hand.
        self.dir.join(format!(".{}.{}.{FRESH}", of.word(), self.owner))
    }
}

impl Journal {
    fn line(&mut self, line: &impl Serialize) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.text(&text)
    }

    fn text(&mut self, text: &[u8]) -> io::Result<()> {
        self.len += u64::try_from(text.len()).unwrap_or(u64::MAX);
        self.file.write_all(text)
    }
}

/// Where the last line on each object begins, of those that are still there and wanted.
fn last_lines(path: &Path, wanted: impl Fn(&Name) -> bool) -> io::Result<(BufReader<File>, Vec<u64>)> {
    let mut reader = BufReader::new(File::open(path)?);
    let mut last: BTreeMap<Name, u64> = BTreeMap::new();
    let mut text = String::new();
    let mut at = 0;
    loop {
        text.clear();
        let read = reader.read_line(&mut text)?;
        if read == 0 {
            let mut offsets: Vec<u64> = last.into_values().collect();
            offsets.sort_unstable();
            return Ok((reader, offsets));
        }
        // The header is no line of either kind.
        match serde_json::from_str::<Line<&RawValue>>(&text) {
            Ok(Line::There(object)) => {
                let name = name(object);
                if wanted(&name) {
                    last.insert(name, at);
                }
            }
            Ok(Line::Gone(object)) => {
                last.remove(&name(object));
            }
            Err(_) => {}
        }
        at += u64::try_from(read).unwrap_or(u64::MAX);
    }
}

fn copy_lines(old: &mut BufReader<File>, offsets: Vec<u64>, to: &mut Journal) -> io::Result<()> {
    let mut text = Vec::new();
    for at in offsets {
        text.clear();
        old.seek(SeekFrom::Start(at))?;
        old.read_until(b'\n', &mut text)?;
        to.text(&text)?;
    }
    Ok(())
}

fn name(object: &RawValue) -> Name {
    let Named { metadata } = serde_json::from_str(object.get()).unwrap_or_default();
    (metadata.namespace, metadata.name)
}
