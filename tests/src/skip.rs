//! What a test does not prove here, said aloud.

use std::io::Write as _;

/// Names a test that cannot run here, and why: on standard error, and in the file that `LEA_SKIPS` names, which
/// `tests/run` shows in its summary.
#[expect(clippy::print_stderr, reason = "a skipped test must not look like a passed one")]
#[expect(clippy::disallowed_methods, reason = "tests read an environment of their own")]
pub fn skipped(test: &str, why: &str) {
    let line = format!("SKIPPED {test}: {why}");
    eprintln!("{line}");
    let Ok(path) = std::env::var("LEA_SKIPS") else { return };
    let opened = std::fs::OpenOptions::new().create(true).append(true).open(path);
    writeln!(opened.expect("the file of skipped tests"), "{line}").expect("the file of skipped tests");
}
