//! What has to change in the runtime's folder of networks, so that our plugin is chained, or is not any more.
//!
//! Reads a [`Folder`] and returns [`Edit`]s, each of which is one atomic change; between any two of them pods can be
//! created and deleted. Does not read, write or log. Others' text is never written anew: an entry is put into a list's
//! bytes and taken out of them, so that no copy of the original has to be kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::{Map, Value};

use super::entry::{Entry, TYPE};
use super::json::{Malformed, Text};
use crate::spec;

/// Our file in the folder named as the network. Behind the numbers of others: the chain runs in this order.
pub(crate) const DROP_IN: &str = "99-adit.conf";
/// Our list around a plain configuration, which cannot be chained to; the runtime takes the first in lexical order.
const WRAP: &str = "00-adit.conflist";
/// `.NETWORK` + this: the folder of the network was made by us, and goes with our file. The name must not end in one of
/// [`ENDINGS`], whatever the network is called.
const MADE: &str = ".adit-made";
/// What libcni takes for a network's file, a dot file too.
const ENDINGS: [&str; 3] = [".conf", ".conflist", ".json"];

/// The folder of networks, as far as it matters.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Folder {
    /// By path in the folder: what [`matters`], and each sub-folder's [`DROP_IN`].
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// The sub-folders.
    pub(crate) dirs: BTreeSet<String>,
}

/// Whether a file of this name has to be read.
pub(crate) fn matters(name: &str) -> bool {
    ENDINGS.iter().any(|ending| name.ends_with(ending)) || made_for(name).is_some()
}

/// Whether the runtime chains drop-ins.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Chains {
    /// It is tried; where a list has been edited already, that stays.
    Perhaps,
    Yes,
    No,
}

/// One change.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Edit {
    /// In place of `was`, of nothing if `None`; not if there is something else by now.
    Write {
        file: String,
        was: Option<Vec<u8>>,
        bytes: Vec<u8>,
    },
    Remove {
        file: String,
    },
    MakeDir {
        dir: String,
    },
    /// If it is empty.
    RemoveDir {
        dir: String,
    },
}

/// Where the plugin is chained.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Place {
    pub(crate) network: String,
    pub(crate) form: Form,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Form {
    /// By a file of our own, which the runtime adds to this list.
    DropIn { list: String },
    /// By an entry in this list.
    Entry { list: String },
    /// By a list of our own around this configuration.
    Wrap { conf: String },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let network = &self.network;
        match &self.form {
            Form::DropIn { list } => write!(f, "network {network} of {list}, by {network}/{DROP_IN}"),
            Form::Entry { list } => write!(f, "network {network}, by an entry in {list}"),
            Form::Wrap { conf } => write!(f, "network {network}, by {WRAP} around {conf}"),
        }
    }
}

/// What there is to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Plan {
    /// `None` while there is no network.
    pub(crate) place: Option<Place>,
    pub(crate) edits: Vec<Edit>,
}

/// Why nothing can be chained to the network that the runtime uses, or a list cannot be freed of us.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Refusal {
    pub(crate) file: String,
    pub(crate) why: Why,
}

#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Why {
    Malformed(Malformed),
    /// No `name`, or one that the specification does not allow.
    Name,
    /// A `cniVersion` in which the plugin cannot answer: every pod would fail.
    Version(String),
    /// A list without a plugin, or only with ours.
    NoPlugins,
    /// Not in a list, and no plugin's configuration.
    NoType,
    /// It has to be wrapped, and comes before what wraps it.
    BeforeWrap,
}

impl fmt::Display for Refusal {
    /// `FILE[:LINE:COLUMN]: what`, so that the folder can be put before it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = &self.file;
        match &self.why {
            Why::Malformed(Malformed { line, column, what }) => write!(f, "{file}:{line}:{column}: {what}"),
            Why::Name => write!(f, "{file}: it has no \"name\" that CNI allows"),
            Why::Version(version) => {
                write!(f, "{file}: its cniVersion is {version}, but a plugin is chained from 0.3.1 to 1.1.0")
            }
            Why::NoPlugins => write!(f, "{file}: it lists no plugin to be chained to"),
            Why::NoType => write!(f, "{file}: it has no \"type\", so it configures no plugin"),
            Why::BeforeWrap => {
                write!(f, "{file}: the runtime would take it before {WRAP}, which has to wrap it; rename it")
            }
        }
    }
}

/// What puts the plugin into the chain of the network that the runtime uses, and takes it out of every other.
pub(crate) fn install(folder: &Folder, entry: &Entry, chains: Chains) -> Result<Plan, Refusal> {
    let Some((file, bytes)) = main(folder) else {
        // What was wrapped has gone, and its network with it.
        let edits = folder.files.contains_key(WRAP).then(|| Edit::Remove { file: WRAP.to_owned() });
        return Ok(Plan { place: None, edits: edits.into_iter().collect() });
    };
    let refuse = |why| Refusal { file: file.to_owned(), why };
    let text = Text::parse(bytes).map_err(|malformed| refuse(Why::Malformed(malformed)))?;
    let network = network(&text.object).ok_or_else(|| refuse(Why::Name))?;
    judge_version(&text.object).map_err(|version| refuse(Why::Version(version)))?;
    let form = form(file, &text, chains);
    let mut edits = Edits { folder, edits: Vec::new() };
    match &form {
        Form::DropIn { .. } => edits.make_drop_in(network, entry.with_mark().json()),
        Form::Entry { .. } => {
            let listed = listed(bytes, &entry.json()).ok_or_else(|| refuse(Why::NoPlugins))?;
            edits.write(file, listed);
        }
        Form::Wrap { .. } => {
            if file < WRAP {
                return Err(refuse(Why::BeforeWrap));
            }
            if text.object.get("type").and_then(Value::as_str).is_none_or(str::is_empty) {
                return Err(refuse(Why::NoType));
            }
            edits.write(WRAP, wrapped(&text.object, bytes, &entry.json()));
        }
    }
    // In place before anything is taken out: there is no moment without.
    edits.take_out(Some(&Kept { form: &form, network }));
    Ok(Plan { place: Some(Place { network: network.to_owned(), form }), edits: edits.edits })
}

/// Whether there is a drop-in of ours, of whatever network and release.
pub(crate) fn has_drop_in(folder: &Folder) -> bool {
    folder.files.keys().any(|name| name.strip_suffix(DROP_IN).is_some_and(|dir| dir.ends_with('/')))
}

/// What takes all of ours out. What cannot be read, and may have an entry of ours, is told.
pub(crate) fn uninstall(folder: &Folder) -> (Vec<Edit>, Vec<Refusal>) {
    let mut edits = Edits { folder, edits: Vec::new() };
    let refusals = edits.take_out(None);
    (edits.edits, refusals)
}

/// The file that the runtime takes; ours is none.
fn main(folder: &Folder) -> Option<(&str, &[u8])> {
    let mut files = folder.files.iter();
    let is_main = |name: &str| {
        !name.contains('/') && name != WRAP && ENDINGS.iter().any(|ending| name.ends_with(ending))
    };
    files.find(|(name, _)| is_main(name)).map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
}

/// Only a list is completed by drop-ins, and can have a second plugin at all.
fn form(file: &str, text: &Text<'_>, chains: Chains) -> Form {
    let file = file.to_owned();
    if !file.ends_with(".conflist") {
        return Form::Wrap { conf: file };
    }
    let drops_in = match chains {
        Chains::Yes => true,
        Chains::No => false,
        // A runtime that was found not to chain drop-ins is not tried again at every start.
        Chains::Perhaps => ours(text).is_empty(),
    };
    if drops_in && !loads_only_inlined(&text.object) {
        Form::DropIn { list: file }
    } else {
        Form::Entry { list: file }
    }
}

/// As libcni reads it.
fn loads_only_inlined(list: &Map<String, Value>) -> bool {
    match list.get("loadOnlyInlinedPlugins") {
        Some(Value::Bool(only)) => *only,
        Some(Value::String(only)) => only.eq_ignore_ascii_case("true"),
        Some(Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_)) | None => false,
    }
}

/// The network's name, if it is one: it names a folder.
fn network(object: &Map<String, Value>) -> Option<&str> {
    let name = object.get("name")?.as_str()?;
    let first_is_word = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    let rest_is_safe = name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    (first_is_word && rest_is_safe).then_some(name)
}

/// The runtime calls in the newest version that the list names and it knows; without `cniVersions` in `cniVersion`.
fn judge_version(object: &Map<String, Value>) -> Result<(), String> {
    let mut named: Vec<&Value> = object.get("cniVersion").into_iter().collect();
    let first = named.first().copied();
    named.extend(object.get("cniVersions").and_then(Value::as_array).into_iter().flatten());
    let number = |version: &Value| {
        let parts = version.as_str()?.split('.').map(|part| part.parse::<u32>().ok());
        parts.collect::<Option<Vec<u32>>>()
    };
    let newest = named.iter().copied().max_by_key(|version| number(version));
    let known = |version: &Value| version.as_str().is_some_and(spec::supports);
    match (first, newest) {
        (_, None) => Err("missing".to_owned()),
        (Some(first), _) if !known(first) => Err(first.to_string()),
        (_, Some(newest)) if !known(newest) => Err(newest.to_string()),
        (_, Some(_)) => Ok(()),
    }
}

/// Which plugins of a list are ours.
fn ours(text: &Text<'_>) -> Vec<usize> {
    let is_ours = |plugin: &Value| plugin.get("type").and_then(Value::as_str) == Some(TYPE);
    let plugins = text.plugins().iter().enumerate();
    plugins.filter(|(_, plugin)| is_ours(plugin)).map(|(index, _)| index).collect()
}

/// The list with our entry, once and not first, where there is no result to go on from. `None` if there is no other plugin.
fn listed(list: &[u8], entry: &str) -> Option<Vec<u8>> {
    let text = Text::parse(list).ok()?;
    match ours(&text).as_slice() {
        // Somebody may have written the list anew in their own style.
        [index] if *index > 0 && text.plugins().get(*index) == value_of(entry).as_ref() => {
            Some(list.to_vec())
        }
        [index] if *index > 0 => Some(text.with(*index, entry)),
        [] => text.with_last(entry),
        [_, ..] => Text::parse(&freed(&text)).ok()?.with_last(entry),
    }
}

fn value_of(entry: &str) -> Option<Value> {
    serde_json::from_str(entry).ok()
}

/// The list without any entry of ours.
fn freed(text: &Text<'_>) -> Vec<u8> {
    let Some(last) = ours(text).last().copied() else {
        return text.bytes.to_vec();
    };
    let without = text.without(last);
    match Text::parse(&without) {
        Ok(text) => freed(&text),
        // Cannot be: an element and its comma went.
        Err(_) => text.bytes.to_vec(),
    }
}

/// A list of this plain configuration, in its own words, and our entry.
fn wrapped(object: &Map<String, Value>, conf: &[u8], entry: &str) -> Vec<u8> {
    let mut list = b"{".to_vec();
    for key in ["cniVersion", "cniVersions", "name"] {
        if let Some(value) = object.get(key) {
            list.extend_from_slice(format!("\"{key}\":{value},").as_bytes());
        }
    }
    list.extend_from_slice(b"\"plugins\":[\n");
    list.extend_from_slice(conf.trim_ascii());
    list.extend_from_slice(format!(",\n{entry}\n]}}\n").as_bytes());
    list
}

/// The network whose folder was made by us, if this file tells so.
fn made_for(name: &str) -> Option<&str> {
    name.strip_prefix('.')?.strip_suffix(MADE).filter(|network| !network.is_empty())
}

fn made(network: &str) -> String {
    format!(".{network}{MADE}")
}

/// What stays when the rest of ours is taken out.
struct Kept<'k> {
    form: &'k Form,
    network: &'k str,
}

/// Edits of a folder, of which none changes nothing.
struct Edits<'f> {
    folder: &'f Folder,
    edits: Vec<Edit>,
}

impl Edits<'_> {
    fn write(&mut self, file: &str, bytes: Vec<u8>) {
        let was = self.folder.files.get(file);
        if was != Some(&bytes) {
            self.edits.push(Edit::Write { file: file.to_owned(), was: was.cloned(), bytes });
        }
    }

    fn remove(&mut self, file: &str) {
        if self.folder.files.contains_key(file) {
            self.edits.push(Edit::Remove { file: file.to_owned() });
        }
    }

    fn make_drop_in(&mut self, network: &str, entry: String) {
        if !self.folder.dirs.contains(network) {
            // First the word that it is ours: a folder without it is somebody's, and stays.
            self.write(&made(network), Vec::new());
            self.edits.push(Edit::MakeDir { dir: network.to_owned() });
        }
        self.write(&format!("{network}/{DROP_IN}"), (entry + "\n").into_bytes());
    }

    /// Takes out what is ours, but for what is `kept`. Returns what cannot be judged.
    fn take_out(&mut self, kept: Option<&Kept<'_>>) -> Vec<Refusal> {
        let folder = self.folder;
        let (mut list_kept, mut drop_in_kept, mut wrap_is_kept) = (None, None, false);
        match kept.map(|kept| (kept.form, kept.network)) {
            Some((Form::DropIn { .. }, network)) => drop_in_kept = Some(network),
            Some((Form::Entry { list }, _)) => list_kept = Some(list.as_str()),
            Some((Form::Wrap { .. }, _)) => wrap_is_kept = true,
            None => {}
        }
        let is_list = |name: &str| name.ends_with(".conflist") && !name.contains('/') && name != WRAP;
        let mut refusals = Vec::new();
        let lists = folder.files.iter().filter(|(name, _)| is_list(name) && list_kept != Some(name.as_str()));
        for (name, bytes) in lists {
            match Text::parse(bytes) {
                Ok(text) => self.write(name, freed(&text)),
                Err(malformed) if bytes.windows(TYPE.len()).any(|word| word == TYPE.as_bytes()) => {
                    refusals.push(Refusal { file: name.clone(), why: Why::Malformed(malformed) });
                }
                Err(_) => {}
            }
        }
        if !wrap_is_kept {
            self.remove(WRAP);
        }
        let drop_ins = folder.files.keys().filter_map(|name| name.strip_suffix(DROP_IN)?.strip_suffix('/'));
        let made_dirs = folder.files.keys().filter_map(|name| made_for(name));
        for network in drop_ins.chain(made_dirs).collect::<BTreeSet<_>>() {
            if drop_in_kept == Some(network) {
                continue;
            }
            self.remove(&format!("{network}/{DROP_IN}"));
            if folder.files.contains_key(&made(network)) {
                if folder.dirs.contains(network) {
                    self.edits.push(Edit::RemoveDir { dir: network.to_owned() });
                }
                self.remove(&made(network));
            }
        }
        refusals
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
