//! A real file system that is full: nothing is half kept, and the log goes on when there is room.
//!
//! Needs root and `mount`, for a file system of a few pages; skips by name without.

#![expect(clippy::unwrap_used, reason = "a rig that does not work fails the test")]

#[path = "support/skip.rs"]
mod skip;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use storage::database::{Copies, DataDir};
use storage::log::{Failed, Log, LogOptions, receipt};

use skip::skipped;

const ROOM: usize = 4 << 20;

#[test]
fn a_full_disk_refuses_what_does_not_fit_and_keeps_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let disk = match Mounted::at(folder.path().join("disk")) {
        Ok(disk) => disk,
        Err(why) => {
            skipped("full_disk::a_full_disk_refuses_what_does_not_fit_and_keeps_the_rest", &why);
            return;
        }
    };
    let filler = disk.0.join("filler");
    let open = || DataDir::open(&disk.0.join("data"), Copies::Refuse, Arc::new(|reason| panic!("{reason}"))).unwrap();
    let options = || LogOptions { headroom_bytes: 64 << 10, segment_bytes_max: 32 << 10, ..LogOptions::default() };
    let directory = open();
    let log = directory.open_log(options()).unwrap();
    append(&log, 0).unwrap();
    assert!(log.has_headroom());

    fs::write(&filler, vec![0; ROOM]).unwrap_err();
    let mut kept = 1;
    let refused = loop {
        match append(&log, kept) {
            Ok(()) => kept += 1,
            Err(failed) => break failed,
        }
        assert!(kept < 10_000, "the disk has an end");
    };
    assert_eq!(refused, Failed::NoSpace);
    assert!(!log.has_headroom());
    assert!(directory.cells().set("vote", &[0; 8_192]).is_err());

    fs::remove_file(&filler).unwrap();
    append(&log, kept).unwrap();
    directory.cells().set("vote", b"7").unwrap();
    drop((log, directory));
    let directory = open();
    let log = directory.open_log(options()).unwrap();

    assert_eq!(log.read(0..kept + 1).unwrap(), (0..=kept).map(entry).collect::<Vec<_>>());
    assert_eq!(directory.cells().get("vote").unwrap().unwrap(), b"7");
}

/// No reason to end the process: what was flushed is there when it starts again with more room.
#[test]
fn a_trail_without_room_says_so_and_keeps_what_it_had() {
    let folder = tempfile::tempdir().unwrap();
    let disk = match Mounted::at(folder.path().join("disk")) {
        Ok(disk) => disk,
        Err(why) => {
            skipped("full_disk::a_trail_without_room_says_so_and_keeps_what_it_had", &why);
            return;
        }
    };
    let open = || DataDir::open(&disk.0.join("data"), Copies::Refuse, Arc::new(|reason| panic!("{reason}"))).unwrap();
    let directory = open();
    let trail = directory.open_trail().unwrap();
    let mut kept = 0;
    let refused = loop {
        match trail.append(kept, &entry(kept)).and_then(|()| trail.flush()) {
            Ok(()) => kept += 1,
            Err(error) => break error,
        }
        assert!(kept < 10_000, "the disk has an end");
    };

    assert!(refused.to_string().contains("make room"), "{refused:?}");
    drop((trail, directory));
    remount(&disk.0, ROOM * 4);
    let directory = open();
    let trail = directory.open_trail().unwrap();

    let records = trail.range(0, 10_000).unwrap();
    let read: Vec<Bytes> = records.into_iter().map(|(_index, record)| record.into()).collect();
    assert!(read.len() as u64 >= kept);
    assert_eq!(read, (0..read.len() as u64).map(entry).collect::<Vec<_>>());
}

fn remount(point: &Path, room: usize) {
    let options = format!("remount,size={room}");
    assert!(Command::new("mount").args(["-o", &options]).arg(point).status().unwrap().success());
}

fn entry(index: u64) -> Bytes {
    vec![b'a' + u8::try_from(index % 26).unwrap(); 3_000].into()
}

fn append(log: &Log, index: u64) -> Result<(), Failed> {
    let (done, receipt) = receipt();
    log.append(log.try_place(3_000).unwrap(), index, vec![entry(index)], done);
    receipt.wait()
}

struct Mounted(PathBuf);

impl Mounted {
    fn at(point: PathBuf) -> Result<Self, String> {
        fs::create_dir_all(&point).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={ROOM}"), "tmpfs"]).arg(&point).stdin(Stdio::null());
        match mount.output() {
            Ok(output) if output.status.success() => Ok(Self(point)),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Err(format!("mount: {error}")),
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(&self.0).status());
    }
}
