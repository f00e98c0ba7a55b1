//! Disks that fill up, fail and dawdle under one node of a cluster.
//!
//! The faults are real: a small file system, and system calls that `strace` makes fail or wait. Where the machine does
//! not let tests do that, they say so.

use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{
    FakeProvider, LONG, Process, TestCluster, binary, eventually, eventually_some_within, eventually_within, skipped,
};

use crate::cluster::{WEB, all_answer, all_have_keys, asked, builder, three};

/// Twice what a node keeps free for votes and snapshots.
const ROOM: usize = 160 << 20;

/// A file system of its own. Dropped, it is gone.
struct Mounted(PathBuf);

impl Mounted {
    fn at(point: &Path) -> Result<Self, String> {
        std::fs::create_dir_all(point).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={ROOM},mode=700"), "tmpfs"]).arg(point);
        match mount.output() {
            Ok(output) if output.status.success() => Ok(Self(point.to_owned())),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Err(format!("mount: {error}")),
        }
    }

    /// Takes all the room there is.
    fn fill(&self) -> PathBuf {
        let filler = self.0.join("filler");
        std::fs::write(&filler, vec![0; ROOM]).unwrap_err();
        filler
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: a test that failed leaves a node behind that still has files open for a moment.
        drop(Command::new("umount").arg("--lazy").arg(&self.0).status());
    }
}

/// Makes system calls of a running node fail or wait, until it is dropped.
struct Injected(Process);

impl Injected {
    async fn into(cluster: &TestCluster, number: usize, what: &str) -> Self {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-o", "/dev/null", "-e", "trace=fdatasync,fsync"]);
        strace.args(["-e", &format!("inject=fdatasync,fsync:{what}")]);
        strace.args(["-p", &cluster[number].process().id().to_string()]);
        let tracer = Process::spawn(strace);
        eventually("strace is attached", async || tracer.printed().contains("attached")).await;
        Self(tracer)
    }

    /// Lets the node go on untraced.
    async fn end(self) {
        self.0.interrupt();
        self.0.wait().await;
    }
}

/// Whether this machine lets one process trace another; says so for `test` where not.
async fn can_inject(test: &str) -> bool {
    let mut tried = Command::new("strace");
    tried.args(["-f", "-o", "/dev/null", "-e", "inject=fdatasync:error=EIO", "true"]);
    let why = match tried.output() {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => format!("strace: {error}"),
    };
    skipped(test, &why);
    false
}

/// Three nodes, each with a small disk of its own; `None` where that cannot be had, and `test` was named as skipped.
async fn three_on_small_disks(test: &str) -> Option<(FakeProvider, TestCluster, Vec<Mounted>)> {
    let provider = FakeProvider::start(binary!()).await;
    let mut cluster = builder(&provider).prepare().await;
    let mut disks = Vec::new();
    for number in [0, 1, 2] {
        match Mounted::at(&cluster[number].data_dir()) {
            Ok(disk) => disks.push(disk),
            Err(why) => {
                skipped(test, &why);
                return None;
            }
        }
    }
    for number in [0, 1, 2] {
        cluster.start(number);
    }
    for number in [0, 1, 2] {
        cluster.ready(number).await;
    }
    Some((provider, cluster, disks))
}

/// No room is no reason to end: what could be lost is refused, and what needs no disk goes on.
#[tokio::test]
async fn a_full_disk_refuses_changes_and_serves_requests() {
    let started = three_on_small_disks("cluster_disk::a_full_disk_refuses_changes_and_serves_requests").await;
    let Some((_provider, mut cluster, disks)) = started else { return };
    let leader = cluster.leader().await;
    let operator = cluster.operator((leader + 1) % 3).await;
    operator.create_key("before").await;

    let filler = disks[leader].fill();

    // On a busy machine the first answer of the leader may be late, and then all that is known is that nothing is.
    let refused = async || {
        let refused = operator.try_create_key("too-much").await.unwrap_err();
        assert!([503, 504].contains(&refused.status), "{refused:?}");
        Some(refused).filter(|refused| refused.status == 503)
    };
    let refused = eventually_some_within(LONG, "a change is refused", refused).await;
    assert_eq!(refused.code, "cluster_unavailable", "{refused:?}");
    assert!(refused.message.contains("disk is nearly full"), "{refused:?}");
    all_answer(&cluster, &[0, 1, 2], WEB, 200).await;
    for number in [0, 1, 2] {
        assert!(cluster[number].is_running() && cluster[number].is_ready().await);
    }

    std::fs::remove_file(filler).unwrap();
    operator.create_key("after").await;
    all_have_keys(&cluster, &[0, 1, 2], &["before".to_owned(), "after".to_owned()]).await;
    // The nodes end before their disks go.
    drop(cluster);
}

/// A follower without room for its log can follow no longer. It ends and says why, rather than seem a member; it does not
/// start before there is room; and nobody else is the worse for it.
#[tokio::test]
async fn a_follower_on_a_full_disk_ends_and_starts_again_when_there_is_room() {
    let test = "cluster_disk::a_follower_on_a_full_disk_ends_and_starts_again_when_there_is_room";
    let Some((_provider, mut cluster, disks)) = three_on_small_disks(test).await else { return };
    let leader = cluster.leader().await;
    let full = (leader + 1) % 3;
    let operator = cluster.operator(leader).await;
    let mut names = vec!["before".to_owned()];
    operator.create_key("before").await;

    let filler = disks[full].fill();

    // More than fits into what was left of the last block.
    for number in 0..40 {
        names.push(format!("meanwhile-{number}"));
        operator.create_key(&format!("meanwhile-{number}")).await;
    }
    let status = cluster.gone(full).await;
    assert_eq!(status.code(), Some(1), "{status}");
    assert!(cluster[full].printed().contains("no room on the disk"), "{}", cluster[full].printed());
    all_answer(&cluster, &[leader, (leader + 2) % 3], WEB, 200).await;
    let refused = cluster.run_beside(full, &[]).await;
    assert!(!refused.status.success() && refused.stderr.contains("make room"), "{}", refused.stderr);

    std::fs::remove_file(filler).unwrap();
    cluster.start_ready(full).await;
    all_have_keys(&cluster, &[0, 1, 2], &names).await;
    all_answer(&cluster, &[0, 1, 2], WEB, 200).await;
    drop(cluster);
}

/// What may not be on the disk is not acknowledged: the process ends at once, and starts again from what is there.
#[tokio::test]
async fn a_failing_fsync_ends_the_process_and_it_starts_again_clean() {
    if !can_inject("cluster_disk::a_failing_fsync_ends_the_process_and_it_starts_again_clean").await {
        return;
    }
    let (_provider, mut cluster) = three().await;
    let leader = cluster.leader().await;
    let operator = cluster.operator((leader + 1) % 3).await;
    operator.create_key("before").await;

    let fault = Injected::into(&cluster, leader, "error=EIO").await;
    let mut names = vec!["before".to_owned()];
    eventually_within(LONG, "changes are made by the others", async || {
        let name = format!("while-broken-{}", names.len());
        let made = operator.try_create_key(&name).await.is_ok();
        if made {
            names.push(name);
        }
        made
    })
    .await;

    let status = cluster.gone(leader).await;
    drop(fault);
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(6), "it aborts: {status}");
    assert!(cluster[leader].printed().contains("could not be made durable"), "{}", cluster[leader].printed());
    cluster.start_ready(leader).await;
    all_have_keys(&cluster, &[0, 1, 2], &names).await;
    all_answer(&cluster, &[0, 1, 2], WEB, 200).await;
}

/// A disk that takes its time makes changes slow, not requests, and loses nothing.
#[tokio::test]
async fn a_slow_disk_slows_changes_and_not_requests() {
    if !can_inject("cluster_disk::a_slow_disk_slows_changes_and_not_requests").await {
        return;
    }
    let (_provider, cluster) = three().await;
    let leader = cluster.leader().await;
    let operator = cluster.operator(leader).await;
    let fault = Injected::into(&cluster, leader, "delay_enter=200000").await;

    let mut names = Vec::new();
    for number in 0..5 {
        let name = format!("slow-{number}");
        if operator.try_create_key(&name).await.is_ok() {
            names.push(name);
        }
        assert_eq!(asked(&cluster[leader], WEB).await, 200);
    }
    assert!(!names.is_empty(), "slow is not stopped");
    fault.end().await;

    all_have_keys(&cluster, &[0, 1, 2], &names).await;
    all_answer(&cluster, &[0, 1, 2], WEB, 200).await;
}
