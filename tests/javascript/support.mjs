/** What the tests share: daemons of their own, a relay that loses answers, and patience. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, openSync, readFileSync, rmSync } from "node:fs";
import http from "node:http";
import net from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

import { SessionManager } from "../../sessiond/javascript/sessiond.mjs";

const DEADLINE_MS = 15_000;

/** A fresh folder with a short name: the length of socket paths is limited. */
export function temporaryFolder() {
  return mkdtempSync("/tmp/sj-");
}

/** Return once a condition gives something true; fail after a while. */
export async function until(condition) {
  const deadline = Date.now() + DEADLINE_MS;
  for (;;) {
    const found = await condition();
    if (found) return found;
    assert.ok(Date.now() < deadline, `still waiting for ${condition}`);
    await sleep(5);
  }
}

/** What a daemon tells of itself; undefined while none answers. */
export function statusOf(socketPath) {
  return new Promise((resolve) => {
    const request = http.get({ socketPath, host: "localhost", path: "/v1/status", agent: false });
    request.on("error", () => resolve(undefined));
    request.on("response", async (response) => {
      let text = "";
      for await (const chunk of response) text += chunk;
      resolve(response.statusCode === 200 ? JSON.parse(text) : undefined);
    });
  });
}

/** A daemon in a folder of its own, for tests that end it in all ways. */
export class Daemon {
  folder = temporaryFolder();
  socket = join(this.folder, "sessiond", "api.sock");
  /** More environment. */
  environ = {};
  #process;

  async start() {
    const log = openSync(join(this.folder, "log"), "a");
    const others = Object.entries(process.env).filter(([name]) => !name.startsWith("SESSIOND_"));
    const env = {
      ...Object.fromEntries(others),
      HOME: this.folder,
      XDG_RUNTIME_DIR: this.folder,
      XDG_DATA_HOME: this.folder,
      XDG_CONFIG_HOME: this.folder,
      ...this.environ,
    };
    const python = process.env.SESSIOND_TEST_PYTHON ?? "python3";
    const stdio = ["ignore", log, log];
    this.#process = spawn(python, ["-m", "sessiond", "run"], { env, stdio });
    await until(() => {
      assert.equal(this.#process.exitCode, null, readFileSync(join(this.folder, "log"), "utf8"));
      return statusOf(this.socket);
    });
  }

  kill() {
    return this.#end("SIGKILL");
  }

  /** End it properly, which also ends the Redis that it owns. */
  async stop() {
    await this.#end("SIGTERM");
    rmSync(this.folder, { recursive: true, force: true });
  }

  async #end(signal) {
    if (this.#process.exitCode !== null || this.#process.signalCode !== null) return;
    const ended = once(this.#process, "exit");
    this.#process.kill(signal);
    await ended;
  }
}

/**
 * Stands between a client and a daemon. Requests reach the daemon; in place of as many answers as
 * are `answersToLose` the connection breaks. While it `isRefusing`, nobody gets through.
 */
export class Relay {
  folder = temporaryFolder();
  socket = join(this.folder, "relay.sock");
  answersToLose = 0;
  lost = 0;
  isRefusing = false;
  refused = 0;
  isHolding = false;
  #server;
  #sockets = new Set();
  #held;

  constructor(target) {
    this.#server = net.createServer((client) => {
      if (this.isRefusing) {
        this.refused += 1;
        return client.destroy();
      }
      const daemon = net.connect(target);
      for (const [one, other] of [
        [client, daemon],
        [daemon, client],
      ]) {
        this.#sockets.add(one);
        one.on("error", () => other.destroy());
        one.on("close", () => other.destroy());
      }
      client.pipe(daemon);
      daemon.on("data", async (answer) => {
        const isAnswer = answer.subarray(0, 5).toString() === "HTTP/"; // and not more of a stream
        const held = isAnswer ? this.#held : undefined;
        if (isAnswer) this.#held = undefined;
        this.isHolding ||= held !== undefined;
        await held;
        if (this.answersToLose === 0) return client.write(answer);
        this.answersToLose -= 1;
        this.lost += 1;
        client.destroy();
      });
    });
  }

  async start() {
    await once(this.#server.listen(this.socket), "listening");
    return this;
  }

  /** Keep the next answer back, until the returned function is called. */
  hold() {
    let release;
    this.#held = new Promise((resolve) => (release = resolve));
    return release;
  }

  /** Break all connections that there are. */
  cut() {
    for (const socket of this.#sockets) socket.destroy();
    this.#sockets.clear();
  }

  stop() {
    this.cut();
    this.#server.close();
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/** A manager that is closed after the test. */
export function connect(context, options) {
  const manager = SessionManager.connect(options);
  context.after(() => manager.close());
  return manager;
}

/** Assert that an object is what a program would see that loads the session now. */
export async function assertUpToDate(session, manager) {
  const loaded = await manager.load(session.id);
  assert.equal(session.position, loaded.position);
  assert.deepEqual(session.messages, loaded.messages);
  assert.deepEqual(session.context, loaded.context);
  assert.deepEqual(session.preferences, loaded.preferences);
  const { last_activity: mine, ...rest } = session.metadata;
  const { last_activity: theirs, ...others } = loaded.metadata;
  assert.deepEqual(rest, others);
  assert.equal(Date.parse(mine), Date.parse(theirs));
}
