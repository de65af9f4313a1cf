import assert from "node:assert/strict";
import { describe, test } from "node:test";

import { EventParser, backoff, carriedOver, defaultSocket } from "../../sessiond/javascript/sessiond.mjs";

const STREAM =
  "retry: 500\n\n: heartbeat\n\n" +
  'id: 1\nevent: message.append\ndata: {"content":"é 😀"}\n\n' +
  "event:live\r\ndata: one\r\ndata:two\r\ndata:\r\ndata:  three\r\n\r\n" +
  "data: a: b\n\n";
const EVENTS = [
  { name: "message.append", id: "1", data: '{"content":"é 😀"}' },
  { name: "live", id: "", data: "one\ntwo\n\n three" },
  { name: "message", id: "", data: "a: b" },
];

/** Parse a stream that arrives in these pieces. */
function parsed(...pieces) {
  const parser = new EventParser();
  return pieces.flatMap((piece) =>
    parser.push(typeof piece === "string" ? new TextEncoder().encode(piece) : piece),
  );
}

describe("EventParser", () => {
  test("finds the same events wherever the stream is cut", () => {
    const bytes = new TextEncoder().encode(STREAM);
    for (let cut = 0; cut <= bytes.length; cut += 1) {
      assert.deepEqual(parsed(bytes.subarray(0, cut), bytes.subarray(cut)), EVENTS, `at ${cut}`);
    }
  });

  test("finds the same events in single bytes", () => {
    const bytes = new TextEncoder().encode(STREAM);
    assert.deepEqual(parsed(...Array.from(bytes, (byte) => Uint8Array.of(byte))), EVENTS);
  });

  test("hands an event out as soon as its empty line is there", () => {
    const parser = new EventParser();
    const push = (text) => parser.push(new TextEncoder().encode(text));
    assert.deepEqual(push("id: 7\ndata: x\n"), []);
    assert.deepEqual(push("\n"), [{ name: "message", id: "7", data: "x" }]);
  });

  test("takes LF, CRLF and CR for the end of a line", () => {
    const expected = [{ name: "e", id: "", data: "x\ny" }];
    for (const end of ["\n", "\r\n", "\r"]) {
      const stream = ["event: e", "data: x", "data: y", "", ": and on"].join(end);
      assert.deepEqual(parsed(stream), expected, JSON.stringify(end));
    }
  });

  test("makes no event of comments, of frames without data and of unfinished frames", () => {
    assert.deepEqual(parsed(": comment\n\nevent: e\nid: 1\n\nretry: 1\n\ndata: unfinished\n"), []);
  });

  test("ignores an id with a NUL, unknown fields and a byte order mark", () => {
    const stream = "\ufeffdata: x\nid: a\0b\nfoo: bar\n\n";
    assert.deepEqual(parsed(stream), [{ name: "message", id: "", data: "x" }]);
  });

  test("takes a field without a colon for an empty one", () => {
    assert.deepEqual(parsed("data\ndata\n\n"), [{ name: "message", id: "", data: "\n" }]);
  });

  test("reads long lines in time that grows with their length", () => {
    const piece = new Uint8Array(8_192).fill(0x78);
    const began = performance.now();
    const [event] = parsed("data: ", ...Array(4_096).fill(piece), "\n\n");
    assert.equal(event.data.length, 4_096 * 8_192);
    assert.ok(performance.now() - began < 5_000);
  });
});

describe("defaultSocket", () => {
  const HOME = "/home/me";
  for (const [environ, expected] of [
    [{ HOME }, "/home/me/.local/state/sessiond/run/api.sock"],
    [{ HOME, XDG_STATE_HOME: "/state" }, "/state/sessiond/run/api.sock"],
    [{ HOME, XDG_STATE_HOME: "relative" }, "/home/me/.local/state/sessiond/run/api.sock"],
    [{ HOME, XDG_STATE_HOME: "/state", XDG_RUNTIME_DIR: "/run/me" }, "/run/me/sessiond/api.sock"],
    [{ HOME, XDG_RUNTIME_DIR: "relative" }, "/home/me/.local/state/sessiond/run/api.sock"],
    [{ HOME, XDG_RUNTIME_DIR: "/run/me", SESSIOND_API_SOCKET: "/s" }, "/s"],
    [{ HOME, SESSIOND_API_SOCKET: "~/s" }, "/home/me/s"],
  ]) {
    test(`is ${expected} for ${Object.keys(environ)}`, () => {
      assert.equal(defaultSocket(environ), expected);
    });
  }
});

describe("backoff", () => {
  test("doubles, up to five seconds", () => {
    const pauses = [0, 1, 2, 3, 50, 5_000].map((failures) => backoff(failures, 1));
    assert.deepEqual(pauses, [150, 300, 600, 1_200, 5_000, 5_000]);
  });

  test("is never less than half", () => {
    assert.equal(backoff(1, 0), 150);
  });
});

describe("carriedOver", () => {
  const cases = [
    ["what nobody changed since", { a: 1 }, { a: 1 }, { a: 1, b: 2 }, { a: 1, b: 2 }],
    ["what only the answer brought", { a: 1 }, { a: 2 }, { a: 1 }, { a: 2 }],
    ["fields of both", { a: 1 }, { a: 1, c: 3 }, { a: 1, b: 2 }, { a: 1, b: 2, c: 3 }],
    ["fields below", { s: { a: 1 } }, { s: { a: 2 } }, { s: { a: 1, b: 1 } }, { s: { a: 2, b: 1 } }],
    ["a field removed here", { a: 1, b: 1 }, { b: 1 }, { a: 1, b: 2 }, { b: 2 }],
    ["lists of both", { l: ["a", "b"] }, { l: ["b", "c"] }, { l: ["a", "b", "d"] }, { l: ["b", "c", "d"] }],
    ["one value here", { a: 1 }, { a: [2] }, { a: { b: 1 } }, { a: [2] }],
    ["what others took out of a list out of it", ["a", "b"], ["a", "b", "mine"], ["b"], ["b", "mine"]],
    ["what was taken out of a list here out of it", ["a", "b"], ["b"], ["a", "b", "c"], ["b", "c"]],
    ["fields that both put below a new one", {}, { s: { a: [1] } }, { s: { a: [2], b: 2 } }, { s: { a: [1, 2], b: 2 } }],
    ["what both added to a list once", ["a"], ["a", "b"], ["a", "b", "c"], ["a", "b", "c"]],
    ["what others did again", ["ls"], ["ls", "cd"], ["ls", "ls"], ["ls", "cd", "ls"]],
    ["a field with null removed here", { a: null }, {}, { a: null, b: 1 }, { b: 1 }],
  ];
  for (const [name, sent, here, saved, expected] of cases) {
    test(`keeps ${name}`, () => assert.deepEqual(carriedOver(sent, here, saved), expected));
  }

  test("tells of what others changed, too, where the value from here stays", () => {
    const sent = { a: 1, b: 1, c: 1, d: 1, s: { x: [0], y: 0 }, l: ["a"] };
    const here = { a: 2, b: 2, c: 2, s: { x: "mine", y: 0 }, l: ["a", "b"] };
    const saved = { a: 3, b: 2, d: 3, s: { x: "theirs", y: 1 }, l: [] };
    const contests = [];
    const merged = carriedOver(sent, here, saved, contests);
    assert.deepEqual(merged, { a: 2, b: 2, c: 2, s: { x: "mine", y: 1 }, l: ["b"] });
    const told = contests.sort((one, other) => (one.path.join() < other.path.join() ? -1 : 1));
    assert.deepEqual(told, [
      { path: ["a"], base: 1, ours: 2, theirs: 3 },
      { path: ["c"], base: 1, ours: 2, theirs: undefined },
      { path: ["d"], base: 1, ours: undefined, theirs: 3 },
      { path: ["s", "x"], base: [0], ours: "mine", theirs: "theirs" },
    ]);
  });

  test("tells of what stood here then, whatever it becomes", () => {
    const contests = [];
    const merged = carriedOver({ a: 1 }, { a: { list: ["mine"] } }, { a: 2 }, contests);
    merged.a.list.push("later");
    assert.deepEqual(contests[0].ours, { list: ["mine"] });
  });
});
