//! What cannot be kept ends the process, at once and with its reason.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use rustix::process::Signal;

const CHILD: &str = "LEA_FATAL_CHILD";

#[test]
fn the_process_is_aborted_and_the_reason_is_on_standard_error() {
    if std::env::var_os(CHILD).is_some() {
        storage::fatal::aborting()("the disk did not keep it");
    }
    let this_test = ["--exact", "the_process_is_aborted_and_the_reason_is_on_standard_error", "--nocapture"];

    let ended = Command::new(std::env::current_exe().unwrap()).args(this_test).env(CHILD, "1").output().unwrap();

    assert_eq!(ended.status.signal(), Some(Signal::ABORT.as_raw()));
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(said.contains("fatal: the disk did not keep it\n"), "{said}");
}
