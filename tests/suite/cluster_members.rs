//! Members leave, or cannot: whoever asks for it is answered, and the cluster goes on.

use std::time::Duration;

use harness::{LONG, eventually, eventually_within};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::cluster::{WEB, all_answer, one_leader, three};

/// A change that no majority takes part in is given up after 15 s.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(20);

/// A node that has nothing to finish ends at once; who told it to must still hear that it does.
#[tokio::test]
async fn an_idle_node_that_is_told_to_leave_answers_before_it_ends() {
    let (_provider, mut cluster) = three().await;
    let leader = cluster.leader().await;
    let number = (leader + 1) % 3;
    let path = format!("/admin/v1/members/{}/drain", cluster[number].name);
    for asked in [number, leader] {
        let operator = cluster.operator(asked).await;
        let said = operator.post(&path, &Value::Null).await;
        assert_eq!(said["draining"], true, "{said}");
        let status = cluster.gone(number).await;
        assert!(status.success(), "{status}\n{}", cluster[number].printed());
        cluster.start_ready(number).await;
    }
    all_answer(&cluster, &[0, 1, 2], WEB, 200).await;
}

/// The leader cannot know at once that it is alone. Who asks for a change is told why there is none, in time, and what was
/// given up holds up nothing later.
#[tokio::test]
async fn a_change_without_a_majority_is_given_up_and_made_once_there_is_one() {
    let (_provider, mut cluster) = three().await;
    let leader = cluster.leader().await;
    let (gone, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let operator = cluster.operator(leader).await;
    let name = cluster[gone].name.clone();
    let drain = format!("/admin/v1/members/{name}/drain");

    cluster.pause(gone);
    cluster.pause(other);
    let asked_at = Instant::now();
    let refused = operator.try_post(&drain, &Value::Null).await.unwrap_err();
    assert!(asked_at.elapsed() < GIVEN_UP_WITHIN, "{:?}: {refused:?}", asked_at.elapsed());
    assert_eq!((refused.status, refused.code.as_str()), (409, "members_stay"), "{refused:?}");
    assert!(refused.message.contains("majority"), "{refused:?}");

    cluster.resume(gone);
    cluster.resume(other);
    all_answer(&cluster, &[0, 1, 2], WEB, 200).await;
    one_leader(&cluster, &[0, 1, 2]).await;
    let drained = async || operator.try_post(&drain, &Value::Null).await.is_ok();
    eventually_within(LONG, "it is told to leave", drained).await;
    assert!(cluster.gone(gone).await.success());
    operator.post(&format!("/admin/v1/members/{name}/remove"), &Value::Null).await;
    eventually("two are left", async || operator.members().await.len() == 2).await;
}

/// A leader whose followers are gone goes on leading, for all it knows. What it took now would be done later, when whoever
/// asked has been told that nobody knows.
#[tokio::test]
async fn a_leader_that_nobody_answers_takes_no_change() {
    let (_provider, cluster) = three().await;
    let leader = cluster.leader().await;
    let operator = cluster.operator(leader).await;
    cluster.pause((leader + 1) % 3);
    cluster.pause((leader + 2) % 3);
    eventually_within(LONG, "nobody has answered for long", async || {
        let status = cluster[leader].status().await.unwrap_or_default();
        status["cluster"]["fresh_millis"].as_u64() > Some(3_500)
    })
    .await;

    let refused = operator.try_post("/admin/v1/keys", &json!({ "name": "lost" })).await.unwrap_err();

    assert_eq!((refused.status, refused.code.as_str()), (503, "cluster_unavailable"), "{refused:?}");
    cluster.resume((leader + 1) % 3);
    cluster.resume((leader + 2) % 3);
    all_answer(&cluster, &[0, 1, 2], WEB, 200).await;
    let anyone = cluster.operator(leader).await;
    anyone.post("/admin/v1/keys", &json!({ "name": "made" })).await;
    let names = anyone.key_names().await;
    assert!(names.contains("made") && !names.contains("lost"), "{names:?}");
}

/// It hears nothing from its cluster any more, and says why.
#[tokio::test]
async fn a_living_node_that_is_removed_says_so() {
    let (_provider, cluster) = three().await;
    let leader = cluster.leader().await;
    let (removed, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let name = cluster[removed].name.clone();

    cluster.operator(other).await.post(&format!("/admin/v1/members/{name}/remove"), &Value::Null).await;

    cluster[removed].says(&["removed from its cluster"]).await;
    assert!(!cluster[removed].is_ready().await);
    all_answer(&cluster, &[leader, other], WEB, 200).await;
}
