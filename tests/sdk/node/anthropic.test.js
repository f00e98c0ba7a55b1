// The official Anthropic SDK. `claude` leads to a provider of its own dialect, `gpt` to one that speaks OpenAI's.

import Anthropic from "@anthropic-ai/sdk";
import assert from "node:assert/strict";
import { test } from "node:test";
import { ask, KEYS, PIXEL, say, SCHEMA, SENTENCE, until, world } from "./world.js";

const the = world();
const client = (options = {}) =>
  new Anthropic({ baseURL: the.gateway, apiKey: KEYS.WEB_KEY, maxRetries: 0, timeout: 20_000, ...options });
const TOOLS = ["balance", "limit"].map((name) => ({ name, description: `Looks up the ${name}.`, input_schema: SCHEMA }));
const max_tokens = 200;

for (const model of ["claude", "gpt"]) {
  test(`${model}: an answer arrives whole`, async () => {
    const answer = await client().messages.create({ model, max_tokens, system: "You are brief.", messages: say(SENTENCE) });

    assert.deepEqual(answer.content.map((block) => block.text), [SENTENCE]);
    assert.equal(answer.stop_reason, "end_turn");
    const request = await the.onlyRequest();
    assert.equal(answer.usage.output_tokens, request.output_tokens);
    assert.ok(request.body.includes("You are brief."));
  });

  test(`${model}: a stream says the same in order, with its usage`, async () => {
    const stream = client().messages.stream({ model, max_tokens, messages: say(SENTENCE) });
    let text = "";
    stream.on("text", (piece) => (text += piece));
    const answer = await stream.finalMessage();

    assert.equal(text, SENTENCE);
    assert.equal(answer.content[0].text, SENTENCE);
    assert.equal(answer.usage.output_tokens, (await the.onlyRequest()).output_tokens);
  });

  test(`${model}: an image arrives`, async () => {
    const image = { type: "image", source: { type: "base64", media_type: "image/png", data: PIXEL } };
    const messages = [{ role: "user", content: [image, { type: "text", text: "What is this?" }] }];
    const answer = await client().messages.create({ model, max_tokens, messages });

    assert.match(answer.content[0].text, /1 of them/);
    assert.ok((await the.onlyRequest()).body.includes(PIXEL));
  });

  for (const streamed of [false, true]) {
    test(`${model}: parallel tools are called and their results understood${streamed ? ", streamed" : ""}`, async () => {
      const messages = ask("Tell me balance and limit of account 7.");
      const request = { model, max_tokens, messages, tools: TOOLS };
      const called = streamed ? await client().messages.stream(request).finalMessage() : await client().messages.create(request);
      await the.reset();
      const calls = called.content.filter((block) => block.type === "tool_use");
      const uses = calls.map(({ id, name, input }) => ({ type: "tool_use", id, name, input }));
      const results = calls.map((call, n) => ({ type: "tool_result", tool_use_id: call.id, content: `result ${n}` }));
      const turns = [...messages, { role: "assistant", content: uses }, { role: "user", content: results }];
      const answered = await client().messages.create({ ...request, messages: turns });

      assert.equal(called.stop_reason, "tool_use");
      assert.deepEqual(calls.map((call) => [call.name, call.input]), [["balance", { account: 7 }], ["limit", { account: 7 }]]);
      assert.equal(answered.stop_reason, "end_turn");
      const sent = (await the.onlyRequest()).body;
      calls.forEach((call, n) => assert.ok(sent.includes(`result ${n}`) && sent.includes(call.id)));
    });
  }

  test(`${model}: the SDK retries a failing provider twice`, async () => {
    await the.script({ status: 500, times: "always" });

    const answer = client({ maxRetries: 2 }).messages.create({ model, max_tokens, messages: say("hello") });

    await assert.rejects(answer, Anthropic.InternalServerError);
    assert.equal((await the.requests()).length, 3);
  });

  for (const how of ["end", "reset", "abrupt", "half_event"]) {
    test(`${model}: a stream cut short (${how}) is an error and never an answer`, async () => {
      await the.script({ cut: { at: { after_tokens: 3 }, how } });
      const stream = await client().messages.create({ model, max_tokens, messages: ask("count to 50"), stream: true });
      const kinds = [];

      await assert.rejects(async () => {
        for await (const event of stream) kinds.push(event.type);
      });

      assert.ok(kinds.includes("content_block_delta") && !kinds.includes("message_stop"), `${kinds}`);
      assert.equal((await the.requests()).length, 1);
    });
  }

  test(`${model}: a hang-up reaches the provider`, async () => {
    await the.script({ hang: { after_tokens: 3 } });
    const stream = await client().messages.create({ model, max_tokens, messages: ask("count to 50"), stream: true });
    for await (const event of stream) if (event.type === "content_block_delta") break;
    stream.controller.abort();

    await until("the provider sees the hang-up", async () => (await the.onlyRequest()).hung_up);
  });
}

test("tokens are counted by the provider, or estimated openly", async () => {
  const count = (model) => client().messages.countTokens({ model, messages: say("one two three") }).withResponse();
  const counted = await count("claude");
  const estimated = await count("gpt");
  const answer = await client().messages.create({ model: "claude", max_tokens, messages: say("one two three") });

  assert.equal(counted.data.input_tokens, answer.usage.input_tokens);
  assert.equal(counted.response.headers.get("x-lea-estimated"), null);
  assert.ok(estimated.data.input_tokens > 0);
  assert.equal(estimated.response.headers.get("x-lea-estimated"), "true");
});

test("models are listed and filtered by the key", async () => {
  const ids = async (apiKey) => (await client({ apiKey }).models.list()).data.map((model) => model.id);

  assert.ok((await ids(KEYS.WEB_KEY)).includes("claude"));
  assert.deepEqual(await ids(KEYS.NARROW_KEY), ["gpt"]);
});

test("errors keep their class, type and request id", async () => {
  const fails = async (kind, type, request, options) => {
    const whole = { model: "gpt", max_tokens, messages: say("hello"), ...request };
    const error = await client(options).messages.create(whole).then(
      () => assert.fail(`no ${kind.name}`),
      (error) => error,
    );
    assert.ok(error instanceof kind, `${error}`);
    assert.equal(error.error.error.type, type);
    assert.ok(error.requestID);
  };

  await fails(Anthropic.AuthenticationError, "authentication_error", {}, { apiKey: "not-a-key" });
  await fails(Anthropic.PermissionDeniedError, "permission_error", { model: "claude" }, { apiKey: KEYS.NARROW_KEY });
  await fails(Anthropic.NotFoundError, "not_found_error", { model: "no-such-model" });
  await fails(Anthropic.BadRequestError, "invalid_request_error", { messages: [] });
  assert.deepEqual(await the.requests(), []);
});

test("a key over its rate is a rate limit error", async () => {
  const slow = client({ apiKey: KEYS.SLOW_ANTHROPIC_KEY });
  const request = { model: "claude", max_tokens, messages: say("hello") };
  await slow.messages.create(request);

  await assert.rejects(slow.messages.create(request), Anthropic.RateLimitError);
});

test("a key over its budget is a rate limit error that the SDK does not retry", async () => {
  let calls = 0;
  const counted = (...request) => ((calls += 1), fetch(...request));
  const poor = client({ apiKey: KEYS.POOR_KEY, maxRetries: 2, fetch: counted });

  await assert.rejects(poor.messages.create({ model: "claude", max_tokens, messages: say("hello") }), (error) => {
    assert.ok(error instanceof Anthropic.RateLimitError);
    assert.equal(error.headers.get("x-should-retry"), "false");
    return true;
  });
  assert.equal(calls, 1);
  assert.deepEqual(await the.requests(), []);
});

test("a throttled provider is a rate limit error", async () => {
  await the.script({ throttle: 2, times: "always" });

  const answer = client().messages.create({ model: "throttled_anthropic/claude-haiku-4-5", max_tokens, messages: say("hello") });

  await assert.rejects(answer, Anthropic.RateLimitError);
});
