//! Executes edits in the runtime's folders, and reads them. Each call changes one thing, atomically: a file is written
//! beside its place, brought to the disk, and renamed. Decides nothing.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::entry::TYPE;
use super::patch::{self, DROP_IN, Edit, Folder};

/// The longest file of a network that is read, in bytes: what containerd reads at most.
const CONF_LEN_MAX: u64 = 2 * 1024 * 1024;
/// How temporary files begin. Not by the endings that libcni reads, and never left for long.
const TEMP: &str = ".adit-tmp-";
/// Made and removed so that the runtime reads the folder again: containerd does when a file of it goes, whatever its
/// name, and does not look into sub-folders.
const RELOAD: &str = ".adit-reload";
/// This program, also if its file was replaced meanwhile.
const SELF: &str = "/proc/self/exe";

/// What could not be done, and where.
#[derive(Debug)]
pub(crate) struct DiskError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} {}: {}", self.doing, self.path.display(), self.source)
    }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    move |source| DiskError { doing, path: path.to_owned(), source }
}

/// What became of edits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Applied {
    All,
    /// Somebody else wrote a file since it was read: the rest was not done.
    Overtaken,
}

/// How the plugin's file is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Binary {
    Same,
    Other,
    Missing,
}

/// The two folders.
#[derive(Debug)]
pub(crate) struct Disk {
    bin: PathBuf,
    net: PathBuf,
}

impl Disk {
    pub(crate) fn new(bin: PathBuf, net: PathBuf) -> Self {
        Self { bin, net }
    }

    pub(crate) fn net(&self) -> &Path {
        &self.net
    }

    pub(crate) fn binary_path(&self) -> PathBuf {
        self.bin.join(TYPE)
    }

    /// Removes what a killed installer left half done.
    pub(crate) fn clear(&self) -> Result<(), DiskError> {
        for dir in [&self.bin, &self.net] {
            for entry in listed(dir)? {
                let name = entry.file_name();
                let is_left = name.to_str().is_some_and(|name| name.starts_with(TEMP) || name == RELOAD);
                if is_left {
                    remove(&entry.path())?;
                }
            }
        }
        Ok(())
    }

    /// The folder of networks; an empty one if there is none.
    pub(crate) fn read(&self) -> Result<Folder, DiskError> {
        let mut folder = Folder::default();
        for entry in listed(&self.net)? {
            // A name that is no text is nothing that a runtime's packages install.
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                continue;
            };
            let kind = entry.file_type().map_err(failed("look at", &entry.path()))?;
            if kind.is_dir() {
                let drop_in = entry.path().join(DROP_IN);
                if let Some(bytes) = read(&drop_in)? {
                    folder.files.insert(format!("{name}/{DROP_IN}"), bytes);
                }
                folder.dirs.insert(name);
            } else if patch::matters(&name)
                && let Some(bytes) = read(&entry.path())?
            {
                folder.files.insert(name, bytes);
            }
        }
        Ok(folder)
    }

    /// Makes these changes, in order.
    pub(crate) fn apply(&self, edits: &[Edit]) -> Result<Applied, DiskError> {
        for edit in edits {
            match edit {
                Edit::Write { file, was, bytes } => {
                    if self.write(file, was.as_deref(), bytes)? == Applied::Overtaken {
                        return Ok(Applied::Overtaken);
                    }
                }
                Edit::Remove { file } => remove(&self.net.join(file))?,
                Edit::MakeDir { dir } => {
                    let path = self.net.join(dir);
                    match DirBuilder::new().mode(0o755).create(&path) {
                        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                            return Err(failed("make", &path)(error));
                        }
                        Ok(()) | Err(_) => {}
                    }
                }
                Edit::RemoveDir { dir } => {
                    let path = self.net.join(dir);
                    match fs::remove_dir(&path) {
                        Err(error) if !is_done(&error) => return Err(failed("remove", &path)(error)),
                        Ok(()) | Err(_) => {}
                    }
                }
            }
            sync(&self.net)?;
        }
        Ok(Applied::All)
    }

    /// Makes the runtime read the folder of networks again.
    pub(crate) fn reload(&self) -> Result<(), DiskError> {
        let path = self.net.join(RELOAD);
        File::create(&path).map_err(failed("make", &path))?;
        remove(&path)
    }

    /// How the plugin's file is, byte by byte.
    pub(crate) fn binary(&self) -> Result<Binary, DiskError> {
        let path = self.binary_path();
        let there = match File::open(&path) {
            Ok(there) => there,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Binary::Missing),
            Err(error) => return Err(failed("read", &path)(error)),
        };
        let data = there.metadata().map_err(failed("look at", &path))?;
        // Nobody can run it without this.
        if data.mode() & 0o555 != 0o555 {
            return Ok(Binary::Other);
        }
        let ours = File::open(SELF).map_err(failed("read", Path::new(SELF)))?;
        match same(there, ours).map_err(failed("compare", &path))? {
            true => Ok(Binary::Same),
            false => Ok(Binary::Other),
        }
    }

    /// Puts this program into the runtime's folder of plugins, in place of another release.
    pub(crate) fn put_binary(&self) -> Result<(), DiskError> {
        let path = self.binary_path();
        let temp = self.bin.join(temp_name());
        let written = (|| {
            let mut ours = File::open(SELF)?;
            let mut open = OpenOptions::new().write(true).create_new(true).mode(0o755).open(&temp)?;
            io::copy(&mut ours, &mut open)?;
            open.set_permissions(Permissions::from_mode(0o755))?;
            open.sync_all()?;
            // Closed before it can be run: a file that is open for writing is not executed (ETXTBSY).
            drop(open);
            fs::rename(&temp, &path)
        })();
        if written.is_err() {
            let _ = fs::remove_file(&temp);
        }
        written.map_err(failed("write", &path))?;
        sync(&self.bin)
    }

    pub(crate) fn remove_binary(&self) -> Result<(), DiskError> {
        remove(&self.binary_path())?;
        sync(&self.bin)
    }

    fn write(&self, file: &str, was: Option<&[u8]>, bytes: &[u8]) -> Result<Applied, DiskError> {
        let path = self.net.join(file);
        let before = match fs::symlink_metadata(&path) {
            Ok(data) if data.is_symlink() => {
                // Its target may be anywhere, and a file in its place would stay when we go.
                let source = io::Error::other("it is a symbolic link, whose target is not edited");
                return Err(failed("write", &path)(source));
            }
            Ok(data) => Some(data),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed("look at", &path)(error)),
        };
        // In the folder itself, also for a file of a sub-folder, which then never holds anything but its files.
        let temp = self.net.join(temp_name());
        let mode = before.as_ref().map_or(0o644, |data| data.mode() & 0o7777);
        let written = (|| {
            let mut open = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temp)?;
            open.write_all(bytes)?;
            open.set_permissions(Permissions::from_mode(mode))?;
            if let Some(data) = &before {
                // Somebody else's owner may be kept only with a capability that is not needed otherwise.
                let _ = chown(&temp, Some(data.uid()), Some(data.gid()));
            }
            open.sync_all()
        })();
        let renamed = written.and_then(|()| {
            // As late as can be: what another wrote meanwhile is not lost, but planned for anew.
            if read(&path).map_err(|error| error.source)?.as_deref() != was {
                fs::remove_file(&temp)?;
                return Ok(Applied::Overtaken);
            }
            fs::rename(&temp, &path)?;
            Ok(Applied::All)
        });
        if renamed.is_err() {
            let _ = fs::remove_file(&temp);
        }
        renamed.map_err(failed("write", &path))
    }
}

/// A name that no other process takes, of this pid namespace or another.
pub(crate) fn temp_name() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{TEMP}{}-{}", std::process::id(), now.as_nanos())
}

fn listed(dir: &Path) -> Result<Vec<fs::DirEntry>, DiskError> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.collect::<Result<_, _>>().map_err(failed("list", dir)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed("list", dir)(error)),
    }
}

/// The file's bytes; `None` if it is not there.
fn read(path: &Path) -> Result<Option<Vec<u8>>, DiskError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read", path)(error)),
    };
    let mut bytes = Vec::new();
    let count = file.take(CONF_LEN_MAX + 1).read_to_end(&mut bytes).map_err(failed("read", path))?;
    if u64::try_from(count).is_ok_and(|count| count > CONF_LEN_MAX) {
        return Err(failed("read", path)(io::Error::other(format!("it has more than {CONF_LEN_MAX} bytes"))));
    }
    Ok(Some(bytes))
}

fn remove(path: &Path) -> Result<(), DiskError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Whether a folder that could not be removed needs no removal.
fn is_done(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty)
}

/// Brings renames and removals in `dir` to the disk, so that a power cut leaves their order.
fn sync(dir: &Path) -> Result<(), DiskError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync", dir))
}

/// Whether two files have the same bytes.
fn same(mut one: File, mut other: File) -> io::Result<bool> {
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut ones, mut others) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        let count = one.read(&mut ones)?;
        if count == 0 {
            return Ok(other.read(&mut others[..1])? == 0);
        }
        match other.read_exact(&mut others[..count]) {
            Ok(()) if ones[..count] == others[..count] => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}
