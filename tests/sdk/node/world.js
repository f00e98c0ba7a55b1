// A simulator and a gateway in front of it for one test file; the simulator forgets everything before each test.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { closeSync, existsSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, beforeEach } from "node:test";
import { setTimeout as pause } from "node:timers/promises";

const START_MILLISECONDS_MAX = 20_000;
const SEEN_MILLISECONDS_MAX = 10_000;

export const KEYS = {
  WEB_KEY: "web-0123456789abcdef0123456789abcdef",
  NARROW_KEY: "narrow-0123456789abcdef0123456789abcdef",
  SLOW_OPENAI_KEY: "slow-openai-0123456789abcdef0123456789abcdef",
  SLOW_ANTHROPIC_KEY: "slow-anthropic-0123456789abcdef0123456789abcdef",
  POOR_KEY: "poor-0123456789abcdef0123456789abcdef",
  UPSTREAM_KEY: "upstream-0123456789abcdef0123456789abcdef",
};

export const SENTENCE = 'Grüße, 世界 👋 — "quoted" \\ and\ttabbed';
export const PIXEL =
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

/** The first truthy value of `condition`; fails when there is none in time. */
export async function until(what, condition, milliseconds = SEEN_MILLISECONDS_MAX) {
  const deadline = performance.now() + milliseconds;
  for (;;) {
    const value = await condition();
    if (value) return value;
    assert.ok(performance.now() < deadline, `not within ${milliseconds} ms: ${what}`);
    await pause(20);
  }
}

/** Starts both before the tests of the file that calls it, and stops them after. */
export function world() {
  const folder = mkdtempSync(join(tmpdir(), "lea-sdk-"));
  const started = [];
  const world = { gateway: "", simulator: "" };

  async function start(name, ...args) {
    const addresses = join(folder, `${name}.json`);
    const log = join(folder, `${name}.log`);
    const output = openSync(log, "w");
    const child = spawn(process.env.LEA_BIN, [...args, "--addresses-file", addresses], {
      cwd: folder,
      env: { ...process.env, ...KEYS },
      stdio: ["ignore", output, output],
    });
    closeSync(output);
    const ended = new Promise((resolve) => child.once("exit", resolve));
    started.unshift({ child, ended });
    const hasEnded = () => child.exitCode !== null || child.signalCode !== null;
    await until(`${name} is ready`, () => existsSync(addresses) || hasEnded(), START_MILLISECONDS_MAX);
    assert.ok(!hasEnded(), `${name} ended:\n${readFileSync(log, "utf8")}`);
    return `http://${JSON.parse(readFileSync(addresses, "utf8")).api}`;
  }

  before(async () => {
    world.simulator = await start("simulator", "simulate", "--listen", "127.0.0.1:0", "--ttft", "1ms", "--tokens-per-second", "0");
    const config = readFileSync(new URL("../gateway.yaml", import.meta.url), "utf8");
    writeFileSync(join(folder, "gateway.yaml"), config.replaceAll("SIMULATOR", world.simulator));
    world.gateway = await start("gateway", "run", "-c", join(folder, "gateway.yaml"));
  });

  beforeEach(() => world.reset());

  after(async () => {
    for (const { child, ended } of started) {
      child.kill("SIGTERM");
      await ended;
    }
    const log = join(folder, "gateway.log");
    const printed = existsSync(log) ? readFileSync(log, "utf8") : "";
    rmSync(folder, { recursive: true, force: true });
    for (const [name, key] of Object.entries(KEYS)) assert.ok(!printed.includes(key), `${name} was printed`);
  });

  async function call(method, path, body) {
    const response = await fetch(world.simulator + path, {
      method,
      headers: { "content-type": "application/json" },
      body: body && JSON.stringify(body),
    });
    assert.equal(response.status, 200, await response.clone().text());
    return response.json();
  }

  world.reset = () => call("DELETE", "/simulator");
  world.script = (...faults) => call("POST", "/simulator/script", faults);
  world.requests = () => call("GET", "/simulator/requests");
  world.onlyRequest = async () => {
    const requests = await world.requests();
    assert.equal(requests.length, 1);
    return requests[0];
  };
  return world;
}

/** The text that the simulator is asked to say, as the messages of either SDK. */
export const say = (text) => [{ role: "user", content: `repeat after me: ${text}` }];
export const ask = (text) => [{ role: "user", content: text }];

export const SCHEMA = { type: "object", properties: { account: { type: "integer" } }, required: ["account"] };
