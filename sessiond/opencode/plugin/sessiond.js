// @ts-check
/**
 * The opencode plugin of sessiond: shares the sessions of this opencode with other instances, live,
 * through the sidecar daemon on this machine. It runs inside opencode (Bun), has no dependencies,
 * and is called once per project directory. `sessiond/opencode/protocol.py` is its contract with
 * the sidecar.
 *
 *     event hook ────────▶ Outbound ──▶ POST events ────▶ ┌─────────┐
 *     chat.message hook ─▶ Turns ─────▶ POST turns ─────▶ │ sidecar │ ⇄ Redis ⇄ other machines
 *     opencode's log   ◀─ History ◀┬─ Inbound ◀─ GET commands ◀──── │         │
 *     opencode's views ◀─ Views ◀──┘     └──────▶ POST applied ───▶ └─────────┘
 *
 * Three rules keep it right:
 * - A sidecar that is away costs nothing. opencode works on; what it writes stands in its own
 *   database, where the sidecar finds it later. No hook ever throws or waits without limit.
 * - Commands are worked off one after the other. Text that streams in must not overtake the
 *   message it belongs to, nor the other way round.
 * - Nothing from elsewhere is written into a session while a turn runs in it here: opencode's turn
 *   loop would take a foreign message for one that it has to answer, again and again.
 *
 * What it needs of opencode beyond the plugin API is private there, and stands in `Opencode`,
 * `History` and `capturedBus` only. Only the plugin may be exported: opencode calls every export.
 */

import { Database } from "bun:sqlite";
import { randomBytes } from "node:crypto";
import { EventEmitter } from "node:events";
import { appendFileSync, readFileSync } from "node:fs";
import { homedir } from "node:os";
import { isAbsolute, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

/**
 * @typedef {{ id: string, type: string, properties: Record<string, any> }} Event
 * @typedef {{ instance: string, machine: string, workspace: string, reason: string }} Attached
 * @typedef {{ machine: string, instance: string }} Holder
 * @typedef {{ batch: number, session_id: string, events: Event[], announce?: boolean }} Apply
 * @typedef {{ name: string, data: any }} Command
 * @typedef {{ socket: string, url: string, token: string, mode: string, share: boolean,
 *   shareKey: string, turnSeconds: number, live: boolean, log: string }} Settings
 * @typedef {(what: string, details?: Record<string, unknown>) => void} Log
 * @typedef {{ client: any, project: { id: string }, directory: string, worktree: string }} Input
 */

const VERSION = "0.1.0";
const DURABLE = new Set([
  ...["session.created", "session.updated", "session.deleted"],
  ...["message.updated", "message.removed", "message.part.updated", "message.part.removed"],
]);
const LIVE = new Set(["message.part.delta", "session.status", "session.idle"]);

const FIRST_PAUSE_MS = 200;
const LONGEST_PAUSE_MS = 5_000;
const ANSWER_MS = 10_000;
const SILENCE_MS = 60_000; // a sidecar sends a heartbeat every 15 s, unless configured otherwise
const ATTACH_MS = 1_000; // how long a prompt waits for an attachment that is being made
const SETTLE_MS = 1_000; // how long a prompt waits until what happened before it was pushed
const APPLY_MS = 5_000; // how long a prompt waits for an apply in its session
const FIRST_WAIT_SECONDS = 1; // after it the person is told what they are waiting for
const WAIT_SECONDS = 20;
const UNSAVED_MS = 30_000; // a prompt that was not saved by then was cancelled
const UNANSWERED_MS = 2_000; // a saved prompt that no turn answers by then wants none (`noReply`)
const CAPTURE_MS = 5_000;
const REPLAY_EVENTS = 50;
const LOST_RACES = 40;
const REQUEST_EVENTS = 200;
const REQUEST_CHARACTERS = 1_000_000;
const WAITING_EVENTS = 2_000;
const WAITING_CHARACTERS = 8_000_000;

/** Return the settings: of the environment, else of `sessiond.json` beside this file, else defaults. */
function settingsFrom(environ = process.env, folder = import.meta.dir) {
  const file = parsed(contentOf(join(folder, "sessiond.json"))) ?? {};
  const isNamed = environ.SESSIOND_URL || environ.SESSIOND_SOCKET; // then the file's place is void
  const place = isNamed ? {} : file;
  const share = environ.SESSIOND_SHARE ?? file.share ?? "on";
  return {
    url: environ.SESSIOND_URL ?? place.url ?? "",
    socket: environ.SESSIOND_SOCKET ?? place.socket ?? defaultSocket(environ),
    token: (environ.SESSIOND_TOKEN ?? contentOf(file.token_file)).trim(),
    mode: environ.SESSIOND_OPENCODE_MODE ?? file.mode ?? "lease",
    share: share !== "off" && share !== false,
    shareKey: environ.SESSIOND_SHARE_KEY ?? file.share_key ?? "",
    turnSeconds: Number(environ.SESSIOND_TURN_SECONDS ?? file.turn_seconds ?? 600),
    live: environ.SESSIOND_PLUGIN_LIVE !== "off",
    log: environ.SESSIOND_PLUGIN_LOG ?? "",
  };
}

/** The socket of the local API, as `sessiond/paths.py` has it. @param {NodeJS.ProcessEnv} environ */
function defaultSocket(environ) {
  const home = environ.HOME || homedir();
  const { SESSIOND_API_SOCKET: socket, XDG_RUNTIME_DIR: runtime, XDG_STATE_HOME: state } = environ;
  if (socket) return socket.replace(/^~(?=\/)/, home);
  if (runtime && isAbsolute(runtime)) return join(runtime, "sessiond", "api.sock");
  const stateHome = state && isAbsolute(state) ? state : join(home, ".local", "state");
  return join(stateHome, "sessiond", "run", "api.sock");
}

/** Where opencode keeps its database. @param {NodeJS.ProcessEnv} environ */
function databasePath(environ) {
  const base = environ.XDG_DATA_HOME || join(homedir(), ".local", "share");
  const named = environ.OPENCODE_DB || "opencode.db";
  return isAbsolute(named) ? named : join(base, "opencode", named);
}

/** opencode's own HTTP API, called as its plugins may: without a port, without a password. */
class Opencode {
  #client;

  /** @param {Input} input */
  constructor(input) {
    this.#client = input.client._client;
  }

  /**
   * Return the answer's status and content. A request that arrives while opencode boots may never
   * be answered, hence the limit.
   * @param {string} method @param {string} url @param {unknown} [body]
   */
  async call(method, url, body, limitMs = ANSWER_MS) {
    const headers = { "Content-Type": "application/json" };
    const signal = AbortSignal.timeout(limitMs);
    const answer = await this.#client.request({ method, url, body, headers, signal });
    if (!answer.response) throw new Error(`opencode does not answer ${method} ${url}`);
    return { status: answer.response.status, data: answer.data };
  }

  /** @param {string} message @param {string} variant */
  async toast(message, variant) {
    await this.call("POST", "/tui/show-toast", { title: "sessiond", message, variant });
  }
}

/** A sidecar's answer that is not what was asked for. */
class Refusal extends Error {
  /** @param {number} status @param {string} answer */
  constructor(status, answer) {
    super(`the sidecar answers ${status}: ${answer.slice(0, 300)}`);
    this.status = status;
  }
}

/** The sidecar: attached to for ever, and again whenever it was lost. */
class Sidecar {
  #settings;
  #log;
  #path = `/v1/opencode/instances/oc-${randomBytes(6).toString("hex")}`;
  #connection = new AbortController(); // of the present attachment; aborted when it is lost
  #attaching = Promise.resolve();
  #isClosed = false;
  /** @type {Attached | undefined} */
  #attached;

  /** @param {Settings} settings @param {Log} log */
  constructor(settings, log) {
    this.#settings = settings;
    this.#log = log;
  }

  get attached() {
    return this.#connection.signal.aborted ? undefined : this.#attached;
  }

  /** Tell whether sessions are shared now; an attachment that is just being made is waited for. */
  async isSharing() {
    if (!this.attached) await Promise.race([this.#attaching, pause(ATTACH_MS)]);
    return Boolean(this.attached?.workspace);
  }

  /**
   * Attach and hand over commands, until `close`. With each comes the signal that the attachment
   * has ended: whoever sent the command has forgotten it then.
   * @param {() => Promise<object>} describe @param {() => void} onAttached
   * @param {(command: Command, lost: AbortSignal) => void} onCommand
   */
  async run(describe, onAttached, onCommand) {
    for (let failures = 0; !this.#isClosed; failures += 1) {
      if (failures) await pause(backoff(failures - 1, Math.random()));
      this.#attached = undefined;
      const connection = (this.#connection = new AbortController());
      try {
        const attaching = this.#attach(describe);
        this.#attaching = attaching.catch(() => {}); // for who waits; here it is told
        await attaching;
        onAttached();
        const chunks = await this.#openCommands(connection);
        failures = 0;
        for await (const command of eventsOf(chunks)) onCommand(command, connection.signal);
        this.#log("commands.ended");
      } catch (error) {
        this.#log("sidecar.lost", { error: String(error), failures });
      }
      connection.abort();
    }
  }

  /**
   * Send a request and return what is answered. A sidecar that does not answer, or does not know
   * this instance because it was restarted, is attached to anew.
   * @param {string} method @param {string} path @param {string} [json] @param {number} [limitMs]
   */
  async call(method, path, json, limitMs = ANSWER_MS) {
    const connection = this.#connection;
    try {
      const limit = AbortSignal.timeout(limitMs);
      const signal = AbortSignal.any([limit, connection.signal]);
      const response = await this.#fetch(method, path, json, signal);
      const answer = await response.text();
      return answer && JSON.parse(answer);
    } catch (error) {
      if (!(error instanceof Refusal) || error.status === 404) connection.abort(error);
      throw error;
    }
  }

  close() {
    this.#isClosed = true;
    this.#connection.abort();
  }

  /** @param {() => Promise<object>} describe */
  async #attach(describe) {
    const attached = await this.call("PUT", "", JSON.stringify(await describe()));
    this.#attached = attached;
    this.#log("attached", attached);
  }

  /** @param {AbortController} connection */
  async #openCommands(connection) {
    const response = await this.#fetch("GET", "/commands", undefined, connection.signal);
    const silence = setTimeout(() => connection.abort(new Error("silence")), SILENCE_MS);
    connection.signal.addEventListener("abort", () => clearTimeout(silence));
    return (async function* () {
      for await (const chunk of /** @type {any} */ (response.body)) {
        silence.refresh();
        yield chunk;
      }
    })();
  }

  /**
   * @param {string} method @param {string} path @param {string | undefined} body
   * @param {AbortSignal} signal
   */
  async #fetch(method, path, body, signal) {
    const { url, socket, token } = this.#settings;
    const headers = {
      "Sessiond-Client": `opencode-plugin/${VERSION}`,
      ...(body && { "Content-Type": "application/json" }),
      ...(url && token && { Authorization: `Bearer ${token}` }),
    };
    const place = url ? {} : { unix: socket };
    const address = (url || "http://localhost").replace(/\/$/, "") + this.#path + path;
    const options = { ...place, method, headers, body, signal, timeout: false }; // Bun's own limit
    const response = await fetch(address, /** @type {any} */ (options));
    if (!response.ok) throw new Refusal(response.status, await response.text());
    return response;
  }
}

/**
 * What happens here, on its way to the sidecar: in order, each event until it is answered.
 *
 * While the sidecar is away memory is bounded and the oldest events are dropped. Nothing is lost by
 * that: the sidecar reads them in opencode's database. Only a deletion takes its log with it, and
 * stays here.
 */
class Outbound {
  #sidecar;
  #log;
  /** @type {{ json: string, isKept: boolean }[]} */
  #waiting = [];
  #characters = 0;
  #pushed = 0;
  #done = 0;
  #isSending = false;

  /** @param {Sidecar} sidecar @param {Log} log */
  constructor(sidecar, log) {
    this.#sidecar = sidecar;
    this.#log = log;
  }

  /** @param {Event} event */
  push({ id, type, properties }) {
    if (!DURABLE.has(type) && !LIVE.has(type)) return;
    if (this.#sidecar.attached?.workspace === "") return;
    const item = { json: JSON.stringify({ id, type, properties }), isKept: type === "session.deleted" };
    this.#waiting.push(item);
    this.#characters += item.json.length;
    this.#pushed += 1;
    while (this.#waiting.length > WAITING_EVENTS || this.#characters > WAITING_CHARACTERS) {
      const oldest = this.#waiting.findIndex((each) => !each.isKept);
      if (oldest < 0) break;
      this.#remove(oldest, 1);
    }
    this.wake();
  }

  /** Begin to send what waits, if there is somebody to send it to. */
  async wake() {
    if (this.#isSending) return;
    this.#isSending = true;
    for (let failures = 0; this.#waiting.length && this.#sidecar.attached; ) {
      if (failures) await pause(backoff(failures - 1, Math.random()));
      failures = (await this.#send()) ? 0 : failures + 1;
    }
    this.#isSending = false;
  }

  /** Wait until all that was pushed so far was answered. @param {number} limitMs */
  async settled(limitMs) {
    const goal = this.#pushed;
    const limit = Date.now() + limitMs;
    while (this.#done < goal && this.#sidecar.attached && Date.now() < limit) await pause(2);
  }

  /** Send as much as one request may carry; return whether it is done with. */
  async #send() {
    if (!this.#sidecar.attached?.workspace) return this.#remove(0, this.#waiting.length);
    let count = 0;
    for (let size = 0; count < Math.min(this.#waiting.length, REQUEST_EVENTS); count += 1) {
      size += this.#waiting[count].json.length;
      if (count && size > REQUEST_CHARACTERS) break;
    }
    const sent = this.#waiting.slice(0, count);
    try {
      const events = sent.map((item) => item.json).join(",");
      await this.#sidecar.call("POST", "/events", `{"events":[${events}]}`);
    } catch (error) {
      this.#log("events.refused", { error: String(error), count });
      if (!isFinal(error)) return false;
    }
    // the oldest may have been dropped meanwhile
    return this.#remove(0, sent.filter((item) => this.#waiting.includes(item)).length);
  }

  /** @param {number} from @param {number} count */
  #remove(from, count) {
    for (const item of this.#waiting.splice(from, count)) this.#characters -= item.json.length;
    this.#done += count;
    return true;
  }
}

/** opencode's durable log: read in its database, written through its own replay. */
class History {
  #opencode;
  #directory;
  #path;
  #log;
  /** @type {Database | undefined} */
  #database;

  /** @param {Opencode} opencode @param {string} directory @param {string} path @param {Log} log */
  constructor(opencode, directory, path, log) {
    this.#opencode = opencode;
    this.#directory = directory;
    this.#path = path;
    this.#log = log;
  }

  /**
   * Append events of one session that are not there yet; return which could not be, and why.
   * @param {string} session @param {Event[]} events
   */
  async append(session, events) {
    /** @type {Map<string, string>} */
    const refused = new Map();
    for (let from = 0; from < events.length; from += REPLAY_EVENTS) {
      await this.#appendRun(session, events.slice(from, from + REPLAY_EVENTS), refused);
    }
    return refused;
  }

  close() {
    this.#database?.close();
    this.#database = undefined;
  }

  /**
   * The log takes an event only at the place after its last one, so a local writer may win the race
   * for that place: then read again and repeat. A replay stops at the first event that is refused.
   * If nobody else wrote, the fault is that event's; after a second try it is set aside.
   * @param {string} session @param {Event[]} events @param {Map<string, string>} refused
   */
  async #appendRun(session, events, refused) {
    let suspect = "";
    for (let races = 0; ; ) {
      const before = this.#read(session, events);
      const wanted = events.filter(({ id }) => !refused.has(id) && !before.known.has(id));
      const entries = entriesFor(session, wanted, before, refused);
      const reason = entries.length ? await this.#replay(entries) : "";
      if (!reason) return;
      const after = this.#read(session, events);
      const written = entries.filter(({ id }) => after.known.has(id)).length;
      const culprit = entries[written]?.id;
      const isRace = after.seq > before.seq + written || !culprit;
      this.#log("replay.refused", { session, isRace, races, culprit, reason });
      if (isRace && (races += 1) > LOST_RACES) throw new Error(`${LOST_RACES} races lost: ${reason}`);
      if (!isRace && culprit === suspect) refused.set(culprit, reason);
      if (!isRace) suspect = culprit;
      await pause(5 + 20 * Math.random());
    }
  }

  /** @param {string} session @param {Event[]} events */
  #read(session, events) {
    this.#database ??= opened(this.#path);
    try {
      const last = this.#one("select seq from event_sequence where aggregate_id = ?", session);
      const exists = this.#one("select 1 from session where id = ?", session) !== null;
      const ids = JSON.stringify(events.map(({ id }) => id));
      const query = "select id from event where id in (select value from json_each(?))";
      const rows = /** @type {{ id: string }[]} */ (this.#database.query(query).all(ids));
      return { seq: last?.seq ?? -1, exists, known: new Set(rows.map(({ id }) => id)) };
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** @param {string} query @param {string} value @returns {any} */
  #one(query, value) {
    return this.#database.query(query).get(value);
  }

  /** Return why opencode refuses; it says no more than the status. @param {object[]} events */
  async #replay(events) {
    const body = { directory: this.#directory, events };
    const { status } = await this.#opencode.call("POST", "/sync/replay", body, 3 * ANSWER_MS);
    return status === 200 ? "" : `opencode answers ${status} to the replay`;
  }
}

/**
 * Return the entries that append events to a session's log, and note which cannot be appended.
 * @param {string} session @param {Event[]} events @param {{ seq: number, exists: boolean }} state
 * @param {Map<string, string>} refused
 */
function entriesFor(session, events, { seq, exists }, refused) {
  const entries = [];
  for (const { id, type, properties } of events) {
    const isPut = type === "session.created" || type === "session.updated";
    if (!exists && type === "session.deleted") continue;
    if (!exists && !isPut) {
      refused.set(id, `session ${session} is not here`);
      continue;
    }
    const name = isPut ? (exists ? "session.updated" : "session.created") : type;
    const time = type === "message.part.updated" && { time: Date.now() }; // unless it has one
    const data = { ...time, ...properties, sessionID: session };
    entries.push({ id, aggregateID: session, seq: (seq += 1), type: `${name}.1`, data });
    exists = type !== "session.deleted";
  }
  return entries;
}

/** @type {Promise<EventEmitter | undefined> | undefined} */
let bus;

/**
 * Return the emitter by which opencode tells its views what happens, or undefined when it cannot be
 * had. It is private, but a Node EventEmitter: whoever emits the first opencode event is it. An
 * empty text for the prompt makes it do so.
 * @param {Opencode} opencode
 */
function capturedBus(opencode) {
  return (bus ??= (async () => {
    const { emit } = EventEmitter.prototype;
    /** @type {EventEmitter | undefined} */
    let found;
    EventEmitter.prototype.emit = function (/** @type {any[]} */ ...[name, ...values]) {
      if (name === "event" && values[0]?.payload?.type) found ??= this;
      return emit.call(this, name, ...values);
    };
    const limit = Date.now() + CAPTURE_MS;
    for (let pauseMs = 10; !found && Date.now() < limit; pauseMs = Math.min(2 * pauseMs, 500)) {
      await pause(pauseMs);
      if (!found) opencode.call("POST", "/tui/append-prompt", { text: "" }, 1_000).catch(() => {});
    }
    EventEmitter.prototype.emit = emit;
    return found;
  })());
}

/** The terminals, editors and pages that look at this opencode. */
class Views {
  #input;
  #opencode;
  #seen;
  #bus;
  /** Parts that were written again to be shown. @type {Set<string>} */
  #rewritten = new Set();

  /** @param {Input} input @param {Opencode} opencode @param {boolean} isLive @param {Recent} seen */
  constructor(input, opencode, isLive, seen) {
    this.#input = input;
    this.#opencode = opencode;
    this.#seen = seen;
    this.#bus = isLive ? capturedBus(opencode) : Promise.resolve(undefined);
  }

  /** Tell whether they can be moved by events. */
  async areLive() {
    return (await this.#bus) !== undefined;
  }

  /** Show events; `areWritten`: they are in the log. @param {Event[]} events */
  async show(events, areWritten = false) {
    const bus = await this.#bus;
    if (!bus) return areWritten ? this.#rewrite(events) : undefined;
    const { directory, project } = this.#input;
    for (const { id, type, properties } of events) {
      if (id) this.#seen.add(id);
      const payload = { ...(id && { id }), type, properties };
      try {
        bus.emit("event", { directory, project: project.id, payload });
      } catch {} // a listener's own failure; the others and the next events go on
    }
  }

  /** Tell whether an event comes of what was shown here. @param {Event} event */
  isEcho({ type, properties }) {
    return type === "message.part.updated" && this.#rewritten.delete(properties.part.id);
  }

  /** Without the bus: a part that is written again, through the API, moves. @param {Event[]} events */
  async #rewrite(events) {
    const written = events.filter(({ type }) => type === "message.part.updated");
    const parts = new Map(written.map(({ properties: { part } }) => [part.id, part]));
    for (const [id, part] of parts) {
      this.#rewritten.add(id);
      const path = `/session/${part.sessionID}/message/${part.messageID}/part/${id}`;
      await this.#opencode.call("PATCH", path, part).catch(() => {});
    }
  }
}

/** The turns that run in this opencode, and the right to begin one. */
class Turns {
  #sidecar;
  #outbound;
  #opencode;
  #limitSeconds;
  #log;
  /** Sessions that opencode says are busy. @type {Set<string>} */
  #busy = new Set();
  /** Prompts that are let through, until a turn takes them up. @type {Map<string, Prompt>} */
  #prompts = new Map();

  /**
   * @typedef {{ session: string, isSaved: boolean, timer: NodeJS.Timeout }} Prompt
   * @param {Sidecar} sidecar @param {Outbound} outbound @param {Opencode} opencode
   * @param {number} limitSeconds @param {Log} log
   */
  constructor(sidecar, outbound, opencode, limitSeconds, log) {
    this.#sidecar = sidecar;
    this.#outbound = outbound;
    this.#opencode = opencode;
    this.#limitSeconds = limitSeconds;
    this.#log = log;
  }

  /** The sessions in which a turn runs or is about to: nothing may be written into them. */
  get sessions() {
    return [...new Set([...this.#busy, ...[...this.#prompts.values()].map((each) => each.session)])];
  }

  /**
   * Return when a prompt may begin a turn; the turn counts from then on. Until then it does not:
   * what the prompt waits for is another's turn, which has to come in first.
   * @param {string} session @param {string} message
   */
  async begin(session, message) {
    await this.#permission(session);
    this.#expect(session, message, false, UNSAVED_MS);
  }

  /** Learn from an event of this opencode. @param {Event} event */
  observe({ type, properties }) {
    const session = properties.sessionID;
    const status = properties.status?.type;
    if (type === "message.updated" && this.#prompts.has(properties.info.id)) {
      this.#expect(session, properties.info.id, true, UNANSWERED_MS);
    }
    if (type === "session.status" && status !== "idle") this.#busy.add(session);
    if (type === "session.status" && status === "idle") this.#ended(session);
    if (type === "session.idle" || type === "session.deleted") this.#ended(session);
  }

  /** Wait for the right to begin; whoever cannot say no must not keep anybody waiting. @param {string} session */
  async #permission(session) {
    const limit = Date.now() + this.#limitSeconds * 1000;
    let [refusals, failures] = [0, 0];
    while (Date.now() < limit && (await this.#sidecar.isSharing())) {
      await this.#outbound.settled(SETTLE_MS); // the end of the turn before this one, above all
      const wait_seconds = refusals ? WAIT_SECONDS : FIRST_WAIT_SECONDS;
      const json = JSON.stringify({ session_id: session, wait_seconds });
      try {
        const turn = await this.#sidecar.call("POST", "/turns", json, wait_seconds * 1000 + ANSWER_MS);
        this.#log("turn.asked", { session, ...turn });
        if (turn.granted || !turn.holder) return;
        if (!refusals) this.#tell(turn.holder);
        refusals += 1;
      } catch (error) {
        this.#log("turn.failed", { session, error: String(error) });
        failures += 1;
        if (failures > 1 || isFinal(error)) return;
      }
      await pause(FIRST_PAUSE_MS);
    }
  }

  /** @param {Holder} holder */
  #tell({ machine }) {
    const who = machine === this.#sidecar.attached?.machine ? "Another opencode here" : machine;
    this.#opencode.toast(`${who} is answering; your message waits`, "info").catch(() => {});
  }

  /** @param {string} session @param {string} message @param {boolean} isSaved @param {number} limitMs */
  #expect(session, message, isSaved, limitMs) {
    clearTimeout(this.#prompts.get(message)?.timer);
    const timer = setTimeout(() => this.#giveUp(session, message), limitMs);
    this.#prompts.set(message, { session, isSaved, timer });
  }

  /** No turn took the prompt up: it wanted none, or was cancelled. @param {string} session @param {string} message */
  async #giveUp(session, message) {
    this.#prompts.delete(message);
    if (this.sessions.includes(session)) return;
    await this.#outbound.settled(SETTLE_MS);
    if (!this.#sidecar.attached) return;
    await this.#sidecar.call("DELETE", `/turns/${session}`).catch(() => {});
    this.#log("turn.released", { session });
  }

  /** @param {string} session */
  #ended(session) {
    this.#busy.delete(session);
    for (const [message, prompt] of this.#prompts) {
      if (prompt.session !== session || !prompt.isSaved) continue;
      clearTimeout(prompt.timer);
      this.#prompts.delete(message);
    }
  }
}

/** What comes from the sidecar, worked off one command after the other. */
class Inbound {
  #sidecar;
  #history;
  #views;
  #turns;
  #opencode;
  #log;
  #last = Promise.resolve();
  /** @type {{ session: string, ended: Promise<void> } | undefined} */
  #applying;

  /**
   * @param {Sidecar} sidecar @param {History} history @param {Views} views @param {Turns} turns
   * @param {Opencode} opencode @param {Log} log
   */
  constructor(sidecar, history, views, turns, opencode, log) {
    this.#sidecar = sidecar;
    this.#history = history;
    this.#views = views;
    this.#turns = turns;
    this.#opencode = opencode;
    this.#log = log;
  }

  /** @param {Command} command @param {AbortSignal} lost */
  take({ name, data }, lost) {
    this.#last = this.#last
      .then(() => (lost.aborted ? undefined : this.#work(name, data, lost)))
      .catch((error) => this.#log("command.failed", { name, error: String(error) }));
  }

  /** Wait until nothing is being written into a session. @param {string} session */
  async settled(session) {
    if (this.#applying?.session !== session) return;
    await Promise.race([this.#applying.ended, pause(APPLY_MS)]);
  }

  /** @param {string} name @param {any} data @param {AbortSignal} lost */
  async #work(name, data, lost) {
    if (name === "notify") await this.#views.show(data.events);
    if (name === "toast") this.#opencode.toast(data.message, data.variant ?? "info").catch(() => {});
    if (name === "apply") {
      const report = await this.#apply(data);
      this.#log("batch.done", { ...report, session: data.session_id, events: data.events.length });
      if (!lost.aborted) await this.#sidecar.call("POST", "/applied", JSON.stringify(report));
    }
  }

  /** @param {Apply} command */
  async #apply({ batch, session_id: session, events, announce = true }) {
    if (this.#turns.sessions.includes(session)) {
      if (announce) await this.#views.show(events);
      return { batch, outcome: "held" };
    }
    const { promise: ended, resolve } = Promise.withResolvers();
    this.#applying = { session, ended };
    try {
      const refused = await this.#history.append(session, events);
      const taken = events.filter(({ id }) => !refused.has(id));
      if (announce) await this.#views.show(taken, true);
      const [error] = refused.values();
      if (error === undefined) return { batch, outcome: "applied" };
      const summary = `${refused.size} of ${events.length} events: ${error}`;
      return { batch, outcome: "failed", error: summary.slice(0, 1000) };
    } catch (error) {
      return { batch, outcome: "failed", error: String(error).slice(0, 1000) };
    } finally {
      this.#applying = undefined;
      resolve();
    }
  }
}

/** The last values added, as many as it has room for. */
class Recent {
  #room;
  /** @type {Set<string>} */
  #values = new Set();

  /** @param {number} room */
  constructor(room) {
    this.#room = room;
  }

  /** @param {string} value */
  add(value) {
    this.#values.delete(value);
    this.#values.add(value);
    if (this.#values.size > this.#room) this.#values.delete(this.#values.values().next().value);
  }

  /** @param {string} value */
  has(value) {
    return this.#values.has(value);
  }
}

/** Yield the events of a stream as the sidecar frames them. @param {AsyncIterable<Uint8Array>} chunks */
async function* eventsOf(chunks) {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of chunks) {
    const added = decoder.decode(chunk, { stream: true });
    rest += added;
    if (!added.includes("\n")) continue; // a long line still grows
    const frames = rest.split("\n\n");
    rest = frames.pop();
    for (const frame of frames) {
      const name = /^event: (.*)$/m.exec(frame)?.[1];
      const data = /^data: (.*)$/m.exec(frame)?.[1];
      if (name && data) yield { name, data: JSON.parse(data) };
    }
  }
}

/** Tell whether repeating a request would not help. @param {unknown} error */
function isFinal(error) {
  if (!(error instanceof Refusal)) return false;
  return error.status < 500 && ![401, 404, 408, 429].includes(error.status);
}

/** @param {number} failures @param {number} random */
function backoff(failures, random) {
  return Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** failures) * (0.75 + random / 2);
}

/** Wait, without keeping the process alive. @param {number} ms */
function pause(ms) {
  return sleep(ms, undefined, { ref: false });
}

/** @param {string} path */
function opened(path) {
  const database = new Database(path, { readonly: true });
  database.run("pragma busy_timeout = 100");
  return database;
}

/** @param {string | undefined} path */
function contentOf(path) {
  try {
    return path ? readFileSync(path, "utf8") : "";
  } catch {
    return "";
  }
}

/** @param {string} json @returns {any} */
function parsed(json) {
  try {
    return JSON.parse(json);
  } catch {
    return undefined;
  }
}

/** Return a log: JSON lines in a file, or nothing. @param {string} file @returns {Log} */
function logTo(file) {
  return (what, details = {}) => {
    try {
      const line = { at: new Date().toISOString(), pid: process.pid, what, ...details };
      if (file) appendFileSync(file, `${JSON.stringify(line)}\n`);
    } catch {} // a full disk must not stop anything
  };
}

/** What shares the sessions of one project directory. */
class Sharing {
  /** Who uses it: a terminal's opencode calls the plugin twice for the same directory. */
  users = 0;
  #input;
  #settings = settingsFrom();
  #log = logTo(this.#settings.log);
  #database = databasePath(process.env);
  #seen = new Recent(WAITING_EVENTS);
  #opencode;
  #views;
  #history;
  #sidecar = new Sidecar(this.#settings, this.#log);
  #outbound = new Outbound(this.#sidecar, this.#log);
  #turns;
  #inbound;

  /** @param {Input} input */
  constructor(input) {
    this.#input = input;
    this.#opencode = new Opencode(input);
    this.#views = new Views(input, this.#opencode, this.#settings.live, this.#seen);
    this.#history = new History(this.#opencode, input.directory, this.#database, this.#log);
    const { turnSeconds } = this.#settings;
    this.#turns = new Turns(this.#sidecar, this.#outbound, this.#opencode, turnSeconds, this.#log);
    this.#inbound = new Inbound(
      ...[this.#sidecar, this.#history, this.#views, this.#turns, this.#opencode, this.#log],
    );
  }

  start() {
    this.#log("started", { directory: this.#input.directory });
    const onAttached = () => this.#outbound.wake();
    this.#sidecar.run(() => this.#description(), onAttached, (command, lost) =>
      this.#inbound.take(command, lost),
    );
  }

  /** Take note of what happens in this opencode. @param {Event} event */
  observe(event) {
    if (this.#seen.has(event.id) || this.#views.isEcho(event)) return;
    this.#seen.add(event.id);
    this.#turns.observe(event);
    this.#outbound.push(event);
  }

  /** Let a prompt wait until its turn may begin. @param {string} session @param {any} message */
  async admit(session, message) {
    await this.#turns.begin(session, message.id);
    await this.#inbound.settled(session);
    message.time.created = Date.now(); // it stands after what came in while it waited
  }

  async end() {
    await this.#outbound.settled(SETTLE_MS);
    this.#sidecar.close();
    this.#history.close();
    this.#log("ended", { directory: this.#input.directory });
  }

  /** @param {string} hook @param {unknown} error */
  failed(hook, error) {
    this.#log("hook.failed", { hook, error: String(error) });
  }

  async #description() {
    const { data: health } = await this.#opencode.call("GET", "/global/health", undefined, 1_000);
    const { project, directory, worktree } = this.#input;
    return {
      version: health.version,
      plugin: VERSION,
      pid: process.pid,
      database: this.#database,
      project_id: project.id,
      directory,
      worktree,
      mode: this.#settings.mode,
      share: this.#settings.share,
      share_key: this.#settings.shareKey,
      live: await this.#views.areLive(),
      turns: this.#turns.sessions,
    };
  }
}

/** @type {Map<string, Sharing>} By project directory. */
const sharings = new Map();

/** @param {Input} input */
export const Sessiond = async (input) => {
  try {
    let sharing = sharings.get(input.directory);
    if (!sharing) sharings.set(input.directory, (sharing = new Sharing(input)));
    if (!sharing.users) sharing.start();
    sharing.users += 1;
    return hooksOf(sharing, () => sharings.delete(input.directory));
  } catch (error) {
    logTo(settingsFrom().log)("start.failed", { error: String(error) });
    return {};
  }
};

/** Return opencode's hooks; nothing that goes wrong here may reach it. @param {Sharing} sharing @param {() => void} forget */
function hooksOf(sharing, forget) {
  return {
    /** @param {{ event: Event }} given */
    async event({ event }) {
      try {
        sharing.observe(event);
      } catch (error) {
        sharing.failed(event.type, error);
      }
    },

    /** @param {{ sessionID: string }} given @param {{ message: any }} output */
    async "chat.message"({ sessionID }, { message }) {
      await sharing.admit(sessionID, message).catch((error) => sharing.failed("prompt", error));
    },

    async dispose() {
      sharing.users -= 1;
      if (sharing.users) return;
      forget();
      await sharing.end().catch((error) => sharing.failed("dispose", error));
    },
  };
}
