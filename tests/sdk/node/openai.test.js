// The official OpenAI SDK. `gpt` leads to a provider of its own dialect, `claude` to one that speaks Anthropic's.

import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { ask, KEYS, PIXEL, say, SCHEMA, SENTENCE, until, world } from "./world.js";

const the = world();
const client = (options = {}) =>
  new OpenAI({ baseURL: `${the.gateway}/v1`, apiKey: KEYS.WEB_KEY, maxRetries: 0, timeout: 20_000, ...options });
const TOOLS = ["balance", "limit"].map((name) => ({
  type: "function",
  function: { name, description: `Looks up the ${name}.`, parameters: SCHEMA },
}));
const textOf = (chunks) => chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");

for (const model of ["gpt", "claude"]) {
  test(`${model}: an answer arrives whole`, async () => {
    const answer = await client().chat.completions.create({ model, messages: say(SENTENCE) });

    assert.equal(answer.choices[0].message.content, SENTENCE);
    assert.equal(answer.choices[0].finish_reason, "stop");
    assert.equal(answer.usage.completion_tokens, (await the.onlyRequest()).output_tokens);
  });

  test(`${model}: a stream says the same in order, and its usage last`, async () => {
    const request = { model, messages: say(SENTENCE), stream: true, stream_options: { include_usage: true } };
    const chunks = [];
    for await (const chunk of await client().chat.completions.create(request)) chunks.push(chunk);

    assert.equal(textOf(chunks), SENTENCE);
    assert.equal(new Set(chunks.map((chunk) => chunk.id)).size, 1);
    assert.deepEqual(chunks.at(-1).choices, []);
    assert.equal(chunks.at(-1).usage.completion_tokens, (await the.onlyRequest()).output_tokens);
  });

  test(`${model}: an image arrives`, async () => {
    const url = `data:image/png;base64,${PIXEL}`;
    const content = [{ type: "text", text: "What is this?" }, { type: "image_url", image_url: { url } }];
    const answer = await client().chat.completions.create({ model, messages: [{ role: "user", content }] });

    assert.match(answer.choices[0].message.content, /1 of them/);
    assert.ok((await the.onlyRequest()).body.includes(PIXEL));
  });

  for (const [question, names] of [
    ["What is the balance of account 7?", ["balance"]],
    ["Tell me balance and limit of account 7.", ["balance", "limit"]],
  ]) {
    test(`${model}: ${names.join(" and ")} are called and their results understood`, async () => {
      const messages = ask(question);
      const called = (await client().chat.completions.create({ model, messages, tools: TOOLS })).choices[0];
      await the.reset();
      const calls = called.message.tool_calls;
      messages.push(called.message, ...calls.map((call, n) => ({ role: "tool", tool_call_id: call.id, content: `result ${n}` })));
      const answered = (await client().chat.completions.create({ model, messages, tools: TOOLS })).choices[0];

      assert.equal(called.finish_reason, "tool_calls");
      assert.deepEqual(calls.map((call) => call.function.name), names);
      for (const call of calls) assert.deepEqual(JSON.parse(call.function.arguments), { account: 7 });
      assert.equal(answered.finish_reason, "stop");
      const sent = (await the.onlyRequest()).body;
      calls.forEach((call, n) => assert.ok(sent.includes(`result ${n}`) && sent.includes(call.id)));
    });
  }

  test(`${model}: the SDK puts streamed parallel calls together`, async () => {
    const messages = ask("Tell me balance and limit of account 7.");
    const answer = await client().chat.completions.stream({ model, messages, tools: TOOLS }).finalChatCompletion();

    const calls = answer.choices[0].message.tool_calls.map((call) => [call.function.name, JSON.parse(call.function.arguments)]);
    assert.deepEqual(calls, [["balance", { account: 7 }], ["limit", { account: 7 }]]);
  });

  test(`${model}: the SDK retries a failing provider twice`, async () => {
    await the.script({ status: 500, times: "always" });

    const answer = client({ maxRetries: 2 }).chat.completions.create({ model, messages: say("hello") });

    await assert.rejects(answer, OpenAI.InternalServerError);
    assert.equal((await the.requests()).length, 3);
  });

  for (const how of ["end", "reset", "abrupt", "half_event"]) {
    test(`${model}: a stream cut short (${how}) is an error and never an answer`, async () => {
      await the.script({ cut: { at: { after_tokens: 3 }, how } });
      const stream = await client().chat.completions.create({ model, messages: ask("count to 50"), stream: true });
      const finishes = [];

      await assert.rejects(async () => {
        for await (const chunk of stream) finishes.push(chunk.choices[0]?.finish_reason);
      });

      assert.ok(finishes.length > 0 && finishes.every((finish) => !finish), `${finishes}`);
      assert.equal((await the.requests()).length, 1);
    });
  }

  test(`${model}: a hang-up reaches the provider`, async () => {
    await the.script({ hang: { after_tokens: 3 } });
    const stream = await client().chat.completions.create({ model, messages: ask("count to 50"), stream: true });
    for await (const chunk of stream) if (chunk.choices[0]?.delta.content) break;
    stream.controller.abort();

    await until("the provider sees the hang-up", async () => (await the.onlyRequest()).hung_up);
  });
}

test("models are listed and filtered by the key", async () => {
  const ids = async (apiKey) => (await client({ apiKey }).models.list()).data.map((model) => model.id);

  assert.ok((await ids(KEYS.WEB_KEY)).includes("claude"));
  assert.deepEqual(await ids(KEYS.NARROW_KEY), ["gpt"]);
});

test("errors keep their class, code and request id", async () => {
  const fails = async (kind, code, request, options) => {
    const error = await client(options).chat.completions.create({ model: "gpt", messages: say("hello"), ...request }).then(
      () => assert.fail(`no ${kind.name}`),
      (error) => error,
    );
    assert.ok(error instanceof kind, `${error}`);
    assert.equal(error.code, code);
    assert.ok(error.requestID);
  };

  await fails(OpenAI.AuthenticationError, "invalid_api_key", {}, { apiKey: "not-a-key" });
  await fails(OpenAI.PermissionDeniedError, "model_not_allowed", { model: "claude" }, { apiKey: KEYS.NARROW_KEY });
  await fails(OpenAI.NotFoundError, "model_not_found", { model: "no-such-model" });
  await fails(OpenAI.BadRequestError, "invalid_request", { messages: [] });
  assert.deepEqual(await the.requests(), []);
});

test("a key over its rate is a rate limit error", async () => {
  const slow = client({ apiKey: KEYS.SLOW_OPENAI_KEY });
  const request = { model: "gpt", messages: say("hello") };
  await slow.chat.completions.create(request);

  await assert.rejects(slow.chat.completions.create(request), (error) => {
    assert.ok(error instanceof OpenAI.RateLimitError);
    const seconds = Number(error.headers.get("retry-after"));
    assert.ok(seconds >= 1 && seconds <= 60, `${seconds}`);
    return true;
  });
});

test("a key over its budget is a rate limit error that the SDK does not retry", async () => {
  let calls = 0;
  const counted = (...request) => ((calls += 1), fetch(...request));
  const poor = client({ apiKey: KEYS.POOR_KEY, maxRetries: 2, fetch: counted });

  await assert.rejects(poor.chat.completions.create({ model: "gpt", messages: say("hello") }), (error) => {
    assert.ok(error instanceof OpenAI.RateLimitError);
    assert.equal(error.headers.get("x-should-retry"), "false");
    return true;
  });
  assert.equal(calls, 1);
  assert.deepEqual(await the.requests(), []);
});

test("a throttled provider is a rate limit error", async () => {
  await the.script({ throttle: 2, times: "always" });

  const answer = client().chat.completions.create({ model: "throttled_openai/gpt-4o-mini", messages: say("hello") });

  await assert.rejects(answer, OpenAI.RateLimitError);
});

test("a failing provider is survived unnoticed", async () => {
  await the.script({ match: { model: "gpt-4o" }, status: 500 });
  const answer = await client().chat.completions.create({ model: "survivor", messages: say("hello") });

  assert.equal(answer.choices[0].message.content, "hello");
  assert.deepEqual((await the.requests()).map((request) => request.model), ["gpt-4o", "claude-sonnet-4-5"]);
});
