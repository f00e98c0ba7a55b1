use super::*;
use crate::supervisor::{RestartPolicy, Tasks};
use flight::{End, Next, Piece};
use llm::chat::{Block, ChatReply, Choice, Finish};
use llm::dialect::Dialect;

const SCOPE: Scope = Scope([1; 16]);
const POLICY: Policy = Policy { fresh_for: Duration::from_mins(1), answer_max: 1 << 20, runs_on: false };

fn config(bytes_max: ByteSize) -> CacheConfig {
    CacheConfig { bytes_max }
}

async fn cache(bytes_max: ByteSize) -> Cache<()> {
    let supervisor = Supervisor::start(RestartPolicy::default(), &Tasks::new()).await.expect("it starts");
    Cache::start(&config(bytes_max), &supervisor).await.expect("it starts")
}

fn answer(text: &str) -> Answer {
    let blocks = vec![Block::Text { text: text.to_owned(), cache_control: None }];
    let choice = Choice { blocks, finish: Some(Finish::Stop), stop_sequence: None };
    let reply = ChatReply { id: "a".into(), model: "m".into(), created: None, choices: vec![choice], usage: None };
    Answer::new(Dialect::OpenAiChat, "p", "m", None, &reply).expect("it can be written")
}

fn store(cache: &Cache<()>, key: Key, text: &str) -> bool {
    cache.store(SCOPE, key, &answer(text), POLICY.fresh_for, cluster::clock::now())
}

fn find(cache: &Cache<()>, key: Key) -> Found<()> {
    cache.find(SCOPE, key, Directives::default(), POLICY, cluster::clock::now())
}

/// Lets time pass, which is paused, until the shard is as wanted.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..10_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("never: {what}");
}

/// A crash may lose answers. It loses no call that is under way, and nobody who waits for one.
#[tokio::test(start_paused = true)]
async fn a_shard_that_panics_restarts_empty_and_costs_no_flight() {
    let cache = cache(ByteSize::mib(1)).await;
    let (stored, flying) = (Key([1; 32]), Key([2; 32]));
    assert!(store(&cache, stored, "hi"));
    let Found::Leads(pilot, mut leader) = find(&cache, flying) else { panic!("nobody asked before") };

    cache.actor.cast(Message::Panic).expect("it is running");
    until("the shard is empty", || cache.entries() == 0).await;

    let Found::Joined(mut joined) = find(&cache, flying) else { panic!("the flight is still known") };
    assert!(pilot.push(Piece::Event { raw: bytes::Bytes::from_static(b"x"), deltas: Arc::from([]) }));
    pilot.land(End::Whole { cost: None });
    for reader in [&mut leader, &mut joined] {
        assert!(matches!(reader.next().await, Next::Piece(_)));
        assert!(matches!(reader.next().await, Next::End(End::Whole { .. })));
    }
    assert!(matches!(find(&cache, stored), Found::Leads(..)), "what was stored is forgotten");
    assert!(store(&cache, stored, "hi again"));
    assert!(matches!(find(&cache, stored), Found::Hit(..)));
}

/// The next incarnation has the size of the last, and is told of a new one as the last would have been.
#[tokio::test(start_paused = true)]
async fn a_shard_that_panics_keeps_its_size() {
    let cache = cache(ByteSize::mib(1)).await;
    let large = "x".repeat(100 << 10);
    cache.resize(&config(ByteSize::kib(64)));
    until("the new size is in force", || !store(&cache, Key([1; 32]), &large)).await;
    assert!(store(&cache, Key([1; 32]), "small"));

    cache.actor.cast(Message::Panic).expect("it is running");
    until("the shard is empty", || cache.entries() == 0).await;

    assert!(!store(&cache, Key([1; 32]), &large), "still of the size it was told last");
    until("the next size is in force", || {
        cache.resize(&config(ByteSize::mib(1)));
        store(&cache, Key([1; 32]), &large)
    })
    .await;
}
