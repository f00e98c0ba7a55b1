//! Any bytes as a request, a reply or an error of every dialect: no panic, and what is understood can be said in every dialect.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llm::dialect::Dialect;
use llm::dialect::compatible::vendors;
use llm::fault::ErrorBody;
use llm::splice::{Change, splice};
use llm::{tokens, transcode};
use serde_json::Value;

const DIALECTS: [Dialect; 2] = [Dialect::OpenAiChat, Dialect::AnthropicMessages];

fuzz_target!(|bytes: &[u8]| {
    for dialect in DIALECTS {
        request(dialect, bytes);
        reply(dialect, bytes);
        error(dialect, bytes);
    }
});

fn request(dialect: Dialect, bytes: &[u8]) {
    let Ok(request) = dialect.decode_request(bytes) else { return };
    assert!(tokens::input_upper_bound(&request) >= tokens::input_estimate(&request), "the bound is below the estimate");

    for vendor in vendors() {
        let encoded = vendor.dialect.encode_request(&request, dialect, &vendor.quirks);
        assert_json("an encoded request", &encoded.body);
    }

    let change = Change { model: Some("other"), include_usage: true, output_max: Some(7), ..Change::default() };
    let spliced = splice(dialect, bytes, &change);
    let again = dialect.decode_request(&spliced).expect("a spliced request is a request");
    assert_eq!(again.model, "other");
    assert_eq!(again.messages, request.messages, "splicing leaves the conversation alone");
}

fn reply(dialect: Dialect, bytes: &[u8]) {
    let Ok(reply) = dialect.decode_reply(bytes) else { return };
    assert!(!reply.choices.is_empty());
    assert!(!transcode::deltas_of(&reply).is_empty());
    for other in DIALECTS {
        let encoded = other.encode_reply(&reply, "shown");
        other.decode_reply(&encoded).expect("an encoded reply is a reply");
    }
}

fn error(dialect: Dialect, bytes: &[u8]) {
    for status in [400, 401, 429, 500, 529] {
        let fault = dialect.decode_error(status, bytes);
        assert!(fault.message.len() <= 2048);
        let shown = ErrorBody {
            status,
            error_type: "upstream_error",
            code: None,
            message: fault.message,
            param: fault.param,
            request_id: "r".to_owned(),
        };
        for other in DIALECTS {
            assert_json("an encoded error", &other.encode_error(&shown));
        }
    }
}

fn assert_json(what: &str, bytes: &[u8]) {
    if let Err(error) = serde_json::from_slice::<Value>(bytes) {
        panic!("{what} is not JSON: {error}: {}", String::from_utf8_lossy(bytes));
    }
}
