//! The pure crates hold no clock, environment, file, lock, output or async. (Their missing dependencies and
//! `clippy.toml` say most of it; this says the rest, and says it by name.)

use std::path::Path;

use anyhow::Result;

use super::violation::Violation;
use crate::source;

/// The pure crates, and what their code must not name.
const PURE: [(&str, &[&str]); 2] = [
    (
        "adit-core",
        &[
            "Instant::now",
            "SystemTime::now",
            "std::env",
            "std::fs",
            "std::net::Tcp",
            "std::net::Udp",
            "std::thread",
            "println!",
            "eprintln!",
            "print!",
            "Mutex",
            "RwLock",
            "Condvar",
            "RefCell",
            "OnceLock",
            "LazyLock",
            "thread_local!",
            "static mut",
            "async fn",
            ".await",
        ],
    ),
    (
        "adit-objects",
        &[
            "Instant::now",
            "SystemTime::now",
            "std::env",
            "std::fs",
            "std::thread",
            "println!",
            "eprintln!",
            "async fn",
            ".await",
        ],
    ),
];

/// Looks for every forbidden word in the code of the pure crates, tests excepted.
pub fn check(root: &Path) -> Result<Vec<Violation>> {
    let mut found = Vec::new();
    for krate in source::crates(root)?.into_iter().filter(|krate| krate.kind == "lib") {
        let Some((_, words)) = PURE.iter().find(|(package, _)| *package == krate.package) else {
            continue;
        };
        for module in krate.modules.iter().filter(|module| !module.test_only && !module.file.is_test()) {
            let code = module.file.text.code_without_tests();
            for (number, line) in code.lines().enumerate() {
                for word in words.iter().filter(|word| names(line, word)) {
                    let what = format!("{} is pure: {word} has no place in it", krate.package);
                    found.push(Violation::new(&module.file.path, number + 1, what));
                }
            }
        }
    }
    Ok(found)
}

/// Whether `line` has `word` as a word of its own.
fn names(line: &str, word: &str) -> bool {
    let ident = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let begins = !word.starts_with(ident) || !before.is_some_and(ident);
        // `std::net::Tcp` forbids TcpStream and TcpListener alike.
        let ends = word.ends_with("Tcp")
            || word.ends_with("Udp")
            || !word.ends_with(ident)
            || !after.is_some_and(ident);
        begins && ends
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_as_words_only() {
        assert!(names("let a = std::sync::Mutex::new(1);", "Mutex"));
        assert!(!names("struct MutexLike;", "Mutex"));
        assert!(names("use std::net::TcpStream;", "std::net::Tcp"));
        assert!(!names("eprintln!()", "println!"));
    }
}
