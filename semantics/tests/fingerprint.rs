//! Same question, same fingerprint; another question, another one.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use llm::chat::{Block, ChatRequest, ImageSource, Message, Role, Tool, ToolChoice};
use llm::dialect::Dialect;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use semantics::fingerprint::fingerprint;
use semantics::normal_form::normal_form;
use serde_json::{Map, Number, Value, json};

const KEY: [u8; 32] = [7; 32];

fn form(request: &ChatRequest) -> Vec<u8> {
    normal_form(request, Dialect::OpenAiChat, "support")
}

fn openai(body: &Value) -> [u8; 32] {
    let request = Dialect::OpenAiChat.decode_request(body.to_string().as_bytes()).unwrap();
    fingerprint(&KEY, &request, Dialect::OpenAiChat, "support")
}

fn anthropic(body: &Value) -> [u8; 32] {
    let request = Dialect::AnthropicMessages.decode_request(body.to_string().as_bytes()).unwrap();
    fingerprint(&KEY, &request, Dialect::AnthropicMessages, "support")
}

fn hex(bytes: [u8; 32]) -> String {
    blake3::Hash::from_bytes(bytes).to_hex().to_string()
}

/// The same in every process: a change here is a new format number.
#[test]
fn the_fingerprint_of_a_known_request_is_known() {
    let plain = json!({ "model": "support", "messages": [{ "role": "user", "content": "hello" }] });
    assert_eq!(hex(openai(&plain)), "85bf647aaf3070012fc1f96c67299da9955b8e0da855dde0471fe0586673deb0");

    let rich = json!({
        "model": "support",
        "messages": [
            { "role": "system", "content": "Be brief." },
            { "role": "user", "content": [
                { "type": "text", "text": "What is this?" },
                { "type": "image_url", "image_url": { "url": "https://example.com/a.png", "detail": "low" } },
            ] },
            { "role": "assistant", "tool_calls": [
                { "id": "c1", "type": "function", "function": { "name": "look", "arguments": "{\"deep\": true}" } },
            ] },
            { "role": "tool", "tool_call_id": "c1", "content": "a cat" },
        ],
        "tools": [{ "type": "function", "function": { "name": "look", "parameters": { "type": "object" } } }],
        "tool_choice": "required",
        "temperature": 0.2,
        "max_tokens": 100,
        "stop": ["END"],
        "response_format": { "type": "text" },
    });
    assert_eq!(hex(openai(&rich)), "c81d590dbd75634f9b2ca9db8c2cebcff03dd1213eacd77eb4ef25e183c55720");
}

#[test]
fn one_question_through_two_dialects_is_one_question() {
    let through_openai = json!({
        "model": "support",
        "max_completion_tokens": 100,
        "temperature": 1.0,
        "stop": "END",
        "stream": true,
        "stream_options": { "include_usage": true, "include_obfuscation": false },
        "user": "u1",
        "store": false,
        "service_tier": "auto",
        "parallel_tool_calls": true,
        "messages": [
            { "role": "system", "content": "Be brief." },
            { "role": "user", "content": "Weather in Rome?" },
            { "role": "assistant", "content": "I look.", "tool_calls": [
                { "id": "c1", "type": "function", "function": { "name": "weather", "arguments": "{\"city\": \"Rome\"}" } },
            ] },
            { "role": "tool", "tool_call_id": "c1", "content": "sunny" },
        ],
        "tools": [{ "type": "function", "function": {
            "name": "weather", "description": "now", "strict": false,
            "parameters": { "type": "object", "properties": { "city": { "type": "string" } } },
        } }],
        "tool_choice": "auto",
    });
    let through_anthropic = json!({
        "model": "support",
        "max_tokens": 100,
        "temperature": 1,
        "stop_sequences": ["END"],
        "metadata": { "user_id": "u2" },
        "system": [{ "type": "text", "text": "Be brief.", "cache_control": { "type": "ephemeral" } }],
        "messages": [
            { "role": "user", "content": "Weather in Rome?" },
            { "role": "assistant", "content": [
                { "type": "text", "text": "I look." },
                { "type": "tool_use", "id": "c1", "name": "weather", "input": { "city": "Rome" } },
            ] },
            { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "c1", "content": "sunny" }] },
        ],
        "tools": [{ "name": "weather", "description": "now", "input_schema": {
            "properties": { "city": { "type": "string" } }, "type": "object",
        } }],
    });
    assert_eq!(openai(&through_openai), anthropic(&through_anthropic));
}

#[test]
fn a_field_only_one_dialect_knows_keeps_the_dialects_apart() {
    let message = json!([{ "role": "user", "content": "hello" }]);
    let plain = json!({ "model": "support", "max_tokens": 9, "messages": message });
    let extra = json!({ "model": "support", "max_tokens": 9, "messages": message, "thinking": { "type": "disabled" } });
    assert_eq!(openai(&plain), anthropic(&plain));
    assert_ne!(openai(&extra), anthropic(&extra));
    assert_ne!(openai(&plain), openai(&extra));
}

#[test]
fn another_key_or_another_route_is_another_fingerprint() {
    let request = ChatRequest { choices: 1, ..ChatRequest::default() };
    let first = fingerprint(&KEY, &request, Dialect::OpenAiChat, "support");
    assert_ne!(first, fingerprint(&[8; 32], &request, Dialect::OpenAiChat, "support"));
    assert_ne!(first, fingerprint(&KEY, &request, Dialect::OpenAiChat, "support2"));
}

/// Few letters, so that equal and nearly equal texts are common.
fn word() -> impl Strategy<Value = String> {
    "[ab]{0,3}"
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::from),
        (-3..3i64).prop_map(Value::from),
        (-2.0..2.0f64).prop_map(Value::from),
        word().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(Value::from),
            vec((word(), inner), 0..3).prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn block() -> impl Strategy<Value = Block> {
    prop_oneof![
        word().prop_map(|text| Block::Text { text, cache_control: None }),
        (word(), option::of(word()))
            .prop_map(|(url, detail)| Block::Image { source: ImageSource::Url { url }, detail }),
        (word(), word()).prop_map(|(media_type, data)| {
            Block::Image { source: ImageSource::Base64 { media_type, data }, detail: None }
        }),
        (word(), word(), word()).prop_map(|(id, name, arguments)| Block::ToolUse { id, name, arguments }),
        (word(), word(), any::<bool>()).prop_map(|(id, text, is_error)| {
            Block::ToolResult { id, content: vec![Block::Text { text, cache_control: None }], is_error }
        }),
        word().prop_map(|text| Block::Refusal { text }),
        (word(), option::of(word())).prop_map(|(text, signature)| Block::Thinking { text, signature }),
        value().prop_map(|value| Block::Other { dialect: "openai_chat".to_owned(), value }),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    let role = prop_oneof![Just(Role::System), Just(Role::User), Just(Role::Assistant)];
    (role, vec(block(), 0..3), option::of(word())).prop_map(|(role, blocks, name)| Message { role, blocks, name })
}

fn tool() -> impl Strategy<Value = Tool> {
    (word(), option::of(word()), value(), option::of(any::<bool>()), option::of(value()))
        .prop_map(|(name, description, parameters, strict, raw)| Tool { name, description, parameters, strict, raw })
}

fn request() -> impl Strategy<Value = ChatRequest> {
    let conversation = (vec(block(), 0..2), vec(message(), 0..4), vec(tool(), 0..3));
    let numbers =
        (option::of(1..5u64), option::of(-2.0..2.0f64), option::of(-2.0..2.0f64), option::of(0..5u64), 1..4u32);
    let rest = (option::of(any::<bool>()), vec(word(), 0..3), vec((word(), value()), 0..3));
    (conversation, numbers, rest).prop_map(
        |((system, messages, tools), numbers, (parallel_tool_calls, stop, extra))| {
            let (output_max, temperature, top_p, top_k, choices) = numbers;
            ChatRequest {
                system,
                messages,
                tools,
                parallel_tool_calls,
                output_max,
                temperature: temperature.and_then(Number::from_f64),
                top_p: top_p.and_then(Number::from_f64),
                top_k,
                stop,
                choices,
                extra: extra.into_iter().collect(),
                ..ChatRequest::default()
            }
        },
    )
}

/// What both dialects take for granted, left unsaid: requests are the same question if this is the same.
fn said(mut request: ChatRequest) -> ChatRequest {
    request.parallel_tool_calls = request.parallel_tool_calls.filter(|parallel| !parallel);
    for tool in &mut request.tools {
        tool.strict = tool.strict.filter(|strict| *strict);
    }
    request
}

fn reversed(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            Value::Object(fields.iter().rev().map(|(key, value)| (key.clone(), reversed(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(reversed).collect()),
        other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => other.clone(),
    }
}

fn text(text: &str) -> Block {
    Block::Text { text: text.to_owned(), cache_control: None }
}

/// Every way to ask something else, one deciding field at a time.
fn change(request: &mut ChatRequest, which: usize) {
    let longer = |text: &mut String| text.push('x');
    match which {
        0 => request.system.push(text("")),
        1 => request.messages.push(Message { role: Role::User, blocks: vec![], name: None }),
        2 => request.messages.insert(0, Message { role: Role::System, blocks: vec![text("x")], name: None }),
        3 => request.tools.push(Tool {
            name: "x".to_owned(),
            description: None,
            parameters: Value::Null,
            strict: None,
            raw: None,
        }),
        4 => request.tool_choice = Some(ToolChoice::Required),
        5 => request.tool_choice = Some(ToolChoice::Named("x".to_owned())),
        6 => request.parallel_tool_calls = Some(request.parallel_tool_calls == Some(false)),
        7 => request.output_max = Some(request.output_max.unwrap_or_default() + 10),
        8 => request.temperature = Some(Number::from(9)),
        9 => request.top_p = Some(Number::from(9)),
        10 => request.top_k = Some(request.top_k.unwrap_or_default() + 10),
        11 => request.stop.push("x".to_owned()),
        12 => request.choices += 1,
        13 => drop(request.extra.insert("x".to_owned(), Value::Bool(false))),
        14 => match request.messages.first_mut() {
            Some(message) => longer(message.name.get_or_insert_default()),
            None => request.choices += 1,
        },
        15 => match request.messages.last_mut() {
            Some(message) if message.role == Role::User => message.role = Role::Assistant,
            Some(message) => message.role = Role::User,
            None => request.choices += 1,
        },
        16 => match request.messages.last_mut() {
            Some(message) => message.blocks.push(text("x")),
            None => request.choices += 1,
        },
        17 => match request.tools.first_mut() {
            Some(tool) => longer(tool.description.get_or_insert_default()),
            None => request.choices += 1,
        },
        18 => match request.tools.first_mut() {
            Some(tool) => tool.parameters = json!([tool.parameters]),
            None => request.choices += 1,
        },
        19 => match request.tools.first_mut() {
            Some(tool) => tool.strict = Some(tool.strict != Some(true)),
            None => request.choices += 1,
        },
        20 => match request.messages.iter_mut().flat_map(|message| &mut message.blocks).next() {
            Some(block) => change_block(block),
            None => request.choices += 1,
        },
        _ => panic!("there is no change {which}"),
    }
}

const CHANGES: usize = 21;

fn change_block(block: &mut Block) {
    match block {
        Block::Text { text, .. } | Block::Refusal { text } => text.push('x'),
        Block::Image { detail, .. } => detail.get_or_insert_default().push('x'),
        Block::ToolUse { arguments, .. } => arguments.push('x'),
        Block::ToolResult { is_error, .. } => *is_error = !*is_error,
        Block::Thinking { signature, .. } => signature.get_or_insert_default().push('x'),
        Block::Other { value, .. } => *value = json!([value]),
    }
}

proptest! {
    /// The order in which a client writes the fields of an object is no part of its question.
    #[test]
    fn the_order_of_fields_does_not_matter(request in request()) {
        let mut other = request.clone();
        other.extra = request.extra.iter().rev().map(|(key, value)| (key.clone(), reversed(value))).collect::<Map<_, _>>();
        for tool in &mut other.tools {
            tool.parameters = reversed(&tool.parameters);
        }
        prop_assert_eq!(form(&request), form(&other));
    }

    /// How an answer is delivered, to whom and at what price is no part of the question either.
    #[test]
    fn what_does_not_decide_the_answer_does_not_matter(request in request(), noise in value(), flag: bool) {
        let mut other = request.clone();
        other.model = "another word for the same route".to_owned();
        other.stream = flag;
        other.include_usage = flag;
        other.end_user = Some("someone".to_owned());
        for name in ["metadata", "store", "service_tier", "prompt_cache_key", "stream_options.include_obfuscation",
                     "messages[0].content[0].cache_control", "safety_identifier"] {
            other.extra.insert(name.to_owned(), noise.clone());
        }
        other.extra.insert("unsaid".to_owned(), Value::Null);
        for block in other.messages.iter_mut().flat_map(|message| &mut message.blocks) {
            if let Block::Text { cache_control, .. } = block {
                *cache_control = Some(noise.clone());
            }
        }
        prop_assert_eq!(form(&request), form(&other));
    }

    /// Everything else is.
    #[test]
    fn any_change_that_decides_changes_the_fingerprint(request in request(), which in 0..CHANGES) {
        let mut other = request.clone();
        change(&mut other, which);
        let of = |request| fingerprint(&KEY, request, Dialect::OpenAiChat, "support");
        prop_assert_ne!(of(&request), of(&other), "change {}", which);
    }

    /// Two requests of few letters are often nearly equal; their forms are equal only if they say the same.
    #[test]
    fn equal_forms_mean_equal_requests(first in vec(block(), 0..3), second in vec(block(), 0..3), base in request()) {
        let with = |blocks: Vec<Block>| {
            let mut request = base.clone();
            request.messages.push(Message { role: Role::User, blocks, name: None });
            said(request)
        };
        let (first, second) = (with(first), with(second));
        prop_assert_eq!(form(&first) == form(&second), first == second);
    }
}
