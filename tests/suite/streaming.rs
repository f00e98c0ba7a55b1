//! P-STREAM: a client never gets duplicated text and never a silent truncation: a stream ends with its finish reason or a typed error.

use harness::{Event, Events as _, FakeProvider, TestNode, binary};
use serde_json::{Value, json};

const CONFIG: &str = r#"
providers:
  openai: { base_url: "{provider}/v1", api_key: key-openai, timeouts: { idle: 200ms } }
  anthropic: { base_url: "{provider}/v1", api_key: key-anthropic, timeouts: { idle: 200ms } }
  patient: { kind: openai, base_url: "{provider}/v1", api_key: key-patient }
  spare: { kind: openai, base_url: "{provider}/v1", api_key: key-spare }
routes:
  fallback: { targets: [openai/first, spare/second] }
  cancels: { targets: [patient/m] }
  drains: { targets: [patient/m], disconnect: drain }
auth: none
"#;

const MODELS: [&str; 2] = ["openai/m", "anthropic/m"];
const QUESTION: &str = "repeat after me: one two three four";
const ANSWER: &str = "one two three four";
/// As the simulator counts: `three` is two.
const ANSWER_TOKENS: u64 = 5;

async fn gateway() -> (FakeProvider, TestNode) {
    let provider = FakeProvider::start(binary!()).await;
    let node = TestNode::builder(binary!()).provider("provider", &provider).config(CONFIG).start().await;
    (provider, node)
}

/// The streams of one question in both dialects, with the fault met by each.
async fn streams_with(provider: &FakeProvider, node: &TestNode, model: &str, fault: &Value) -> [Vec<Event>; 2] {
    provider.script(json!([fault])).await;
    let chat = node.client().chat_stream(model, QUESTION).await.rest().await;
    provider.script(json!([fault])).await;
    let message = node.client().message_stream(model, QUESTION).await.rest().await;
    [chat, message]
}

/// The stream began, told of its failure, and did not look finished.
fn assert_cut_with_an_error(events: &[Event], case: &str) {
    assert!(!events.is_empty(), "{case}: nothing at all");
    let last = &events[events.len() - 1];
    assert!(last.is_error(), "{case}: the last event is no error: {last:?}");
    assert!(ANSWER.starts_with(events.text().as_str()), "{case}: said `{}`", events.text());
    assert_eq!(events.finish_reason(), None, "{case}");
    assert!(!events.iter().any(Event::is_done), "{case}");
    assert!(!events.iter().any(|event| event.name.as_deref() == Some("message_stop")), "{case}");
    let error = last.json();
    let kind = error["error"]["type"].as_str().unwrap_or_default();
    assert!(!kind.is_empty() && error["error"]["message"].is_string(), "{case}: {error}");
}

#[tokio::test]
async fn text_is_at_the_client_while_the_provider_still_thinks() {
    let (provider, node) = gateway().await;
    let held = json!([{ "hold": { "after_tokens": 1 } }]);

    provider.script(held.clone()).await;
    let mut stream = node.client().chat_stream("patient/m", QUESTION).await;
    assert_eq!(stream.next_text().await, "one");
    provider.release().await;
    assert_eq!(stream.rest().await.text(), " two three four");

    provider.script(held).await;
    let mut translated = node.client().message_stream("patient/m", QUESTION).await;
    assert_eq!(translated.next_text().await, "one");
    provider.release().await;
    assert_eq!(translated.rest().await.text(), " two three four");
}

#[tokio::test]
async fn a_stream_says_that_nobody_may_buffer_it() {
    let (_provider, node) = gateway().await;

    let stream = node.client().chat_stream("openai/m", QUESTION).await;

    assert!(stream.header("content-type").unwrap().starts_with("text/event-stream"));
    assert_eq!((stream.header("cache-control"), stream.header("x-accel-buffering")), (Some("no-cache"), Some("no")));
    assert_eq!(stream.header("x-lea-cost-usd"), None, "known at the end only");
}

#[tokio::test]
async fn usage_is_streamed_only_when_asked() {
    let (_provider, node) = gateway().await;
    for model in MODELS {
        let body = json!({ "model": model, "stream": true, "messages": [{ "role": "user", "content": QUESTION }] });

        let without = node.client().stream("/v1/chat/completions", &body).await.rest().await;
        let with = node.client().chat_stream(model, QUESTION).await.rest().await;

        assert!(without.iter().all(|event| !event.json()["usage"].is_object()), "{model}: {without:?}");
        assert!(without.last().unwrap().is_done());
        let usage: Vec<_> = with.iter().map(Event::json).filter(|event| event["usage"].is_object()).collect();
        assert_eq!(usage.len(), 1, "{model}");
        assert_eq!(usage[0]["choices"], json!([]), "{model}");
        assert_eq!(usage[0]["usage"]["completion_tokens"], ANSWER_TOKENS, "{model}");
        assert_eq!(with[with.len() - 2].json(), usage[0], "the last before [DONE]");
    }
}

#[tokio::test]
async fn a_stream_that_is_cut_after_content_ends_with_a_typed_error() {
    for how in ["reset", "abrupt", "end", "half_event"] {
        let (provider, node) = gateway().await;
        for model in MODELS {
            let fault = json!({ "cut": { "at": { "after_tokens": 2 }, "how": how } });
            for events in streams_with(&provider, &node, model, &fault).await {
                assert_cut_with_an_error(&events, &format!("{how} from {model}"));
                assert_eq!(events.text(), "one two", "{how} from {model}: what came is given");
            }
        }
        assert_eq!(provider.requests().await.len(), 4, "{how}: nothing is asked again after content");
    }
}

#[tokio::test]
async fn an_error_event_after_content_reaches_the_client_as_its_own() {
    let (provider, node) = gateway().await;
    for model in MODELS {
        for events in streams_with(&provider, &node, model, &json!({ "error_event": { "after_tokens": 2 } })).await {
            assert_cut_with_an_error(&events, model);
            assert_eq!(events.text(), "one two");
        }
    }
}

#[tokio::test]
async fn a_provider_that_falls_silent_is_given_up_with_a_typed_error() {
    let (provider, node) = gateway().await;
    for model in MODELS {
        for events in streams_with(&provider, &node, model, &json!({ "hang": { "after_tokens": 2 } })).await {
            assert_cut_with_an_error(&events, model);
            assert!(events.last().unwrap().data.contains("silent"), "{events:?}");
        }
    }
    provider.settled().await;
    assert!(provider.requests().await.iter().all(|seen| seen.hung_up), "the silent provider is let go");
}

#[tokio::test]
async fn a_failure_before_content_is_survived_and_the_answer_is_whole() {
    let faults = [
        json!({ "status": 500 }),
        json!({ "cut": { "at": "before_head", "how": "reset" } }),
        json!({ "cut": { "at": "after_head", "how": "reset" } }),
        json!({ "cut": { "at": "after_head", "how": "end" } }),
        json!({ "error_event": "after_head" }),
        json!({ "cut": { "at": { "after_tokens": 0 }, "how": "end" } }),
        json!({ "hang": "after_head" }),
    ];
    for fault in faults {
        let (provider, node) = gateway().await;
        let [chat, message] = streams_with(&provider, &node, "fallback", &fault).await;
        for events in [&chat, &message] {
            assert_eq!(events.text(), ANSWER, "{fault}: once and whole");
            assert!(!events.iter().any(Event::is_error), "{fault}");
        }
        assert_eq!(chat.finish_reason().as_deref(), Some("stop"), "{fault}");
        assert_eq!(message.finish_reason().as_deref(), Some("end_turn"), "{fault}");
        let starts = message.iter().filter(|event| event.name.as_deref() == Some("message_start")).count();
        assert_eq!(starts, 1, "{fault}");
        let keys: Vec<_> = provider.requests().await.into_iter().map(|seen| seen.key).collect();
        assert_eq!(keys, ["key-openai", "key-spare", "key-openai", "key-spare"], "{fault}");
    }
}

#[tokio::test]
async fn a_failure_after_content_is_not_hidden_by_another_provider() {
    let (provider, node) = gateway().await;
    provider.script(json!([{ "cut": { "at": { "after_tokens": 1 }, "how": "abrupt" } }])).await;

    let events = node.client().chat_stream("fallback", QUESTION).await.rest().await;

    assert_cut_with_an_error(&events, "abrupt");
    assert_eq!(provider.requests().await.len(), 1);
}

#[tokio::test]
async fn a_failure_before_content_keeps_its_status() {
    let (provider, node) = gateway().await;
    provider.script(json!([{ "status": 500, "times": "always" }])).await;

    let stream = node.client().chat_stream("fallback", QUESTION).await;

    assert_eq!(stream.status, 502);
    assert_eq!(stream.header("content-type"), Some("application/json"));
}

#[tokio::test]
async fn a_hang_up_stops_the_provider() {
    let (provider, node) = gateway().await;
    provider.script(json!([{ "hold": { "after_tokens": 1 } }])).await;
    let mut stream = node.client().chat_stream("cancels", QUESTION).await;
    assert_eq!(stream.next_text().await, "one");

    drop(stream);

    let seen = provider.saw_hang_up().await;
    assert_eq!(seen.output_tokens, 1);
    assert_eq!(provider.settled().await.rows[0].sum.output_tokens, 1);
}

#[tokio::test]
async fn a_hang_up_before_any_content_stops_the_provider() {
    let (provider, node) = gateway().await;
    provider.script(json!([{ "hang": "before_head" }])).await;
    let client = node.client();
    let asking = client.chat_stream("cancels", QUESTION);
    tokio::select! {
        _stream = asking => panic!("there is nothing to answer"),
        seen = provider.arrived(1) => assert_eq!(seen.len(), 1),
    }

    assert_eq!(provider.saw_hang_up().await.output_tokens, 0);
}

#[tokio::test]
async fn a_drained_route_reads_the_provider_to_its_end() {
    let (provider, node) = gateway().await;
    provider.script(json!([{ "hold": { "after_tokens": 1 } }])).await;
    let mut stream = node.client().chat_stream("drains", QUESTION).await;
    assert_eq!(stream.next_text().await, "one");

    drop(stream);
    harness::eventually("the hang-up is noticed", async || node.printed().contains("client_closed")).await;
    provider.release().await;

    let bill = provider.settled().await;
    assert!(!bill.rows[0].hung_up, "{bill:?}");
    assert_eq!(bill.total.output_tokens, ANSWER_TOKENS);
}

#[tokio::test]
async fn the_callers_timeout_ends_a_stream_with_a_typed_error() {
    let (provider, node) = gateway().await;
    let client = node.client().with_header("x-lea-timeout", "250ms");
    provider.script(json!([{ "hang": { "after_tokens": 2 } }, { "hang": "before_head" }])).await;

    let begun = client.chat_stream("cancels", QUESTION).await.rest().await;
    let never = client.chat("cancels", QUESTION).await;

    assert_cut_with_an_error(&begun, "after content");
    assert_eq!(begun.last().unwrap().json()["error"]["code"], "timeout");
    assert_eq!((never.status, &never.json()["error"]["code"]), (504, &json!("timeout")));
    provider.settled().await;
    assert!(provider.requests().await.iter().all(|seen| seen.hung_up));
}

#[tokio::test]
async fn a_timeout_that_is_none_is_refused() {
    let (provider, node) = gateway().await;

    let reply = node.client().with_header("x-lea-timeout", "soon").chat("cancels", QUESTION).await;

    assert_eq!((reply.status, &reply.json()["error"]["code"]), (400, &json!("invalid_header")));
    assert!(provider.requests().await.is_empty());
}

#[tokio::test]
async fn a_whole_answer_that_is_cut_is_never_given_as_whole() {
    let (provider, node) = gateway().await;
    for how in ["reset", "abrupt", "end"] {
        provider.script(json!([{ "cut": { "at": "mid_stream", "how": how } }])).await;

        let reply = node.client().chat("openai/m", QUESTION).await;

        assert!(reply.status == 200 && reply.said() == ANSWER || reply.status == 502, "{how}: {}", reply.text());
    }
}

#[tokio::test]
async fn one_byte_chunks_give_the_same_answer() {
    let (provider, node) = gateway().await;
    for model in MODELS {
        for events in streams_with(&provider, &node, model, &json!({ "chunk_bytes": 1 })).await {
            assert_eq!(events.text(), ANSWER, "{model}");
            assert!(!events.iter().any(Event::is_error), "{model}");
        }
    }
}

#[tokio::test]
async fn a_provider_without_usage_still_gives_a_whole_stream() {
    let (provider, node) = gateway().await;
    for model in MODELS {
        for events in streams_with(&provider, &node, model, &json!({ "omit_usage": true })).await {
            assert_eq!(events.text(), ANSWER, "{model}");
            assert!(events.finish_reason().is_some(), "{model}");
        }
    }
}
