//! Tests that cannot run here say so to the launcher, which lists them; they are never counted as passed.

use std::env;
use std::fs::OpenOptions;
use std::io::Write;
use std::thread;

use crate::sandbox::Sandbox;

/// The file in which the launcher wants them: one line each, `test: why`.
const LIST: &str = "ADIT_NOT_RUN";

/// Whether uid 0 is real here. If not, the calling test is listed as NOT RUN for this reason and must return.
pub fn has_real_root(why: &str) -> bool {
    if Sandbox::current().is_some_and(|sandbox| sandbox.is_real_root()) {
        return true;
    }
    let thread = thread::current();
    let line = format!("{}: {why}\n", thread.name().unwrap_or("a test"));
    eprint!("NOT RUN: {line}");
    if let Some(list) = env::var_os(LIST) {
        let listed =
            OpenOptions::new().append(true).open(list).and_then(|mut list| list.write_all(line.as_bytes()));
        listed.expect("the launcher made the list and it can be written");
    }
    false
}
