/** The API against the daemon at SESSIOND_API_SOCKET. */

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { describe, test } from "node:test";

import {
  DaemonUnreachable,
  Session,
  SessionManager,
  SessiondError,
  VersionMismatch,
} from "../../sessiond/javascript/sessiond.mjs";
import { assertUpToDate, connect, statusOf } from "./support.mjs";

const SOCKET = process.env.SESSIOND_API_SOCKET;
const MODULE = new URL("../../sessiond/javascript/sessiond.mjs", import.meta.url).href;

/** Matches a SessiondError with this code. */
const problem = (code, status) => (error) => {
  assert.ok(error instanceof SessiondError, error);
  assert.equal(error.code, code);
  if (status) assert.equal(error.status, status);
  return true;
};

describe("the specification's snippets", () => {
  test("Create Session", async () => {
    // prettier-ignore
    // Auto-generated on first interaction
    const session = await SessionManager.create({
      user_id: "user123",
      preferences: { theme: "dark", language: "en" }
    });
    assert.match(session.id, /^ses_/);
    assert.equal(session.metadata.user_id, "user123");
    assert.deepEqual(session.preferences, { theme: "dark", language: "en" });
    assert.deepEqual(session.messages, []);
  });

  test("Load, Update and Save Session", async () => {
    await SessionManager.create({ session_id: "session_id" }).catch(problem("already-exists"));
    const session = await SessionManager.load("session_id");
    // prettier-ignore
    await session.addMessage({
      role: "assistant",
      content: "Here's the analysis...",
      tool_calls: ["grep", "read"]
    });
    await session.save();

    const { messages } = await SessionManager.load("session_id");
    const { role, content, tool_calls, metadata } = messages.at(-1);
    assert.deepEqual([role, content, metadata], ["assistant", "Here's the analysis...", {}]);
    assert.deepEqual(tool_calls, ["grep", "read"]);
  });
});

describe("archives", () => {
  test("a session leaves Redis and comes back when it is loaded", async (context) => {
    const manager = connect(context);
    const session = await manager.create({ title: "old" });
    await session.addMessage({ role: "user", content: "hello" });
    await assert.rejects(manager.archive(session.id), problem("session-in-use", 409));
    const archived = await manager.archive(session.id, { idleSeconds: 0 });
    assert.deepEqual([archived.archived, archived.position], [true, session.position]);
    const again = await manager.load(session.id);
    assert.deepEqual(again.messages, session.messages);
    await manager.archive(session.id, { idleSeconds: 0 });
    assert.equal((await manager.restore(session.id)).archived, false);
    await assert.rejects(manager.restore("never-was"), problem("not-found", 404));
  });
});

describe("messages", () => {
  test("an added message is returned as it is stored", async (context) => {
    const manager = connect(context);
    const session = await manager.create();
    const added = await session.addMessage({ role: "user", content: "é 😀", metadata: { a: 1 } });
    assert.match(added.id, /^msg_/);
    assert.deepEqual(session.messages, [added]);
    await assertUpToDate(session, manager);
  });

  test("a group takes neighbouring places", async (context) => {
    const manager = connect(context);
    const session = await manager.create();
    const added = await session.addMessages([
      { role: "user", content: "one", id: "m1", timestamp: "2026-01-13T10:30:00Z" },
      { role: "assistant", parts: [{ id: "p1", type: "text", text: "two" }] },
    ]);
    assert.deepEqual(
      added.map(({ content }) => content),
      ["one", "two"],
    );
    assert.equal(added[0].id, "m1");
    assert.match(session.position, /:3$/);
    await assertUpToDate(session, manager);
  });

  test("of a group with a wrong message nothing is written", async (context) => {
    const manager = connect(context);
    const session = await manager.create();
    const group = [{ role: "user", content: "fine" }, { role: "nobody" }];
    await assert.rejects(session.addMessages(group), problem("invalid-input", 400));
    assert.deepEqual((await manager.load(session.id)).messages, []);
  });

  test("writes are sent in the order of the calls", async (context) => {
    const manager = connect(context);
    const session = await manager.create();
    const names = Array.from({ length: 20 }, (_, n) => `${n}`);
    await Promise.all(names.map((content) => session.addMessage({ role: "user", content })));
    assert.deepEqual(
      session.messages.map(({ content }) => content),
      names,
    );
    await assertUpToDate(session, manager);
  });

  test("a write that fails does not hold up the next", async (context) => {
    const session = await connect(context).create();
    const failing = session.addMessage({ role: "nobody" });
    const next = session.addMessage({ role: "user", content: "next" });
    await assert.rejects(failing, problem("invalid-input"));
    assert.equal((await next).content, "next");
  });

  test("a write also brings what others wrote before it, in its place", async (context) => {
    const manager = connect(context);
    const session = await manager.create();
    const other = await manager.load(session.id);
    await other.addMessage({ role: "user", content: "theirs" });
    await session.addMessage({ role: "user", content: "mine" });
    assert.deepEqual(
      session.messages.map(({ content }) => content),
      ["theirs", "mine"],
    );
    await assertUpToDate(session, manager);
  });

  test("edits and removals show here as they do for who loads the session", async (context) => {
    const manager = connect(context);
    const session = await manager.create();
    const [one, two] = await session.addMessages([
      { role: "user", content: "one", metadata: { keep: 1, drop: 2 } },
      { role: "user", content: "two" },
    ]);
    const edited = await session.editMessage(one.id, { content: "1", metadata: { drop: null } });
    assert.equal(edited.version, session.position);
    assert.equal(session.messages[0].content, "1");
    assert.deepEqual(session.messages[0].metadata, { keep: 1 });
    await session.removeMessage(two.id);
    assert.equal(session.messages.length, 1);
    await assertUpToDate(session, manager);
  });

  test("parts show here as they do for who loads the session", async (context) => {
    const manager = connect(context);
    const session = await manager.create();
    const message = { role: "assistant", content: "said", tool_calls: ["bash"] };
    const { id } = await session.addMessage(message);
    const [text, tool] = [
      { id: "text", type: "text", text: "more" },
      { id: "tool", type: "tool", tool: "grep", input: { pattern: "x" } },
    ];
    const steps = [
      () => session.putPart(id, text),
      () => session.putPart(id, tool),
      () => session.putPart(id, { ...text, text: "more and more" }),
      () => session.editMessage(id, { content: "said again" }),
      () => session.removePart(id, "text"),
      () => session.removePart(id, "tool"),
    ];
    for (const step of steps) {
      await step();
      await assertUpToDate(session, manager);
    }
    assert.equal(session.messages[0].content, "said again");
    assert.deepEqual(session.messages[0].tool_calls, ["bash"]);
  });

  test("a change of an outdated version is refused and names the hint", async (context) => {
    const session = await connect(context).create();
    const { id } = await session.addMessage({ role: "user", content: "one" });
    const first = session.position;
    const { version } = await session.editMessage(id, { content: "two" }, { expected: first });
    const late = session.editMessage(id, { content: "three" }, { expected: first });
    await assert.rejects(late, (error) => {
      assert.ok(error instanceof VersionMismatch);
      assert.ok(error.hint);
      return problem("version-mismatch", 412)(error);
    });
    await session.editMessage(id, { content: "three" }, { expected: version });
    assert.equal(session.messages[0].content, "three");
  });

  test("the same key is the same write, another content under it is refused", async (context) => {
    const manager = connect(context);
    const session = await manager.create();
    const key = randomUUID();
    const one = await session.addMessage({ role: "user", content: "one" }, { key });
    assert.deepEqual(await session.addMessage({ role: "user", content: "one" }, { key }), one);
    const other = session.addMessage({ role: "user", content: "other" }, { key });
    await assert.rejects(other, problem("already-exists", 409));
    assert.equal((await manager.load(session.id)).messages.length, 1);
  });

  test("what cannot be JSON is refused here", async (context) => {
    const session = await connect(context).create();
    const message = { role: "user", metadata: { large: 1n } };
    await assert.rejects(session.addMessage(message), problem("invalid-input"));
    session.context.state.self = session.context;
    await assert.rejects(session.save(), problem("invalid-input"));
  });
});

describe("save", () => {
  test("sends changes and nothing else", async (context) => {
    const manager = connect(context);
    const session = await manager.create({ preferences: { theme: "dark" } });
    const before = session.position;
    await session.save();
    assert.equal((await manager.load(session.id)).position, before);

    session.context.active_files.push("README.md");
    session.preferences = { theme: "light" };
    await session.save();
    await assertUpToDate(session, manager);
    assert.deepEqual(session.context.active_files, ["README.md"]);
    assert.deepEqual(session.preferences, { theme: "light" });
    assert.match(session.position, /:3$/);
  });

  test("merges what two changed at once, and returns what is left out", async (context) => {
    const manager = connect(context);
    const session = await manager.create({ preferences: { theme: "dark" } });
    const other = await manager.load(session.id);
    other.preferences = { theme: "theirs", editor: "theirs" };
    other.context.active_files.push("theirs");
    assert.deepEqual(await other.save(), []);

    session.preferences = { theme: "mine", language: "en" };
    session.context.active_files.push("mine");
    const [conflict, ...none] = await session.save();
    assert.deepEqual(none, []);
    assert.deepEqual(session.preferences, { theme: "mine", editor: "theirs", language: "en" });
    assert.deepEqual(session.context.active_files, ["theirs", "mine"]);
    assert.deepEqual([conflict.path, conflict.outcome], [["theme"], "ours"]);
    assert.deepEqual([conflict.ours.value, conflict.theirs.value], ["mine", "theirs"]);
    await assertUpToDate(session, manager);

    assert.deepEqual(await session.conflicts({ state: "settled" }), [conflict]);
    assert.ok((await manager.conflicts()).some(({ session_id }) => session_id === session.id));
    const resolved = await session.resolve(conflict.number, { take: "theirs" });
    assert.deepEqual([resolved.state, resolved.resolution.take], ["resolved", "theirs"]);
    assert.equal(session.preferences.theme, "theirs");
    await session.resolve(conflict.number, { value: "another" });
    assert.equal(session.preferences.theme, "another");
    await assert.rejects(session.resolve("999", { take: "ours" }), problem("not-found", 404));
    await assert.rejects(session.resolve("x", { take: "ours" }), problem("invalid-input", 400));
  });

  test("in strict mode throws and keeps the change; refresh resolves it", async (context) => {
    const manager = connect(context);
    const session = await manager.create({ preferences: { theme: "dark" } });
    const other = await manager.load(session.id);
    other.preferences.theme = "light";
    await other.save();

    session.preferences.language = "en";
    for (const _ of ["first", "again"]) {
      await assert.rejects(session.save({ strict: true }), VersionMismatch);
    }
    assert.deepEqual(session.preferences, { theme: "dark", language: "en" });

    const { language } = session.preferences;
    await session.refresh();
    assert.deepEqual(session.preferences, { theme: "light" });
    session.preferences.language = language;
    await session.save({ strict: true });
    assert.deepEqual((await manager.load(session.id)).preferences, { theme: "light", language });
  });

  test("merges edits of one message line by line", async (context) => {
    const manager = connect(context);
    const session = await manager.create();
    const { id } = await session.addMessage({ role: "user", content: "one" });
    const { version } = await session.editMessage(id, { content: "one\ntwo\nthree" });
    await session.editMessage(id, { content: "ONE\ntwo\nthree" }, { base: version });
    const written = await session.editMessage(id, { content: "one\ntwo\nTHREE" }, { base: version });
    assert.equal(written.conflicts, undefined);
    assert.equal(session.messages[0].content, "ONE\ntwo\nTHREE");
    await assertUpToDate(session, manager);
  });

  test("does not conflict with changes of other documents", async (context) => {
    const manager = connect(context);
    const session = await manager.create();
    const other = await manager.load(session.id);
    other.context.working_directory = "/tmp";
    await other.save();
    session.preferences.theme = "dark";
    await session.save();
    await assertUpToDate(session, manager);
    assert.equal(session.context.working_directory, "/tmp");
  });

  test("knows on what it was changed when the other's change was heard of meanwhile", async (context) => {
    const manager = connect(context);
    const session = await manager.create({ preferences: { theme: "dark" } });
    const other = await manager.load(session.id);
    session.preferences.theme = "mine";
    other.preferences.theme = "theirs";
    await other.save();
    await session.addMessage({ role: "user", content: "catches up" });
    assert.equal(session.preferences.theme, "mine");
    await assert.rejects(session.save({ strict: true }), VersionMismatch);
    session.preferences.theme = "dark"; // taken back: nothing is left to save
    await session.save();
    await assertUpToDate(session, manager);
    assert.equal(session.preferences.theme, "theirs");
  });

  test("refuses what is no context", async (context) => {
    const session = await connect(context).create();
    session.context.active_files = 7;
    await assert.rejects(session.save(), problem("invalid-input", 400));
  });
});

describe("sessions", () => {
  test("are listed by what they are, page by page", async (context) => {
    const manager = connect(context);
    const workspace = `w-${randomUUID()}`;
    const created = [];
    for (const user_id of ["a", "b", "a"]) {
      created.unshift((await manager.create({ workspace, user_id, environment: "test" })).id);
    }
    const ids = ({ sessions }) => sessions.map(({ metadata }) => metadata.session_id);
    const first = await manager.list({ workspace, limit: 2 });
    const second = await manager.list({ workspace, limit: 2, cursor: first.cursor });
    assert.deepEqual([...ids(first), ...ids(second)].sort(), [...created].sort());
    const some = { workspace, user_id: "a", status: "active", environment: "test" };
    assert.equal(ids(await manager.list(some)).length, 2);
    assert.deepEqual(ids(await manager.list({ workspace, environment: "none" })), []);
    assert.deepEqual(ids(await SessionManager.list({ workspace, cursor: undefined })).length, 3);
  });

  test("that were deleted say so to everybody", async (context) => {
    const manager = connect(context);
    const session = await manager.create({ session_id: `s-${randomUUID()}` });
    const stale = session.position;
    await session.addMessage({ role: "user", content: "x" });
    const early = manager.delete(session.id, { expected: stale });
    await assert.rejects(early, problem("version-mismatch", 412));
    await manager.delete(session.id, { expected: session.position });
    const gone = problem("session-deleted", 410);
    await assert.rejects(manager.load(session.id), gone);
    await assert.rejects(session.addMessage({ role: "user", content: "y" }), gone);
    await assert.rejects(session.refresh(), gone);
    await assert.rejects(manager.create({ session_id: session.id }), gone);
    await assert.rejects(SessionManager.delete(session.id), gone);
  });

  test("that never were are not found", async (context) => {
    const manager = connect(context);
    await assert.rejects(manager.load("nothing"), problem("not-found", 404));
    await assert.rejects(manager.delete("nothing"), problem("not-found", 404));
    await assert.rejects(manager.load("../config"), problem("invalid-input", 400));
    await assert.rejects(manager.load(""), SessiondError);
  });

  test("of the same key are the same", async (context) => {
    const manager = connect(context);
    const key = randomUUID();
    const one = await manager.create({ user_id: "u" }, { key });
    assert.equal((await manager.create({ user_id: "u" }, { key })).id, one.id);
    assert.ok(one instanceof Session);
  });
});

describe("connections", () => {
  test("over loopback need the token", async (context) => {
    const { address, token_file } = await statusOf(SOCKET);
    const token = readFileSync(token_file, "utf8");
    const manager = connect(context, { address, token: `${token}\n`, name: "over-tcp" });
    const session = await manager.create();
    await session.addMessage({ role: "user", content: "over TCP" });
    await assertUpToDate(session, connect(context));
    for await (const { data } of session.subscribe({ after: "0" })) {
      assert.match(data.origin, /^over-tcp@/);
      break;
    }
    for (const wrong of ["", "wrong"]) {
      const refused = connect(context, { address, token: wrong }).load(session.id);
      await assert.rejects(refused, problem("unauthenticated", 401));
    }
  });

  test("to addresses that are none are refused", () => {
    for (const address of ["localhost", "https://127.0.0.1:1", "http://127.0.0.1"]) {
      assert.throws(() => SessionManager.connect({ address }), problem("invalid-input"));
    }
  });

  test("to a daemon that does not run fail with what to do", async (context) => {
    for (const options of [{ socket: "/tmp/nobody/api.sock" }, { address: "http://127.0.0.1:1" }]) {
      const manager = connect(context, { ...options, tries: 2 });
      await assert.rejects(manager.load("x"), (error) => {
        assert.ok(error instanceof DaemonUnreachable);
        assert.match(error.message, /no daemon answers at .*sessiond run/);
        assert.ok(error.retryable);
        return problem("daemon-unreachable")(error);
      });
    }
  });

  test("with a name that no header can carry are refused", async (context) => {
    const manager = connect(context, { name: "two\nlines" });
    await assert.rejects(manager.list(), problem("invalid-input"));
  });

  test("that were closed refuse calls", async () => {
    const manager = SessionManager.connect();
    const session = await manager.create();
    await manager.close();
    await assert.rejects(session.refresh(), problem("closed"));
    await assert.rejects(manager.load(session.id), problem("closed"));
  });

  for (const [what, script] of [
    ["used through the static calls", "await SessionManager.create()"],
    [
      "closed while calls and subscriptions are under way",
      `const manager = SessionManager.connect();
       const session = await manager.create();
       const reading = (async () => { for await (const _ of session.subscribe()); })();
       const unreachable = SessionManager.connect({ socket: "/tmp/nobody" }).load("x");
       setTimeout(() => manager.close(), 50);
       await Promise.allSettled([reading, unreachable]);`,
    ],
  ]) {
    test(`that are ${what} let the program end`, { timeout: 20_000 }, async () => {
      const source = `import { SessionManager } from ${JSON.stringify(MODULE)}; ${script}`;
      const child = spawn(process.execPath, ["--input-type=module", "-e", source]);
      let errors = "";
      child.stderr.on("data", (text) => (errors += text));
      assert.deepEqual(await once(child, "exit"), [0, null], errors);
    });
  }
});

test("a window shows what fits, and tells what is left out", async () => {
  const session = await SessionManager.create({});
  for (let number = 0; number < 6; number++) {
    await session.addMessage({ role: "user", content: "word ".repeat(30) });
  }
  const window = await session.window({ tokens: 100, strategy: "recent" });
  assert.ok(window.tokens <= 100);
  assert.deepEqual(window.messages, session.messages.slice(-window.messages.length));
  assert.equal(window.left_out[0].messages + window.messages.length, 6);
  assert.deepEqual((await session.window()).messages, session.messages);
  await assert.rejects(session.window({ tokens: 1 }), problem("invalid-input", 400));
});

test("sessions of a user begin with the user's preferences", async () => {
  const user = `ann-${randomUUID()}`;
  await SessionManager.changeUserPreferences(user, { theme: "dark", language: "de" });
  const session = await SessionManager.create({ user_id: user, preferences: { language: "en" } });
  assert.deepEqual(session.preferences, { theme: "dark", language: "en" });
  const left = await SessionManager.changeUserPreferences(user, { theme: null });
  assert.deepEqual(left, { language: "de" });
  assert.deepEqual(await SessionManager.userPreferences(user), left);
});

test("a session says where and by what it was created", async () => {
  const { context, metadata } = await SessionManager.create();
  assert.equal(context.working_directory, process.cwd());
  assert.equal(metadata.user_agent, "sessiond-javascript");
  const given = await SessionManager.create({ user_agent: "editor/1", context: {} });
  assert.equal(given.metadata.user_agent, "editor/1");
  assert.equal(given.context.working_directory, "");
});
