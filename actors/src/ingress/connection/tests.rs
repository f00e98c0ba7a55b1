use super::*;

fn headers(name: HeaderName, value: &str) -> HeaderMap {
    HeaderMap::from_iter([(name, HeaderValue::from_str(value).expect("a header's value"))])
}

#[test]
fn a_fit_request_id_is_repeated() {
    let given = "trace-1/a:b_c";

    assert_eq!(RequestId::of(&headers(X_REQUEST_ID, given)).as_str(), given);
    assert_eq!(RequestId::of(&headers(X_REQUEST_ID, &"a".repeat(128))).as_str().len(), 128);
}

/// An id goes into every log line: it may not carry line breaks, blanks or a novel.
#[test]
fn an_unfit_request_id_is_replaced() {
    for unfit in ["", "two words", "tab\tbed", &"a".repeat(129)] {
        let id = RequestId::of(&headers(X_REQUEST_ID, unfit));

        assert_eq!(id.as_str().len(), 32, "{unfit}");
        assert!(id.as_str().bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
}

#[test]
fn random_ids_differ() {
    assert_ne!(RequestId::of(&HeaderMap::new()), RequestId::of(&HeaderMap::new()));
}

#[test]
fn a_caller_may_ask_for_less_time_but_not_for_more() {
    let limits = LimitsConfig { request_timeout: Duration::from_mins(1), ..LimitsConfig::default() };
    let asked = |value| timeout(&headers(X_LEA_TIMEOUT, value), &limits);

    assert_eq!(timeout(&HeaderMap::new(), &limits), Ok(Duration::from_mins(1)));
    assert_eq!(asked("500ms"), Ok(Duration::from_millis(500)));
    assert_eq!(asked("7"), Ok(Duration::from_secs(7)));
    assert_eq!(asked("0.25"), Ok(Duration::from_millis(250)));
    assert_eq!(asked("1h"), Ok(Duration::from_mins(1)));
}

#[test]
fn a_timeout_that_is_none_is_refused() {
    let limits = LimitsConfig::default();
    for bad in ["", "soon", "-1", "0", "0s", "NaN", "inf", "1e400"] {
        assert_eq!(timeout(&headers(X_LEA_TIMEOUT, bad), &limits), Err(BadTimeout), "{bad}");
    }
}
