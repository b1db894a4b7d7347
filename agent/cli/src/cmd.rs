//! One module per command, and what they share.

use std::io::{self, Write};

use clap::ValueEnum;

pub(crate) mod edges;
pub(crate) mod flows;

/// The form of what is printed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For programs: what the agents' admin API says.
    Json,
}

/// Prints lines; that nobody reads on (`adit flows | head`) is no failure.
pub(crate) fn print(lines: impl IntoIterator<Item = String>) -> io::Result<()> {
    print_to(&mut io::stdout().lock(), lines)
}

fn print_to(out: &mut impl Write, lines: impl IntoIterator<Item = String>) -> io::Result<()> {
    let written = lines.into_iter().try_for_each(|line| writeln!(out, "{line}")).and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The name of a Kubernetes object or namespace, so that nothing else gets into an agent's query.
pub(crate) fn name(text: &str) -> Result<String, String> {
    const LEN_MAX: usize = 253;
    let is_known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    if (1..=LEN_MAX).contains(&text.len()) && text.chars().all(is_known) {
        Ok(text.to_owned())
    } else {
        Err(format!("a name has 1 to {LEN_MAX} lower-case letters, digits, '-' and '.'"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_goes_away_is_no_failure_and_a_full_disk_is_one() {
        struct Failing(io::ErrorKind);
        impl Write for Failing {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(self.0.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        print_to(&mut Failing(io::ErrorKind::BrokenPipe), ["line".to_owned()]).unwrap();
        let full = print_to(&mut Failing(io::ErrorKind::StorageFull), ["line".to_owned()]);
        assert_eq!(full.unwrap_err().kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn a_name_holds_nothing_that_a_query_would_read_otherwise() {
        assert_eq!(name("web-7c9.shop"), Ok("web-7c9.shop".to_owned()));
        for text in ["", "shop/web", "web&failed=true", "Web", "a b", "w%65b", &"x".repeat(254)] {
            assert!(name(text).is_err(), "{text}");
        }
    }
}
