//! What a test does not prove here, said aloud: as the harness does, which this room does not know.

use std::io::Write as _;

/// Names a test that cannot run here, and why: on standard error, and in the file that `LEA_SKIPS` names, which
/// `tests/run` shows in its summary.
#[expect(clippy::print_stderr, reason = "a skipped test must not look like a passed one")]
#[expect(clippy::unwrap_used, reason = "a rig that does not work fails the test")]
pub fn skipped(test: &str, why: &str) {
    let line = format!("SKIPPED {test}: {why}");
    eprintln!("{line}");
    let Some(path) = std::env::var_os("LEA_SKIPS") else { return };
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}
