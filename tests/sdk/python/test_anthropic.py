"""The official Anthropic SDK. `claude` leads to a provider of its own dialect, `gpt` to one that speaks OpenAI's."""

import json

import anthropic
import httpx2
import pytest
from conftest import KEYS, until

BOTH = pytest.mark.parametrize("model", ["claude", "gpt"])

SENTENCE = "Grüße, 世界 👋 — \"quoted\" \\ and\ttabbed"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

TOOLS = [
    {
        "name": name,
        "description": f"Looks up the {name}.",
        "input_schema": {"type": "object", "properties": {"account": {"type": "integer"}}, "required": ["account"]},
    }
    for name in ("balance", "limit")
]


@pytest.fixture
def client(gateway):
    with anthropic.Anthropic(base_url=gateway, api_key=KEYS["WEB_KEY"], max_retries=0, timeout=20) as client:
        yield client


def say(text):
    return [{"role": "user", "content": f"repeat after me: {text}"}]


def ask(client, model, messages, **options):
    return client.messages.create(**{"model": model, "max_tokens": 200, "messages": messages, **options})


@BOTH
def test_an_answer_arrives_whole(client, simulator, model):
    answer = ask(client, model, say(SENTENCE), system="You are brief.")

    assert (answer.type, answer.role) == ("message", "assistant")
    assert [block.text for block in answer.content] == [SENTENCE]
    assert answer.stop_reason == "end_turn"
    assert answer.usage.output_tokens == simulator.only_request()["output_tokens"]
    assert "You are brief." in simulator.only_request()["body"]


@BOTH
def test_the_provider_is_called_with_its_own_key_only(client, simulator, model):
    ask(client, model, say("hello"))

    request = simulator.only_request()
    assert request["key"] == KEYS["UPSTREAM_KEY"]
    assert KEYS["WEB_KEY"] not in json.dumps(request)


@BOTH
def test_a_stream_says_the_same_in_order(client, simulator, model):
    with client.messages.stream(model=model, max_tokens=200, messages=say(SENTENCE)) as stream:
        text = "".join(stream.text_stream)
        answer = stream.get_final_message()

    assert text == SENTENCE
    assert answer.content[0].text == SENTENCE
    assert answer.stop_reason == "end_turn"
    assert answer.usage.output_tokens == simulator.only_request()["output_tokens"]


@BOTH
def test_the_events_of_a_stream_follow_the_dialect(client, model):
    kinds = [event.type for event in ask(client, model, say("one two three"), stream=True)]
    kinds = [kind for kind in kinds if kind != "ping"]

    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}


@BOTH
def test_a_cap_and_a_stop_sequence_end_an_answer(client, model):
    capped = ask(client, model, [{"role": "user", "content": "count to 500"}], max_tokens=5)
    stopped = ask(client, model, say("one STOP two"), stop_sequences=["STOP"])

    assert capped.stop_reason == "max_tokens"
    assert capped.usage.output_tokens <= 5
    assert stopped.content[0].text.strip() == "one"
    assert stopped.stop_reason == ("stop_sequence" if model == "claude" else "end_turn")


@BOTH
def test_an_image_arrives(client, simulator, model):
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}}
    answer = ask(client, model, [{"role": "user", "content": [image, {"type": "text", "text": "What is this?"}]}])

    assert "1 of them" in answer.content[0].text
    assert PIXEL in simulator.only_request()["body"]


@BOTH
@pytest.mark.parametrize("question, names", [("What is the balance of account 7?", ["balance"]), ("Tell me balance and limit of account 7.", ["balance", "limit"])])
@pytest.mark.parametrize("streamed", [False, True])
def test_tools_are_called_and_their_results_understood(client, simulator, model, question, names, streamed):
    messages = [{"role": "user", "content": question}]
    if streamed:
        with client.messages.stream(model=model, max_tokens=200, messages=messages, tools=TOOLS) as stream:
            called = stream.get_final_message()
    else:
        called = ask(client, model, messages, tools=TOOLS)
    calls = [block for block in called.content if block.type == "tool_use"]
    simulator.reset()
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": f"result {n}"} for n, call in enumerate(calls)]
    turns = [{"type": "tool_use", "id": call.id, "name": call.name, "input": call.input} for call in calls]
    messages += [{"role": "assistant", "content": turns}, {"role": "user", "content": results}]
    answered = ask(client, model, messages, tools=TOOLS)

    assert called.stop_reason == "tool_use"
    assert [(call.name, call.input) for call in calls] == [(name, {"account": 7}) for name in names]
    assert len({call.id for call in calls}) == len(names)
    assert answered.stop_reason == "end_turn" and answered.content[0].text
    sent = simulator.only_request()["body"]
    assert all(f"result {n}" in sent and call.id in sent for n, call in enumerate(calls))


@BOTH
def test_a_tool_can_be_demanded(client, model):
    choice = {"type": "tool", "name": "limit"}
    answer = ask(client, model, [{"role": "user", "content": "Hello, account 7."}], tools=TOOLS, tool_choice=choice)

    assert [block.name for block in answer.content if block.type == "tool_use"] == ["limit"]


def test_tokens_are_counted_by_the_provider_or_estimated_openly(client):
    counted = client.messages.with_raw_response.count_tokens(model="claude", messages=say("one two three"))
    estimated = client.messages.with_raw_response.count_tokens(model="gpt", messages=say("one two three"))
    answer = ask(client, "claude", say("one two three"))

    assert counted.parse().input_tokens == answer.usage.input_tokens
    assert "x-lea-estimated" not in counted.headers
    assert estimated.parse().input_tokens > 0
    assert estimated.headers["x-lea-estimated"] == "true"


def test_models_are_listed_and_filtered_by_the_key(client):
    narrow = client.with_options(api_key=KEYS["NARROW_KEY"])

    assert {"gpt", "claude", "survivor"} <= {model.id for model in client.models.list()}
    assert [model.id for model in narrow.models.list()] == ["gpt"]


def test_a_key_that_is_not_known_is_an_authentication_error(client, simulator):
    with pytest.raises(anthropic.AuthenticationError) as raised:
        ask(client.with_options(api_key="not-a-key"), "claude", say("hello"))

    assert raised.value.body["error"]["type"] == "authentication_error"
    assert raised.value.request_id
    assert simulator.requests() == []


def test_a_model_the_key_may_not_use_is_a_permission_error(client, simulator):
    with pytest.raises(anthropic.PermissionDeniedError) as raised:
        ask(client.with_options(api_key=KEYS["NARROW_KEY"]), "claude", say("hello"))

    assert raised.value.body["error"]["type"] == "permission_error"
    assert simulator.requests() == []


def test_a_model_nobody_has_is_a_not_found_error(client):
    with pytest.raises(anthropic.NotFoundError) as raised:
        ask(client, "no-such-model", say("hello"))

    assert raised.value.body["error"]["type"] == "not_found_error"


def test_a_request_without_messages_is_a_bad_request(client, simulator):
    with pytest.raises(anthropic.BadRequestError) as raised:
        ask(client, "claude", [])

    assert raised.value.body["error"]["type"] == "invalid_request_error"
    assert simulator.requests() == []


@BOTH
def test_what_the_provider_finds_wrong_is_a_bad_request(client, simulator, model):
    simulator.script({"status": 400})

    with pytest.raises(anthropic.BadRequestError) as raised:
        ask(client, model, say("hello"))

    assert raised.value.response.headers["x-lea-upstream-status"] == "400"


def test_a_key_over_its_rate_is_a_rate_limit_error(client, simulator):
    slow = client.with_options(api_key=KEYS["SLOW_ANTHROPIC_KEY"])
    ask(slow, "claude", say("hello"))

    with pytest.raises(anthropic.RateLimitError) as raised:
        ask(slow, "claude", say("hello"))

    assert raised.value.body["error"]["type"] == "rate_limit_error"
    assert 1 <= int(raised.value.response.headers["retry-after"]) <= 60
    assert len(simulator.requests()) == 1


def test_a_key_over_its_budget_is_a_rate_limit_error_that_the_sdk_does_not_retry(client, simulator):
    calls = []
    with httpx2.Client(event_hooks={"request": [calls.append]}) as counted:
        poor = client.with_options(api_key=KEYS["POOR_KEY"], http_client=counted, max_retries=2)
        with pytest.raises(anthropic.RateLimitError) as raised:
            ask(poor, "claude", say("hello"))

    assert raised.value.body["error"]["type"] == "billing_error"
    assert raised.value.response.headers["x-should-retry"] == "false"
    assert (len(calls), simulator.requests()) == (1, [])


def test_a_throttled_provider_is_a_rate_limit_error(client, simulator):
    simulator.script({"throttle": 2, "times": "always"})

    with pytest.raises(anthropic.RateLimitError):
        ask(client, "throttled_anthropic/claude-haiku-4-5", say("hello"))


def test_a_refused_upstream_key_is_the_gateways_fault_not_the_callers(client, simulator):
    simulator.script({"status": 401, "times": "always"})

    with pytest.raises(anthropic.InternalServerError) as raised:
        ask(client, "refused_anthropic/claude-haiku-4-5", say("hello"))

    assert raised.value.status_code == 502
    assert KEYS["UPSTREAM_KEY"] not in str(raised.value)


@BOTH
def test_the_sdk_retries_a_failing_provider_twice(client, simulator, model):
    simulator.script({"status": 500, "times": "always"})

    with pytest.raises(anthropic.InternalServerError):
        ask(client.with_options(max_retries=2), model, say("hello"))

    assert len(simulator.requests()) == 3


@pytest.mark.parametrize("streamed", [False, True])
def test_a_failing_provider_is_survived_unnoticed(client, simulator, streamed):
    simulator.script({"match": {"model": "gpt-4o"}, "status": 500})
    if streamed:
        with client.messages.stream(model="survivor", max_tokens=200, messages=say("hello")) as stream:
            text = "".join(stream.text_stream)
    else:
        text = ask(client, "survivor", say("hello")).content[0].text

    assert text == "hello"
    assert [request["model"] for request in simulator.requests()] == ["gpt-4o", "claude-sonnet-4-5"]


@BOTH
@pytest.mark.parametrize("how", ["end", "reset", "abrupt", "half_event"])
def test_a_stream_cut_short_is_an_error_and_never_an_answer(client, simulator, model, how):
    simulator.script({"cut": {"at": {"after_tokens": 3}, "how": how}})
    stream = ask(client, model, [{"role": "user", "content": "count to 50"}], stream=True)
    kinds = []

    with pytest.raises(anthropic.APIError):
        kinds.extend(event.type for event in stream)

    assert "message_stop" not in kinds
    assert len(simulator.requests()) == 1, "nothing is tried again once content was sent"


@BOTH
def test_a_hang_up_reaches_the_provider(client, simulator, model):
    simulator.script({"hang": {"after_tokens": 3}})
    stream = ask(client, model, [{"role": "user", "content": "count to 50"}], stream=True)
    next(event for event in stream if event.type == "content_block_delta")
    stream.close()

    until("the provider sees the hang-up", lambda: simulator.only_request()["hung_up"])
