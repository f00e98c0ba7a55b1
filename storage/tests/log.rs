//! The log by its promises, one at a time: on a real directory with its own thread, and on a simulated disk.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a disk that fails unasked fails the test")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use storage::disk::real::RealDisk;
use storage::disk::simulated::SimulatedDisk;
use storage::log::{Commits, Failed, LOG_ENTRY_MAX, Log, LogOpenError, LogOptions, ReadError, Receipt, receipt};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_of_many_callers_are_durable_together_and_read_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let disk = || Arc::new(RealDisk::open(directory.path()).unwrap());
    let options = LogOptions { segment_bytes_max: 4_096, recent_bytes_max: 512, ..LogOptions::default() };
    let log = Log::open(disk(), options.clone()).unwrap();

    let mut receipts = Vec::new();
    for index in 0..1_000 {
        let (done, receipt) = receipt();
        log.append(log.place(20).await, index, vec![entry(index)], done);
        receipts.push(receipt);
    }
    for receipt in receipts {
        receipt.durable().await.unwrap();
    }
    let flushes = log.flushes();
    drop(log);
    let log = Log::open(disk(), options).unwrap();

    assert_eq!(log.read(0..1_000).unwrap(), (0..1_000).map(entry).collect::<Vec<_>>());
    assert!(flushes < 1_000, "one sync commits what waits: {flushes}");
}

/// Dropping the last handle loses nothing that was queued.
#[test]
fn what_waits_is_committed_before_the_log_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let disk = || Arc::new(RealDisk::open(directory.path()).unwrap());
    let log = Log::open(disk(), LogOptions::default()).unwrap();

    let receipt = append(&log, 5, &[b"a", b"b"]);
    drop(log);

    assert_eq!(receipt.wait(), Ok(()));
    let log = Log::open(disk(), LogOptions::default()).unwrap();
    assert_eq!((log.bounds().first, log.bounds().last()), (5, Some(6)));
}

#[test]
fn a_truncated_entry_is_gone_and_its_successor_is_not_it() {
    let machine = SimulatedDisk::new();
    let log = open(&machine).unwrap();
    append_durably(&log, 0, &[b"a", b"b", b"c"]);

    let (done, mut truncated) = receipt();
    log.truncate_from(place(&log), 1, done);
    assert!(matches!(log.read(1..2), Err(ReadError::Absent { .. })), "at once, for readers");
    let mut appended = append(&log, 1, &[b"x"]);
    log.commit_queued();

    assert_eq!((truncated.now(), appended.now()), (Some(Ok(())), Some(Ok(()))));
    machine.crash(3);
    assert_eq!(open(&machine).unwrap().read(0..2).unwrap(), ["a", "x"]);
}

/// A snapshot from the leader may lie beyond all a follower has.
#[test]
fn a_purge_beyond_the_end_lets_the_log_go_on_there_and_keeps_its_note() {
    let machine = SimulatedDisk::new();
    let log = open(&machine).unwrap();
    append_durably(&log, 0, &[b"a"]);

    let (done, mut purged) = receipt();
    log.purge_to(place(&log), 41, Bytes::from_static(b"term 3"), done);
    append_durably(&log, 42, &[b"z"]);

    assert_eq!(purged.now(), Some(Ok(())));
    machine.crash(4);
    let log = open(&machine).unwrap();
    let bounds = log.bounds();
    assert_eq!((bounds.purged, &bounds.purged_note[..], bounds.first, bounds.next), (Some(41), &b"term 3"[..], 42, 43));
    assert_eq!(log.read(42..43).unwrap(), ["z"]);
    assert_eq!(machine.disk().within("log").unwrap().list().unwrap().len(), 2, "the mark and one segment");
}

#[test]
fn a_gap_and_an_entry_too_large_are_refused_and_change_nothing() {
    let log = open(&SimulatedDisk::new()).unwrap();
    append_durably(&log, 7, &[b"a"]);

    let mut gap = append(&log, 9, &[b"b"]);
    let large = vec![0; LOG_ENTRY_MAX + 1];
    let mut large = append(&log, 8, &[&large]);

    assert_eq!(gap.now(), Some(Err(Failed::Gap { wanted: 8, found: 9 })));
    assert_eq!(large.now(), Some(Err(Failed::TooLarge { found: LOG_ENTRY_MAX + 1 })));
    assert_eq!(log.bounds().last(), Some(7));
}

/// The largest entry fits, also where a segment is smaller.
#[test]
fn the_largest_entry_survives() {
    let machine = SimulatedDisk::new();
    let large = vec![7; LOG_ENTRY_MAX];

    append_durably(&open(&machine).unwrap(), 0, &[b"a", &large, b"b"]);

    machine.crash(5);
    assert_eq!(open(&machine).unwrap().read(1..2).unwrap(), [large]);
}

#[test]
fn the_queue_has_a_bound_and_room_comes_back_with_durability() {
    let machine = SimulatedDisk::new();
    let options = LogOptions { queue_bytes_max: 3 << 10, ..by_caller() };
    let log = Log::open(machine.disk(), options).unwrap();

    let held = log.try_place(2_000).unwrap();
    assert!(log.try_place(2_000).is_none());
    let (done, _receipt) = receipt();
    log.append(held, 0, vec![entry(0)], done);
    assert!(log.try_place(2_000).is_none(), "queued and not durable");
    log.commit_queued();

    assert!(log.try_place(1 << 30).is_some(), "what is larger than the queue takes all of it");
}

/// DESIGN: a failed sync is never tried again, and nothing is acknowledged after it.
#[test]
fn a_failed_sync_is_told_once_and_nothing_is_acknowledged_after_it() {
    let machine = SimulatedDisk::new();
    let told = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&told);
    let on_fatal = Arc::new(move |_reason: &str| {
        counted.fetch_add(1, Ordering::Relaxed);
    });
    let log = Log::open(machine.disk(), LogOptions { on_fatal, ..by_caller() }).unwrap();
    append_durably(&log, 0, &[b"a"]);
    let syncs = machine.syncs();

    machine.fail_syncs_after(0);
    let mut failed = append(&log, 1, &[b"b"]);
    log.commit_queued();
    machine.mend_syncs();
    let mut after = append(&log, 2, &[b"c"]);
    log.commit_queued();

    assert_eq!((failed.now(), after.now()), (Some(Err(Failed::Broken)), Some(Err(Failed::Broken))));
    assert_eq!((told.load(Ordering::Relaxed), machine.syncs() - syncs), (1, 1));
}

#[test]
fn a_full_disk_refuses_and_the_log_goes_on_when_there_is_room() {
    let machine = SimulatedDisk::new();
    let log = Log::open(machine.disk(), LogOptions { headroom_bytes: 1_000, ..by_caller() }).unwrap();
    append_durably(&log, 0, &[b"a"]);
    assert!(log.has_headroom());

    machine.set_capacity(Some(100));
    let mut refused = append(&log, 1, &[&[b'b'; 200]]);
    let mut behind = append(&log, 2, &[b"c"]);
    log.commit_queued();

    assert!(!log.has_headroom());
    assert_eq!((refused.now(), behind.now()), (Some(Err(Failed::NoSpace)), Some(Err(Failed::NoSpace))));
    assert_eq!(log.bounds().last(), Some(0), "as if it had never been asked");
    machine.set_capacity(None);
    append_durably(&log, 1, &[b"d"]);
    machine.crash(6);
    assert_eq!(Log::open(machine.disk(), by_caller()).unwrap().read(0..2).unwrap(), ["a", "d"]);
}

/// A segment was begun, and then there was no room for one byte of its first record.
#[test]
fn a_refused_append_is_gone_where_nothing_of_it_arrived() {
    let machine = SimulatedDisk::new();
    let log = open(&machine).unwrap();

    machine.set_capacity(Some(32));
    let mut refused = append(&log, 0, &[b"a"]);
    log.commit_queued();
    machine.set_capacity(None);
    append_durably(&log, 0, &[b"b", &[b'c'; 300], b"d"]);

    assert_eq!(refused.now(), Some(Err(Failed::NoSpace)));
    assert_eq!(log.read(0..1).unwrap(), ["b"]);
}

/// Without its thread nobody would ever hear anything.
#[test]
fn a_panic_on_the_logs_thread_is_fatal() {
    let (tell, told) = mpsc::channel();
    let on_fatal = Arc::new(move |reason: &str| tell.send(reason.to_owned()).unwrap());
    let log = Log::open(SimulatedDisk::new().disk(), LogOptions { on_fatal, ..LogOptions::default() }).unwrap();

    log.append(place(&log), 0, vec![entry(0)], Box::new(|_outcome| panic!("a caller's mistake")));

    assert_eq!(told.recv_timeout(Duration::from_mins(1)).unwrap(), "the log's thread panicked");
    assert_eq!(append(&log, 1, &[b"b"]).wait(), Err(Failed::Broken));
}

/// Bytes that had been durable and are not what they were: in any segment, any byte of a batch before the last.
#[test]
fn damage_to_what_had_been_durable_is_refused_with_advice() {
    let machine = SimulatedDisk::new();
    let log = open(&machine).unwrap();
    for index in 0..8 {
        append_durably(&log, index, &[&[b'x'; 100]]);
    }
    let disk = machine.disk().within("log").unwrap();
    let segments = disk.list().unwrap();
    assert_eq!(segments.len(), 4);

    for (number, segment) in segments.iter().enumerate() {
        let length = disk.read_all(segment).unwrap().len();
        // The last record of the last segment might have been torn.
        let durable = if number + 1 == segments.len() { length - 124 } else { length };
        for offset in 0..durable {
            let path = format!("log/{segment}");
            assert!(machine.damage(&path, offset, 0x10));

            let error = open(&machine).expect_err("damage is refused").to_string();

            assert!(error.contains("let it join as a new node"), "{error}");
            assert!(machine.damage(&path, offset, 0x10), "mended");
        }
    }
    assert_eq!(open(&machine).unwrap().bounds().last(), Some(7));
}

#[test]
fn a_missing_segment_is_refused() {
    for missing in 0..2 {
        let machine = SimulatedDisk::new();
        let log = open(&machine).unwrap();
        for index in 0..8 {
            append_durably(&log, index, &[&[b'x'; 100]]);
        }
        let disk = machine.disk().within("log").unwrap();

        disk.remove(&disk.list().unwrap()[missing]).unwrap();

        assert!(matches!(open(&machine), Err(LogOpenError::Missing { .. })), "segment {missing}");
    }
}

/// Reads go on while segments are purged under them: everything or an error, never less.
#[test]
fn a_read_beside_a_purge_is_whole_or_refused() {
    let directory = tempfile::tempdir().unwrap();
    let options = LogOptions { segment_bytes_max: 256, recent_bytes_max: 0, ..LogOptions::default() };
    let log = Log::open(Arc::new(RealDisk::open(directory.path()).unwrap()), options).unwrap();
    let entries: Vec<Bytes> = (0..400).map(entry).collect();
    let (done, appended) = receipt();
    log.append(place(&log), 0, entries.clone(), done);
    appended.wait().unwrap();

    let reader = log.clone();
    let reads = std::thread::spawn(move || {
        let mut refused = 0;
        for start in (0..400).cycle().step_by(7) {
            match reader.read(start..400) {
                Ok(read) => assert_eq!(read, entries[usize::try_from(start).unwrap()..]),
                Err(ReadError::Absent { .. }) => refused += 1,
                Err(error) => panic!("{error}"),
            }
            if reader.bounds().purged == Some(390) {
                return refused;
            }
        }
        unreachable!("it cycles")
    });
    for index in (0..=390).step_by(10) {
        let (done, purged) = receipt();
        log.purge_to(place(&log), index, Bytes::new(), done);
        purged.wait().unwrap();
    }

    reads.join().unwrap();
    assert_eq!(log.read(391..400).unwrap(), (391..400).map(entry).collect::<Vec<_>>());
}

fn by_caller() -> LogOptions {
    LogOptions {
        segment_bytes_max: 400,
        recent_bytes_max: 100,
        commits: Commits::ByCaller { wake: Arc::new(|| {}) },
        on_fatal: Arc::new(|reason| panic!("{reason}")),
        ..LogOptions::default()
    }
}

fn open(machine: &SimulatedDisk) -> Result<Log, LogOpenError> {
    Log::open(machine.disk().within("log").unwrap(), by_caller())
}

fn entry(index: u64) -> Bytes {
    format!("entry {index}").into()
}

fn place(log: &Log) -> storage::log::Place {
    log.try_place(0).unwrap()
}

fn append(log: &Log, first: u64, entries: &[&[u8]]) -> Receipt {
    let (done, receipt) = receipt();
    log.append(place(log), first, entries.iter().map(|entry| Bytes::copy_from_slice(entry)).collect(), done);
    receipt
}

fn append_durably(log: &Log, first: u64, entries: &[&[u8]]) {
    let mut receipt = append(log, first, entries);
    log.commit_queued();
    assert_eq!(receipt.now(), Some(Ok(())));
}
