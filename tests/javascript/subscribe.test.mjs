/** Subscriptions, on a daemon of this file's own: it is killed and started again. */

import assert from "node:assert/strict";
import { getEventListeners } from "node:events";
import { after, before, describe, test } from "node:test";

import { VersionMismatch } from "../../sessiond/javascript/sessiond.mjs";
import * as support from "./support.mjs";
import { Daemon, Relay, assertUpToDate, statusOf, until } from "./support.mjs";

const daemon = new Daemon();

before(() => daemon.start());
after(() => daemon.stop());

const connect = (context, options) =>
  support.connect(context, { socket: daemon.socket, ...options });

async function relayed(context) {
  const relay = await new Relay(daemon.socket).start();
  context.after(() => relay.stop());
  return { relay, manager: connect(context, { socket: relay.socket }) };
}

/** Iterate a subscription in the background; `events` grows as they come. */
function collect(session, options) {
  const events = [];
  const done = (async () => {
    for await (const event of session.subscribe(options)) events.push(event);
  })();
  return { events, done };
}

const offsets = (events) => events.map(({ id }) => Number(id.split(":")[1]));
const subscribers = async () => (await statusOf(daemon.socket)).subscribers;

describe("a subscription", () => {
  test("lets two clients see each other live", async (context) => {
    const [manager, others] = [
      connect(context, { name: "one" }),
      connect(context, { name: "two" }),
    ];
    const one = await manager.create();
    const two = await others.load(one.id);
    const [first, second] = [collect(one), collect(two)];
    await until(async () => (await subscribers()) === 2);

    const { id } = await one.addMessage({ role: "user", content: "question" });
    await until(() => two.messages.length === 1);
    await two.addMessage({ role: "assistant", content: "answer" });
    await two.putPart(id, { id: "p", type: "text", text: "more" });
    one.context.active_files.push("README.md");
    await one.save();
    await one.editMessage(id, { metadata: { seen: true } });
    await two.removeMessage(two.messages[1].id);
    await two.sendLive({ typing: "é" });

    for (const { events } of [first, second]) {
      await until(() => events.length === 7);
      assert.deepEqual(
        events.map(({ name }) => name),
        [
          "message.append",
          "message.append",
          "part.put",
          "document.change",
          "message.edit",
          "message.remove",
          "live",
        ],
      );
      assert.deepEqual(offsets(events.slice(0, -1)), [2, 3, 4, 5, 6, 7]);
      assert.deepEqual(events.at(-1).data.body, { typing: "é" });
      assert.match(events.at(-1).data.origin, /^two@/);
    }
    for (const session of [one, two]) await assertUpToDate(session, manager);
    assert.equal(two.messages[0].content, "question\nmore");
    assert.deepEqual(two.context.active_files, ["README.md"]);
  });

  test("begins after the object's own position, or after any other", async (context) => {
    const manager = connect(context);
    const session = await manager.create();
    const stale = await manager.load(session.id);
    await session.addMessage({ role: "user", content: "one" });
    await session.addMessage({ role: "user", content: "two" });

    const missed = collect(stale);
    await until(() => missed.events.length === 2);
    assert.deepEqual(offsets(missed.events), [2, 3]);
    await assertUpToDate(stale, manager);

    const all = collect(session, { after: "0" });
    await until(() => all.events.length === 3);
    assert.deepEqual(offsets(all.events), [1, 2, 3]);
    await assertUpToDate(session, manager);
  });

  test("brings an object up to date that was behind where it begins", async (context) => {
    const manager = connect(context);
    const session = await manager.create();
    const stale = await manager.load(session.id);
    await session.addMessage({ role: "user", content: "one" });
    const { events } = collect(stale, { after: session.position });
    await session.addMessage({ role: "user", content: "two" });
    await until(() => events.length === 1);
    await assertUpToDate(stale, manager);
  });

  test("at a position of another history resets and loads the object anew", async (context) => {
    const manager = connect(context);
    const session = await manager.create({ preferences: { theme: "dark" } });
    await session.addMessage({ role: "user", content: "one" });
    session.preferences.theme = "mine";
    const { events } = collect(session, { after: "ffffffffffffff:2" });
    await until(() => events.length === 3);
    assert.equal(events[0].name, "reset");
    assert.equal(events[0].data.reason, "history-changed");
    assert.deepEqual(offsets(events.slice(1)), [1, 2]);
    assert.equal(session.preferences.theme, "mine");
    await session.save();
    await assertUpToDate(session, manager);
  });

  test("drops what a rolled back Redis has forgotten", async (context) => {
    const manager = connect(context);
    const session = await manager.create();
    const kept = await session.addMessage({ role: "user", content: "kept" });
    const [reader, writer] = [await manager.load(session.id), await manager.load(session.id)];
    for (const lost of [reader, writer]) {
      lost.messages.push({ ...kept, id: "lost" });
      lost.position = "ffffffffffffff:3";
    }
    const { events } = collect(reader);
    await until(() => events.length >= 3);
    await assertUpToDate(reader, manager);
    await writer.addMessage({ role: "user", content: "new" });
    await assertUpToDate(writer, manager);
  });

  test("stays ahead of a refresh that was asked for earlier", async (context) => {
    const { relay, manager } = await relayed(context);
    const session = await manager.create();
    const { events } = collect(session, { after: "0" });
    await until(() => events.length === 1);
    const release = relay.hold();
    const refreshing = session.refresh();
    await until(() => relay.isHolding);
    const others = connect(context);
    const other = await others.load(session.id);
    await other.addMessage({ role: "user", content: "newer" });
    await until(() => events.length === 2);
    release();
    await refreshing;
    await assertUpToDate(session, others);
  });

  test("takes others' documents, but never over unsaved changes", async (context) => {
    const manager = connect(context);
    const session = await manager.create({ preferences: { a: 1, b: 2 } });
    const other = await manager.load(session.id);
    const { events } = collect(session);
    other.preferences = { a: 1, c: 3 };
    await other.save();
    await until(() => events.length === 1);
    assert.deepEqual(session.preferences, { a: 1, c: 3 });

    session.preferences.a = "mine";
    other.preferences.c = "theirs";
    other.context.working_directory = "/tmp";
    await other.save();
    await until(() => events.length === 3);
    assert.deepEqual(session.preferences, { a: "mine", c: 3 });
    assert.equal(session.context.working_directory, "/tmp");
    await assert.rejects(session.save({ strict: true }), VersionMismatch);
    assert.deepEqual(await session.save(), []);
    assert.deepEqual(session.preferences, { a: "mine", c: "theirs" });
    await assertUpToDate(session, manager);
  });

  test("lets its connection go at break", async (context) => {
    const session = await connect(context).create();
    await until(async () => (await subscribers()) === 0);
    const { signal } = new AbortController();
    for await (const event of session.subscribe({ after: "0", signal })) {
      assert.equal(event.name, "session.create");
      assert.equal(await subscribers(), 1);
      break;
    }
    assert.deepEqual(getEventListeners(signal, "abort"), []);
    await until(async () => (await subscribers()) === 0);
  });

  test("ends without an error at a signal and lets its connection go", async (context) => {
    const session = await connect(context).create();
    const stop = new AbortController();
    const { events, done } = collect(session, { signal: stop.signal });
    await until(async () => (await subscribers()) === 1);
    stop.abort();
    await done;
    assert.deepEqual(events, []);
    await until(async () => (await subscribers()) === 0);

    const late = collect(session, { signal: stop.signal, after: "0" });
    await late.done;
    assert.deepEqual(late.events, []);
  });

  test("ends when its manager is closed", async (context) => {
    const manager = connect(context);
    const { done } = collect(await manager.create());
    await until(async () => (await subscribers()) === 1);
    await manager.close();
    await done;
    await until(async () => (await subscribers()) === 0);
  });

  test("ends with the deletion", async (context) => {
    const manager = connect(context);
    const session = await manager.create();
    const { events, done } = collect(session);
    await until(async () => (await subscribers()) === 1);
    await manager.delete(session.id);
    await done;
    assert.deepEqual(
      events.map(({ name }) => name),
      ["session.delete"],
    );
    assert.equal(session.metadata.status, "deleted");
  });

  test("tells of a deletion that came before it", async (context) => {
    const manager = connect(context);
    const session = await manager.create();
    await manager.delete(session.id);
    const { events, done } = collect(session);
    await done;
    assert.deepEqual(
      events.map(({ name, data }) => [name, data.op, data.session_id]),
      [["session.delete", "session.delete", session.id]],
    );
    assert.equal(session.metadata.status, "deleted");
  });

  test("loses and doubles nothing when its connection breaks", async (context) => {
    const { relay, manager } = await relayed(context);
    const writer = await connect(context).create();
    const reader = await manager.load(writer.id);
    const { events } = collect(reader);
    for (let n = 0; n < 6; n += 1) {
      await writer.addMessage({ role: "user", content: `${n}` });
      if (n % 2) relay.cut();
    }
    await until(() => events.length >= 6);
    assert.deepEqual(offsets(events), [2, 3, 4, 5, 6, 7]);
    await assertUpToDate(reader, connect(context));
  });

  test("merges another's change that comes between a save and its answer", async (context) => {
    const { relay, manager } = await relayed(context);
    const others = connect(context);
    const session = await manager.create({ preferences: { a: 1 } });
    const { events } = collect(session, { after: "0" });
    await until(() => events.length === 1);

    session.preferences.a = "mine";
    const release = relay.hold();
    const saving = session.save();
    await until(() => events.length >= 2);
    const other = await others.load(session.id);
    other.preferences.b = "theirs";
    await other.save();
    await until(() => events.length >= 3);
    release();
    await saving;

    assert.deepEqual(session.preferences, { a: "mine", b: "theirs" });
    await assertUpToDate(session, others);
  });

  test("resumes after the daemon was killed and started again", async (context) => {
    const manager = connect(context);
    const session = await manager.create();
    const { events } = collect(session);
    await session.addMessage({ role: "user", content: "before" });
    await until(() => events.length === 1);

    await daemon.kill();
    const meanwhile = { role: "user", content: "meanwhile" };
    const [outcome] = await Promise.all([
      session.addMessage(meanwhile).catch((error) => error),
      daemon.start(),
    ]);
    // on a busy machine the start takes longer than five tries
    if (outcome.key) await session.addMessage(meanwhile, { key: outcome.key });
    await session.addMessage({ role: "user", content: "after" });

    await until(() => events.length >= 3);
    assert.deepEqual(offsets(events), [2, 3, 4]);
    const contents = ["before", "meanwhile", "after"];
    assert.deepEqual(
      events.map(({ data }) => data.body.content),
      contents,
    );
    await assertUpToDate(session, manager);
  });

  test("tells of a deletion that came while nobody was reached", async (context) => {
    const { relay, manager } = await relayed(context);
    const others = connect(context);
    const session = await manager.create();
    const { events, done } = collect(session);
    await until(async () => (await subscribers()) === 1);
    relay.isRefusing = true;
    relay.cut();
    await others.delete(session.id);
    relay.isRefusing = false;
    await done;
    assert.deepEqual(
      events.map(({ name }) => name),
      ["session.delete"],
    );
  });
});
