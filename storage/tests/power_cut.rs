//! The power goes on a real file system: the image below a mounted ext4 is copied while its writer is stopped, so the copy
//! has what the medium had and nothing of the kernel's cache. Everything acknowledged must be in it (P-DURABLE).
//!
//! Needs root, `mount` and `mkfs.ext4`; skips by name without. `LEA_POWER_CUTS` says how often the power goes.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a rig that does not work fails the test")]
#![expect(clippy::print_stdout, reason = "each cut says what it lost")]

#[path = "support/skip.rs"]
mod skip;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use storage::cell::Cells;
use storage::database::{Copies, DataDir};
use storage::log::{Done, Log, LogOptions};
use storage::trail::Trail;

use skip::skipped;

/// Where the writer writes and where it notes what was acknowledged. Set only for the writer, which is the test again.
const DATA: &str = "LEA_POWER_CUT_DATA";
const NOTES: &str = "LEA_POWER_CUT_NOTES";

const IMAGE_BYTES: u64 = 192 << 20;

/// Acknowledgements between two cuts.
const NOTES_PER_CUT: usize = 300;

/// Log, cells and trail beside each other, as a node has them.
#[test]
fn nothing_acknowledged_is_lost_when_the_power_goes() {
    lose_power("nothing_acknowledged_is_lost_when_the_power_goes", |directory, unsynced, notes| {
        let trail = directory.open_trail().unwrap();
        let log = directory.open_log(options()).unwrap();
        let (cells, others) = (directory.cells(), notes.clone());
        thread::spawn(move || write_records(&trail, Some(&cells), None, &others));
        write_entries(&log, unsynced, notes)
    });
}

/// By itself: no sync of a neighbour on the same file system makes up for one that the trail forgot.
#[test]
fn no_record_of_the_trail_is_lost_when_the_power_goes() {
    lose_power("no_record_of_the_trail_is_lost_when_the_power_goes", |directory, unsynced, notes| {
        write_records(&directory.open_trail().unwrap(), None, Some(unsynced), notes)
    });
}

/// What the writer's process does until it is killed.
type Work = fn(&DataDir, File, &Notes) -> !;

fn lose_power(test: &str, work: Work) {
    if let (Some(data), Some(notes)) = (std::env::var_os(DATA), std::env::var_os(NOTES)) {
        let directory = open(Path::new(&data));
        let unsynced = File::create(Path::new(&data).join("unsynced")).unwrap();
        let notes = Notes(Arc::new(OpenOptions::new().append(true).create(true).open(notes).unwrap()));
        work(&directory, unsynced, &notes);
    }
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    let mounted = match make_image(&image).and_then(|()| Mounted::at(&image, folder.path().join("disk"))) {
        Ok(mounted) => mounted,
        Err(why) => {
            skipped(&format!("power_cut::{test}"), &why);
            return;
        }
    };
    let cuts = std::env::var_os("LEA_POWER_CUTS").and_then(|cuts| cuts.to_str()?.parse().ok()).unwrap_or(3);
    let notes = folder.path().join("notes");
    let writer = Writer::start(test, &mounted.0, &notes);

    for cut in 1..=cuts {
        let acknowledged = writer.stop_after(&notes, cut * NOTES_PER_CUT);
        let copy = folder.path().join("copy");
        fs::copy(&image, &copy).unwrap();
        let unsynced = fs::metadata(mounted.0.join("data/unsynced")).unwrap().len();

        let found = Mounted::at(&copy, folder.path().join("after")).expect("as the first one");
        check(&found.0.join("data"), &acknowledged);

        let survived = fs::metadata(found.0.join("data/unsynced")).map_or(0, |file| file.len());
        assert!(survived < unsynced, "the cut lost nothing, so it was none: {survived} of {unsynced}");
        println!("cut {cut}: {acknowledged:?}, {survived} of {unsynced} unsynced bytes left");
        drop(found);
        writer.go_on();
    }
}

/// The newest of each kind that was acknowledged.
#[derive(Debug, Default, PartialEq)]
struct Acknowledged {
    entry: Option<u64>,
    record: Option<u64>,
    value: Option<u64>,
    purge: Option<u64>,
}

/// Everything acknowledged is there and is what was written.
fn check(data: &Path, acknowledged: &Acknowledged) {
    let directory = open(data);
    let log = directory.open_log(options()).unwrap();
    let bounds = log.bounds();
    let entries = log.read(bounds.first..bounds.next).unwrap();
    let trail = directory.open_trail().unwrap();
    let records = trail.range(0, 10_000).unwrap();
    let value =
        directory.cells().get("value").unwrap().and_then(|bytes| Some(u64::from_le_bytes(*bytes.first_chunk()?)));

    assert!(bounds.last() >= acknowledged.entry, "{bounds:?} {acknowledged:?}");
    assert!(bounds.purged >= acknowledged.purge, "{bounds:?} {acknowledged:?}");
    assert!((bounds.first..).zip(&entries).all(|(index, found)| *found == content(index)));
    assert!(records.last().map(|(index, _)| *index) >= acknowledged.record, "{} {acknowledged:?}", records.len());
    assert!((0..).zip(&records).all(|(wanted, (index, found))| *index == wanted && *found == content(wanted)));
    assert!(value >= acknowledged.value, "{value:?} {acknowledged:?}");
}

/// Different for each index, of every size up to some pages.
fn content(index: u64) -> Bytes {
    let seed = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let length = usize::try_from(seed >> 50).unwrap() / 2 + 8;
    seed.to_le_bytes().into_iter().cycle().take(length).collect()
}

fn options() -> LogOptions {
    LogOptions { segment_bytes_max: 1 << 18, queue_bytes_max: 1 << 16, ..LogOptions::default() }
}

fn open(data: &Path) -> DataDir {
    DataDir::open(data, Copies::Refuse, Arc::new(|reason| panic!("{reason}"))).unwrap()
}

fn write_records(trail: &Trail, cells: Option<&Cells>, mut unsynced: Option<File>, notes: &Notes) -> ! {
    let mut index = 0;
    loop {
        trail.append(index, &content(index)).unwrap();
        trail.flush().unwrap();
        notes.take('r', index);
        if let Some(cells) = cells {
            cells.set("value", &index.to_le_bytes()).unwrap();
            notes.take('v', index);
        }
        if let Some(unsynced) = &mut unsynced {
            unsynced.write_all(&[b'x'; 64]).unwrap();
        }
        index += 1;
    }
}

fn write_entries(log: &Log, mut unsynced: File, notes: &Notes) -> ! {
    let mut first = 0;
    loop {
        let entries: Vec<Bytes> = (first..=first + first % 5).map(content).collect();
        let last = first + first % 5;
        let bytes = entries.iter().map(Bytes::len).sum();
        log.append(wait_for(|| log.try_place(bytes)), first, entries, notes.when_done('e', last));
        unsynced.write_all(&[b'x'; 64]).unwrap();
        if last % 40 == 0 && last > 400 {
            log.purge_to(wait_for(|| log.try_place(0)), last - 400, Bytes::new(), notes.when_done('p', last - 400));
        }
        first = last + 1;
    }
}

/// Where acknowledgements are noted: outside of the disk that will lose its power.
#[derive(Clone)]
struct Notes(Arc<File>);

impl Notes {
    fn take(&self, kind: char, index: u64) {
        (&*self.0).write_all(format!("{kind} {index}\n").as_bytes()).unwrap();
    }

    fn when_done(&self, kind: char, index: u64) -> Done {
        let notes = self.clone();
        Box::new(move |outcome| {
            outcome.unwrap();
            notes.take(kind, index);
        })
    }
}

fn read_notes(notes: &Path) -> (usize, Acknowledged) {
    let text = fs::read_to_string(notes).unwrap_or_default();
    let mut acknowledged = Acknowledged::default();
    let mut count = 0;
    // The last one may be half written.
    for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
        let (kind, index) = line.split_once(' ').unwrap();
        let index = Some(index.parse().unwrap());
        match kind {
            "e" => acknowledged.entry = index,
            "r" => acknowledged.record = index,
            "v" => acknowledged.value = index,
            "p" => acknowledged.purge = index,
            other => panic!("{other}"),
        }
        count += 1;
    }
    (count, acknowledged)
}

struct Writer(Child);

impl Writer {
    fn start(test: &str, disk: &Path, notes: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture"]).env(DATA, disk.join("data")).env(NOTES, notes);
        Self(command.stdout(Stdio::null()).spawn().unwrap())
    }

    fn process(&self) -> Pid {
        Pid::from_child(&self.0)
    }

    /// Stops it, not before it has taken so many notes; then what it noted stands still.
    fn stop_after(&self, notes: &Path, count: usize) -> Acknowledged {
        wait_for(|| (read_notes(notes).0 >= count).then_some(()));
        kill_process(self.process(), Signal::STOP).unwrap();
        let (_process, status) = waitpid(Some(self.process()), WaitOptions::UNTRACED).unwrap().unwrap();
        assert!(status.stopped(), "the writer ended by itself: {status:?}");
        read_notes(notes).1
    }

    fn go_on(&self) {
        kill_process(self.process(), Signal::CONT).unwrap();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Looks again until there is something, for at most a minute.
fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
    for _attempt in 0..60_000 {
        match look() {
            Some(found) => return found,
            None => thread::park_timeout(Duration::from_millis(1)),
        }
    }
    panic!("nothing in a minute");
}

fn make_image(image: &Path) -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("needs root to mount an image".to_owned());
    }
    File::create(image).unwrap().set_len(IMAGE_BYTES).unwrap();
    run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(image))
}

/// A mounted image; unmounted when dropped.
struct Mounted(PathBuf);

impl Mounted {
    /// The journal is written when someone syncs, and not by itself in the middle of the copy.
    fn at(image: &Path, point: PathBuf) -> Result<Self, String> {
        fs::create_dir_all(&point).unwrap();
        run(Command::new("mount").args(["-o", "loop,commit=300"]).arg(image).arg(&point))?;
        Ok(Self(point))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // What a killed process held is let go a moment later.
        let unmounted = (0..100).any(|_attempt| {
            thread::park_timeout(Duration::from_millis(10));
            run(Command::new("umount").arg(&self.0)).is_ok()
        });
        if !unmounted {
            println!("could not unmount {}", self.0.display());
        }
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    match command.stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => Err(format!("{name}: {error}")),
    }
}
