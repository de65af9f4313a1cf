// @ts-check
/**
 * The opencode plugin of sessiond: shares the sessions of this opencode with other instances, live,
 * through the sidecar daemon on this machine. It runs inside opencode (Bun), has no dependencies,
 * and serves one project directory per call. Its contract with the sidecar is
 * `sessiond/opencode/protocol.py`.
 *
 *     event hook ──────────▶ Outbound ─── POST events ──▶ ┌─────────┐
 *     chat.message hook ───▶ Turns ────── POST turns ───▶ │ sidecar │ ⇄ Redis ⇄ other instances
 *     tool.execute hooks ──▶ ToolCache ── PUT cache ────▶ │         │
 *     opencode's log ◀─── History ◀─┐                     │         │
 *     opencode's views ◀─ Views ◀───┴─ Inbound ◀──────────│ GET commands (a stream)
 *                                         └─ POST applied ▶ └─────────┘
 *
 * Three rules keep it right:
 * - A sidecar that is away costs nothing. opencode works on; what it writes stands in its own
 *   database, where the sidecar finds it later. No hook throws, but for a prompt that was cancelled
 *   while it waited, or waits without limit.
 * - Commands are worked off one after the other: text that streams in must not overtake the part it
 *   belongs to.
 * - Nothing from elsewhere is written into a session while a turn runs in it here: opencode's turn
 *   loop would take a foreign message for one that it has to answer, again and again.
 *
 * What it needs of opencode beyond the plugin API is private there. It stands in `Opencode`,
 * `History` and `captureBus`. Only the plugin is exported: opencode calls every export.
 */

import { Database } from "bun:sqlite";
import { randomBytes } from "node:crypto";
import { EventEmitter } from "node:events";
import { appendFileSync, readFileSync } from "node:fs";
import { homedir } from "node:os";
import { isAbsolute, join, relative, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

/**
 * @typedef {{ id: string, type: string, properties: Record<string, any> }} Event
 * @typedef {{ machine: string, workspace: string }} Attached
 * @typedef {{ batch: number, session_id: string, events: Event[], announce?: boolean }} Apply
 * @typedef {{ name: string, data: any }} Command
 * @typedef {{ session: string, isSaved: boolean, timer: NodeJS.Timeout }} Prompt
 * @typedef {ReturnType<typeof settingsFrom>} Settings
 * @typedef {{ client: any, project: { id: string }, directory: string, worktree: string }} Input
 */

const VERSION = "0.1.0";
const PUSHED = new Set([
  ...["session.created", "session.updated", "session.deleted", "session.status", "session.idle"],
  ...["message.updated", "message.removed"],
  ...["message.part.updated", "message.part.removed", "message.part.delta"],
]);

const FIRST_PAUSE_MS = 200;
const LONGEST_PAUSE_MS = 5_000;
const ANSWER_MS = 10_000;
const SILENCE_MS = 60_000; // a sidecar sends a heartbeat every 15 s, unless configured otherwise
const CAPTURE_MS = 5_000;
const ATTACH_MS = 1_000; // a prompt waits this long for an attachment that is being made,
const SETTLE_MS = 1_000; // this long until what happened before it was pushed,
const APPLY_MS = 5_000; // and this long until nothing is written into its session
const TURN_SECONDS = 20; // per request; the first is short, to tell soon what is waited for
const FIRST_TURN_SECONDS = 1;
const CATCH_UP_MS = 12_000; // a sidecar grants a turn after at most 8 s of catching up
const LEAD_MS = 3_000; // a message may be this much from the future: clocks are set, by a little
const UNSAVED_MS = 30_000; // a prompt that is not saved by then was cancelled
const UNANSWERED_MS = 2_000; // a saved prompt that no turn takes up by then wants none (`noReply`)
const CALM_MS = 500;
const TOGETHER_MS = 1; // a message, its first part and its session are written within about this
const REPLAYED_EVENTS = 50; // opencode does nothing else meanwhile: about 1 ms each
const LOST_RACES = 40;
const SENT_EVENTS = 200;
const SENT_CHARACTERS = 1_000_000;
const WAITING_EVENTS = 2_000;
const WAITING_CHARACTERS = 8_000_000;
const SEEN_EVENTS = 5_000;
const LOOKUP_MS = 250; // a tool waits at most this long for its cache
const RUNNING_CALLS = 256;
/** Tools whose answers depend on names and contents of files alone: of which, and where that stands. */
const CACHED_TOOLS = new Map([
  ["read", { name: "filePath", scope: "file" }],
  ["grep", { name: "path", scope: "tree" }],
]);

/** Return the settings: the environment's, else those of `sessiond.json` beside this file. */
function settingsFrom(environ = process.env, folder = import.meta.dir) {
  const file = JSON.parse(contentOf(join(folder, "sessiond.json")) || "{}");
  const place = environ.SESSIOND_URL || environ.SESSIOND_SOCKET ? {} : file; // one of the two
  const share = environ.SESSIOND_SHARE ?? file.share;
  return {
    url: environ.SESSIOND_URL ?? place.url ?? "",
    socket: environ.SESSIOND_SOCKET ?? place.socket ?? defaultSocket(environ),
    token: (environ.SESSIOND_TOKEN ?? contentOf(file.token_file)).trim(),
    mode: environ.SESSIOND_OPENCODE_MODE ?? file.mode ?? "lease",
    share: share !== "off" && share !== false,
    shareKey: environ.SESSIOND_SHARE_KEY ?? file.share_key ?? "",
    turnMs: 1000 * Number(environ.SESSIOND_TURN_SECONDS ?? file.turn_seconds ?? 600),
    live: environ.SESSIOND_PLUGIN_LIVE !== "off",
    cache: environ.SESSIOND_OPENCODE_CACHE === "on",
  };
}

/** The local API's socket, as `sessiond/paths.py` has it. @param {NodeJS.ProcessEnv} environ */
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
  const dataHome = environ.XDG_DATA_HOME || join(homedir(), ".local", "share");
  const name = environ.OPENCODE_DB || "opencode.db";
  return isAbsolute(name) ? name : join(dataHome, "opencode", name);
}

/** A sidecar's answer that is not what was asked for. */
class Refusal extends Error {
  /** @param {number} status @param {string} answer */
  constructor(status, answer) {
    super(`the sidecar answers ${status}: ${answer.slice(0, 300)}`);
    this.status = status;
    this.isFinal = status < 500 && ![401, 404, 408, 429].includes(status); // do not repeat it
  }
}

/** The sidecar: attached to for ever, and again whenever it was lost. */
class Sidecar {
  #settings;
  #path = `/v1/opencode/instances/oc-${randomBytes(6).toString("hex")}`;
  #attaching = Promise.resolve();
  /** @type {Attached | undefined} */
  #attached;
  #attachment = new AbortController(); // aborted when the attachment is lost
  #isClosed = false;

  /** @param {Settings} settings */
  constructor(settings) {
    this.#settings = settings;
  }

  /** What the sidecar said when it was attached to, while that holds. */
  get attached() {
    return this.#attachment.signal.aborted ? undefined : this.#attached;
  }

  /** Tell whether sessions are shared now; an attachment that is just being made is waited for. */
  async isSharing() {
    if (!this.attached) await Promise.race([this.#attaching, pause(ATTACH_MS)]);
    return Boolean(this.attached?.workspace);
  }

  /**
   * Attach and hand over commands, until `close`. With each comes the signal that the attachment
   * is lost: who sent the command knows nothing of it then.
   * @param {() => Promise<object>} describe @param {() => void} onAttached
   * @param {(command: Command, lost: AbortSignal) => void} onCommand
   */
  async run(describe, onAttached, onCommand) {
    for (let failures = 0; !this.#isClosed; failures += 1) {
      if (failures) await pause(backoff(failures - 1, Math.random()));
      this.#attached = undefined;
      const attachment = (this.#attachment = new AbortController());
      try {
        const attaching = this.#attach(describe);
        this.#attaching = attaching.catch(() => {}); // told of below
        await attaching;
        onAttached();
        const path = `${this.#path}/commands`;
        const { body } = await this.#fetch("GET", path, undefined, attachment.signal);
        failures = 0;
        for await (const command of eventsOf(/** @type {any} */ (body), attachment)) {
          onCommand(command, attachment.signal);
        }
      } catch (error) {
        log("sidecar.lost", { error: String(error), failures });
      }
      attachment.abort();
    }
  }

  /**
   * Send a request and return what is answered. A sidecar that does not answer, or that does not
   * know this instance because it was restarted, is attached to anew.
   * @param {string} method @param {string} path @param {string} [json] @param {number} [limitMs]
   */
  async call(method, path, json, limitMs = ANSWER_MS) {
    const attachment = this.#attachment;
    try {
      const signal = AbortSignal.any([attachment.signal, AbortSignal.timeout(limitMs)]);
      const answer = await this.#fetch(method, this.#path + path, json, signal);
      const text = await answer.text();
      return text && JSON.parse(text);
    } catch (error) {
      if (!(error instanceof Refusal) || error.status === 404) attachment.abort(error);
      throw error;
    }
  }

  /**
   * Ask the daemon for something that is not about this instance, and need not be.
   * @param {string} method @param {string} path @param {string} json @param {number} limitMs
   */
  async ask(method, path, json, limitMs) {
    const signal = AbortSignal.any([this.#attachment.signal, AbortSignal.timeout(limitMs)]);
    return (await this.#fetch(method, path, json, signal)).json();
  }

  close() {
    this.#isClosed = true;
    this.#attachment.abort();
  }

  /** @param {() => Promise<object>} describe */
  async #attach(describe) {
    this.#attached = await this.call("PUT", "", JSON.stringify(await describe()));
    log("sidecar.attached", { ...this.#attached });
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
    const options = { ...place, method, headers, body, signal, timeout: false }; // Bun's own limit
    const address = (url || "http://localhost").replace(/\/$/, "") + path;
    const response = await fetch(address, /** @type {any} */ (options));
    if (!response.ok) throw new Refusal(response.status, await response.text());
    return response;
  }
}

/**
 * What happens here, on its way to the sidecar: in order, each event until it is answered.
 *
 * A request that failed may have been too much: the next one carries half as many events, down to a
 * single one, and each that succeeds lets the number double again.
 *
 * While the sidecar is away the oldest events are dropped when too many wait. Nothing is lost by
 * that: when it is back, it reads in opencode's database what happened, deletions included.
 */
class Outbound {
  #sidecar;
  /** @type {string[]} */
  #waiting = [];
  #characters = 0; // of what waits
  #pushed = 0;
  #inFlight = 0;
  #most = SENT_EVENTS; // that one request carries now
  #isSending = false;

  /** @param {Sidecar} sidecar */
  constructor(sidecar) {
    this.#sidecar = sidecar;
  }

  /** @param {Event} event */
  push({ id, type, properties }) {
    if (!PUSHED.has(type) || this.#sidecar.attached?.workspace === "") return;
    const json = JSON.stringify({ id, type, properties }, wellFormed);
    this.#waiting.push(json);
    this.#characters += json.length;
    this.#pushed += 1;
    while (this.#waiting.length > WAITING_EVENTS || this.#characters > WAITING_CHARACTERS) {
      this.#characters -= this.#waiting.shift().length;
    }
    this.wake();
  }

  /** Send what waits, if there is somebody to send it to. */
  async wake() {
    if (this.#isSending) return;
    this.#isSending = true;
    await pause(TOGETHER_MS);
    for (let failures = 0; this.#waiting.length && this.#sidecar.attached; ) {
      failures = (await this.#send()) ? 0 : failures + 1;
      if (failures) await pause(backoff(failures - 1, Math.random()));
    }
    this.#isSending = false;
  }

  /** Wait until all that was pushed so far is answered. @param {number} limitMs */
  async settled(limitMs) {
    const [goal, limit] = [this.#pushed, Date.now() + limitMs];
    const isBehind = () => this.#pushed - this.#waiting.length - this.#inFlight < goal;
    while (isBehind() && this.#sidecar.attached && Date.now() < limit) await pause(2);
  }

  /** Send as much as one request may carry; return whether that is done with. */
  async #send() {
    const batch = this.#take();
    if (!this.#sidecar.attached?.workspace) return true; // nothing is shared
    this.#inFlight = batch.length;
    try {
      await this.#sidecar.call("POST", "/events", `{"events":[${batch}]}`);
      this.#most = Math.min(SENT_EVENTS, 2 * this.#most);
      return true;
    } catch (error) {
      log("events.refused", { error: String(error), events: batch.length });
      const isTooLarge = error.status === 413 && batch.length > 1;
      if (error.isFinal && !isTooLarge) return true;
      this.#most = Math.max(1, batch.length >> 1);
      this.#waiting.unshift(...batch);
      this.#characters += batch.join("").length;
      return false;
    } finally {
      this.#inFlight = 0;
    }
  }

  #take() {
    let [count, size] = [0, 0];
    for (const { length } of this.#waiting.slice(0, this.#most)) {
      if (count && size + length > SENT_CHARACTERS) break;
      [count, size] = [count + 1, size + length];
    }
    this.#characters -= size;
    return this.#waiting.splice(0, count);
  }
}

/** opencode's own HTTP API, called as plugins may: without a port, without a password. */
class Opencode {
  #client;

  /** @param {Input} input */
  constructor(input) {
    this.#client = input.client._client;
  }

  /**
   * What is called while opencode boots may never be answered, hence the limit.
   * @param {string} method @param {string} url @param {unknown} [body]
   */
  async call(method, url, body, limitMs = ANSWER_MS) {
    const headers = { "Content-Type": "application/json" };
    const signal = AbortSignal.timeout(limitMs);
    const { response, data } = await this.#client.request({ method, url, body, headers, signal });
    if (!response) throw new Error(`opencode does not answer ${method} ${url}`);
    return { isOk: response.ok, data };
  }

  /** @param {string} message @param {string} [variant] */
  toast(message, variant = "info") {
    this.call("POST", "/tui/show-toast", { title: "sessiond", message, variant }).catch(() => {});
  }
}

/** opencode's durable log: read in its database, written through its own replay. */
class History {
  #opencode;
  #directory;
  /** @type {Database | undefined} */
  #database;

  /** @param {Opencode} opencode @param {string} directory */
  constructor(opencode, directory) {
    this.#opencode = opencode;
    this.#directory = directory;
  }

  close() {
    this.#database?.close();
    this.#database = undefined;
  }

  /**
   * Append events of one session that are not there yet, and note which could not be, and why.
   *
   * The log takes an event only at the place after its last one, so a local writer may win the race
   * for that place: then read again and repeat. A replay stops at the first event that is refused,
   * without a reason. If nobody else wrote, the fault is that event's: after a second try it is set
   * aside, so that it does not hold up the others.
   * @param {string} session @param {Event[]} events @param {Map<string, string>} refused
   */
  async append(session, events, refused) {
    let suspect = "";
    for (let races = 0; races <= LOST_RACES; ) {
      const before = this.#read(session, events);
      const wanted = events.filter(({ id }) => !before.known.has(id) && !refused.has(id));
      const entries = entriesFor(session, wanted, before, refused);
      if (!entries.length || (await this.#replay(entries))) return;
      const after = this.#read(session, events);
      const written = entries.filter(({ id }) => after.known.has(id)).length;
      const first = entries[written]?.id;
      const isRace = !first || after.seq > before.seq + written;
      log("replay.refused", { session, isRace, races, event: first });
      if (isRace) races += 1;
      else if (first === suspect) refused.set(first, "opencode refuses it");
      else suspect = first;
      await pause(5 + 20 * Math.random());
    }
    throw new Error(`others wrote first, ${LOST_RACES} times`);
  }

  /**
   * Wait until the clock is past a session's last message: opencode ignores a prompt from before
   * it. Only for a short while: where the clock was set back by more, the sidecar puts that right.
   * @param {string} session
   */
  async passed(session) {
    const query = "select max(time_created) from message where session_id = ?";
    const newest = Number(this.#opened().query(query).values(session)[0][0]);
    const leadMs = newest - Date.now();
    if (leadMs >= 0 && leadMs < LEAD_MS) await pause(leadMs + 1);
  }

  #opened() {
    return (this.#database ??= opened(databasePath(process.env)));
  }

  /** @param {string} session @param {Event[]} events */
  #read(session, events) {
    const database = this.#opened();
    const rows = (/** @type {string} */ query, /** @type {string} */ value) =>
      database.query(query).values(value).flat();
    const [seq = -1] = rows("select seq from event_sequence where aggregate_id = ?", session);
    const [kept] = database.query("select revert from session where id = ?").values(session);
    const ids = JSON.stringify(events.map(({ id }) => id));
    const known = rows("select id from event where id in (select value from json_each(?))", ids);
    const revert = kept?.[0] ? JSON.parse(/** @type {string} */ (kept[0])) : undefined;
    return { seq: Number(seq), exists: Boolean(kept), revert, known: new Set(known) };
  }

  /** @param {object[]} events */
  async #replay(events) {
    const body = { directory: this.#directory, events };
    return (await this.#opencode.call("POST", "/sync/replay", body, 3 * ANSWER_MS)).isOk;
  }
}

/**
 * Return the entries that append events to a session's log, and note which cannot be appended.
 *
 * A revert is this machine's own: a record from elsewhere would clear it, or bring back one that
 * was taken back meanwhile. It stays as it is at the place where the record goes in.
 * @param {string} session @param {Event[]} events
 * @param {{ seq: number, exists: boolean, revert?: object }} state
 * @param {Map<string, string>} refused
 */
function entriesFor(session, events, { seq, exists, revert }, refused) {
  const entries = [];
  for (const { id, type, properties } of events) {
    const isPut = type === "session.created" || type === "session.updated";
    if (!exists && type === "session.deleted") continue;
    if (!exists && !isPut) {
      refused.set(id, "its session is not here"); // opencode would answer 200, or worse
      continue;
    }
    const name = isPut ? (exists ? "session.updated" : "session.created") : type;
    if (isPut) properties.info = { ...properties.info, revert };
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
 * had. It is private, but a Node EventEmitter: whoever emits the first event of opencode's is it.
 * Putting an empty text into the prompt makes it do so.
 * @param {Opencode} opencode
 */
async function captureBus(opencode) {
  const { emit } = EventEmitter.prototype;
  /** @type {EventEmitter | undefined} */
  let found;
  /** @this {EventEmitter} @param {any[]} given */
  function watching(...[name, ...values]) {
    if (name === "event" && values[0]?.payload?.type) found ??= this;
    return emit.call(this, name, ...values);
  }
  EventEmitter.prototype.emit = watching;
  const limit = Date.now() + CAPTURE_MS;
  for (let pauseMs = 5; !found && Date.now() < limit; pauseMs = Math.min(2 * pauseMs, 500)) {
    opencode.call("POST", "/tui/append-prompt", { text: "" }, 1_000).catch(() => {});
    await pause(pauseMs);
  }
  if (EventEmitter.prototype.emit === watching) EventEmitter.prototype.emit = emit;
  log(found ? "bus.captured" : "bus.missing");
  return found;
}

/** The terminals, editors and pages that look at this opencode. */
class Views {
  #input;
  #opencode;
  #bus;
  /** Parts that were written a second time, to be shown. @type {Set<string>} */
  #rewritten = new Set();

  /** @param {Input} input @param {Opencode} opencode @param {boolean} live */
  constructor(input, opencode, live) {
    this.#input = input;
    this.#opencode = opencode;
    this.#bus = live ? (bus ??= captureBus(opencode)) : Promise.resolve(undefined);
  }

  /** Tell whether they can be moved by events. */
  async areLive() {
    return (await this.#bus) !== undefined;
  }

  /** Show events, if that can be done without writing anything. @param {Event[]} events */
  async show(events) {
    const bus = await this.#bus;
    const { directory, project } = this.#input;
    for (const { id, type, properties } of events) {
      const payload = { ...(id && { id }), type, properties };
      try {
        bus?.emit("event", { directory, project: project.id, payload });
      } catch (error) {
        log("view.failed", { type, error: String(error) }); // the others want to be shown, too
      }
    }
  }

  /** Show events that were just written. @param {Event[]} events @param {boolean} wereShown */
  async showWritten(events, wereShown) {
    if (!(await this.#bus)) await this.#rewrite(events);
    else if (!wereShown) await this.show(events);
  }

  /** Tell whether an event comes of what was shown here. @param {Event} event */
  isEcho({ type, properties }) {
    return type === "message.part.updated" && this.#rewritten.delete(properties.part.id);
  }

  /** Without the bus: a part that is written through the API moves. @param {Event[]} events */
  async #rewrite(events) {
    const written = events.filter(({ type }) => type === "message.part.updated");
    const parts = new Map(written.map(({ properties: { part } }) => [part.id, part]));
    for (const [id, part] of parts) {
      this.#rewritten.add(id);
      const path = `/session/${part.sessionID}/message/${part.messageID}/part/${id}`;
      const moving = this.#opencode.call("PATCH", path, part);
      const { isOk } = await moving.catch(() => ({ isOk: false }));
      if (!isOk) this.#rewritten.delete(id);
    }
  }
}

/** A person took a prompt back that waited for another's turn to end. */
class Cancelled extends Error {}

/** The turns that run in this opencode, and the right to begin one. */
class Turns {
  #sidecar;
  #outbound;
  #opencode;
  #limitMs;
  /** Sessions that opencode calls busy. @type {Set<string>} */
  #busy = new Set();
  /** Prompts that no turn has taken up yet, by message. @type {Map<string, Prompt>} */
  #prompts = new Map();
  /** Prompts that wait for another's turn to end. @type {Set<{ session: string, cancel: AbortController }>} */
  #waits = new Set();
  /** When the last turn of a session ended here. @type {Map<string, number>} */
  #ends = new Map();

  /**
   * @param {Sidecar} sidecar @param {Outbound} outbound @param {Opencode} opencode
   * @param {number} limitMs a prompt waits at most this long
   */
  constructor(sidecar, outbound, opencode, limitMs) {
    this.#sidecar = sidecar;
    this.#outbound = outbound;
    this.#opencode = opencode;
    this.#limitMs = limitMs;
  }

  /** The sessions in which a turn runs or is about to: nothing may be written into them. */
  get sessions() {
    const about = [...this.#prompts.values()].map(({ session }) => session);
    return [...new Set([...this.#busy, ...about])];
  }

  /**
   * Return when a prompt may begin its turn, which counts as running from then on. Until then it
   * does not: what it waits for is another's turn, and that has to come in first.
   * @param {string} session @param {string} message
   * @throws {Cancelled} the person does not want to wait any longer
   */
  async begin(session, message) {
    const wait = { session, cancel: new AbortController() };
    this.#waits.add(wait);
    try {
      await Promise.race([this.#permission(session, wait.cancel.signal), cancelled(wait.cancel)]);
    } finally {
      this.#waits.delete(wait);
    }
    this.#expect(session, message, false, UNSAVED_MS);
  }

  /** Learn from an event of this opencode, after it was pushed. @param {Event} event */
  observe({ type, properties }) {
    const session = properties.sessionID;
    const isBusy = type === "session.status" && properties.status.type !== "idle";
    if (type === "message.updated" && this.#prompts.has(properties.info.id)) {
      this.#expect(session, properties.info.id, true, UNANSWERED_MS);
    }
    const isEnd = ["session.status", "session.idle", "session.deleted"].includes(type);
    if (type === "session.idle" && this.#isCalm(session)) this.#cancelWaits(session);
    if (isBusy) this.#busy.add(session);
    else if (isEnd) this.#end(session);
    const isNextGranted = type === "session.idle" && this.sessions.includes(session);
    if (isNextGranted) this.#ask(session, 0).catch(() => {}); // the sidecar takes that back now
  }

  /** Tell whether no turn runs in a session, nor just ended: an aborted one says so twice. @param {string} session */
  #isCalm(session) {
    return !this.sessions.includes(session) && Date.now() - (this.#ends.get(session) ?? 0) > CALM_MS;
  }

  /** opencode says idle where nothing ran: the person pressed Escape. @param {string} session */
  #cancelWaits(session) {
    for (const wait of this.#waits) if (wait.session === session) wait.cancel.abort();
  }

  /**
   * Ask until it is granted, or there is nobody who could tell.
   * @param {string} session @param {AbortSignal} cancelled
   */
  async #permission(session, cancelled) {
    const limit = Date.now() + this.#limitMs;
    let [refusals, failures] = [0, 0];
    while (Date.now() < limit && failures < 2 && (await this.#sidecar.isSharing())) {
      if (cancelled.aborted) return;
      try {
        const seconds = refusals ? TURN_SECONDS : FIRST_TURN_SECONDS;
        const { granted, holder } = await this.#ask(session, seconds);
        if (granted && cancelled.aborted) await this.#giveBack(session);
        if (granted || !holder) return;
        if (!refusals) this.#tell(holder.machine);
        refusals += 1;
      } catch (error) {
        log("turn.failed", { session, error: String(error) });
        if (error.isFinal) return;
        failures += 1;
      }
      await pause(FIRST_PAUSE_MS);
    }
  }

  /**
   * Ask once, when the sidecar knows the end of the turn before.
   * @param {string} session @param {number} wait_seconds
   */
  async #ask(session, wait_seconds) {
    await this.#outbound.settled(SETTLE_MS);
    const json = JSON.stringify({ session_id: session, wait_seconds });
    const limitMs = 1000 * wait_seconds + CATCH_UP_MS;
    const turn = await this.#sidecar.call("POST", "/turns", json, limitMs);
    log("turn.asked", { session, granted: turn.granted, holder: turn.holder });
    return turn;
  }

  /** @param {string} machine */
  #tell(machine) {
    const who = machine === this.#sidecar.attached?.machine ? "Another opencode here" : machine;
    this.#opencode.toast(`${who} is answering; your message waits`);
  }

  /** @param {string} session @param {string} message @param {boolean} isSaved @param {number} ms */
  #expect(session, message, isSaved, ms) {
    clearTimeout(this.#prompts.get(message)?.timer);
    const timer = setTimeout(() => this.#release(session, message), ms);
    this.#prompts.set(message, { session, isSaved, timer });
  }

  /** No turn took a prompt up. @param {string} session @param {string} message */
  async #release(session, message) {
    this.#prompts.delete(message);
    if (this.sessions.includes(session) || !this.#sidecar.attached) return;
    await this.#outbound.settled(SETTLE_MS);
    await this.#giveBack(session);
  }

  /** @param {string} session */
  async #giveBack(session) {
    log("turn.released", { session });
    await this.#sidecar.call("DELETE", `/turns/${session}`).catch(() => {}); // or it attaches anew
  }

  /** @param {string} session */
  #end(session) {
    if (this.#busy.delete(session)) this.#ends.set(session, Date.now());
    for (const [message, prompt] of this.#prompts) {
      if (prompt.session !== session || !prompt.isSaved) continue; // the next turn's
      clearTimeout(prompt.timer);
      this.#prompts.delete(message);
    }
  }
}

/** What comes from the sidecar, worked off one command after the other. */
class Inbound {
  #sidecar;
  #opencode;
  #history;
  #views;
  #turns;
  #last = Promise.resolve();
  /** @type {{ session: string, ended: Promise<object> } | undefined} */
  #applying;

  /**
   * @param {Sidecar} sidecar @param {Opencode} opencode @param {History} history
   * @param {Views} views @param {Turns} turns
   */
  constructor(sidecar, opencode, history, views, turns) {
    this.#sidecar = sidecar;
    this.#opencode = opencode;
    this.#history = history;
    this.#views = views;
    this.#turns = turns;
  }

  /** @param {Command} command @param {AbortSignal} lost */
  take(command, lost) {
    this.#last = this.#last
      .then(() => (lost.aborted ? undefined : this.#work(command, lost)))
      .catch((error) => log("command.failed", { name: command.name, error: String(error) }));
  }

  /** Wait until nothing is being written into a session. @param {string} session */
  async settled(session) {
    if (this.#applying?.session !== session) return;
    await Promise.race([this.#applying.ended, pause(APPLY_MS)]);
  }

  /** @param {Command} command @param {AbortSignal} lost */
  async #work({ name, data }, lost) {
    if (name === "notify") await this.#views.show(data.events);
    if (name === "toast") this.#opencode.toast(data.message, data.variant);
    if (name !== "apply") return;
    const ended = this.#apply(data);
    this.#applying = { session: data.session_id, ended };
    const report = { batch: data.batch, ...(await ended) };
    this.#applying = undefined;
    log("batch.done", { ...report, session: data.session_id, events: data.events.length });
    if (!lost.aborted) await this.#sidecar.call("POST", "/applied", JSON.stringify(report));
  }

  /** @param {Apply} batch */
  async #apply({ session_id: session, events, announce = true }) {
    try {
      if (this.#turns.sessions.includes(session)) {
        if (announce) await this.#views.show(events);
        return { outcome: "held" };
      }
      /** @type {Map<string, string>} */
      const refused = new Map();
      for (let from = 0; from < events.length; from += REPLAYED_EVENTS) {
        const some = events.slice(from, from + REPLAYED_EVENTS);
        await this.#history.append(session, some, refused);
        await this.#views.showWritten(some.filter(({ id }) => !refused.has(id)), !announce);
      }
      if (!refused.size) return { outcome: "applied" };
      const [[id, reason]] = refused;
      return { outcome: "failed", error: `${refused.size} of ${events.length}: ${id}: ${reason}` };
    } catch (error) {
      return { outcome: "failed", error: String(error).slice(0, 1000) };
    }
  }
}

/**
 * Caches what opencode's tools answer in the session, for programs that ask for it there.
 *
 * opencode runs its tools all the same: its hooks see a call before it runs and its answer after it,
 * and cannot answer it themselves.
 */
class ToolCache {
  version = "";
  #sidecar;
  #directory;
  #root;
  /** Lookups of calls that run now, by call. @type {Map<string, { call: object, answer: any }>} */
  #running = new Map();

  /** @param {Sidecar} sidecar @param {Input} input */
  constructor(sidecar, { directory, worktree }) {
    this.#sidecar = sidecar;
    this.#directory = directory;
    this.#root = worktree === "/" ? directory : worktree; // "/": outside git
  }

  /**
   * See what state the files are in before a tool runs.
   * @param {{ tool: string, sessionID: string, callID: string }} of @param {Record<string, any>} given
   */
  async before({ tool, sessionID, callID }, given) {
    const call = this.#callOf(tool, given);
    if (!call || !this.#sidecar.attached?.workspace) return;
    const json = JSON.stringify({ root: this.#root, calls: [call] }, wellFormed);
    const path = `/v1/sessions/${sessionID}/cache/lookup`;
    const { answers } = await this.#sidecar.ask("POST", path, json, LOOKUP_MS);
    const [answer] = answers;
    log("cache.looked", { tool, outcome: answer.outcome, reason: answer.reason });
    if (answer.outcome === "hit" || !answer.stamp) return;
    this.#running.set(callID, { call, answer });
    const [oldest] = this.#running.keys();
    if (this.#running.size > RUNNING_CALLS) this.#running.delete(oldest); // it failed: no `after`
  }

  /**
   * Cache what it answered, unless that has more in it than what it found in the files.
   * @param {{ sessionID: string, callID: string }} of
   * @param {{ title: string, output: string, metadata: any, attachments?: any[] }} answered
   */
  async after({ sessionID, callID }, { title, output, metadata, attachments }) {
    const running = this.#running.get(callID);
    this.#running.delete(callID);
    const hasMore = metadata?.loaded?.length || metadata?.outputPath || attachments?.length;
    if (!running || hasMore) return;
    const { call, answer } = running;
    const value = { title, output, metadata };
    const json = JSON.stringify({ root: this.#root, call, stamp: answer.stamp, value }, wellFormed);
    const path = `/v1/sessions/${sessionID}/cache/${answer.key}`;
    const { stored, reason } = await this.#sidecar.ask("PUT", path, json, ANSWER_MS);
    log("cache.put", { tool: call.tool, stored, reason });
  }

  /** @param {string} tool @param {Record<string, any>} given */
  #callOf(tool, given) {
    const known = CACHED_TOOLS.get(tool);
    if (!known || (known.scope === "file" && !given[known.name])) return undefined;
    const place = relative(this.#root, resolve(this.#directory, given[known.name] ?? ""));
    if (place === ".." || place.startsWith("../") || isAbsolute(place)) return undefined;
    const name = `opencode ${this.version} ${tool}`;
    return { tool: name, arguments: { ...given }, path: place || ".", scope: known.scope };
  }
}

/** Everything that shares the sessions of one project directory. */
class Sharing {
  users = 0; // a terminal's opencode calls the plugin twice for its directory
  #input;
  #settings = settingsFrom();
  /** @type {Set<string>} */
  #seen = new Set();
  #sidecar = new Sidecar(this.#settings);
  #outbound = new Outbound(this.#sidecar);
  #opencode;
  #history;
  #views;
  #turns;
  #inbound;
  /** What tools answer is cached, if that is wanted. @type {ToolCache | undefined} */
  tools;

  /** @param {Input} input */
  constructor(input) {
    this.#input = input;
    if (this.#settings.cache) this.tools = new ToolCache(this.#sidecar, input);
    const opencode = (this.#opencode = new Opencode(input));
    this.#history = new History(opencode, input.directory);
    this.#views = new Views(input, opencode, this.#settings.live);
    this.#turns = new Turns(this.#sidecar, this.#outbound, opencode, this.#settings.turnMs);
    this.#inbound = new Inbound(this.#sidecar, opencode, this.#history, this.#views, this.#turns);
    this.#sidecar.run(
      () => this.#attachment(),
      () => this.#outbound.wake(),
      (command, lost) => {
        for (const { id } of command.data.events ?? []) this.#isNew(id);
        this.#inbound.take(command, lost);
      },
    );
  }

  /** Take an event of this opencode. @param {Event} event */
  observe(event) {
    if (!this.#isNew(event.id) || this.#views.isEcho(event)) return;
    const { type, properties } = event;
    if (type === "session.created" && !this.#settings.share) this.#note("private", properties.info.id);
    if (type === "session.deleted") this.#note("deleted", properties.info.id);
    this.#outbound.push(event);
    this.#turns.observe(event);
  }

  /** Let a prompt wait until its turn may begin. @param {string} session @param {any} message */
  async admit(session, message) {
    await this.#turns.begin(session, message.id);
    await this.#inbound.settled(session);
    await this.#history.passed(session);
    message.time.created = Date.now(); // it stands after what came in meanwhile
  }

  /**
   * Note beside the database what it does not tell: that a session is not to be shared, or was
   * deleted. The sidecar may be away now, and may look before it could be told.
   * @param {"private" | "deleted"} what @param {string} session
   */
  #note(what, session) {
    appendFileSync(`${databasePath(process.env)}.sessiond`, `${what} ${session}\n`);
  }

  async end() {
    await this.#outbound.settled(SETTLE_MS);
    this.#sidecar.close();
    this.#history.close();
  }

  /** Tell whether an event was neither heard of nor shown before. @param {string} id */
  #isNew(id) {
    if (!id) return true;
    const isNew = !this.#seen.has(id);
    this.#seen.add(id);
    if (this.#seen.size > SEEN_EVENTS) this.#seen.delete(this.#seen.values().next().value);
    return isNew;
  }

  async #attachment() {
    const { data: health } = await this.#opencode.call("GET", "/global/health", undefined, 1_000);
    if (this.tools) this.tools.version = health.version;
    const { project, directory, worktree } = this.#input;
    const { mode, share, shareKey: share_key } = this.#settings;
    return {
      ...{ version: health.version, plugin: VERSION, pid: process.pid },
      ...{ project_id: project.id, directory, worktree, database: databasePath(process.env) },
      ...{ mode, share, share_key, live: await this.#views.areLive(), turns: this.#turns.sessions },
    };
  }
}

/**
 * By project directory, and for the whole process: opencode loads this file once for each folder it
 * is installed in.
 * @type {Map<string, Sharing>}
 */
const sharings = (/** @type {any} */ (globalThis)[Symbol.for("sessiond.opencode")] ??= new Map());

/** The plugin. What goes wrong in its hooks must not reach opencode. @param {Input} input */
export const Sessiond = async (input) => {
  const failed = (/** @type {unknown} */ error) => log("plugin.failed", { error: String(error) });
  try {
    const sharing = sharings.get(input.directory) ?? new Sharing(input);
    sharings.set(input.directory, sharing);
    sharing.users += 1;
    return {
      event: async (/** @type {{ event: Event }} */ { event }) => {
        try {
          sharing.observe(event);
        } catch (error) {
          failed(error);
        }
      },
      "chat.message": async (/** @type {any} */ { sessionID }, /** @type {any} */ { message }) => {
        await sharing.admit(sessionID, message).catch((error) => {
          failed(error);
          if (error instanceof Cancelled) throw error; // so that opencode does not send it after all
        });
      },
      "tool.execute.before": async (/** @type {any} */ of, /** @type {any} */ { args }) => {
        await sharing.tools?.before(of, args).catch(failed);
      },
      "tool.execute.after": async (/** @type {any} */ of, /** @type {any} */ answered) => {
        sharing.tools?.after(of, answered).catch(failed); // nobody waits for it
      },
      dispose: async () => {
        sharing.users -= 1;
        if (sharing.users) return;
        sharings.delete(input.directory);
        await sharing.end().catch(failed);
      },
    };
  } catch (error) {
    failed(error);
    return {};
  }
};

/**
 * Yield the events of a stream, as the sidecar frames them. A stream that falls silent is lost.
 * @param {AsyncIterable<Uint8Array>} chunks @param {AbortController} attachment
 */
async function* eventsOf(chunks, attachment) {
  const decoder = new TextDecoder();
  const silence = setTimeout(() => attachment.abort(new Error("silence")), SILENCE_MS);
  let rest = "";
  try {
    for await (const chunk of chunks) {
      silence.refresh();
      const added = decoder.decode(chunk, { stream: true });
      rest += added;
      if (!added.includes("\n")) continue; // a long line still grows
      const frames = rest.split("\n\n");
      rest = frames.pop();
      for (const frame of frames) {
        const fields = frame.split("\n").map((line) => line.split(/: (.*)/s, 2));
        const { event: name, data } = Object.fromEntries(fields);
        if (name) yield { name, data: JSON.parse(data) };
      }
    }
  } finally {
    clearTimeout(silence);
  }
}

/** Half a character, as where a text was cut, is no UTF-8. @param {string} _ @param {unknown} value */
function wellFormed(_, value) {
  return typeof value === "string" ? /** @type {any} */ (value).toWellFormed() : value;
}

/** @param {number} failures @param {number} random */
function backoff(failures, random) {
  return Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** failures) * (0.75 + random / 2);
}

/** Return what fails as soon as something is cancelled. @param {AbortController} controller @returns {Promise<never>} */
function cancelled({ signal }) {
  return new Promise((_, reject) => {
    const error = new Cancelled("the prompt was cancelled while it waited for another's turn");
    signal.addEventListener("abort", () => reject(error), { once: true });
  });
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

/** Tell what happened, if somebody wants to know. @param {string} what @param {object} [details] */
function log(what, details) {
  const file = process.env.SESSIOND_PLUGIN_LOG;
  if (!file) return;
  const line = { at: new Date().toISOString(), pid: process.pid, what, ...details };
  try {
    appendFileSync(file, `${JSON.stringify(line)}\n`);
  } catch {} // a full disk must not stop anything
}
