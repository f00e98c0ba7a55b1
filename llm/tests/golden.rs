//! Every fixture in `golden/<operation>/`, said in each dialect. The snapshots beside the fixtures are the specification of
//! what is translated to what; a new fixture needs no line here. `INSTA_UPDATE=always cargo test -p llm` writes them anew.

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be read fails its test")]

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use insta::{assert_json_snapshot, assert_snapshot, with_settings};
use llm::chat::Delta;
use llm::dialect::compatible::Quirks;
use llm::dialect::{Dialect, StreamOptions};
use llm::fault::ErrorBody;
use llm::sse;
use serde_json::{Value, json};

const DIALECTS: [Dialect; 2] = [Dialect::OpenAiChat, Dialect::AnthropicMessages];

fn folder(operation: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(operation)
}

/// The cases of an operation by name, sorted.
fn fixtures(operation: &str) -> Vec<(String, Value)> {
    let mut cases: Vec<(String, Value)> = fs::read_dir(folder(operation))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, serde_json::from_slice(&fs::read(path).unwrap()).unwrap())
        })
        .collect();
    cases.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(!cases.is_empty(), "{operation} has no fixture");
    cases
}

fn check(operation: &str, name: &str, value: &Value) {
    with_settings!({ snapshot_path => folder(operation), prepend_module_to_snapshot => false, omit_expression => true }, {
        assert_json_snapshot!(name, value);
    });
}

fn check_text(operation: &str, name: &str, text: &str) {
    with_settings!({ snapshot_path => folder(operation), prepend_module_to_snapshot => false, omit_expression => true }, {
        assert_snapshot!(name, text);
    });
}

fn dialect(fixture: &Value) -> Dialect {
    Dialect::from_name(fixture["dialect"].as_str().unwrap()).unwrap()
}

fn quirks(dialect: Dialect) -> &'static Quirks {
    match dialect {
        Dialect::OpenAiChat => Quirks::of("openai"),
        Dialect::AnthropicMessages => Quirks::of("anthropic"),
    }
}

fn parsed(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap()
}

#[test]
fn requests() {
    for (name, fixture) in fixtures("request") {
        let from = dialect(&fixture);
        let request = from.decode_request(fixture["body"].to_string().as_bytes()).unwrap();
        for to in DIALECTS {
            let encoded = to.encode_request(&request, from, quirks(to));
            let said = json!({ "dropped": encoded.dropped, "body": parsed(&encoded.body) });
            check("request", &format!("{name}.{}", to.name()), &said);
        }
    }
}

#[test]
fn replies() {
    for (name, fixture) in fixtures("reply") {
        let reply = dialect(&fixture).decode_reply(fixture["body"].to_string().as_bytes()).unwrap();
        for to in DIALECTS {
            let said = parsed(&to.encode_reply(&reply, &reply.model));
            check("reply", &format!("{name}.{}", to.name()), &said);
        }
    }
}

/// A fixture's events as a provider sends them.
fn sent(fixture: &Value) -> Vec<u8> {
    let mut stream = Vec::new();
    for event in fixture["events"].as_array().unwrap() {
        match (&event["comment"], &event["data"]) {
            (Value::String(comment), _) => stream.extend(format!(": {comment}\n\n").bytes()),
            (_, Value::String(data)) => sse::write(&mut stream, event["name"].as_str(), data.as_bytes()),
            (_, data) => sse::write(&mut stream, event["name"].as_str(), data.to_string().as_bytes()),
        }
    }
    stream
}

fn deltas(dialect: Dialect, stream: Vec<u8>) -> Vec<Delta> {
    let mut decoder = sse::Decoder::new(1 << 20);
    decoder.feed(Bytes::from(stream));
    let mut stream_decoder = dialect.stream_decoder();
    let mut deltas = Vec::new();
    while let Some(event) = decoder.next().unwrap() {
        deltas.extend(stream_decoder.event(&event).unwrap());
    }
    assert!(decoder.remainder_is_empty());
    deltas
}

#[test]
fn streams() {
    for (name, fixture) in fixtures("stream") {
        let deltas = deltas(dialect(&fixture), sent(&fixture));
        let include_usage = fixture["include_usage"].as_bool().unwrap();
        for to in DIALECTS {
            let mut encoder = to.stream_encoder(StreamOptions { include_usage, input_estimate: 9 });
            let mut out = Vec::new();
            for delta in &deltas {
                encoder.delta(delta, &mut out);
            }
            let fault =
                deltas.iter().find_map(|delta| if let Delta::Fault(fault) = delta { Some(fault) } else { None });
            match fault {
                None => encoder.finish(&mut out),
                Some(fault) => out.extend(format!("(then the caller tells of {:?})\n", fault.kind).bytes()),
            }
            check_text("stream", &format!("{name}.{}", to.name()), &String::from_utf8(out).unwrap());
        }
    }
}

#[test]
fn errors() {
    let word = |value: &Value| -> Option<&'static str> { value.as_str().map(|word| &*word.to_owned().leak()) };
    for (name, fixture) in fixtures("error") {
        let error = ErrorBody {
            status: u16::try_from(fixture["status"].as_u64().unwrap()).unwrap(),
            error_type: word(&fixture["error_type"]).unwrap(),
            code: word(&fixture["code"]),
            message: fixture["message"].as_str().unwrap().to_owned(),
            param: word(&fixture["param"]).map(str::to_owned),
            request_id: fixture["request_id"].as_str().unwrap().to_owned(),
        };
        for to in DIALECTS {
            let stream = String::from_utf8(to.encode_stream_error(&error)).unwrap();
            let said = json!({ "body": parsed(&to.encode_error(&error)), "stream": stream });
            check("error", &format!("{name}.{}", to.name()), &said);
        }
    }
}

/// What a provider's error means to us, whatever its body.
#[test]
fn faults() {
    for (name, fixture) in fixtures("fault") {
        let status = u16::try_from(fixture["status"].as_u64().unwrap()).unwrap();
        let body = fixture["body"].as_str().map_or_else(|| fixture["body"].to_string(), str::to_owned);
        let fault = dialect(&fixture).decode_error(status, body.as_bytes());
        check_text("fault", &name, &format!("{fault:#?}"));
    }
}
