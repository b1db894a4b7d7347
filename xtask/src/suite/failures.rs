//! What failed in a run of libtest, a line each: whoever sees only the end of a long output shall see why.

/// How much of what a test said is shown: one sentence, with the values of an assertion.
const WORD_LEN_MAX: usize = 400;

/// Reads libtest's output line by line.
#[derive(Debug, Default)]
pub(super) struct Failures {
    found: Vec<Failure>,
    /// What comes is what tests said that passed (`--show-output`).
    passed: bool,
    /// The line before said where a test panicked; what it said comes now.
    panicked: bool,
}

#[derive(Debug)]
struct Failure {
    test: String,
    /// The first error or panic in what it printed; empty until it is found.
    word: String,
}

impl Failures {
    /// Takes the next line.
    pub(super) fn read(&mut self, line: &str) {
        self.passed = match line {
            "successes:" => true,
            "failures:" => false,
            _ => self.passed,
        };
        if self.passed {
            return;
        }
        if let Some(test) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            self.found.push(Failure { test: test.to_owned(), word: String::new() });
            self.panicked = false;
            return;
        }
        let Some(Failure { word, .. }) = self.found.last_mut() else { return };
        if self.panicked {
            word.push_str(line);
            self.panicked = false;
        } else if word.is_empty() {
            if let Some((_, place)) =
                line.strip_prefix("thread '").and_then(|l| l.split_once(" panicked at "))
            {
                *word = format!("{place} ");
                self.panicked = true;
            } else if let Some(error) = line.strip_prefix("Error: ") {
                error.clone_into(word);
            }
        }
    }

    /// `test: what it said`, in the order of the output.
    pub(super) fn lines(self) -> Vec<String> {
        let shown = |word: &str| word.chars().take(WORD_LEN_MAX).collect::<String>();
        self.found.iter().map(|failure| format!("{}: {}", failure.test, shown(&failure.word))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failed_test_is_told_with_its_first_error_or_panic() {
        let output = "test a::b ... FAILED\n\
                      Error: of no test\n\
                      successes:\n\
                      ---- e stdout ----\n\
                      3 of 3 answered\n\
                      successes:\n    e\n\
                      failures:\n\
                      ---- a::b stdout ----\n\
                      ==== the mesh, of which: it is late\n\
                      Error: it is late\n\
                      Error: and more\n\
                      ---- c stdout ----\n\
                      \n\
                      thread 'c' (17) panicked at it/c.rs:3:5:\n\
                      assertion failed: false\n\
                      note: more\n\
                      ---- d stdout ----\n\
                      \n\
                      failures:\n    a::b\n";
        let mut failures = Failures::default();
        output.lines().for_each(|line| failures.read(line));
        assert_eq!(failures.lines(), ["a::b: it is late", "c: it/c.rs:3:5: assertion failed: false", "d: "]);
    }
}
