//! `version!()`: a program's release and the commit that it was built from, as its `--version` says them.
//!
//! A macro, and no build script: one that looks at the commit has cargo build its whole package anew at each commit. Used
//! in a program's `main.rs`, this makes that file alone depend on where the checkout's HEAD points.
//!
//! Asks git and nobody else; outside a checkout, or without git, the commit is `unknown`. Whether files differ from the
//! commit is not said.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use proc_macro::TokenStream;

/// Hex digits of a commit that are shown.
const SHOWN: &str = "--short=12";
/// What git writes when HEAD moves: to another branch, and to another commit.
const MOVES: [&str; 2] = ["HEAD", "logs/HEAD"];

/// `"0.1.0 (1f2e3d4c5b6a)"`: the release of the package that is being compiled, and the commit.
#[proc_macro]
pub fn version(_: TokenStream) -> TokenStream {
    let folder = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default();
    let release = env::var("CARGO_PKG_VERSION").unwrap_or_default();
    expansion(&folder, &release).parse().expect("a block of string literals is Rust")
}

/// The literal, and what makes the compiler look again once HEAD has moved.
fn expansion(folder: &Path, release: &str) -> String {
    let commit = git(folder, &["rev-parse", SHOWN, "HEAD"]);
    let moves = MOVES.iter().filter_map(|file| {
        let path = git(folder, &["rev-parse", "--path-format=absolute", "--git-path", file])?;
        Path::new(&path).is_file().then_some(path)
    });
    let looks: String =
        moves.map(|path| format!("const _: &[u8] = ::core::include_bytes!({path:?});")).collect();
    let said = format!("{release} ({})", commit.as_deref().unwrap_or("unknown"));
    format!("{{ {looks} {said:?} }}")
}

/// What git says in `folder`; nothing if it fails.
fn git(folder: &Path, args: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(folder).args(args).output().ok()?;
    let said = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
    Some(said.trim().to_owned()).filter(|said| !said.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_a_checkout_the_commit_is_unknown() {
        assert_eq!(expansion(Path::new("/proc"), "1.2.3"), "{  \"1.2.3 (unknown)\" }");
        assert_eq!(expansion(Path::new("/nowhere"), "1.2.3"), "{  \"1.2.3 (unknown)\" }");
    }

    #[test]
    fn in_a_checkout_it_is_heads_and_follows_it() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let Some(commit) = git(here, &["rev-parse", "HEAD"]) else {
            return; // unpacked from an archive
        };
        let made = expansion(here, "1.2.3");
        assert!(made.ends_with(&format!("\"1.2.3 ({})\" }}", &commit[..12])), "{made}");
        assert!(made.contains("/HEAD\");"), "{made}");
    }
}
