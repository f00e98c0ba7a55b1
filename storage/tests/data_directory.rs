//! A data directory is one node's, in one place, in a format this program knows; and what is refused says what to do.

#![expect(clippy::expect_used, clippy::panic, reason = "a directory that cannot be made fails the test")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use storage::database::{Copies, DataDir, OpenError};
use storage::fatal::OnFatal;
use storage::log::{LogOptions, receipt};

fn open(path: &Path) -> Result<DataDir, OpenError> {
    DataDir::open(path, Copies::Refuse, on_fatal())
}

fn on_fatal() -> OnFatal {
    Arc::new(|reason| panic!("{reason}"))
}

fn refusal(outcome: Result<DataDir, OpenError>) -> OpenError {
    outcome.err().expect("refused")
}

#[test]
fn everything_kept_in_it_is_there_at_the_next_start() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("a/b");
    let directory = open(&path).unwrap();
    let log = directory.open_log(LogOptions::default()).unwrap();
    let (done, appended) = receipt();
    log.append(log.try_place(5).unwrap(), 0, vec![Bytes::from_static(b"entry")], done);
    appended.wait().unwrap();
    directory.cells().set("vote", b"7").unwrap();
    directory.open_snapshots().unwrap().save("1-5", b"meta", b"data").unwrap();
    let trail = directory.open_trail().unwrap();
    trail.append(3, b"who did what").unwrap();
    trail.flush().unwrap();
    drop((log, trail, directory));

    let directory = open(&path).unwrap();

    assert_eq!(directory.open_log(LogOptions::default()).unwrap().read(0..1).unwrap(), ["entry"]);
    assert_eq!(directory.cells().get("vote").unwrap().unwrap(), b"7");
    assert_eq!(directory.open_snapshots().unwrap().latest().unwrap().unwrap().id, "1-5");
    assert_eq!(directory.open_trail().unwrap().range(0, 9).unwrap(), [(3, b"who did what".to_vec())]);
    assert_eq!(directory.boots(), 2);
}

#[test]
fn a_second_process_is_refused_and_told_who_holds_it() {
    let parent = tempfile::tempdir().unwrap();
    let held = open(parent.path()).unwrap();

    let error = refusal(open(parent.path()));

    let OpenError::Locked { holder, .. } = &error else { panic!("{error}") };
    assert_eq!(*holder, Some(std::process::id()));
    assert!(error.to_string().contains(&format!("in use by process {}: stop", std::process::id())), "{error}");
    drop(held);
    open(parent.path()).unwrap();
}

/// Also where the copy keeps every attribute a copy can keep, and lies on the same file system.
#[test]
fn a_copy_is_refused_until_it_is_adopted_and_the_original_is_not() {
    let parent = tempfile::tempdir().unwrap();
    let (original, copy) = (parent.path().join("original"), parent.path().join("copy"));
    drop(open(&original).unwrap());
    let copied = Command::new("cp").arg("-a").arg(&original).arg(&copy).status().unwrap();
    assert!(copied.success());

    let error = refusal(open(&copy));

    assert!(matches!(error, OpenError::Copied { .. }), "{error}");
    assert!(error.to_string().contains("start once with --adopt-data-dir"), "{error}");
    open(&original).unwrap();
    drop(DataDir::open(&copy, Copies::Adopt, on_fatal()).unwrap());
    open(&copy).unwrap();
}

/// A volume that is filled from a copy keeps its own root; what lies in it is new all the same.
#[test]
fn a_copy_of_the_content_into_the_same_directory_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let (path, aside) = (parent.path().join("data"), parent.path().join("aside"));
    drop(open(&path).unwrap());
    let copied = Command::new("cp").arg("-a").arg(&path).arg(&aside).status().unwrap();
    assert!(copied.success());
    for entry in fs::read_dir(&path).unwrap() {
        let old = entry.unwrap().path();
        if old.is_dir() { fs::remove_dir_all(old).unwrap() } else { fs::remove_file(old).unwrap() }
    }
    let restored = Command::new("cp").arg("-a").arg(aside.join(".")).arg(&path).status().unwrap();
    assert!(restored.success());

    assert!(matches!(open(&path), Err(OpenError::Copied { .. })));
}

#[test]
fn a_directory_renamed_on_its_file_system_is_the_same() {
    let parent = tempfile::tempdir().unwrap();
    drop(open(&parent.path().join("before")).unwrap());

    fs::rename(parent.path().join("before"), parent.path().join("after")).unwrap();

    assert_eq!(open(&parent.path().join("after")).unwrap().boots(), 2);
}

#[test]
fn a_newer_format_is_refused_and_nothing_is_changed() {
    let parent = tempfile::tempdir().unwrap();
    drop(open(parent.path()).unwrap());
    let format = parent.path().join("FORMAT");
    assert_eq!(fs::read_to_string(&format).unwrap(), "llm-edge-agent data, format 1\n");

    fs::write(&format, "llm-edge-agent data, format 2\n").unwrap();
    let newer = refusal(open(parent.path()));
    fs::write(&format, "something else").unwrap();
    let damaged = refusal(open(parent.path()));

    assert!(newer.to_string().contains("use the newer program"), "{newer}");
    assert!(matches!(damaged, OpenError::FormatDamaged { .. }), "{damaged}");
    fs::write(&format, "llm-edge-agent data, format 1\n").unwrap();
    assert_eq!(open(parent.path()).unwrap().boots(), 2, "a refused start is none");
}

#[test]
fn what_is_no_data_directory_is_left_alone() {
    let parent = tempfile::tempdir().unwrap();
    fs::write(parent.path().join("thesis.tex"), "\\begin").unwrap();
    let file = parent.path().join("thesis.tex");

    let not_ours = refusal(open(parent.path()));
    let no_directory = refusal(open(&file));

    assert!(not_ours.to_string().contains("`thesis.tex` is in it"), "{not_ours}");
    assert!(matches!(no_directory, OpenError::NoDirectory { .. }), "{no_directory}");
    assert!(!parent.path().join("FORMAT").exists());
}

/// What a file system or a first start that was cut short leaves is no stranger.
#[test]
fn a_first_start_that_was_cut_short_is_begun_again() {
    let parent = tempfile::tempdir().unwrap();
    fs::create_dir(parent.path().join("lost+found")).unwrap();
    fs::write(parent.path().join("lock"), "").unwrap();
    fs::write(parent.path().join("FORMAT.tmp"), "llm-").unwrap();

    assert_eq!(open(parent.path()).unwrap().boots(), 1);
}

#[test]
fn it_is_closed_to_others() {
    let parent = tempfile::tempdir().unwrap();
    let (made, found) = (parent.path().join("made"), parent.path().join("found"));
    fs::create_dir(&found).unwrap();
    fs::set_permissions(&found, Permissions::from_mode(0o755)).unwrap();

    for path in [made, found] {
        let _held = open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(path.join("cells/place.cell")).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn an_ephemeral_one_is_gone_afterwards() {
    let directory = DataDir::ephemeral(on_fatal()).unwrap();
    let path = directory.path().to_owned();
    directory.cells().set("vote", b"7").unwrap();
    assert!(path.join("FORMAT").exists());

    drop(directory);

    assert!(!path.exists());
}
