"""The official OpenAI SDK. `gpt` leads to a provider of its own dialect, `claude` to one that speaks Anthropic's."""

import json

import httpx
import openai
import pytest
from conftest import KEYS, until

BOTH = pytest.mark.parametrize("model", ["gpt", "claude"])

SENTENCE = "Grüße, 世界 👋 — \"quoted\" \\ and\ttabbed"
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Looks up the {name}.",
            "parameters": {"type": "object", "properties": {"account": {"type": "integer"}}, "required": ["account"]},
        },
    }
    for name in ("balance", "limit")
]


@pytest.fixture
def client(gateway):
    with openai.OpenAI(base_url=f"{gateway}/v1", api_key=KEYS["WEB_KEY"], max_retries=0, timeout=20) as client:
        yield client


def say(text):
    return [{"role": "user", "content": f"repeat after me: {text}"}]


@BOTH
def test_an_answer_arrives_whole(client, simulator, model):
    answer = client.chat.completions.create(model=model, messages=say(SENTENCE))

    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == SENTENCE
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == simulator.only_request()["output_tokens"]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@BOTH
def test_the_provider_is_called_with_its_own_key_only(client, simulator, model):
    client.chat.completions.create(model=model, messages=say("hello"))

    request = simulator.only_request()
    assert request["key"] == KEYS["UPSTREAM_KEY"]
    assert KEYS["WEB_KEY"] not in json.dumps(request)


@BOTH
def test_a_stream_says_the_same_in_order(client, model):
    chunks = list(client.chat.completions.create(model=model, messages=say(SENTENCE), stream=True))

    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == SENTENCE
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks), "nobody asked for the usage"


@BOTH
def test_a_stream_tells_its_usage_last_when_asked(client, simulator, model):
    options = {"include_usage": True}
    stream = client.chat.completions.create(model=model, messages=say("one two three"), stream=True, stream_options=options)
    chunks = list(stream)

    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == simulator.only_request()["output_tokens"]
    assert all(chunk.usage is None for chunk in chunks[:-1])


@BOTH
def test_a_system_prompt_and_turns_arrive(client, simulator, model):
    messages = [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "yes?"},
        *say("goodbye"),
    ]
    answer = client.chat.completions.create(model=model, messages=messages, temperature=0.5, max_completion_tokens=50)

    assert answer.choices[0].message.content == "goodbye"
    body = simulator.only_request()["body"]
    assert all(text in body for text in ("You are brief.", "hello", "yes?"))
    assert simulator.sent()["temperature"] == 0.5


@BOTH
def test_a_cap_and_a_stop_sequence_end_an_answer(client, model):
    capped = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "count to 500"}], max_tokens=5)
    stopped = client.chat.completions.create(model=model, messages=say("one STOP two"), stop=["STOP"])

    assert capped.choices[0].finish_reason == "length"
    assert capped.usage.completion_tokens <= 5
    assert stopped.choices[0].message.content.strip() == "one"
    assert stopped.choices[0].finish_reason == "stop"


@BOTH
def test_an_image_arrives(client, simulator, model):
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, image]}]
    answer = client.chat.completions.create(model=model, messages=messages)

    assert "1 of them" in answer.choices[0].message.content
    assert PIXEL in simulator.only_request()["body"]


@BOTH
@pytest.mark.parametrize("question, names", [("What is the balance of account 7?", ["balance"]), ("Tell me balance and limit of account 7.", ["balance", "limit"])])
def test_tools_are_called_and_their_results_understood(client, simulator, model, question, names):
    messages = [{"role": "user", "content": question}]
    called = client.chat.completions.create(model=model, messages=messages, tools=TOOLS).choices[0]
    simulator.reset()
    messages.append(called.message.model_dump(exclude_none=True))
    messages += [{"role": "tool", "tool_call_id": call.id, "content": f"result {n}"} for n, call in enumerate(called.message.tool_calls)]
    answered = client.chat.completions.create(model=model, messages=messages, tools=TOOLS).choices[0]

    assert called.finish_reason == "tool_calls"
    assert [call.function.name for call in called.message.tool_calls] == names
    assert all(json.loads(call.function.arguments) == {"account": 7} for call in called.message.tool_calls)
    assert len({call.id for call in called.message.tool_calls}) == len(names)
    assert answered.finish_reason == "stop" and answered.message.content
    sent = simulator.only_request()["body"]
    assert all(f"result {n}" in sent and call.id in sent for n, call in enumerate(called.message.tool_calls))


@BOTH
def test_parallel_calls_stream_apart(client, model):
    messages = [{"role": "user", "content": "Tell me balance and limit of account 7."}]
    calls, finishes = {}, []
    for chunk in client.chat.completions.create(model=model, messages=messages, tools=TOOLS, stream=True):
        for choice in chunk.choices:
            finishes += [choice.finish_reason] if choice.finish_reason else []
            for piece in choice.delta.tool_calls or []:
                call = calls.setdefault(piece.index, {"name": "", "arguments": ""})
                call["name"] += piece.function.name or ""
                call["arguments"] += piece.function.arguments or ""

    assert finishes == ["tool_calls"]
    assert [calls[index]["name"] for index in sorted(calls)] == ["balance", "limit"]
    assert all(json.loads(call["arguments"]) == {"account": 7} for call in calls.values())


@BOTH
def test_a_tool_can_be_demanded_and_forbidden(client, model):
    messages = [{"role": "user", "content": "Hello, account 7."}]
    named = {"type": "function", "function": {"name": "limit"}}
    demanded = client.chat.completions.create(model=model, messages=messages, tools=TOOLS, tool_choice=named).choices[0]
    forbidden = client.chat.completions.create(model=model, messages=messages, tools=TOOLS, tool_choice="none").choices[0]

    assert [call.function.name for call in demanded.message.tool_calls] == ["limit"]
    assert not forbidden.message.tool_calls and forbidden.message.content


def test_models_are_listed_and_filtered_by_the_key(client):
    narrow = client.with_options(api_key=KEYS["NARROW_KEY"])

    assert {"gpt", "claude", "survivor"} <= {model.id for model in client.models.list()}
    assert [model.id for model in narrow.models.list()] == ["gpt"]
    assert client.models.retrieve("gpt").id == "gpt"


def test_a_key_that_is_not_known_is_an_authentication_error(client, simulator):
    with pytest.raises(openai.AuthenticationError) as raised:
        client.with_options(api_key="not-a-key").chat.completions.create(model="gpt", messages=say("hello"))

    assert raised.value.code == "invalid_api_key"
    assert raised.value.request_id
    assert simulator.requests() == []


def test_a_model_the_key_may_not_use_is_a_permission_error(client, simulator):
    with pytest.raises(openai.PermissionDeniedError) as raised:
        client.with_options(api_key=KEYS["NARROW_KEY"]).chat.completions.create(model="claude", messages=say("hello"))

    assert raised.value.code == "model_not_allowed"
    assert simulator.requests() == []


def test_a_model_nobody_has_is_a_not_found_error(client):
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(model="no-such-model", messages=say("hello"))

    assert raised.value.code == "model_not_found"
    assert raised.value.param == "model"


def test_a_request_without_messages_is_a_bad_request(client, simulator):
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="gpt", messages=[])

    assert raised.value.param == "messages"
    assert simulator.requests() == []


@BOTH
def test_what_the_provider_finds_wrong_is_a_bad_request(client, simulator, model):
    simulator.script({"status": 400})

    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model=model, messages=say("hello"))

    assert raised.value.response.headers["x-lea-upstream-status"] == "400"


def test_a_key_over_its_rate_is_a_rate_limit_error(client, simulator):
    slow = client.with_options(api_key=KEYS["SLOW_OPENAI_KEY"])
    slow.chat.completions.create(model="gpt", messages=say("hello"))

    with pytest.raises(openai.RateLimitError) as raised:
        slow.chat.completions.create(model="gpt", messages=say("hello"))

    assert raised.value.code == "rate_limit_exceeded"
    assert 1 <= int(raised.value.response.headers["retry-after"]) <= 60
    assert len(simulator.requests()) == 1


def test_a_key_over_its_budget_is_a_rate_limit_error_that_the_sdk_does_not_retry(client, simulator):
    calls = []
    with httpx.Client(event_hooks={"request": [calls.append]}) as counted:
        poor = client.with_options(api_key=KEYS["POOR_KEY"], http_client=counted, max_retries=2)
        with pytest.raises(openai.RateLimitError) as raised:
            poor.chat.completions.create(model="gpt", messages=say("hello"))

    assert raised.value.code == "budget_exceeded"
    assert raised.value.response.headers["x-should-retry"] == "false"
    assert (len(calls), simulator.requests()) == (1, [])


def test_a_throttled_provider_is_a_rate_limit_error(client, simulator):
    simulator.script({"throttle": 2, "times": "always"})

    with pytest.raises(openai.RateLimitError) as raised:
        client.chat.completions.create(model="throttled_openai/gpt-4o-mini", messages=say("hello"))

    assert int(raised.value.response.headers["retry-after"]) in (1, 2)


def test_a_refused_upstream_key_is_the_gateways_fault_not_the_callers(client, simulator):
    simulator.script({"status": 401, "times": "always"})

    with pytest.raises(openai.InternalServerError) as raised:
        client.chat.completions.create(model="refused_openai/gpt-4o-mini", messages=say("hello"))

    assert raised.value.status_code == 502
    assert raised.value.code == "upstream_credentials_exhausted"
    assert KEYS["UPSTREAM_KEY"] not in str(raised.value)


@BOTH
def test_the_sdk_retries_a_failing_provider_twice(client, simulator, model):
    simulator.script({"status": 500, "times": "always"})

    with pytest.raises(openai.InternalServerError):
        client.with_options(max_retries=2).chat.completions.create(model=model, messages=say("hello"))

    assert len(simulator.requests()) == 3


@BOTH
def test_a_retry_of_the_sdk_succeeds(client, simulator, model):
    simulator.script({"status": 503})
    answer = client.with_options(max_retries=2).chat.completions.create(model=model, messages=say("hello"))

    assert answer.choices[0].message.content == "hello"
    assert [request["status"] for request in simulator.requests()] == [503, 200]


@pytest.mark.parametrize("stream", [False, True])
def test_a_failing_provider_is_survived_unnoticed(client, simulator, stream):
    simulator.script({"match": {"model": "gpt-4o"}, "status": 500})
    answer = client.chat.completions.create(model="survivor", messages=say("hello"), stream=stream)
    text = "".join(c.choices[0].delta.content or "" for c in answer if c.choices) if stream else answer.choices[0].message.content

    assert text == "hello"
    assert [request["model"] for request in simulator.requests()] == ["gpt-4o", "claude-sonnet-4-5"]


@BOTH
@pytest.mark.parametrize("how", ["end", "reset", "abrupt", "half_event"])
def test_a_stream_cut_short_is_an_error_and_never_an_answer(client, simulator, model, how):
    simulator.script({"cut": {"at": {"after_tokens": 3}, "how": how}})
    stream = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "count to 50"}], stream=True)
    chunks = []

    with pytest.raises(openai.APIError):
        chunks.extend(stream)

    assert not any(choice.finish_reason for chunk in chunks for choice in chunk.choices)
    assert len(simulator.requests()) == 1, "nothing is tried again once content was sent"


@BOTH
def test_a_hang_up_reaches_the_provider(client, simulator, model):
    simulator.script({"hang": {"after_tokens": 3}})
    stream = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "count to 50"}], stream=True)
    next(chunk for chunk in stream if chunk.choices and chunk.choices[0].delta.content)
    stream.close()

    until("the provider sees the hang-up", lambda: simulator.only_request()["hung_up"])
