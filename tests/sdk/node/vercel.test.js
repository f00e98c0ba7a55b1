// Vercel's AI SDK in chat mode. `gpt` leads to a provider that speaks OpenAI's dialect, `claude` to one that speaks Anthropic's.

import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateText, stepCountIs, streamText, tool } from "ai";
import assert from "node:assert/strict";
import { test } from "node:test";
import { z } from "zod";
import { KEYS, SENTENCE, world } from "./world.js";

const the = world();
const chat = (model, apiKey = KEYS.WEB_KEY) =>
  createOpenAICompatible({ name: "gateway", baseURL: `${the.gateway}/v1`, apiKey, includeUsage: true })(model);
const once = { maxRetries: 0 };

for (const model of ["gpt", "claude"]) {
  test(`${model}: an answer arrives whole`, async () => {
    const answer = await generateText({ ...once, model: chat(model), prompt: `repeat after me: ${SENTENCE}` });

    assert.equal(answer.text, SENTENCE);
    assert.equal(answer.finishReason, "stop");
    assert.equal(answer.usage.outputTokens, (await the.onlyRequest()).output_tokens);
  });

  test(`${model}: a stream says the same in order, with its usage`, async () => {
    const answer = streamText({ ...once, model: chat(model), prompt: `repeat after me: ${SENTENCE}` });
    let text = "";
    for await (const piece of answer.textStream) text += piece;

    assert.equal(text, SENTENCE);
    assert.equal(await answer.finishReason, "stop");
    assert.equal((await answer.usage).outputTokens, (await the.onlyRequest()).output_tokens);
  });

  test(`${model}: a tool runs and its result is understood`, async () => {
    const asked = [];
    const balance = tool({
      description: "Looks up the balance.",
      inputSchema: z.object({ account: z.number().int() }),
      execute: async ({ account }) => {
        asked.push(account);
        return "12 euros";
      },
    });
    const prompt = "What is the balance of account 7?";
    const answer = await generateText({ ...once, model: chat(model), tools: { balance }, stopWhen: stepCountIs(3), prompt });

    assert.deepEqual(asked, [7]);
    assert.equal(answer.steps.length, 2);
    assert.ok(answer.text);
    const requests = await the.requests();
    assert.equal(requests.length, 2);
    assert.ok(requests[1].body.includes("12 euros"));
  });

  test(`${model}: the SDK retries a failing provider twice`, async () => {
    await the.script({ status: 500, times: "always" });

    await assert.rejects(generateText({ maxRetries: 2, model: chat(model), prompt: "hello" }));
    assert.equal((await the.requests()).length, 3);
  });
}

test("errors keep their status", async () => {
  const fails = (model, status) =>
    assert.rejects(generateText({ ...once, model, prompt: "hello" }), (error) => {
      assert.ok(APICallError.isInstance(error), `${error}`);
      assert.equal(error.statusCode, status);
      return true;
    });

  await fails(chat("gpt", "not-a-key"), 401);
  await fails(chat("claude", KEYS.NARROW_KEY), 403);
  await fails(chat("no-such-model"), 404);
  assert.deepEqual(await the.requests(), []);
});

test("a failing provider is survived unnoticed", async () => {
  await the.script({ match: { model: "gpt-4o" }, status: 500 });
  const answer = await generateText({ ...once, model: chat("survivor"), prompt: "repeat after me: hello" });

  assert.equal(answer.text, "hello");
});
