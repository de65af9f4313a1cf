/** Answers that are lost on the way, against the daemon at SESSIOND_API_SOCKET. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { rmSync } from "node:fs";
import http from "node:http";
import { join } from "node:path";
import { describe, test } from "node:test";

import { DaemonUnreachable, SessiondError } from "../../sessiond/javascript/sessiond.mjs";
import { Relay, assertUpToDate, connect, temporaryFolder, until } from "./support.mjs";

/** A manager whose next answer can be lost, and one that sees what came of it. */
async function unreliable(context, options) {
  const relay = await new Relay(process.env.SESSIOND_API_SOCKET).start();
  context.after(() => relay.stop());
  const manager = connect(context, { socket: relay.socket, ...options });
  const witness = connect(context);
  return { relay, manager, witness };
}

describe("a write whose answer is lost", () => {
  const message = { role: "user", content: "once" };
  const save = (session) => {
    session.preferences.theme = "dark";
    return session.save();
  };
  const part = { id: "p", type: "text", text: "more" };
  for (const [what, write] of [
    ["addMessage", (session) => session.addMessage({ role: "user", content: "new" })],
    ["addMessages", (session) => session.addMessages([message, message])],
    ["editMessage", (session, id) => session.editMessage(id, { metadata: { seen: true } })],
    ["removeMessage", (session, id) => session.removeMessage(id)],
    ["putPart", (session, id) => session.putPart(id, part)],
    ["removePart", (session, id) => session.removePart(id, "given")],
    ["save", save],
  ]) {
    test(`is done once: ${what}`, async (context) => {
      const { relay, manager, witness } = await unreliable(context);
      const created = await witness.create();
      const parts = [{ id: "given", type: "text", text: "x" }];
      const { id } = await created.addMessage({ role: "assistant", parts });
      const before = Number(created.position.split(":")[1]);
      const session = await manager.load(created.id);

      relay.answersToLose = 2;
      await write(session, id);

      assert.equal(relay.lost, 2);
      const operations = what === "addMessages" ? 2 : 1;
      assert.equal(Number(session.position.split(":")[1]), before + operations);
      await assertUpToDate(session, witness);
    });
  }

  test("is done once: create", async (context) => {
    const { relay, manager, witness } = await unreliable(context);
    relay.answersToLose = 2;
    const workspace = `w-${process.pid}-${Date.now()}`;
    const { id } = await manager.create({ workspace });
    assert.equal(relay.lost, 2);
    const { sessions } = await witness.list({ workspace });
    assert.deepEqual(
      sessions.map(({ metadata }) => metadata.session_id),
      [id],
    );
  });

  test("does not change places with those after it", async (context) => {
    const { relay, manager, witness } = await unreliable(context);
    const session = await manager.load((await witness.create()).id);
    relay.isRefusing = true;
    relay.cut();
    const contents = ["a", "b", "c", "d", "e", "f"];
    const writes = contents.map((content) => session.addMessage({ role: "user", content }));
    await until(() => relay.refused > 0);
    relay.isRefusing = false;
    await Promise.all(writes);
    const { messages } = await witness.load(session.id);
    assert.equal(messages.map(({ content }) => content).join(""), "abcdef");
  });

  test("is done once: delete", async (context) => {
    const { relay, manager, witness } = await unreliable(context);
    const { id, position } = await witness.create();
    relay.answersToLose = 2;
    await manager.delete(id, { expected: position });
    assert.equal(relay.lost, 2);
    await assert.rejects(manager.delete(id), { code: "session-deleted" });
  });

  test("can be repeated by its caller with the key of the error", async (context) => {
    const { relay, manager } = await unreliable(context, { tries: 1 });
    const session = await manager.create();
    relay.answersToLose = 1;
    const error = await session.addMessage(message).catch((error) => error);
    assert.ok(error instanceof DaemonUnreachable);
    await session.addMessage(message, { key: error.key });
    assert.deepEqual(
      session.messages.map(({ content }) => content),
      ["once"],
    );
  });

  test("does not make the next save conflict", async (context) => {
    const { relay, manager, witness } = await unreliable(context, { tries: 1 });
    const session = await manager.create();
    session.preferences.theme = "dark";
    relay.answersToLose = 1;
    await assert.rejects(session.save(), DaemonUnreachable);
    await session.save();
    assert.match(session.position, /:2$/);
    await assertUpToDate(session, witness);
  });

  test("is not repeated when it is live", async (context) => {
    const { relay, manager, witness } = await unreliable(context);
    const session = await manager.create();
    const listener = await witness.load(session.id);
    const heard = [];
    (async () => {
      for await (const { data } of listener.subscribe({ after: "0" })) heard.push(data.body);
    })();
    await until(() => heard.length === 1);
    relay.answersToLose = 1;
    await assert.rejects(session.sendLive("lost"), DaemonUnreachable);
    await session.sendLive("arrives");
    await until(() => heard.includes("arrives"));
    assert.deepEqual(heard.slice(1), ["lost", "arrives"]);
  });
});

/** A manager of a server that is none of ours. */
async function stranger(context, listener) {
  const folder = temporaryFolder();
  const server = http.createServer(listener);
  await once(server.listen(join(folder, "s")), "listening");
  context.after(() => {
    server.close();
    rmSync(folder, { recursive: true });
  });
  return connect(context, { socket: join(folder, "s") });
}

describe("an answer that is held back", () => {
  /** Save something, and change the session when its answer is on the way. */
  async function changedMeanwhile(context, { theirs, mine, meanwhile }) {
    const { relay, manager, witness } = await unreliable(context);
    const created = await witness.create({
      context: { active_files: ["a", "b"] },
      preferences: { theme: "dark", language: "en" },
    });
    const session = await manager.load(created.id);
    theirs(created);
    await created.save();
    mine(session);
    const release = relay.hold();
    const saving = session.save();
    await until(() => relay.isHolding);
    meanwhile(session);
    release();
    return { session, witness, told: await saving };
  }

  test("does not bring back what somebody else took out of a list", async (context) => {
    const { session, witness, told } = await changedMeanwhile(context, {
      theirs: ({ context }) => context.active_files.splice(0, 1),
      mine: ({ context }) => (context.working_directory = "/mine"),
      meanwhile: ({ context }) => context.active_files.push("mine"),
    });
    assert.deepEqual(told, []);
    assert.deepEqual(session.context.active_files, ["b", "mine"]);
    await session.save();
    await assertUpToDate(session, witness);
    assert.deepEqual(session.context.active_files, ["b", "mine"]);
  });

  test("tells of what was changed here meanwhile, and by others before", async (context) => {
    const { session, witness, told } = await changedMeanwhile(context, {
      theirs: ({ preferences }) => (preferences.theme = "theirs"),
      mine: ({ preferences }) => (preferences.language = "de"),
      meanwhile: ({ preferences }) => (preferences.theme = "mine"),
    });
    const [{ number, state, document, path, base, ours, theirs, outcome }, ...none] = told;
    assert.deepEqual(none, []);
    assert.deepEqual([number, state, outcome], ["", "open", "ours"]);
    assert.deepEqual([document, path], ["preferences", ["theme"]]);
    assert.deepEqual([base, ours.value, theirs.value], ["dark", "mine", "theirs"]);
    assert.equal(theirs.version, (await witness.load(session.id)).position);
    assert.deepEqual(await session.conflicts(), []);
    assert.deepEqual(session.preferences, { theme: "mine", language: "de" });
    assert.deepEqual(await session.save(), []);
    await assertUpToDate(session, witness);
    assert.equal(session.preferences.theme, "mine");
  });
});

describe("a problem", () => {
  /** A server that answers so many times with this problem, and the keys that it was sent. */
  async function refusing(context, problem, times) {
    const keys = [];
    const manager = await stranger(context, (request, response) => {
      keys.push(request.headers["idempotency-key"]);
      const isOver = keys.length > times;
      response.writeHead(isOver ? 200 : problem.status);
      response.end(JSON.stringify(isOver ? { sessions: [], cursor: null } : problem));
    });
    return { manager, keys };
  }

  const unavailable = {
    status: 503,
    code: "store-unavailable",
    detail: "Redis does not answer",
    hint: "wait",
    retryable: true,
  };

  test("that passes is waited for", async (context) => {
    const { manager, keys } = await refusing(context, unavailable, 2);
    assert.deepEqual(await manager.list(), { sessions: [], cursor: null });
    assert.equal(keys.length, 3);
  });

  test("that does not pass is thrown after five tries with one key", async (context) => {
    const { manager, keys } = await refusing(context, unavailable, 99);
    const error = await manager.create().catch((error) => error);
    assert.ok(error instanceof SessiondError);
    const { status, code, detail, hint, retryable, key } = error;
    assert.deepEqual({ status, code, detail, hint, retryable }, unavailable);
    assert.deepEqual(keys, Array(5).fill(key));
  });

  test("of a decision is met with the same key again", async (context) => {
    const keys = [];
    const { id } = await connect(context).create();
    const loaded = await connect(context).load(id);
    const manager = await stranger(context, (request, response) => {
      if (request.method === "POST") keys.push(request.headers["idempotency-key"]);
      const isRefused = request.method === "POST" && keys.length < 3;
      response.writeHead(isRefused ? 503 : 200);
      const { metadata, messages, context, preferences, position } = loaded;
      const session = { metadata, conversation: { messages }, context, preferences, position };
      const answer = { ...session, versions: {}, operations: [] };
      response.end(JSON.stringify(isRefused ? unavailable : answer));
    });
    await (await manager.load(id)).resolve("5", { take: "ours" });
    const [key] = keys;
    assert.ok(key);
    assert.deepEqual(keys, [key, key, key]);
  });

  test("that is not retryable is thrown at once", async (context) => {
    const { manager, keys } = await refusing(context, { ...unavailable, retryable: false }, 99);
    await assert.rejects(manager.create(), { code: "store-unavailable" });
    assert.equal(keys.length, 1);
  });

  test("that is none is an error all the same", async (context) => {
    const html = (_, response) => response.writeHead(500).end("<html>");
    const manager = await stranger(context, html);
    const error = await manager.list().catch((error) => error);
    assert.ok(error instanceof SessiondError);
    assert.equal(error.code, "internal");
  });
});
