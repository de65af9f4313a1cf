/** Being at a session: seen by others as long as it lasts, and no longer. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import { SessionManager } from "../../sessiond/javascript/sessiond.mjs";
import { Daemon, connect, until } from "./support.mjs";

const MODULE = new URL("../../sessiond/javascript/sessiond.mjs", import.meta.url).href;

const namesAt = async (session) =>
  (await session.presence()).present.map(({ instance }) => instance);

test("who is at a session is seen by others until it leaves", async (context) => {
  const manager = connect(context, { name: "editor" });
  const session = await manager.create();
  const other = await connect(context).load(session.id);
  assert.deepEqual(await namesAt(other), []);

  const alone = await session.announce({ active_files: ["a.py", "b.py"], instance: "ann" });
  assert.deepEqual(alone, await other.presence());
  const [{ client, active_files, has_turn }] = alone.present;
  assert.deepEqual([client, active_files, has_turn], ["editor", ["a.py", "b.py"], false]);

  const both = await other.announce({ active_files: ["b.py"] });
  const name = both.present[1].instance;
  assert.match(name, /^js-/);
  assert.deepEqual(both.shared_files, { "b.py": ["ann", name] });
  await session.announce({ active_files: ["c.py"] });
  assert.deepEqual((await other.presence()).shared_files, {});
  assert.deepEqual(await namesAt(session), ["ann", name], "the same instance, with other files");

  await session.leave();
  await session.leave();
  assert.deepEqual(await namesAt(other), [name]);
  await other.leave();
  assert.deepEqual(await namesAt(other), []);
});

test("who follows is told who comes and goes", async (context) => {
  const manager = connect(context);
  const session = await manager.create();
  const changes = [];
  const following = (async () => {
    for await (const { name, data } of (await manager.load(session.id)).subscribe()) {
      assert.equal(name, "live");
      changes.push(data.body.presence?.change ?? "begin");
      if (changes.at(-1) === "left") return;
    }
  })();
  await until(async () => {
    await session.sendLive("begin"); // who does not listen yet hears nothing
    return changes.length;
  });
  await session.announce({ active_files: ["a.py"] });
  await session.announce({ active_files: ["a.py"] });
  await session.announce();
  await session.leave();
  await following;
  assert.deepEqual(
    changes.filter((change) => change !== "begin"),
    ["came", "changed", "left"],
  );
});

test("what is refused leaves what was said before", async (context) => {
  const session = await connect(context).create();
  await session.announce({ active_files: ["a.py"], instance: "ann" });
  const refused = { code: "invalid-input", status: 400 };
  await assert.rejects(session.announce({ active_files: [""] }), refused);
  const large = Array.from({ length: 17 }, (_, number) => `${number}`.padEnd(1_024, "x"));
  const tooLarge = { code: "too-large", status: 413 };
  await assert.rejects(session.announce({ active_files: large }), tooLarge);
  const [{ active_files }] = (await session.presence()).present;
  assert.deepEqual(active_files, ["a.py"]);
  await session.leave();
  await assert.rejects(session.announce({ instance: "a/b" }), refused);
  await session.announce({ instance: "bob" });
  assert.deepEqual(await namesAt(session), ["bob"]);
  await session.leave();
});

test("nobody is at a session that is gone", async (context) => {
  const manager = connect(context);
  const session = await manager.create();
  await session.announce();
  await manager.delete(session.id);
  for (const attempt of [() => session.presence(), () => session.announce()]) {
    await assert.rejects(attempt, { code: "session-deleted", status: 410 });
  }
});

test("it goes on across a restart of the daemon, and ends with the manager", async (context) => {
  const daemon = new Daemon();
  daemon.environ = { SESSIOND_SYNC_PRESENCE_SECONDS: "1" };
  await daemon.start();
  context.after(() => daemon.stop());
  const manager = SessionManager.connect({ socket: daemon.socket });
  const other = await connect(context, { socket: daemon.socket }).load(
    (await manager.create({ session_id: "ses_1" })).id,
  );
  const session = await manager.load("ses_1");
  const { present } = await session.announce({ instance: "ann" });
  const renewed = await until(async () => {
    const [who] = (await other.presence()).present;
    assert.ok(who, "there all the time");
    return who.seen_ms > present[0].seen_ms + 1_500 && who;
  });
  assert.equal(renewed.since_ms, present[0].since_ms);

  await daemon.kill();
  await daemon.start();
  await until(async () => (await namesAt(other)).length);
  await manager.close();
  const closed = Date.now();
  await until(async () => (await namesAt(other)).length === 0);
  assert.ok(Date.now() - closed < 3_000);
  await sleep(700);
  assert.deepEqual(await namesAt(other), []);
});

test("it does not keep a program alive", async () => {
  const program = `
    import { SessionManager } from ${JSON.stringify(MODULE)};
    const session = await SessionManager.create();
    await session.announce();
    console.log(session.id);
  `;
  const began = Date.now();
  const child = spawn(process.execPath, ["--input-type=module", "--eval", program], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const [code] = await once(child, "exit");
  assert.equal(code, 0);
  assert.ok(Date.now() - began < 5_000, "a renewal is due after 6.7 s");
});
