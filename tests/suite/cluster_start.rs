//! How nodes come together, and what is refused: one cluster is founded, once, by all its seeds; who does not belong
//! says why, and what to do.

#![expect(clippy::unwrap_used, reason = "helpers end the test where something failed")]

use harness::{FakeProvider, Finished, LONG, TestCluster, binary, copy_folder, eventually, eventually_within, run};
use serde_json::Value;

use crate::cluster::{WEB, all_answer, asked, builder, three};

async fn prepared(nodes: usize) -> (FakeProvider, TestCluster) {
    let provider = FakeProvider::start(binary!()).await;
    let cluster = builder(&provider).nodes(nodes).prepare().await;
    (provider, cluster)
}

/// Each of these nodes serves, and all in the same cluster.
async fn are_one(cluster: &TestCluster, numbers: &[usize]) {
    for number in numbers {
        cluster.ready(*number).await;
    }
    let id = cluster[numbers[0]].cluster_id().await;
    assert!(id.is_some());
    for number in numbers {
        assert_eq!(cluster[*number].cluster_id().await, id, "a second cluster at edge-{number}");
        assert_eq!(asked(&cluster[*number], WEB).await, 200);
    }
}

async fn belong_to_none(cluster: &TestCluster, numbers: &[usize]) {
    for number in numbers {
        assert_eq!(cluster[*number].cluster_id().await, None, "edge-{number} has founded");
        assert!(!cluster[*number].is_ready().await);
    }
}

#[tokio::test]
async fn a_node_with_another_secret_is_not_let_in_and_says_so() {
    let (_provider, mut cluster) = three().await;
    let made = run(binary!(), &["cluster", "new-secret"], &[]).await;
    let fourth = cluster.add();
    let own = cluster.secret().to_owned();
    cluster.edit_file(fourth, |text| text.replace(&own, made.stdout.trim()));

    cluster.start(fourth);

    cluster[fourth].says(&["secret"]).await;
    assert_eq!(cluster[fourth].cluster_id().await, None);
    assert_eq!(cluster.operator(0).await.members().await.len(), 3);
    assert!(cluster[0].metrics().await.count("lea_peer_garbage_total", &[]) > 0.0, "it was heard and not believed");
    all_answer(&cluster, &[0, 1, 2], WEB, 200).await;
}

/// A node that remembers one cluster and is pointed at another joins neither by mistake.
#[tokio::test]
async fn a_node_of_another_cluster_is_not_let_in_and_says_what_to_do() {
    let (_provider, mut cluster) = three().await;
    let alone = cluster.add();
    cluster.write_found_by(alone, "seeds: {}");
    cluster.start_ready(alone).await;
    let own = cluster[alone].cluster_id().await.unwrap();
    assert_ne!(Some(&own), cluster[0].cluster_id().await.as_ref(), "alone, it has a cluster of its own");
    cluster.stop(alone).await;

    let join = format!("join: [\"{}\", \"{}\"]", cluster[0].peer_address(), cluster[1].peer_address());
    cluster.write_found_by(alone, &join);
    cluster.start(alone);

    cluster[alone].says(&[&own, "empty data directory"]).await;
    assert!(!cluster[alone].is_ready().await);
    assert_ne!(asked(&cluster[alone], WEB).await, 200);
    assert_eq!(cluster.operator(0).await.members().await.len(), 3);

    cluster.stop(alone).await;
    cluster.wipe(alone);
    cluster.start(alone);
    are_one(&cluster, &[0, 1, 2, alone]).await;
}

#[tokio::test]
async fn a_copied_data_directory_is_refused_with_advice() {
    let (_provider, mut cluster) = three().await;
    let copy = cluster.add();
    cluster.stop(2).await;
    copy_folder(&cluster[2].data_dir(), &cluster[copy].data_dir());

    let refused = cluster.run_beside(copy, &[]).await;

    assert_eq!(refused.status.code(), Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("--adopt-data-dir") && refused.stderr.contains("copy"), "{}", refused.stderr);
    cluster.start_ready(2).await;
    assert_eq!(asked(&cluster[2], WEB).await, 200, "the original is not harmed");
}

/// Of two processes that are one node the later lives. The earlier ends as soon as it hears of it, and before it could
/// answer anyone by what it knew.
#[tokio::test]
async fn an_adopted_data_directory_ends_the_process_it_was_copied_from() {
    let (_provider, mut cluster) = three().await;
    let adopted = cluster.add();
    let node = cluster[2].status().await.unwrap()["cluster"]["node"].clone();
    let incarnation = cluster[2].status().await.unwrap()["cluster"]["incarnation"].as_u64();
    cluster.pause(2);
    copy_folder(&cluster[2].data_dir(), &cluster[adopted].data_dir());

    cluster.start_with(adopted, &["--adopt-data-dir"]);
    cluster.ready(adopted).await;
    let status = cluster[adopted].status().await.unwrap();
    assert_eq!(status["cluster"]["node"], node, "the same node");
    assert!(status["cluster"]["incarnation"].as_u64() > incarnation, "in another life: {status}");
    cluster.resume(2);

    let status = cluster.gone(2).await;
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(6), "it aborts: {status}");
    assert!(cluster[2].printed().contains("started elsewhere"), "{}", cluster[2].printed());
    all_answer(&cluster, &[0, 1, adopted], WEB, 200).await;
    assert!(cluster[adopted].is_running() && cluster[adopted].is_ready().await);
}

#[tokio::test]
async fn a_second_process_on_one_data_directory_is_refused_naming_the_first() {
    let (_provider, mut cluster) = three().await;
    let second = cluster.add();
    let (own, taken) = (cluster[second].data_dir(), cluster[0].data_dir());
    let replaced = |text: String| text.replace(&own.display().to_string(), &taken.display().to_string());
    cluster.edit_file(second, replaced);

    let refused = cluster.run_beside(second, &[]).await;

    let first = format!("in use by process {}", cluster[0].process().id());
    assert_eq!(refused.status.code(), Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains(&first), "{}", refused.stderr);
    assert_eq!(asked(&cluster[0], WEB).await, 200);
}

/// The seeds are a map: in which order they are written does not matter.
#[tokio::test]
async fn seeds_in_another_order_are_the_same_seeds() {
    let (_provider, mut cluster) = prepared(3).await;
    for (number, order) in [(0, [2, 0, 1]), (1, [1, 2, 0])] {
        cluster.write_found_by(number, &cluster.seeds_of(&order));
    }

    for number in [0, 1, 2] {
        cluster.start(number);
    }

    are_one(&cluster, &[0, 1, 2]).await;
}

/// Two lists could found two clusters. Nobody founds, and whoever waits says what differs.
#[tokio::test]
async fn a_seed_missing_on_one_node_founds_nothing_until_it_is_added() {
    let (_provider, mut cluster) = prepared(3).await;
    cluster.write_found_by(2, &cluster.seeds_of(&[1, 2]));
    for number in [0, 1, 2] {
        cluster.start(number);
    }

    cluster[0].says(&["edge-2", "lists of seeds differ", "edge-0"]).await;
    cluster[1].says(&["edge-0"]).await;
    cluster[2].says(&["edge-1", "has not initialised"]).await;
    belong_to_none(&cluster, &[0, 1, 2]).await;

    cluster.stop(2).await;
    cluster.write_found_by(2, &cluster.seeds_of(&[0, 1, 2]));
    cluster.start(2);
    are_one(&cluster, &[0, 1, 2]).await;
}

/// Whoever is up waits for whoever is not: a part of the seeds is no cluster, and two parts are not two.
#[tokio::test]
async fn some_of_the_seeds_wait_for_the_rest() {
    let (_provider, mut cluster) = prepared(3).await;
    cluster.start(1);
    cluster.start(2);
    for number in [1, 2] {
        cluster[number].says(&["edge-0", "first of the seeds"]).await;
    }
    belong_to_none(&cluster, &[1, 2]).await;

    cluster.kill(2).await;
    cluster.start(0);
    cluster[0].says(&["edge-2", "does not answer"]).await;
    belong_to_none(&cluster, &[0, 1]).await;

    cluster.start(2);
    are_one(&cluster, &[0, 1, 2]).await;
}

/// The disk of `number` is lost after the cluster was founded. It comes back as a new node of the same cluster.
async fn loses_its_disk(number: usize) {
    let (_provider, mut cluster) = three().await;
    let (id, node) =
        (cluster[0].cluster_id().await, cluster[number].status().await.unwrap()["cluster"]["node"].clone());
    let elsewhere = (number + 1) % 3;
    let operator = cluster.operator(elsewhere).await;
    let key = operator.create_key("before").await;

    cluster.kill(number).await;
    cluster.wipe(number);
    cluster.start_ready(number).await;

    let status = cluster[number].status().await.unwrap();
    assert_eq!(status["cluster"]["cluster"].as_str(), id.as_deref(), "the same cluster");
    assert_ne!(status["cluster"]["node"], node, "another node");
    assert_eq!(asked(&cluster[number], &key).await, 200);
    let old = node.as_str().unwrap();
    let members = operator.members().await;
    assert!(members.len() == 4 && members.iter().any(|member| member["node"] == old), "{members:?}");

    eventually_within(LONG, "the old one is not heard of", async || {
        operator.members().await.iter().any(|member| member["node"] == old && member["alive"] == false)
    })
    .await;
    operator.post(&format!("/admin/v1/members/{old}/remove"), &Value::Null).await;
    eventually("the old one is gone", async || {
        let members = operator.members().await;
        members.len() == 3 && members.iter().all(|member| member["node"] != old)
    })
    .await;
    all_answer(&cluster, &[0, 1, 2], &key, 200).await;
}

#[tokio::test]
async fn a_founder_that_lost_its_disk_joins_what_it_founded() {
    loses_its_disk(0).await;
}

#[tokio::test]
async fn a_node_that_lost_its_disk_joins_as_a_new_one_and_the_old_one_is_removed() {
    loses_its_disk(2).await;
}

async fn forget_promise(cluster: &TestCluster, number: usize) -> Finished {
    let config = cluster[number].config_path().display().to_string();
    run(binary!(), &["cluster", "forget-promise", "--config", &config], &[]).await
}

/// The way to begin anew is no way out of a cluster that exists, nor one for a node that runs.
#[tokio::test]
async fn a_promise_stays_with_a_node_that_runs_or_is_a_member() {
    let (_provider, mut cluster) = three().await;

    let running = forget_promise(&cluster, 1).await;
    cluster.stop(1).await;
    let member = forget_promise(&cluster, 1).await;

    assert!(!running.status.success() && running.stderr.contains("in use"), "{}", running.stderr);
    assert!(!member.status.success() && member.stderr.contains("is a member of cluster"), "{}", member.stderr);
}

/// Whoever was promised lost its disk before there was a cluster, and nobody else may found one. The command frees those
/// that promised, and only once nobody answers for whom they promised.
#[tokio::test]
async fn a_promise_to_a_founder_that_is_lost_is_taken_back_and_the_next_one_founds() {
    let (_provider, mut cluster) = prepared(3).await;
    let all = [0, 1, 2];
    // One that does not promise, so that the other's promise is all there is.
    cluster.write_found_by(2, &cluster.seeds_of(&[1, 2]));
    for number in all {
        cluster.start(number);
    }
    cluster[0].says(&["edge-2", "lists of seeds differ"]).await;
    cluster.stop(1).await;

    let early = forget_promise(&cluster, 1).await;
    assert!(!early.status.success() && early.stderr.contains("edge-0"), "{}", early.stderr);
    assert!(early.stderr.contains("answers; stop that node first"), "{}", early.stderr);

    cluster.kill(0).await;
    cluster.wipe(0);
    cluster.stop(2).await;
    cluster.write_found_by(2, &cluster.seeds_of(&all));
    for number in all {
        cluster.start(number);
    }
    cluster[0].says(&["edge-1", "has promised node", "forget-promise"]).await;
    belong_to_none(&cluster, &all).await;
    cluster.stop(1).await;
    let freed = forget_promise(&cluster, 1).await;
    assert!(freed.status.success() && freed.stdout.contains("start the node again"), "{}", freed.stderr);
    cluster.start(1);

    are_one(&cluster, &all).await;
}

/// The leader counts when promises run out by its own `stale_max`. A node with another is granted nothing, and says what
/// to mend.
#[tokio::test]
async fn a_node_with_another_stale_max_does_not_serve_and_says_so() {
    let (_provider, mut cluster) = three().await;
    let leader = cluster.leader().await;
    let (other, third) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.stop(other).await;
    cluster.edit_file(other, |text| text.replace("stale_max: 3s", "stale_max: 4s"));

    cluster.start(other);

    eventually_within(LONG, "it says what differs", async || {
        let printed = cluster[other].printed();
        printed.lines().any(|line| line.contains("not granted") && line.contains("cluster.stale_max"))
    })
    .await;
    let printed = cluster[other].printed();
    assert!(printed.contains("4s") && printed.contains("3s"), "{printed}");
    assert!(!cluster[other].is_ready().await);
    assert_ne!(asked(&cluster[other], WEB).await, 200);
    all_answer(&cluster, &[leader, third], WEB, 200).await;

    cluster.stop(other).await;
    cluster.edit_file(other, |text| text.replace("stale_max: 4s", "stale_max: 3s"));
    cluster.start_ready(other).await;
    assert_eq!(asked(&cluster[other], WEB).await, 200);
}
