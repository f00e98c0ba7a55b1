//! What an application asks and gets, whichever of the two dialects it and the provider speak.

use harness::{Client, Events as _, FakeProvider, Reply, TestNode, binary, run};
use http::Method;
use serde_json::{Value, json};

const CONFIG: &str = r#"
node: { name: edge-test }
providers:
  openai: { base_url: "{provider}/v1", api_key: upstream-openai }
  anthropic: { base_url: "{provider}/v1", api_key: upstream-anthropic }
  strict: { kind: anthropic, base_url: "{provider}/v1", api_key: upstream-strict, models: [claude-strict], on_unknown_fields: refuse }
routes:
  support: { targets: [openai/gpt-4o-mini] }
  "fast-*": { targets: ["anthropic/*"] }
auth: none
"#;

const MODELS: [&str; 2] = ["openai/gpt-4o-mini", "anthropic/claude-3-5-haiku-latest"];

async fn gateway() -> (FakeProvider, TestNode) {
    let provider = FakeProvider::start(binary!()).await;
    let node = TestNode::builder(binary!()).provider("provider", &provider).config(CONFIG).start().await;
    (provider, node)
}

/// Both shapes of the last request the provider saw.
async fn last_seen(provider: &FakeProvider) -> Value {
    let seen = provider.requests().await;
    seen.last().map(harness::Seen::json).unwrap_or_default()
}

fn openai_tools() -> Value {
    let tool = |name: &str| {
        let parameters = json!({ "type": "object", "properties": { "city": { "type": "string" } } });
        json!({ "type": "function", "function": { "name": name, "description": "d", "parameters": parameters } })
    };
    json!([tool("get_weather"), tool("get_time")])
}

fn anthropic_tools() -> Value {
    let tool = |name: &str| {
        let schema = json!({ "type": "object", "properties": { "city": { "type": "string" } } });
        json!({ "name": name, "description": "d", "input_schema": schema })
    };
    json!([tool("get_weather"), tool("get_time")])
}

const ASKS_TOOLS: &str = "call get_weather and get_time for Zurich";

#[tokio::test]
async fn every_pair_of_dialects_answers_whole() {
    let (_provider, node) = gateway().await;
    for model in MODELS {
        let chat = node.client().chat(model, "repeat after me: the cat sat").await;
        let message = node.client().message(model, "repeat after me: the cat sat").await;

        assert_eq!((chat.status, chat.said()), (200, "the cat sat".to_owned()), "{model}");
        let json = chat.json();
        assert_eq!(
            (&json["object"], &json["choices"][0]["finish_reason"]),
            (&json!("chat.completion"), &json!("stop"))
        );
        assert!(json["created"].is_u64() && json["id"].is_string(), "{json}");
        assert_eq!((message.status, message.said()), (200, "the cat sat".to_owned()), "{model}");
        let json = message.json();
        assert_eq!((&json["type"], &json["stop_reason"]), (&json!("message"), &json!("end_turn")));
        assert_eq!(json["role"], "assistant");
    }
}

#[tokio::test]
async fn every_pair_of_dialects_streams() {
    let (_provider, node) = gateway().await;
    for model in MODELS {
        let chat = node.client().chat_stream(model, "repeat after me: the cat sat").await.rest().await;
        let message = node.client().message_stream(model, "repeat after me: the cat sat").await.rest().await;

        assert_eq!((chat.text().as_str(), chat.finish_reason().as_deref()), ("the cat sat", Some("stop")), "{model}");
        assert!(chat.last().is_some_and(harness::Event::is_done), "{model}");
        let ids: std::collections::BTreeSet<_> = chat
            .iter()
            .filter(|event| !event.is_done() && event.comments.is_empty())
            .map(|event| event.json()["id"].to_string())
            .collect();
        assert_eq!(ids.len(), 1, "one id in all chunks: {ids:?}");
        assert_eq!((message.text().as_str(), message.finish_reason().as_deref()), ("the cat sat", Some("end_turn")));
        let names: Vec<_> = message.iter().filter_map(|event| event.name.as_deref()).collect();
        assert_eq!((names.first(), names.last()), (Some(&"message_start"), Some(&"message_stop")), "{model}");
    }
}

#[tokio::test]
async fn parallel_tool_calls_come_in_the_dialect_asked() {
    let (_provider, node) = gateway().await;
    for model in MODELS {
        let question = json!([{ "role": "user", "content": ASKS_TOOLS }]);
        let chat = json!({ "model": model, "messages": question, "tools": openai_tools(), "max_tokens": 200 });
        let chat = node.client().post("/v1/chat/completions", &chat).await.json();
        let message = json!({ "model": model, "messages": question, "tools": anthropic_tools(), "max_tokens": 200 });
        let message = node.client().post("/v1/messages", &message).await.json();

        assert_eq!(chat["choices"][0]["finish_reason"], "tool_calls", "{model}: {chat}");
        let calls = chat["choices"][0]["message"]["tool_calls"].as_array().unwrap();
        let names: Vec<_> = calls.iter().map(|call| call["function"]["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["get_weather", "get_time"]);
        for call in calls {
            let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
            assert_eq!(arguments, json!({ "city": "Zurich" }));
            assert!(call["id"].is_string());
        }
        assert_eq!(message["stop_reason"], "tool_use", "{model}: {message}");
        let uses: Vec<_> =
            message["content"].as_array().unwrap().iter().filter(|block| block["type"] == "tool_use").collect();
        assert_eq!(uses.len(), 2);
        assert_eq!((&uses[0]["name"], &uses[1]["name"]), (&json!("get_weather"), &json!("get_time")));
        assert_eq!(uses[1]["input"], json!({ "city": "Zurich" }));
    }
}

#[tokio::test]
async fn streamed_tool_calls_add_up_in_the_dialect_asked() {
    let (_provider, node) = gateway().await;
    for model in MODELS {
        let question = json!([{ "role": "user", "content": ASKS_TOOLS }]);
        let chat = json!({ "model": model, "messages": question, "tools": openai_tools(), "stream": true });
        let chat = node.client().stream("/v1/chat/completions", &chat).await.rest().await;
        let message = json!({ "model": model, "messages": question, "tools": anthropic_tools(), "stream": true,
            "max_tokens": 200 });
        let message = node.client().stream("/v1/messages", &message).await.rest().await;

        let mut calls = [(String::new(), String::new()), (String::new(), String::new())];
        for event in &chat {
            for part in event.json()["choices"][0]["delta"]["tool_calls"].as_array().into_iter().flatten() {
                let call = &mut calls[usize::try_from(part["index"].as_u64().unwrap()).unwrap()];
                call.0 += part["function"]["name"].as_str().unwrap_or_default();
                call.1 += part["function"]["arguments"].as_str().unwrap_or_default();
            }
        }
        assert_eq!(chat.finish_reason().as_deref(), Some("tool_calls"), "{model}");
        assert_eq!((calls[0].0.as_str(), calls[1].0.as_str()), ("get_weather", "get_time"));
        for (_name, arguments) in &calls {
            assert_eq!(serde_json::from_str::<Value>(arguments).unwrap(), json!({ "city": "Zurich" }), "{model}");
        }
        let starts: Vec<_> = message.iter().map(harness::Event::json).collect();
        let names: Vec<_> = starts.iter().filter_map(|event| event["content_block"]["name"].as_str()).collect();
        assert_eq!(names, ["get_weather", "get_time"], "{model}");
        let arguments: String = starts.iter().filter_map(|event| event["delta"]["partial_json"].as_str()).collect();
        assert_eq!(arguments.replace(' ', ""), r#"{"city":"Zurich"}{"city":"Zurich"}"#, "{model}");
        assert_eq!(message.finish_reason().as_deref(), Some("tool_use"), "{model}");
    }
}

#[tokio::test]
async fn tool_results_reach_a_provider_of_the_other_dialect() {
    let (provider, node) = gateway().await;
    let call = |id: &str, name: &str| json!({ "id": id, "type": "function", "function": { "name": name, "arguments": "{\"city\":\"Bern\"}" } });
    let chat = json!({ "model": MODELS[1], "tools": openai_tools(), "messages": [
        { "role": "system", "content": "be brief" },
        { "role": "user", "content": "weather and time?" },
        { "role": "assistant", "content": null, "tool_calls": [call("a", "get_weather"), call("b", "get_time")] },
        { "role": "tool", "tool_call_id": "a", "content": "sunny" },
        { "role": "tool", "tool_call_id": "b", "content": "noon" },
    ] });
    assert_eq!(node.client().post("/v1/chat/completions", &chat).await.status, 200);
    let seen = last_seen(&provider).await;
    assert!(seen["system"].to_string().contains("be brief"), "{seen}");
    let messages = seen["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 3, "results of one turn are one message: {seen}");
    assert_eq!(messages[1]["content"][0]["input"], json!({ "city": "Bern" }));
    let results = messages[2]["content"].as_array().unwrap();
    assert_eq!((&results[0]["type"], &results[0]["tool_use_id"]), (&json!("tool_result"), &json!("a")));
    assert!(results[1].to_string().contains("noon"), "{seen}");

    let message = json!({ "model": MODELS[0], "max_tokens": 100, "tools": anthropic_tools(), "messages": [
        { "role": "user", "content": "weather?" },
        { "role": "assistant", "content": [{ "type": "tool_use", "id": "c", "name": "get_weather", "input": { "city": "Bern" } }] },
        { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "c", "content": "rain" }, { "type": "text", "text": "so?" }] },
    ] });
    assert_eq!(node.client().post("/v1/messages", &message).await.status, 200);
    let seen = last_seen(&provider).await;
    let messages = seen["messages"].as_array().unwrap();
    let arguments = messages[1]["tool_calls"][0]["function"]["arguments"].as_str().unwrap();
    assert_eq!(serde_json::from_str::<Value>(arguments).unwrap(), json!({ "city": "Bern" }));
    assert_eq!((&messages[2]["role"], &messages[2]["tool_call_id"]), (&json!("tool"), &json!("c")), "{seen}");
    assert_eq!(messages[3]["role"], "user");
}

#[tokio::test]
async fn images_reach_a_provider_of_the_other_dialect() {
    let (provider, node) = gateway().await;
    let data = "iVBORw0KGgo=";
    let image = json!({ "type": "image_url", "image_url": { "url": format!("data:image/png;base64,{data}") } });
    let chat = json!({ "model": MODELS[1], "messages": [{ "role": "user", "content": [{ "type": "text", "text": "what?" }, image] }] });
    assert!(node.client().post("/v1/chat/completions", &chat).await.said().contains("looked at what you sent"));
    let source = &last_seen(&provider).await["messages"][0]["content"][1]["source"];
    assert_eq!(*source, json!({ "type": "base64", "media_type": "image/png", "data": data }));

    let image = json!({ "type": "image", "source": { "type": "base64", "media_type": "image/png", "data": data } });
    let message = json!({ "model": MODELS[0], "max_tokens": 90, "messages": [{ "role": "user", "content": [image, { "type": "text", "text": "what?" }] }] });
    assert!(node.client().post("/v1/messages", &message).await.said().contains("looked at what you sent"));
    let url = &last_seen(&provider).await["messages"][0]["content"][0]["image_url"]["url"];
    assert_eq!(*url, format!("data:image/png;base64,{data}"));
}

#[tokio::test]
async fn stop_sequences_and_caps_end_an_answer_in_either_dialect() {
    let (_provider, node) = gateway().await;
    for model in MODELS {
        let messages = json!([{ "role": "user", "content": "count to 9" }]);
        let stopped = json!({ "model": model, "messages": messages, "stop": ["5"], "max_tokens": 50 });
        let stopped = node.client().post("/v1/chat/completions", &stopped).await;
        assert_eq!(stopped.said().trim(), "1 2 3 4", "{model}");
        assert_eq!(stopped.json()["choices"][0]["finish_reason"], "stop");
        let capped = json!({ "model": model, "messages": messages, "max_tokens": 2 });
        let capped = node.client().post("/v1/chat/completions", &capped).await.json();
        assert_eq!(capped["choices"][0]["finish_reason"], "length", "{model}");

        let stopped = json!({ "model": model, "messages": messages, "stop_sequences": ["5"], "max_tokens": 50 });
        let stopped = node.client().post("/v1/messages", &stopped).await;
        assert_eq!(stopped.said().trim(), "1 2 3 4", "{model}");
        let capped = json!({ "model": model, "messages": messages, "max_tokens": 2 });
        let capped = node.client().post("/v1/messages", &capped).await.json();
        assert_eq!(capped["stop_reason"], "max_tokens", "{model}");
    }
}

/// `OpenAI` counts cached tokens inside the input, Anthropic beside it.
#[tokio::test]
async fn usage_with_cached_tokens_is_told_as_the_dialect_counts() {
    let (provider, node) = gateway().await;
    let system = "You are the assistant of a bank and answer politely. ".repeat(12);
    let message = json!({ "model": MODELS[0], "max_tokens": 50, "system": system,
        "messages": [{ "role": "user", "content": "hello" }] });

    node.client().post("/v1/messages", &message).await;
    let usage = node.client().post("/v1/messages", &message).await.json()["usage"].clone();

    let billed = provider.settled().await.rows.last().unwrap().sum;
    let number = |name: &str| usage[name].as_u64().unwrap_or_default();
    assert!(billed.cached_tokens > 0, "the provider cached nothing: {billed:?}");
    assert_eq!(number("cache_read_input_tokens"), billed.cached_tokens, "{usage}");
    assert_eq!(number("input_tokens") + number("cache_read_input_tokens"), billed.input_tokens, "{usage}");
    assert_eq!(number("output_tokens"), billed.output_tokens);

    let marked = json!([{ "type": "text", "text": system, "cache_control": { "type": "ephemeral" } }]);
    let own = json!({ "model": MODELS[1], "max_tokens": 50, "system": marked, "messages": [{ "role": "user", "content": "hello" }] });
    node.client().post("/v1/messages", &own).await;
    let usage = node.client().post("/v1/messages", &own).await.json()["usage"].clone();
    let billed = provider.settled().await.rows.last().unwrap().sum;
    assert_eq!(usage["cache_read_input_tokens"], billed.cached_tokens, "{usage}");
}

#[tokio::test]
async fn several_choices_are_given_or_refused_by_name() {
    let (provider, node) = gateway().await;
    let body = |model: &str| json!({ "model": model, "n": 3, "messages": [{ "role": "user", "content": "hi" }] });

    let three = node.client().post("/v1/chat/completions", &body(MODELS[0])).await.json();
    let refused = node.client().post("/v1/chat/completions", &body(MODELS[1])).await;

    assert_eq!(three["choices"].as_array().map(Vec::len), Some(3));
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("n")));
    assert_eq!(refused.json()["error"]["code"], "untranslatable");
    assert_eq!(provider.requests().await.len(), 1, "nothing was asked in vain");
}

#[tokio::test]
async fn in_the_same_dialect_only_the_model_changes() {
    let (provider, node) = gateway().await;
    let body = "{ \"model\" :\"openai/gpt-4o-mini\",\n\t\"made_up\": [1.50, 1e2, \"\\u00fc\"], \"messages\":[{\"role\":\"user\",\"content\":\"hi\",\"x\":null}]}";
    let sent = node.client().send(Method::POST, "/v1/chat/completions", body).await;
    assert_eq!(sent.status, 200, "{}", sent.text());
    assert_eq!(provider.requests().await[0].body, body.replace("openai/gpt-4o-mini", "gpt-4o-mini"));

    let body = "{\"max_tokens\":9, \"model\":\"anthropic/claude-x\", \"made_up\":{\"a\":1.0},\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"stream\":true}";
    let sent = node.client().send(Method::POST, "/v1/messages", body).await;
    assert_eq!(sent.status, 200, "{}", sent.text());
    assert_eq!(provider.requests().await[1].body, body.replace("anthropic/claude-x", "claude-x"));
}

#[tokio::test]
async fn a_stream_asks_the_provider_for_usage_and_keeps_other_options() {
    let (provider, node) = gateway().await;
    let body = json!({ "model": MODELS[0], "stream": true, "stream_options": { "include_obfuscation": false },
        "messages": [{ "role": "user", "content": "hi" }] });

    node.client().stream("/v1/chat/completions", &body).await.rest().await;

    let options = &last_seen(&provider).await["stream_options"];
    assert_eq!(*options, json!({ "include_obfuscation": false, "include_usage": true }));
}

#[tokio::test]
async fn in_the_same_dialect_the_reply_comes_byte_for_byte() {
    let (provider, node) = gateway().await;
    let reply = "{\"id\":\"x\", \"object\":\"chat.completion\",\"created\":1,\"model\":\"the-providers-word\",\n \"new\":1.0,\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"yes\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1,\"total_tokens\":2}}";
    provider.script(json!([{ "status": 200, "body": reply }])).await;

    assert_eq!(node.client().chat(MODELS[0], "hi").await.text(), reply);
}

#[tokio::test]
async fn a_field_the_other_dialect_lacks_is_dropped_or_refused_as_set() {
    let (provider, node) = gateway().await;
    let body = |model: &str| json!({ "model": model, "logit_bias": { "50256": -100 }, "messages": [{ "role": "user", "content": "hi" }] });

    let dropped = node.client().post("/v1/chat/completions", &body("anthropic/claude-x")).await;
    let refused = node.client().post("/v1/chat/completions", &body("strict/claude-x")).await;

    assert_eq!(dropped.status, 200);
    assert_eq!(last_seen(&provider).await["logit_bias"], Value::Null);
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("logit_bias")));
}

#[tokio::test]
async fn a_model_is_found_by_route_provider_wildcard_and_bare_name() {
    let (provider, node) = gateway().await;
    let cases = [
        ("support", "upstream-openai", "gpt-4o-mini"),
        ("openai/some/other:model", "upstream-openai", "some/other:model"),
        ("fast-claude-9", "upstream-anthropic", "claude-9"),
        ("claude-3-5-haiku-latest", "upstream-anthropic", "claude-3-5-haiku-latest"),
        ("gpt-4o", "upstream-openai", "gpt-4o"),
    ];
    for (asked, key, model) in cases {
        let reply = node.client().chat(asked, "hi").await;
        assert_eq!(reply.status, 200, "{asked}: {}", reply.text());
        let seen = provider.requests().await;
        let seen = seen.last().unwrap();
        assert_eq!((seen.key.as_str(), seen.model.as_str()), (key, model), "{asked}");
        assert_eq!(reply.header("x-lea-model"), Some(model));
    }

    let (chat, message) = (node.client().chat("nothing", "hi").await, node.client().message("no/such", "hi").await);
    assert_eq!((chat.status, &chat.json()["error"]["code"]), (404, &json!("model_not_found")));
    assert_eq!((message.status, &message.json()["error"]["type"]), (404, &json!("not_found_error")));
}

#[tokio::test]
async fn tokens_are_counted_by_the_provider_or_estimated_and_said_so() {
    let (provider, node) = gateway().await;
    let body = |model: &str| json!({ "model": model, "messages": [{ "role": "user", "content": "how many tokens is this?" }] });

    let counted = node.client().post("/v1/messages/count_tokens", &body("anthropic/claude-x")).await;
    let estimated = node.client().post("/v1/messages/count_tokens", &body("openai/gpt-4o-mini")).await;

    let truth = provider.client().post("/v1/messages/count_tokens", &body("claude-x")).await;
    assert_eq!((counted.status, counted.json()), (200, truth.json()));
    assert_eq!(counted.header("x-lea-estimated"), None);
    assert_eq!(estimated.status, 200, "{}", estimated.text());
    assert!(estimated.json()["input_tokens"].as_u64().unwrap() > 0);
    assert_eq!(estimated.header("x-lea-estimated"), Some("true"));
    assert_eq!(provider.requests().await.len(), 2, "one of them was ours");
}

#[tokio::test]
async fn an_answer_says_who_gave_it_and_what_it_cost() {
    let (provider, node) = gateway().await;
    let client = node.client().with_header("x-request-id", "my-own-id.7");

    let chat = client.chat("support", "hi").await;
    let message = client.message("fast-claude-3-5-haiku-latest", "hi").await;

    let told = |reply: &Reply| {
        ["x-request-id", "x-lea-node", "x-lea-route", "x-lea-provider", "x-lea-model", "x-lea-attempts", "x-lea-cache"]
            .map(|name| reply.header(name).unwrap_or("-").to_owned())
    };
    assert_eq!(told(&chat), ["my-own-id.7", "edge-test", "support", "openai", "gpt-4o-mini", "1", "BYPASS"]);
    assert_eq!(chat.header("request-id"), None);
    assert_eq!(message.header("request-id"), Some("my-own-id.7"));
    assert_eq!(message.header("x-lea-provider"), Some("anthropic"));
    assert!(chat.header("x-lea-overhead-ms").unwrap().parse::<f64>().unwrap() >= 0.0);
    let used = provider.settled().await.rows[0].sum;
    // gpt-4o-mini: $0.15 in, $0.60 out for a million, in billionths rounded up.
    let nano = (used.input_tokens * 150 + used.output_tokens * 600).to_string();
    let cost = chat.header("x-lea-cost-usd").unwrap().parse::<f64>().unwrap();
    assert_eq!(format!("{:.0}", cost * 1e9), nano);
}

#[tokio::test]
async fn a_request_id_is_made_where_none_or_a_bad_one_is_given() {
    let (_provider, node) = gateway().await;
    let long = "x".repeat(129);

    let made = node.client().chat("support", "hi").await;
    let replaced = node.client().with_header("x-request-id", &long).chat("support", "hi").await;

    let (made, replaced) = (made.header("x-request-id").unwrap(), replaced.header("x-request-id").unwrap());
    assert!(made.len() >= 8 && replaced != long && replaced.len() <= 128 && made != replaced);
}

#[tokio::test]
async fn an_error_has_the_shape_of_the_dialect_called() {
    let (provider, node) = gateway().await;
    provider.script(json!([{ "status": 400, "times": "always" }])).await;

    let chat = node.client().chat(MODELS[1], "hi").await;
    let message = node.client().message(MODELS[0], "hi").await;

    for reply in [&chat, &message] {
        assert_eq!((reply.status, reply.header("x-lea-upstream-status")), (400, Some("400")));
        assert_eq!(reply.header("content-type"), Some("application/json"));
        assert!(reply.header("x-request-id").is_some());
    }
    let error = &chat.json()["error"];
    assert_eq!((&error["type"], &error["code"]), (&json!("invalid_request_error"), &json!("upstream_rejected")));
    assert!(error["message"].as_str().unwrap().contains("told to fail") && error.get("param").is_some(), "{error}");
    let body = message.json();
    assert_eq!((&body["type"], &body["error"]["type"]), (&json!("error"), &json!("invalid_request_error")));
    assert_eq!(body["request_id"].as_str(), message.header("request-id"));
}

#[tokio::test]
async fn models_are_listed_in_the_shape_asked_and_as_the_key_may() {
    let provider = FakeProvider::start(binary!()).await;
    let config = r#"
providers: { openai: { base_url: "{provider}/v1", api_key: none, models: [gpt-4o, gpt-4o-mini] } }
routes: { support: { targets: [openai/gpt-4o] } }
keys:
  all: { secret: key-of-the-one-that-may-use-everything }
  few: { secret: key-of-the-one-that-may-use-one-only, models: [support] }
"#;
    let node = TestNode::builder(binary!()).provider("provider", &provider).config(config).start().await;
    let ids = |reply: &Reply| -> Vec<String> {
        reply.json()["data"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
    };
    let all = node.as_key("key-of-the-one-that-may-use-everything");
    let few = node.as_key("key-of-the-one-that-may-use-one-only");

    let list = all.get("/v1/models").await;
    assert_eq!(list.json()["object"], "list");
    assert!(ids(&list).contains(&"support".to_owned()) && ids(&list).iter().any(|id| id.ends_with("gpt-4o-mini")));
    assert_eq!(ids(&few.get("/v1/models").await), ["support"]);
    let shaped = few.clone().with_header("anthropic-version", "2023-06-01").get("/v1/models").await.json();
    assert_eq!((&shaped["data"][0]["type"], &shaped["has_more"]), (&json!("model"), &json!(false)));
    assert_eq!(shaped["first_id"], "support");
    assert_eq!(few.get("/v1/models/support").await.json()["object"], "model");
    assert_eq!(few.get("/v1/models/openai/gpt-4o").await.status, 404);
    assert_eq!(all.get("/v1/models/openai/gpt-4o").await.status, 200, "a slash in a name is part of it");
    assert_eq!(node.client().get("/v1/models").await.status, 401);
}

#[tokio::test]
async fn both_dialects_are_served_over_http2() {
    let (_provider, node) = gateway().await;
    let client = Client::http2(node.api_address());

    assert_eq!(client.chat("support", "repeat after me: two").await.said(), "two");
    let events = client.message_stream("support", "repeat after me: two").await.rest().await;
    assert_eq!(events.text(), "two");
}

#[tokio::test]
async fn the_cap_put_in_for_a_provider_that_needs_one_is_told() {
    let (provider, node) = gateway().await;
    let body = json!({ "model": MODELS[1], "messages": [{ "role": "user", "content": "hi" }] });

    let reply = node.client().post("/v1/chat/completions", &body).await;

    let cap = last_seen(&provider).await["max_tokens"].to_string();
    assert_eq!(reply.header("x-lea-max-tokens"), Some(cap.as_str()));
}

#[tokio::test]
async fn a_configuration_is_checked_without_being_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.yaml");
    std::fs::write(&path, "providers:\n  openai: { api_kye: x }\nroutes:\n  a: { targets: [nobody/x] }\n").unwrap();

    let checked = run(binary!(), &["check", "-c", path.to_str().unwrap()], &[]).await;

    let said = checked.stdout + &checked.stderr;
    assert!(!checked.status.success());
    assert!(said.contains("api_key") && said.contains(":2") && said.contains("nobody"), "every problem: {said}");
}
