"""LangChain's OpenAI client. `gpt` leads to a provider that speaks OpenAI's dialect, `claude` to one that speaks Anthropic's."""

import openai
import pytest
from conftest import KEYS
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

BOTH = pytest.mark.parametrize("model", ["gpt", "claude"])


@tool
def balance(account: int) -> str:
    """Looks up the balance."""
    return f"account {account} has 12 euros"


@pytest.fixture
def chat(gateway):
    def make(model, **options):
        settings = {"base_url": f"{gateway}/v1", "api_key": KEYS["WEB_KEY"], "max_retries": 0, "timeout": 20, **options}
        return ChatOpenAI(model=model, **settings)

    return make


@BOTH
def test_an_answer_arrives_whole(chat, model):
    answer = chat(model).invoke("repeat after me: Grüße, 世界")

    assert answer.content == "Grüße, 世界"
    assert answer.usage_metadata["output_tokens"] > 0


@BOTH
def test_a_stream_says_the_same_with_its_usage(chat, simulator, model):
    whole = None
    for chunk in chat(model, stream_usage=True).stream("repeat after me: one two three"):
        whole = chunk if whole is None else whole + chunk

    assert whole.content == "one two three"
    assert whole.usage_metadata["output_tokens"] == simulator.only_request()["output_tokens"]


@BOTH
def test_a_tool_is_called_and_its_result_understood(chat, simulator, model):
    with_tools = chat(model).bind_tools([balance])
    question = HumanMessage("What is the balance of account 7?")
    called = with_tools.invoke([question])
    (call,) = called.tool_calls
    simulator.reset()
    answered = with_tools.invoke([question, called, ToolMessage(balance.invoke(call["args"]), tool_call_id=call["id"])])

    assert (call["name"], call["args"]) == ("balance", {"account": 7})
    assert answered.content and not answered.tool_calls
    assert "account 7 has 12 euros" in simulator.only_request()["body"]


def test_errors_keep_their_class(chat):
    with pytest.raises(openai.AuthenticationError):
        chat("gpt", api_key="not-a-key").invoke("hello")
    with pytest.raises(openai.NotFoundError):
        chat("no-such-model").invoke("hello")


def test_a_failing_provider_is_survived_unnoticed(chat, simulator):
    simulator.script({"match": {"model": "gpt-4o"}, "status": 500})

    assert chat("survivor").invoke("repeat after me: hello").content == "hello"
    assert len(simulator.requests()) == 2
