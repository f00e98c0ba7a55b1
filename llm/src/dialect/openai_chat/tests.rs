use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::chat::{Block, ChatReply, ChatRequest, Delta, Finish, ImageSource, Role, ToolChoice};
use crate::dialect::compatible::Quirks;
use crate::dialect::{BadRequest, BadRequestKind, Dialect, StreamOptions};
use crate::fault::{ErrorBody, Fault, FaultKind, MESSAGE_MAX};
use crate::sse::{self, Event};

fn decoded(body: &Value) -> Result<ChatRequest, BadRequest> {
    decode_request(&serde_json::to_vec(body).unwrap())
}

/// A request that is well but for what is changed in it.
fn with(name: &str, value: Value) -> Value {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    body[name] = value;
    body
}

fn text(text: &str) -> Block {
    Block::Text { text: text.to_owned(), cache_control: None }
}

fn encoded(request: &ChatRequest, from: Dialect, kind: &str) -> (Value, Vec<String>) {
    let encoded = encode_request(request, from, Quirks::of(kind));
    (serde_json::from_slice(&encoded.body).unwrap(), encoded.dropped)
}

#[test]
fn a_bad_parameter_is_named() {
    let messages = |messages: Value| with("messages", messages);
    for (body, param, kind) in [
        (json!({"messages": [{"role": "user", "content": "hi"}]}), "model", BadRequestKind::Missing),
        (with("model", json!("")), "model", BadRequestKind::Missing),
        (with("model", json!(null)), "model", BadRequestKind::Invalid),
        (with("model", json!("m".repeat(257))), "model", BadRequestKind::Invalid),
        (json!({"model": "m"}), "messages", BadRequestKind::Missing),
        (messages(json!([])), "messages", BadRequestKind::Invalid),
        (messages(json!("hi")), "messages", BadRequestKind::Invalid),
        (messages(json!([{"role": "user"}])), "messages[0].content", BadRequestKind::Missing),
        (messages(json!([{"content": "x"}])), "messages[0].role", BadRequestKind::Missing),
        (messages(json!([{"role": "robot", "content": "x"}])), "messages[0].role", BadRequestKind::Invalid),
        (messages(json!([{"role": "function", "content": "x"}])), "messages[0].role", BadRequestKind::Unsupported),
        (messages(json!([{"role": "user", "content": 7}])), "messages[0].content", BadRequestKind::Invalid),
        (messages(json!([{"role": "user", "content": []}])), "messages[0].content", BadRequestKind::Invalid),
        (messages(json!([{"role": "assistant"}])), "messages[0].content", BadRequestKind::Missing),
        (messages(json!([{"role": "tool", "content": "x"}])), "messages[0].tool_call_id", BadRequestKind::Missing),
        (
            messages(json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 1}}]}])),
            "messages[0].content[0].image_url.url",
            BadRequestKind::Invalid,
        ),
        (
            messages(json!([{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f"}}]}])),
            "messages[0].tool_calls[0].function.arguments",
            BadRequestKind::Missing,
        ),
        (with("max_tokens", json!(-1)), "max_tokens", BadRequestKind::Invalid),
        (with("max_tokens", json!(0)), "max_tokens", BadRequestKind::Invalid),
        (with("max_tokens", json!(1.5)), "max_tokens", BadRequestKind::Invalid),
        (with("max_tokens", json!(u64::MAX)), "max_tokens", BadRequestKind::Invalid),
        (with("max_completion_tokens", json!("9")), "max_completion_tokens", BadRequestKind::Invalid),
        (with("temperature", json!(2.1)), "temperature", BadRequestKind::Invalid),
        (with("temperature", json!("hot")), "temperature", BadRequestKind::Invalid),
        (with("top_p", json!(-0.1)), "top_p", BadRequestKind::Invalid),
        (with("n", json!(0)), "n", BadRequestKind::Invalid),
        (with("n", json!(129)), "n", BadRequestKind::Invalid),
        (with("stop", json!(vec!["x"; 17])), "stop", BadRequestKind::Invalid),
        (with("stop", json!(["a", 1])), "stop[1]", BadRequestKind::Invalid),
        (with("stop", json!({})), "stop", BadRequestKind::Invalid),
        (with("stream", json!("yes")), "stream", BadRequestKind::Invalid),
        (with("stream_options", json!({"include_usage": 1})), "stream_options.include_usage", BadRequestKind::Invalid),
        (with("tools", json!([{"type": "function"}])), "tools[0].function", BadRequestKind::Missing),
        (
            with("tools", json!([{"type": "function", "function": {}}])),
            "tools[0].function.name",
            BadRequestKind::Missing,
        ),
        (with("tool_choice", json!("perhaps")), "tool_choice", BadRequestKind::Invalid),
        (with("user", json!(7)), "user", BadRequestKind::Invalid),
        (with("messages[0].name", json!(7)), "messages[0].name", BadRequestKind::Invalid),
    ] {
        let problem = decoded(&body).unwrap_err();
        assert_eq!((problem.param.as_deref(), problem.kind), (Some(param), kind), "{body}: {problem}");
        assert!(problem.message.starts_with(&format!("`{param}`: ")), "{problem}");
    }
}

#[test]
fn both_caps_at_once_are_refused_as_openai_does() {
    let mut body = with("max_tokens", json!(5));
    body["max_completion_tokens"] = json!(6);

    assert_eq!(decoded(&body).unwrap_err().param.as_deref(), Some("max_completion_tokens"));
}

/// A reader that takes the first `model` and one that takes the last would route one request two ways.
#[test]
fn a_smuggled_model_is_refused() {
    let body = br#"{"model":"cheap","messages":[{"role":"user","content":"hi"}],"m\u006fdel":"dear"}"#;

    let problem = decode_request(body).unwrap_err();

    assert_eq!(problem.kind, BadRequestKind::DuplicateKey);
    assert_eq!(problem.to_string(), "`model`: stands twice, again at line 1 column 62");
}

#[test]
fn a_conversation_is_understood() {
    let request = decoded(&json!({
        "model": "gpt-4o",
        "messages": [
            {"role": "system", "content": "be kind"},
            {"role": "developer", "content": [{"type": "text", "text": "be brief"}]},
            {"role": "user", "name": "ann", "content": [
                {"type": "text", "text": "look", "cache_control": {"type": "ephemeral"}},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD", "detail": "low"}},
                {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
                {"type": "input_audio", "input_audio": {"data": "QQ==", "format": "wav"}},
            ]},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}},
                {"id": "c2", "type": "function", "function": {"name": "g", "arguments": ""}},
            ]},
            {"role": "tool", "tool_call_id": "c1", "content": "one"},
            {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "two"}]},
            {"role": "system", "content": "now hurry"},
            {"role": "assistant", "refusal": "no", "content": null, "prefix": true},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": true}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "stop": "END", "n": 2, "top_k": 5, "seed": 7, "stream": true, "user": "u", "max_completion_tokens": 9,
        "stream_options": {"include_usage": true, "include_obfuscation": false}, "logprobs": null,
    }))
    .unwrap();

    assert_eq!(request.system, [text("be kind"), text("be brief")]);
    let roles: Vec<Role> = request.messages.iter().map(|message| message.role).collect();
    assert_eq!(roles, [Role::User, Role::Assistant, Role::User, Role::System, Role::Assistant]);
    let [user, calls, results, _, refusal] = request.messages.as_slice() else { panic!("five messages") };
    assert_eq!(user.name.as_deref(), Some("ann"));
    assert_eq!(
        user.blocks[1],
        Block::Image {
            source: ImageSource::Base64 { media_type: "image/png".to_owned(), data: "QUJD".to_owned() },
            detail: Some("low".to_owned()),
        }
    );
    assert!(matches!(&user.blocks[3], Block::Other { dialect, .. } if dialect == "openai_chat"));
    assert_eq!(
        calls.blocks[0],
        Block::ToolUse { id: "c1".to_owned(), name: "f".to_owned(), arguments: "{\"a\":1}".to_owned() }
    );
    assert_eq!(results.blocks.len(), 2);
    assert_eq!(refusal.blocks, [Block::Refusal { text: "no".to_owned() }]);
    assert_eq!(request.tool_choice, Some(ToolChoice::Named("f".to_owned())));
    assert_eq!((request.choices, request.output_max, request.top_k), (2, Some(9), Some(5)));
    assert!(request.stream && request.include_usage);
    assert_eq!(
        Value::Object(request.extra),
        json!({"messages[7].prefix": true, "seed": 7, "stream_options.include_obfuscation": false})
    );
}

#[test]
fn instructions_alone_are_a_conversation() {
    let request = decoded(&with("messages", json!([{"role": "system", "content": "go"}]))).unwrap();

    assert!(request.system.is_empty());
    assert_eq!((request.messages[0].role, &request.messages[0].blocks), (Role::System, &vec![text("go")]));
}

/// What Anthropic says and OpenAI cannot is dropped by name; what OpenAI calls otherwise is translated.
#[test]
fn a_request_from_anthropic_is_said_in_openai() {
    let mut request = decoded(&with("max_tokens", json!(100))).unwrap();
    request.top_k = Some(3);
    request.end_user = Some("u".to_owned());
    request.extra.insert("thinking".to_owned(), json!({"type": "enabled", "budget_tokens": 2000}));
    request.extra.insert("mcp_servers".to_owned(), json!([]));
    request.system = vec![Block::Text { text: "sys".to_owned(), cache_control: Some(json!({"type": "ephemeral"})) }];
    let image = Block::Image { source: ImageSource::Url { url: "https://x".to_owned() }, detail: None };
    let result = Block::ToolResult { id: "c".to_owned(), content: vec![text("seen"), image], is_error: true };
    request.messages[0].blocks = vec![text("and?"), result];

    let (body, dropped) = encoded(&request, Dialect::AnthropicMessages, "openai");

    assert_eq!(
        body,
        json!({
            "model": "m",
            "messages": [
                {"role": "system", "content": "sys"},
                {"role": "tool", "content": "seen", "tool_call_id": "c"},
                {"role": "user", "content": [
                    {"type": "image_url", "image_url": {"url": "https://x"}}, {"type": "text", "text": "and?"},
                ]},
            ],
            "max_completion_tokens": 100,
            "user": "u",
            "reasoning_effort": "low",
        })
    );
    assert_eq!(dropped, ["system.cache_control", "messages.content.is_error", "mcp_servers", "top_k"]);
}

#[test]
fn a_vendor_is_told_only_what_it_takes() {
    let mut body = with("stop", json!(["a", "b", "c", "d", "e"]));
    body["n"] = json!(2);
    body["stream"] = json!(true);
    body["max_tokens"] = json!(7);
    body["messages"][0]["name"] = json!("ann");
    body["messages"][0]["content"] = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let request = decoded(&body).unwrap();

    let (groq, dropped) = encoded(&request, Dialect::OpenAiChat, "groq");
    assert_eq!(dropped, ["messages.name", "stop", "n"]);
    assert_eq!(groq["max_completion_tokens"], 7);
    assert_eq!(groq["stream_options"], json!({"include_usage": true}));

    let (mistral, _) = encoded(&request, Dialect::OpenAiChat, "mistral");
    assert_eq!((&mistral["max_tokens"], mistral.get("stream_options")), (&json!(7), None));

    let (deepseek, _) = encoded(&request, Dialect::OpenAiChat, "deepseek");
    assert_eq!(deepseek["messages"][0]["content"], "a\n\nb");
}

#[test]
fn a_whole_answer_is_read_and_said_again() {
    let body = json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 17, "model": "gpt-4o-2024",
        "choices": [
            {"index": 1, "message": {"role": "assistant", "content": null, "refusal": "no", "annotations": []},
             "logprobs": null, "finish_reason": "stop"},
            {"index": 0, "message": {"role": "assistant", "content": "hi", "reasoning_content": "hm", "refusal": null,
             "annotations": [{"type": "url_citation"}],
             "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
             "logprobs": null, "finish_reason": "tool_calls"},
        ],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15,
            "prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 2}},
        "service_tier": "default",
    });

    let reply = decode_reply(&serde_json::to_vec(&body).unwrap()).unwrap();
    let said: Value = serde_json::from_slice(&encode_reply(&reply, "shown")).unwrap();

    assert_eq!(reply.choices[0].finish, Some(Finish::ToolUse));
    assert_eq!(reply.choices[1].finish, Some(Finish::Refusal));
    let usage = reply.usage.unwrap();
    assert_eq!((usage.input, usage.cached_input, usage.output, usage.reasoning), (10, 4, 5, 2));
    let mut wanted = body;
    wanted["model"] = json!("shown");
    wanted.as_object_mut().unwrap().remove("service_tier");
    wanted["choices"].as_array_mut().unwrap().swap(0, 1);
    wanted["choices"][1]["message"].as_object_mut().unwrap().remove("annotations");
    assert_eq!(said, wanted);
}

/// Reasoning that a vendor counts in the total alone is billed, so it is counted.
#[test]
fn tokens_only_the_total_knows_are_output() {
    let body = json!({"choices": [{"message": {"content": "x"}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 40}});

    let usage = decode_reply(&serde_json::to_vec(&body).unwrap()).unwrap().usage.unwrap();

    assert_eq!((usage.input, usage.output, usage.reasoning), (10, 30, 25));
}

#[test]
fn an_answer_that_is_none_is_malformed() {
    for body in ["", "<html>", "[]", "{}", r#"{"choices":[]}"#, r#"{"choices":[{}]}"#, r#"{"choices":[{"message":7}]}"#]
    {
        assert_eq!(decode_reply(body.as_bytes()).unwrap_err().kind, FaultKind::Malformed, "{body}");
    }
    let fault = decode_reply(br#"{"error":{"message":"busy","code":503}}"#).unwrap_err();
    assert_eq!((fault.kind, fault.message.as_str()), (FaultKind::Overloaded, "busy"));
}

#[test]
fn an_error_says_whose_fault_it_is() {
    let error = |message: &str, code: Value| json!({"error": {"message": message, "code": code}}).to_string();
    for (status, body, kind) in [
        (401, error("no", json!("invalid_api_key")), FaultKind::Credential),
        (402, error("pay", json!(null)), FaultKind::Credential),
        (429, error("slow down", json!("rate_limit_exceeded")), FaultKind::Throttled),
        (429, error("quota", json!("insufficient_quota")), FaultKind::Credential),
        (400, error("too long", json!("context_length_exceeded")), FaultKind::ContextLength),
        (400, error("This model's maximum context length is 8192 tokens", json!(null)), FaultKind::ContextLength),
        (400, error("flagged", json!("content_filter")), FaultKind::ContentFilter),
        (400, error("bad", json!("x")), FaultKind::BadRequest),
        (404, error("The model `x` does not exist", json!("model_not_found")), FaultKind::NotFound),
        (408, error("", json!(null)), FaultKind::Timeout),
        (500, error("context window", json!(null)), FaultKind::Server),
        (503, error("", json!(null)), FaultKind::Overloaded),
        (529, String::new(), FaultKind::Overloaded),
        (504, "<html><TITLE> 504 Gateway </TITLE>".to_owned(), FaultKind::Timeout),
        (302, String::new(), FaultKind::Malformed),
        (400, r#"{"code":"c","error":"Incorrect API key provided"}"#.to_owned(), FaultKind::Credential),
        (
            400,
            r#"[{"error":{"code":400,"message":"API key not valid. Pass a valid one"}}]"#.to_owned(),
            FaultKind::Credential,
        ),
        (422, r#"{"detail":[{"loc":["body","n"]}]}"#.to_owned(), FaultKind::BadRequest),
    ] {
        let fault = decode_error(status, body.as_bytes());
        assert_eq!((fault.kind, fault.status), (kind, Some(status)), "{body}");
    }
    assert_eq!(decode_error(504, b"<html><TITLE> 504 Gateway </TITLE>").message, "504 Gateway");
    assert_eq!(decode_error(422, br#"{"detail":[{"loc":1}]}"#).message, r#"[{"loc":1}]"#);
}

/// A vendor quotes the client's words in its message: they must not read as the vendor's verdict on our credential.
#[test]
fn a_client_cannot_put_a_credential_out_of_use() {
    for (status, message) in
        [(404, "The model `invalid api key` does not exist"), (400, "Bad value: 'api key not valid'")]
    {
        let body = json!({"error": {"message": message}}).to_string();
        assert_ne!(decode_error(status, body.as_bytes()).kind, FaultKind::Credential);
    }
}

#[test]
fn our_errors_have_openais_shape() {
    let error = ErrorBody {
        status: 404,
        error_type: "invalid_request_error",
        code: Some("model_not_found"),
        message: "no \"x\"".to_owned(),
        param: Some("model".to_owned()),
        request_id: "r1".to_owned(),
    };

    let body: Value = serde_json::from_slice(&encode_error(&error)).unwrap();

    assert_eq!(
        body,
        json!({"error": {"message": "no \"x\"", "type": "invalid_request_error", "param": "model",
            "code": "model_not_found", "request_id": "r1"}})
    );
    let stream = encode_stream_error(&error);
    assert_eq!(stream, [b"data: ".as_slice(), &encode_error(&error), b"\n\n"].concat());
}

fn event(data: &[u8]) -> Event {
    Event { data: Bytes::copy_from_slice(data), ..Event::default() }
}

fn deltas(chunks: &[Value]) -> Vec<Delta> {
    let mut decoder = Decoder::new();
    chunks.iter().flat_map(|chunk| decoder.event(&event(chunk.to_string().as_bytes())).unwrap()).collect()
}

fn chunk(delta: &Value) -> Value {
    json!({"id": "i", "created": 1, "model": "m", "choices": [{"index": 0, "delta": delta}]})
}

fn tools_of(deltas: &[Delta]) -> Vec<(u32, String, String)> {
    let mut tools: Vec<(u32, String, String)> = Vec::new();
    for delta in deltas {
        if let Delta::ToolStart { tool, id, name, .. } = delta {
            assert_eq!(*tool as usize, tools.len());
            tools.push((*tool, format!("{id}/{name}"), String::new()));
        }
        if let Delta::ToolArguments { tool, fragment, .. } = delta {
            tools[*tool as usize].2.push_str(fragment);
        }
    }
    tools
}

/// One call after the other, or in turn; the id once, in every piece, or never; the index always, or never.
#[test]
fn calls_are_told_apart_however_a_vendor_numbers_them() {
    let call = |index: Value, id: Value, name: Value, arguments: &str| {
        chunk(&json!({"tool_calls": [{"index": index, "id": id, "function": {"name": name, "arguments": arguments}}]}))
    };
    let null = Value::Null;
    let two = |tools: Vec<(u32, String, String)>, ids: [&str; 2]| {
        let wanted = [(0, format!("{}/f", ids[0]), "{1}".to_owned()), (1, format!("{}/g", ids[1]), "{2}".to_owned())];
        assert_eq!(tools, wanted);
    };

    let openai = [
        call(json!(0), json!("a"), json!("f"), ""),
        call(json!(1), json!("b"), json!("g"), "{"),
        call(json!(0), null.clone(), null.clone(), "{1}"),
        call(json!(1), null.clone(), null.clone(), "2}"),
    ];
    two(tools_of(&deltas(&openai)), ["a", "b"]);

    let repeats_the_id = [
        call(json!(0), json!("a"), json!("f"), "{"),
        call(json!(0), json!("a"), json!("f"), "1}"),
        call(json!(1), json!("b"), json!("g"), "{2}"),
    ];
    two(tools_of(&deltas(&repeats_the_id)), ["a", "b"]);

    let one_index_for_all =
        [call(json!(0), json!("a"), json!("f"), "{1}"), call(json!(0), json!("b"), json!("g"), "{2}")];
    two(tools_of(&deltas(&one_index_for_all)), ["a", "b"]);

    let no_index = [
        call(null.clone(), json!("a"), json!("f"), "{"),
        call(null.clone(), null.clone(), null.clone(), "1}"),
        call(null.clone(), json!("b"), json!("g"), "{2}"),
    ];
    two(tools_of(&deltas(&no_index)), ["a", "b"]);

    let no_id = [call(json!(0), null.clone(), json!("f"), "{1}"), call(json!(1), null, json!("g"), "{2}")];
    two(tools_of(&deltas(&no_id)), ["call_0_0", "call_0_1"]);
}

#[test]
fn a_stream_is_read_chunk_by_chunk() {
    let mut decoder = Decoder::new();
    let mut read = |data: &str| decoder.event(&event(data.as_bytes())).unwrap();

    assert_eq!(
        read(r#"{"id":"i","created":3,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#),
        [Delta::Start { id: "i".to_owned(), model: "m".to_owned(), created: Some(3) }]
    );
    assert_eq!(
        read(
            r#"{"id":"i","choices":[{"index":1,"delta":{"content":"h\u00e9","reasoning":"r"},"finish_reason":null}]}"#
        ),
        [Delta::Thinking { choice: 1, text: "r".to_owned() }, Delta::Text { choice: 1, text: "hé".to_owned() }]
    );
    assert_eq!(
        read(r#"{"choices":[{"delta":{"refusal":"no"},"finish_reason":"stop"}],"usage":null}"#),
        [
            Delta::Refusal { choice: 0, text: "no".to_owned() },
            Delta::Finish { choice: 0, reason: Finish::Refusal, stop_sequence: None }
        ]
    );
    assert_eq!(
        read(r#"{"choices":[{"index":1,"delta":{},"finish_reason":"stop","stop_reason":"END"}]}"#),
        [Delta::Finish { choice: 1, reason: Finish::Stop, stop_sequence: Some("END".to_owned()) }]
    );
    assert!(matches!(
        read(r#"{"choices":[],"usage":{"prompt_tokens":4,"completion_tokens":2,"total_tokens":6}}"#).as_slice(),
        [Delta::Usage(usage)] if usage.total() == 6
    ));
    assert_eq!(read("[DONE]"), [Delta::End]);
    assert_eq!(read(" "), []);
}

#[test]
fn an_error_in_mid_stream_is_told() {
    let mut decoder = Decoder::new();
    for (data, kind) in [
        (r#"{"error":{"message":"boom","type":"server_error"}}"#, FaultKind::Server),
        (r#"{"error":{"message":"boom","code":429}}"#, FaultKind::Throttled),
        (r#"{"error":"boom"}"#, FaultKind::Server),
        (r#"{"object":"error","message":"boom","type":"overloaded"}"#, FaultKind::Overloaded),
    ] {
        let deltas = decoder.event(&event(data.as_bytes())).unwrap();
        let [Delta::Fault(fault)] = deltas.as_slice() else { panic!("{deltas:?}") };
        assert_eq!((fault.kind, fault.message.as_str(), fault.status), (kind, "boom", None), "{data}");
    }
    for garbage in ["nonsense", "{", "[]", r#"{"choices":7}"#, r#"{"choices":[{"index":128}]}"#, "\u{1}"] {
        let fault: Fault = decoder.event(&event(garbage.as_bytes())).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Malformed, "{garbage}");
    }
}

fn stream_of(deltas: &[Delta], include_usage: bool) -> Vec<u8> {
    let mut encoder = Encoder::new(StreamOptions { include_usage, input_estimate: 0 });
    let mut out = Vec::new();
    for delta in deltas {
        encoder.delta(delta, &mut out);
    }
    encoder.finish(&mut out);
    out
}

fn read_stream(bytes: Vec<u8>) -> Vec<Delta> {
    let mut events = sse::Decoder::new(1 << 20);
    events.feed(Bytes::from(bytes));
    let mut decoder = Decoder::new();
    let mut deltas = Vec::new();
    while let Some(event) = events.next().unwrap() {
        deltas.extend(decoder.event(&event).unwrap());
    }
    deltas
}

#[test]
fn a_stream_is_written_to_the_byte() {
    let deltas = [
        Delta::Start { id: "i".to_owned(), model: "m".to_owned(), created: Some(3) },
        Delta::Text { choice: 0, text: "a\n\"b".to_owned() },
        Delta::Ping,
        Delta::Finish { choice: 0, reason: Finish::Length, stop_sequence: None },
        Delta::Usage(crate::usage::Usage { input: 4, output: 2, ..Default::default() }),
        Delta::End,
    ];
    let head = r#"data: {"id":"i","object":"chat.completion.chunk","created":3,"model":"m","choices":["#;
    let wanted = format!(
        concat!(
            "{0}{{\"index\":0,\"delta\":{{\"role\":\"assistant\",\"content\":\"\"}},\"logprobs\":null,\"finish_reason\":null}}]{1}}}\n\n",
            "{0}{{\"index\":0,\"delta\":{{\"content\":\"a\\n\\\"b\"}},\"logprobs\":null,\"finish_reason\":null}}]{1}}}\n\n",
            ": ping\n\n",
            "{0}{{\"index\":0,\"delta\":{{}},\"logprobs\":null,\"finish_reason\":\"length\"}}]{1}}}\n\n",
            "{2}data: [DONE]\n\n",
        ),
        head, "", ""
    );

    assert_eq!(String::from_utf8(stream_of(&deltas, false)).unwrap(), wanted);

    let with_usage = String::from_utf8(stream_of(&deltas, true)).unwrap();
    assert_eq!(with_usage.matches(",\"usage\":null}\n\n").count(), 3);
    let last = concat!(
        "],\"usage\":{\"prompt_tokens\":4,\"completion_tokens\":2,\"total_tokens\":6,",
        "\"prompt_tokens_details\":{\"cached_tokens\":0},\"completion_tokens_details\":{\"reasoning_tokens\":0}}}",
        "\n\ndata: [DONE]\n\n"
    );
    assert!(with_usage.ends_with(&(head.to_owned() + last)), "{with_usage}");
}

fn any_json() -> impl Strategy<Value = Value> {
    const WORDS: &[&str] = &[
        "user",
        "assistant",
        "tool",
        "system",
        "text",
        "image_url",
        "function",
        "auto",
        "stop",
        "m",
        "refusal",
        "error",
        "custom",
        "data:image/png;base64,QQ==",
    ];
    const NAMES: &[&str] = &[
        "model",
        "messages",
        "role",
        "content",
        "type",
        "text",
        "image_url",
        "url",
        "tool_calls",
        "function",
        "name",
        "arguments",
        "id",
        "tool_call_id",
        "tools",
        "tool_choice",
        "stop",
        "n",
        "max_tokens",
        "stream",
        "choices",
        "message",
        "delta",
        "index",
        "finish_reason",
        "usage",
        "prompt_tokens",
        "completion_tokens",
        "error",
        "refusal",
        "code",
        "object",
        "temperature",
        "stream_options",
        "include_usage",
        "reasoning",
        "total_tokens",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(WORDS).prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 6, |inner| {
        let name = prop_oneof![4 => prop::sample::select(NAMES).prop_map(str::to_owned), 1 => ".{0,4}"];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(name, inner, 0..8).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Requests near enough to what is allowed that many are.
fn likely_request() -> impl Strategy<Value = Value> {
    let part = prop_oneof![
        ".{0,6}".prop_map(|text| json!({"type": "text", "text": text})),
        Just(json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,QQ==", "detail": "high"}})),
        Just(json!({"type": "file", "file": {"file_id": "f"}})),
    ];
    let content = prop_oneof![".{0,12}".prop_map(Value::from), prop::collection::vec(part, 1..4).prop_map(Value::from)];
    let message = (0..5_usize, content, ".{0,6}").prop_map(|(kind, content, said)| match kind {
        0 => json!({"role": "system", "content": content}),
        1 => json!({"role": "tool", "tool_call_id": "c", "content": content}),
        2 => json!({"role": "assistant", "content": said, "tool_calls":
            [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]}),
        3 => json!({"role": "assistant", "content": said}),
        _ => json!({"role": "user", "name": "ann", "content": content}),
    });
    let tools = prop::option::of(Just(json!([{"type": "function", "function": {"name": "f", "parameters": {}}}])));
    (prop::collection::vec(message, 1..6), tools, any::<bool>(), prop::option::of(1..9_u32), any_json()).prop_map(
        |(messages, tools, stream, cap, extra)| {
            json!({"model": "m", "messages": messages, "tools": tools, "stream": stream, "max_tokens": cap,
                "metadata": extra})
        },
    )
}

fn any_delta() -> impl Strategy<Value = Delta> {
    let choice = 0..3_u32;
    prop_oneof![
        (choice.clone(), ".{1,8}").prop_map(|(choice, text)| Delta::Text { choice, text }),
        (choice.clone(), ".{1,8}").prop_map(|(choice, text)| Delta::Thinking { choice, text }),
        (choice, ".{1,8}").prop_map(|(choice, text)| Delta::Refusal { choice, text }),
    ]
}

proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic(body in prop::collection::vec(any::<u8>(), 0..256), status in any::<u16>()) {
        prop_assert!(decode_request(&body).is_err());
        prop_assert!(decode_reply(&body).is_err());
        prop_assert!(decode_error(status, &body).message.len() <= MESSAGE_MAX);
        let _ = Decoder::new().event(&event(&body));
    }

    /// Whatever JSON comes, decoding gives a value or an error; what it gives can be said again.
    #[test]
    fn no_json_makes_a_decoder_panic(values in prop::collection::vec(any_json(), 1..4), status in 200..600_u16) {
        let mut decoder = Decoder::new();
        for value in values {
            let body = serde_json::to_vec(&value).unwrap();
            if let Ok(request) = decode_request(&body) {
                encoded(&request, Dialect::AnthropicMessages, "openai");
            }
            if let Ok(reply) = decode_reply(&body) {
                encode_reply(&reply, "m");
            }
            prop_assert!(decode_error(status, &body).message.len() <= MESSAGE_MAX);
            let _ = decoder.event(&event(&body));
        }
    }

    /// Decoded, said again and decoded again, a request means what it meant, and nothing is lost unsaid.
    #[test]
    fn a_request_survives_a_round(body in likely_request()) {
        let mut request = decoded(&body).unwrap();
        // Asked for at every stream: the client's own stream leaves it out again.
        request.include_usage = request.stream;

        let again = encode_request(&request, Dialect::OpenAiChat, Quirks::of("openai"));

        prop_assert_eq!(&again.dropped, &Vec::<String>::new());
        prop_assert_eq!(decode_request(&again.body).unwrap(), request);
    }

    #[test]
    fn an_answer_survives_a_round(
        content in ".{1,16}", thinking in ".{1,8}", finish in prop::sample::select(&["stop", "length", "odd"][..]),
        counts in any::<[u32; 4]>(),
    ) {
        let usage = crate::usage::Usage {
            input: u64::from(counts[0]), cached_input: u64::from(counts[1].min(counts[0])),
            output: u64::from(counts[2]), reasoning: u64::from(counts[3].min(counts[2])), ..Default::default()
        };
        let reply = ChatReply {
            id: "i".to_owned(), model: "m".to_owned(), created: Some(1), usage: Some(usage),
            choices: vec![crate::chat::Choice {
                blocks: vec![Block::Thinking { text: thinking, signature: None }, text(&content)],
                finish: Some(wire::finish_of(finish)), stop_sequence: None,
            }],
        };

        prop_assert_eq!(decode_reply(&encode_reply(&reply, "m")).unwrap(), reply);
    }

    /// What an encoder writes, a decoder reads: no text is lost, doubled or put elsewhere.
    #[test]
    fn a_stream_survives_a_round(said in prop::collection::vec(any_delta(), 0..20)) {
        let start = Delta::Start { id: "i".to_owned(), model: "m".to_owned(), created: Some(1) };
        let finish = Delta::Finish { choice: 0, reason: Finish::Length, stop_sequence: None };
        let deltas: Vec<Delta> = [vec![start], said, vec![finish, Delta::End]].concat();

        prop_assert_eq!(read_stream(stream_of(&deltas, true)), deltas);
    }
}
