/** The cache of what tools answered: given while it is right, and no longer. */

import assert from "node:assert/strict";
import { lstatSync, readdirSync, statSync, utimesSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { test } from "node:test";

import { SessionManager } from "../../sessiond/javascript/sessiond.mjs";
import { Daemon, connect, temporaryFolder, until } from "./support.mjs";

const OLD = dirname(process.execPath); // files that nobody changes while tests run
const FILE = readdirSync(OLD).find((name) => {
  const found = lstatSync(join(OLD, name));
  return found.isFile() && found.size < 1_000_000 && Date.now() - found.ctimeMs > 10_000;
});

test("a tool runs once for the same file, whoever asks", async (context) => {
  const session = await connect(context).create();
  const other = await connect(context).load(session.id);
  let runs = 0;
  const run = () => (runs += 1);
  for (const { cache } of [session, session, other]) {
    const call = { arguments: { lines: true }, path: FILE, run };
    assert.equal(await cache.below(OLD).through("wc", call), 1);
  }
  const { counts, entries } = await session.cache.contents();
  assert.deepEqual([counts.hits, counts.misses, entries.length], [2, 1, 1]);
  assert.equal(await session.cache.invalidate(FILE), 1);
  assert.equal(await session.cache.clear(), 0);
});

test("a file that changed is asked for again, whatever its time says", async (context) => {
  const { cache: current } = await connect(context).create();
  const folder = temporaryFolder();
  const cache = current.below(folder);
  writeFileSync(join(folder, "a"), "one");
  await until(async () => {
    const looked = await cache.get("cat", { path: "a" });
    if (!looked.isHit) await cache.put(looked, "one");
    return looked.isHit;
  });
  const { atime, mtime } = statSync(join(folder, "a"));
  writeFileSync(join(folder, "a"), "two");
  utimesSync(join(folder, "a"), atime, mtime);
  const { isHit, answer } = await cache.get("cat", { path: "a" });
  assert.deepEqual([isHit, answer.outcome], [false, "stale"]);
});

test("what cannot be is told, and a daemon that is away is no error", async (context) => {
  const daemon = new Daemon();
  await daemon.start();
  const manager = connect(context, { socket: daemon.socket, tries: 1 });
  const cache = (await manager.create()).cache.below(OLD);
  await assert.rejects(cache.get("cat", { path: "../x" }), { code: "invalid-input" });
  const looked = await cache.get("cat", { path: FILE });
  await daemon.stop();
  assert.equal((await cache.put(looked, "text")).stored, false);
  const missed = await cache.get("cat", { path: FILE });
  assert.match(missed.answer.reason, /no daemon answers/);
  assert.equal(await cache.through("cat", { path: FILE, run: () => "ran" }), "ran");
  await assert.rejects(cache.contents(), { code: "daemon-unreachable" });
});

test("a session that is gone has no cache", async (context) => {
  const manager = connect(context);
  const session = await manager.create();
  await SessionManager.delete(session.id);
  await assert.rejects(session.cache.contents(), { code: "session-deleted" });
  const cache = session.cache.below(OLD);
  await assert.rejects(cache.get("cat", { path: FILE }), { code: "session-deleted" });
});
