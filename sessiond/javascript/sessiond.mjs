// @ts-check
/**
 * Sessions of a coding agent, kept in step by the local sessiond daemon. For Node 18 or newer and
 * Bun, without dependencies.
 *
 *     import { SessionManager } from "./sessiond.mjs";
 *     const session = await SessionManager.create({ user_id: "user123" });
 *     await session.addMessage({ role: "user", content: "Help me analyze this codebase" });
 *     for await (const { name, data } of session.subscribe()) console.log(name, data);
 *
 * What fails, fails with a `SessiondError`. The contract of each call stands in `sessiond.d.mts`.
 *
 * @import { CacheCall, CacheContents, CacheStored, Change, Choice, ConflictRecord, ConflictState,
 *   ConnectOptions, Contest, Context,
 *   ErrorDetails, Event, JournaledOperation, ListOptions, LoadedSession, Looked, Message, Metadata,
 *   NewMessage, NewPresence, NewSession, Operation, Part, Preferences, SavedDocument,
 *   SessionPresence, Window, WindowOptions, WriteOptions }
 *   from "./sessiond.mjs"
 * @typedef {WriteOptions & { json?: string, once?: boolean }} CallOptions
 */

import { randomUUID } from "node:crypto";
import http from "node:http";
import { homedir } from "node:os";
import { isAbsolute, join, resolve } from "node:path";
import { text } from "node:stream/consumers";
import { setTimeout as sleep } from "node:timers/promises";

const USER_AGENT = "sessiond-javascript";
const FIRST_PAUSE_MS = 150;
const LONGEST_PAUSE_MS = 5_000;
const ANSWER_MS = 30_000;
const SILENCE_MS = 60_000; // a daemon sends a heartbeat every 15 s, unless configured otherwise
const MOST_CONFLICTS = 10_000;
const RENEWALS_PER_LIFE = 3;
const RENEWAL_RETRY_MS = 500;
/** @type {SavedDocument[]} */
const SAVED = ["context", "preferences"];

export class SessiondError extends Error {
  /** @param {string} detail @param {ErrorDetails} [more] */
  constructor(detail, { code = "internal", status = 0, hint = "", retryable = false, cause } = {}) {
    super(hint ? `${detail} (${hint})` : detail, { cause });
    this.name = new.target.name;
    this.detail = detail;
    this.code = code;
    this.status = status;
    this.hint = hint;
    this.retryable = retryable;
    this.key = undefined;
  }
}

export class VersionMismatch extends SessiondError {}

export class DaemonUnreachable extends SessiondError {}

/** Source of the rules: HTML standard, 9.2 "Server-sent events". `retry` is ignored. */
export class EventParser {
  #decoder = new TextDecoder();
  #rest = "";
  #event = { name: "", id: "", data: /** @type {string[]} */ ([]) };

  /** @param {Uint8Array} chunk */
  push(chunk) {
    const added = this.#decoder.decode(chunk, { stream: true });
    this.#rest += added;
    if (!/[\r\n]/.test(added)) return []; // a long line still grows
    const lines = this.#rest.split(/\r\n|\n|\r(?!$)/); // a CR at the end may be half a CRLF
    this.#rest = lines.pop();
    return lines.flatMap((line) => (line ? this.#take(line) : this.#dispatch()));
  }

  /** @param {string} line @returns {never[]} */
  #take(line) {
    const [, field, value = ""] = /^([^:]*)(?:: ?(.*))?$/s.exec(line);
    if (field === "event") this.#event.name = value;
    if (field === "data") this.#event.data.push(value);
    if (field === "id" && !value.includes("\0")) this.#event.id = value;
    return [];
  }

  #dispatch() {
    const { name, id, data } = this.#event;
    this.#event = { name: "", id: "", data: [] };
    return data.length ? [{ name: name || "message", id, data: data.join("\n") }] : [];
  }
}

/** @param {Record<string, string | undefined>} environ */
export function defaultSocket(environ) {
  const home = environ.HOME || homedir();
  const { SESSIOND_API_SOCKET: socket, XDG_RUNTIME_DIR: runtime, XDG_STATE_HOME: state } = environ;
  if (socket) return socket.replace(/^~(?=\/)/, home);
  if (isAbsolute(runtime ?? "")) return join(runtime, "sessiond", "api.sock");
  const stateHome = isAbsolute(state ?? "") ? state : join(home, ".local", "state");
  return join(stateHome, "sessiond", "run", "api.sock");
}

/** @param {number} failures @param {number} random */
export function backoff(failures, random) {
  const longest = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** failures);
  return (longest * (1 + random)) / 2;
}

/** Requests to one daemon: repeated where that is safe, and given up when it is closed. */
class Connection {
  #where;
  #target;
  #headers;
  #tries;
  #agent = new http.Agent({ keepAlive: true });
  #closed = false;
  /** Called at `close`. @type {Set<() => void>} */
  stops = new Set();

  /** @param {ConnectOptions} options */
  constructor({ socket = "", address = "", token = "", name = "", tries = 5 }) {
    this.#where = address || socket || defaultSocket(process.env);
    this.#target = address ? tcpTarget(address) : { socketPath: this.#where, host: "localhost" };
    this.#tries = tries;
    this.#headers = {
      ...(token && { Authorization: `Bearer ${token.trim()}` }),
      ...(name && { "Sessiond-Client": name }),
    };
  }

  /**
   * Send a request, and again while that may help: a repeated write carries the same key.
   * `once`: at most once, on a connection of its own.
   * @param {string} method @param {string} path @param {CallOptions} [options]
   * @returns {Promise<{ value: any, version: string, conflicts: string[], stale?: number }>}
   */
  async call(method, path, { json, key, expected, base, once = false } = {}) {
    const headers = {
      ...(json !== undefined && { "Content-Type": "application/json" }),
      ...(key && { "Idempotency-Key": key }),
      ...(expected && { "If-Match": `"${expected}"` }),
      ...(base && { "Sessiond-Base": `"${base}"` }),
    };
    for (let failures = 0; ; failures += 1) {
      if (failures) await sleep(backoff(failures - 1, Math.random()));
      try {
        const { response } = await this.#send({ method, path, headers }, ANSWER_MS, json, once);
        const answer = await text(response);
        const { etag = "", "sessiond-conflicts": numbers = "" } = response.headers;
        const conflicts = String(numbers).split(", ").filter(Boolean);
        const { "sessiond-stale": age } = response.headers;
        const stale = age === undefined ? undefined : Number(age);
        const version = etag.replaceAll('"', "");
        return { value: answer && JSON.parse(answer), version, conflicts, stale };
      } catch (cause) {
        const error = this.#understood(cause);
        const isLast = once || failures + 1 >= this.#tries;
        if (isLast || !error.retryable) throw Object.assign(error, { key });
      }
    }
  }

  /**
   * Yield a stream's events until it ends; the first, without a name, tells that it is open.
   * @param {string} path @param {string} lastId @param {AbortSignal} signal
   */
  async *stream(path, lastId, signal) {
    const request = { path, headers: { "Last-Event-ID": lastId }, signal };
    const parser = new EventParser();
    try {
      const { response, timer } = await this.#send(request, SILENCE_MS);
      yield { name: "", id: "", data: null };
      for await (const chunk of response) {
        timer.refresh();
        for (const event of parser.push(chunk)) yield { ...event, data: JSON.parse(event.data) };
      }
    } catch (cause) {
      throw this.#understood(cause);
    }
  }

  close() {
    this.#closed = true;
    for (const stop of this.stops) stop();
    this.#agent.destroy();
  }

  /**
   * Send a request once; return its answer as it begins, or throw the problem that it tells of.
   * When the timer ends before the answer does, the request is given up.
   * @param {http.RequestOptions} options @param {number} limitMs
   * @param {string} [json] @param {boolean} [alone]
   * @returns {Promise<{ response: http.IncomingMessage, timer: NodeJS.Timeout }>}
   */
  async #send(options, limitMs, json, alone) {
    const headers = { ...this.#headers, ...options.headers };
    const agent = alone ? false : this.#agent;
    const { response, timer } = await new Promise((resolve, reject) => {
      if (this.#closed) throw new Error("closed");
      const request = http.request({ ...this.#target, ...options, headers, agent });
      const giveUp = () => request.destroy(new Error(`given up after at most ${limitMs} ms`));
      const timer = setTimeout(giveUp, limitMs);
      this.stops.add(giveUp);
      request.once("close", () => this.stops.delete(giveUp) && clearTimeout(timer));
      request.once("response", (response) => resolve({ response, timer }));
      request.on("error", reject).end(json);
    });
    if (response.statusCode >= 400) throw problemOf(response.statusCode, await text(response));
    return { response, timer };
  }

  /** Return what an error means to a caller. @param {any} cause @returns {SessiondError} */
  #understood(cause) {
    if (this.#closed) return new SessiondError("this manager was closed", { code: "closed" });
    if (cause instanceof SessiondError) return cause;
    if (cause instanceof SyntaxError) return new SessiondError("the answer is not JSON", { cause });
    if (cause instanceof TypeError) return invalidInput(cause); // a header that cannot be sent
    return new DaemonUnreachable(`no daemon answers at ${this.#where}: ${cause.message}`, {
      code: "daemon-unreachable",
      hint: "start one with `sessiond run`, or name its socket or address",
      retryable: true,
      cause,
    });
  }
}

/** One instance at one session: announced, said again as long as the program runs, taken back. */
class Attendance {
  #connection;
  #path;
  #json = "";
  #lastWord = Promise.resolve();
  /** @type {NodeJS.Timeout | undefined} */
  #timer;
  #stop = () => {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#connection.stops.delete(this.#stop);
  };

  /** @param {Connection} connection @param {string} path */
  constructor(connection, path) {
    this.#connection = connection;
    this.#path = path;
  }

  /** @param {string[]} active_files @returns {Promise<SessionPresence>} */
  announce(active_files) {
    const json = encode({ active_files });
    return this.#inOrder(async () => {
      const { value } = await this.#connection.call("PUT", this.#path, { json });
      this.#json = json;
      this.#connection.stops.add(this.#stop);
      this.#sayAgainIn((1_000 * value.valid_seconds) / RENEWALS_PER_LIFE);
      return value;
    });
  }

  leave() {
    return this.#inOrder(async () => {
      this.#stop();
      await this.#connection.call("DELETE", this.#path);
    });
  }

  /** @param {number} ms */
  #sayAgainIn(ms) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#inOrder(() => this.#renew(ms)), ms);
    this.#timer.unref();
  }

  /** @param {number} ms */
  async #renew(ms) {
    if (!this.#timer) return; // it left meanwhile
    try {
      const options = { json: this.#json, once: true };
      const { value } = await this.#connection.call("PUT", this.#path, options);
      this.#sayAgainIn((1_000 * value.valid_seconds) / RENEWALS_PER_LIFE);
    } catch (error) {
      if (["session-deleted", "not-found", "closed"].includes(error.code)) this.#stop();
      else this.#sayAgainIn(Math.min(ms, RENEWAL_RETRY_MS));
    }
  }

  /** What is said last is to arrive last. @param {() => Promise<any>} say */
  #inOrder(say) {
    const outcome = this.#lastWord.then(say);
    this.#lastWord = outcome.catch(() => {}); // who called is told of it
    return outcome;
  }
}

/** A session's cache of what tools answered, for a project's folder on this machine. */
class SessionCache {
  #call;
  #root;

  /**
   * @param {(method: string, path: string, options?: CallOptions) => Promise<any>} call
   * @param {string} root
   */
  constructor(call, root) {
    this.#call = call;
    this.#root = root;
  }

  /** @param {string} root */
  below(root) {
    return new SessionCache(this.#call, resolve(root));
  }

  /** @param {string} tool @param {CacheCall} call @returns {Promise<Looked>} */
  async get(tool, { arguments: given = null, path, scope = "file" }) {
    const call = { tool, arguments: given, path, scope };
    const json = encode({ root: this.#root, calls: [call] });
    const found = await orWhy(async () => {
      const { value } = await this.#call("POST", "/cache/lookup", { json, once: true });
      return value.answers[0];
    });
    const answer = found.why ? { key: "", outcome: "unknown", stamp: "", reason: found.why } : found;
    return { call, answer, isHit: answer.outcome === "hit", value: answer.value };
  }

  /** @param {Looked} looked @param {unknown} value @returns {Promise<CacheStored>} */
  async put({ call, answer: { key, stamp, reason } }, value) {
    if (!stamp) return { key, stored: false, reason };
    const json = encode({ root: this.#root, call, stamp, value });
    const put = () => this.#call("PUT", at`/cache/${key}`, { json, once: true });
    const done = await orWhy(async () => (await put()).value);
    return done.why ? { key, stored: false, reason: done.why } : done;
  }

  /** @param {string} tool @param {CacheCall & { run: () => any }} call */
  async through(tool, { run, ...call }) {
    const looked = await this.get(tool, call);
    if (looked.isHit) return looked.value;
    const value = await run();
    await this.put(looked, value);
    return value;
  }

  /** @param {string[]} paths @returns {Promise<number>} */
  async invalidate(...paths) {
    const options = { json: encode({ paths }) };
    return (await this.#call("POST", "/cache/invalidate", options)).value.dropped;
  }

  /** @returns {Promise<number>} */
  async clear() {
    return (await this.#call("DELETE", "/cache")).value.dropped;
  }

  /** @returns {Promise<CacheContents>} */
  async contents() {
    return (await this.#call("GET", "/cache")).value;
  }
}

/** Moves on with the log: at every write of its own, while it is subscribed, and at `refresh`. */
export class Session {
  /** @type {Metadata} */ metadata;
  /** @type {Message[]} */ messages;
  /** @type {Context} */ context;
  /** @type {Preferences} */ preferences;
  /** @type {string} */ position;
  #connection;
  #lastWrite = Promise.resolve();
  /** @type {Attendance | undefined} */
  #attendance;
  /**
   * What `save` compares with. `base`: the document at `version`. `contested`: where somebody
   * changed what has unsaved changes here; it stays at its version, on which these were made.
   * `sent`: the last try to save; if its answer was lost, the same content is the same write.
   * @type {Record<string, { base: string, version: string, contested: string,
   *   sent?: { json: string, key: string } }>}
   */
  #documents = {};
  /** Messages without a place in the log. @type {Set<string>} */
  #journaled = new Set();
  /** What merges left out that no `save` has returned. @type {ConflictRecord[]} */
  #left = [];

  /** @param {any} connection @param {LoadedSession} loaded @param {number} [stale] */
  constructor(connection, loaded, stale) {
    this.#connection = /** @type {Connection} */ (connection);
    this.#adopt(loaded, SAVED, stale);
  }

  get id() {
    return this.metadata.session_id;
  }

  /** @param {WindowOptions} [options] @returns {Promise<Window>} */
  async window({ tokens, strategy } = {}) {
    const wanted = Object.entries({ tokens, strategy }).filter(([, value]) => value !== undefined);
    const query = new URLSearchParams(wanted.map(([name, value]) => [name, String(value)]));
    const { value, stale } = await this.#call("GET", `/window?${query}`);
    return stale === undefined ? value : { ...value, stale_seconds: stale };
  }

  /** @param {NewMessage} message @param {WriteOptions} [options] @returns {Promise<Message>} */
  async addMessage(message, options) {
    return (await this.addMessages([message], options))[0];
  }

  /** @param {NewMessage[]} messages @param {WriteOptions} [options] @returns {Promise<any[]>} */
  async addMessages(messages, options) {
    const answer = await this.#write("POST", "/messages", options, { messages });
    const { records } = answer;
    if (answer.durability) this.#showJournaled(messages, records);
    return messages.map((given, place) => {
      const { id } = records[place];
      return this.messages[this.#indexOf(id)] ?? { ...given, id }; // removed again already
    });
  }

  /** @param {string} id @param {object} patch @param {WriteOptions} [options] */
  editMessage(id, patch, options) {
    return this.#write("PATCH", at`/messages/${id}`, options, patch);
  }

  /** @param {string} id @param {WriteOptions} [options] */
  removeMessage(id, options) {
    return this.#write("DELETE", at`/messages/${id}`, options);
  }

  /** @param {string} messageId @param {Part} part @param {WriteOptions} [options] */
  putPart(messageId, part, options) {
    return this.#write("PUT", at`/messages/${messageId}/parts/${part.id}`, options, part);
  }

  /** @param {string} messageId @param {string} partId @param {WriteOptions} [options] */
  removePart(messageId, partId, options) {
    return this.#write("DELETE", at`/messages/${messageId}/parts/${partId}`, options);
  }

  /** @param {{ strict?: boolean }} [options] @returns {Promise<ConflictRecord[]>} */
  save({ strict = false } = {}) {
    return this.#inOrder(async () => {
      for (const name of SAVED) await this.#save(name, strict);
      return this.#left.splice(0);
    });
  }

  /** @param {{ state?: ConflictState }} [options] @returns {Promise<ConflictRecord[]>} */
  async conflicts({ state } = {}) {
    const query = conflictsQuery(state);
    return (await this.#call("GET", `/conflicts${query}`)).value.conflicts;
  }

  /**
   * @param {string} number @param {Choice} choice
   * @param {{ key?: string, expected?: string }} [options]
   * @returns {Promise<ConflictRecord>}
   */
  resolve(number, choice, { key = randomUUID(), expected } = {}) {
    return this.#inOrder(async () => {
      const options = { json: encode(choice), key, expected };
      const { value } = await this.#call("POST", at`/conflicts/${number}/resolution`, options);
      await this.#catchUp();
      return value;
    });
  }

  async refresh() {
    const { value, stale } = await this.#call("GET", "");
    this.#adopt(value, SAVED, stale);
    this.#left = [];
    await this.#catchUp(); // a subscription may have been further already
  }

  /** @param {unknown} body */
  async sendLive(body) {
    const options = { json: encode(body), once: true };
    await this.#inOrder(() => this.#call("POST", "/live", options));
  }

  /** @param {NewPresence} [options] */
  async announce({ active_files = [], instance = `js-${randomUUID().slice(0, 8)}` } = {}) {
    const path = at`/v1/sessions/${this.id}/presence/${instance}`;
    const isNew = !this.#attendance;
    const attendance = (this.#attendance ??= new Attendance(this.#connection, path));
    try {
      return await attendance.announce(active_files);
    } catch (error) {
      if (isNew && this.#attendance === attendance) this.#attendance = undefined;
      throw error;
    }
  }

  async leave() {
    const attendance = this.#attendance;
    this.#attendance = undefined;
    await attendance?.leave();
  }

  /** @returns {Promise<SessionPresence>} */
  async presence() {
    return (await this.#call("GET", "/presence")).value;
  }

  get cache() {
    return new SessionCache((...given) => this.#call(...given), process.cwd());
  }

  /** @param {{ after?: string, signal?: AbortSignal }} [options] */
  async *subscribe({ after = this.position, signal } = {}) {
    const stop = new AbortController();
    const abort = () => stop.abort();
    signal?.addEventListener("abort", abort, { signal: stop.signal });
    this.#connection.stops.add(abort);
    try {
      if (!signal?.aborted) yield* this.#follow(after, stop.signal);
    } catch (error) {
      if (!stop.signal.aborted) throw error;
    } finally {
      this.#connection.stops.delete(abort);
      abort();
    }
  }

  /** @param {string} lastId @param {AbortSignal} signal */
  async *#follow(lastId, signal) {
    const path = at`/v1/sessions/${this.id}/events`;
    for (let failures = 0; ; failures += 1) {
      if (failures) await sleep(backoff(failures - 1, Math.random()), undefined, { signal });
      try {
        for await (const event of this.#connection.stream(path, lastId, signal)) {
          failures = 0;
          if (event.name) yield await this.#take(event);
          lastId = event.id || lastId;
          if (event.name === "session.delete") return;
        }
      } catch (error) {
        if (error.code === "session-deleted") return yield* this.#deletion();
        if (!error.retryable) throw error;
      }
    }
  }

  /** Yield the deletion that came while nobody was connected: all that is left of the log. */
  async *#deletion() {
    for (const data of (await this.#call("GET", "/operations")).value.operations) {
      yield this.#take({ name: data.op, id: data.position, data });
    }
  }

  /** Take an event and return it. @param {any} event @returns {Promise<Event>} */
  async #take(event) {
    if (event.name === "reset") await this.#reload();
    else if (event.name === "journaled") this.#takeJournaled(event.data);
    else if (event.name !== "live") {
      const fits = this.#apply(event.data);
      const isOld = this.staleSeconds !== undefined && event.name !== "session.delete";
      if (!fits || isOld) await this.#catchUp();
    }
    return event;
  }

  /** Run writes one after the other, as they were called. @param {() => Promise<any>} write */
  #inOrder(write) {
    const outcome = this.#lastWrite.then(write);
    this.#lastWrite = outcome.catch(() => {}); // who called is told of it
    return outcome;
  }

  /** @param {string} method @param {string} path @param {CallOptions} [options] */
  #call(method, path, options) {
    return this.#connection.call(method, at`/v1/sessions/${this.id}` + path, options);
  }

  /** @param {string} method @param {string} path @param {WriteOptions} given @param {object} [body] */
  async #write(method, path, { key = randomUUID(), expected, base } = {}, body) {
    const options = { json: body && encode(body), key, expected, base };
    return this.#inOrder(async () => {
      const { value } = await this.#call(method, path, options);
      if (!value.durability) await this.#catchUp(); // else it is here when it has its place
      return value;
    });
  }

  /**
   * Show messages that have no place in the log yet behind all that have.
   * @param {NewMessage[]} messages @param {{ id: string }[]} records
   */
  #showJournaled(messages, records) {
    for (const [place, given] of messages.entries()) {
      const { id } = records[place];
      const blank = { content: "", tool_calls: [], metadata: {} };
      const body = { timestamp: new Date().toISOString(), ...blank, ...given, id };
      this.#takeJournaled({ op: "message.append", id, body });
    }
  }

  /**
   * Show a message that is not here yet.
   * @param {Pick<JournaledOperation, "op" | "id" | "body">} written
   */
  #takeJournaled({ op, id, body }) {
    if (op !== "message.append" || this.#indexOf(id) >= 0) return;
    this.#journaled.add(id);
    this.messages.push(body);
  }

  /** @param {SavedDocument} name @param {boolean} strict */
  async #save(name, strict) {
    const document = this.#documents[name];
    const json = encode(this[name]);
    if (json === document.base) {
      if (document.contested) await this.#reload();
      return;
    }
    if (document.sent?.json !== json) document.sent = { json, key: randomUUID() };
    const known = strict ? { expected: document.version } : { base: document.version };
    const options = { json, key: document.sent.key, ...known };
    const { value, version, conflicts } = await this.#call("PUT", `/${name}`, options);
    const isBehind = offsetOf(document.contested) > offsetOf(version);
    const found = /** @type {Contest[]} */ ([]);
    const merged = carriedOver(JSON.parse(json), this[name], value, found); // changed meanwhile?
    this.#documents[name] = { base: encode(value), version, contested: "" };
    this[name] = merged;
    this.#left.push(...found.map((contest) => this.#unsaved(name, version, contest)));
    if (!isJournaled(version)) await (isBehind ? this.#reload() : this.#catchUp());
    for (const number of conflicts) {
      this.#left.push((await this.#call("GET", at`/conflicts/${number}`)).value);
    }
  }

  /**
   * Return the record of a field that was changed here while others' change of it came in.
   * @param {SavedDocument} name @param {string} version @param {Contest} contest
   * @returns {ConflictRecord}
   */
  #unsaved(name, version, { path, base, ours, theirs }) {
    const now = { origin: "", at: new Date().toISOString() };
    return {
      ...{ number: "", session_id: this.id, document: name, id: "", path, base_version: "", base },
      ...{ strategy: "last-writer-wins", outcome: "ours", state: "open", at: now.at },
      ours: { value: ours, ...now },
      theirs: { value: theirs, ...now, version },
    };
  }

  /** Read the log on to its end. */
  async #catchUp() {
    let goesOn = true;
    while (goesOn) {
      const path = at`/operations?after=${this.position}`;
      const { value, stale } = await this.#call("GET", path);
      const operations = /** @type {Operation[]} */ (value.operations);
      const isBack = this.staleSeconds !== undefined && stale === undefined;
      const isOther = value.reset || isBack; // than what was loaded while Redis was away
      const fits = !isOther && operations.every((operation) => this.#apply(operation));
      if (!fits) return this.#reload();
      goesOn = value.more;
    }
  }

  /** Take the session as it is now, but keep unsaved changes. */
  async #reload() {
    const { value, stale } = await this.#call("GET", "");
    const unsaved = SAVED.filter((name) => this.#isUnsaved(name));
    for (const name of unsaved) {
      const version = value.versions[name];
      if (version !== this.#documents[name].version) this.#documents[name].contested = version;
    }
    const others = SAVED.filter((name) => !unsaved.includes(name));
    this.#adopt(value, others, stale);
    await this.#catchUp();
  }

  /** @param {LoadedSession} loaded @param {SavedDocument[]} documents @param {number} [stale] */
  #adopt(loaded, documents, stale) {
    this.staleSeconds = stale;
    this.metadata = loaded.metadata;
    this.messages = loaded.conversation.messages;
    this.position = loaded.position;
    for (const name of documents) this.#adoptDocument(name, loaded[name], loaded.versions[name]);
  }

  /** @param {SavedDocument} name @param {any} value @param {string} version */
  #adoptDocument(name, value, version) {
    this[name] = value;
    this.#documents[name] = { base: encode(value), version, contested: "" };
  }

  /** @param {SavedDocument} name */
  #isUnsaved(name) {
    return encode(this[name]) !== this.#documents[name].base;
  }

  /** Move on, or return false: it does not continue the state here. @param {Operation} operation */
  #apply(operation) {
    const [known, offset] = [offsetOf(this.position), offsetOf(operation.position)];
    if (operation.op === "session.delete") this.metadata.status = "deleted";
    else if (offset <= known) return true;
    else if (offset > known + 1) return false;
    else if (operation.op === "document.change") this.#changeDocument(operation);
    else this.#changeMessage(operation);
    this.position = operation.position;
    const { last_activity: before } = this.metadata;
    if (Date.parse(operation.at) > Date.parse(before)) this.metadata.last_activity = operation.at;
    return true;
  }

  /** @param {Operation} operation */
  #changeMessage({ op, id, body }) {
    const [messageId, partId] = id.split("/");
    const index = this.#indexOf(messageId);
    const message = this.messages[index];
    if (op === "message.append" && this.#journaled.delete(id)) this.messages.splice(index, 1);
    if (op === "message.append" && this.#indexOf(id) < 0) this.messages.push(body);
    if (op === "message.edit" && message) this.messages[index] = edited(message, body);
    if (op === "message.remove" && message) this.messages.splice(index, 1);
    if (op === "part.put" && message) this.messages[index] = withPart(message, partId, body);
    if (op === "part.remove" && message) this.messages[index] = withPart(message, partId);
  }

  /** @param {Operation} operation */
  #changeDocument({ id: name, body, position }) {
    if (name === "metadata") this.metadata = patched(this.metadata, body);
    if (name !== "context" && name !== "preferences") return;
    const document = this.#documents[name];
    const { version } = document;
    if (!isJournaled(version) && offsetOf(position) <= offsetOf(version)) return; // saved here
    if (document.contested || this.#isUnsaved(name)) document.contested = position;
    else this.#adoptDocument(name, patched(this[name], body), position);
  }

  /** @param {string} messageId */
  #indexOf(messageId) {
    return this.messages.findLastIndex((message) => message.id === messageId);
  }
}

export class SessionManager {
  /** @type {SessionManager} */
  static #local;
  #connection;

  /** @param {ConnectOptions} [options] */
  static connect = (options) => new SessionManager(options);
  static #default = () => (SessionManager.#local ??= SessionManager.connect());
  /** @type {SessionManager["create"]} */
  static create = (...given) => SessionManager.#default().create(...given);
  /** @type {SessionManager["load"]} */
  static load = (...given) => SessionManager.#default().load(...given);
  /** @type {SessionManager["list"]} */
  static list = (...given) => SessionManager.#default().list(...given);
  /** @type {SessionManager["conflicts"]} */
  static conflicts = (...given) => SessionManager.#default().conflicts(...given);
  /** @type {SessionManager["userPreferences"]} */
  static userPreferences = (...given) => SessionManager.#default().userPreferences(...given);
  /** @type {SessionManager["changeUserPreferences"]} */
  static changeUserPreferences = (...given) =>
    SessionManager.#default().changeUserPreferences(...given);
  /** @type {SessionManager["delete"]} */
  static delete = (...given) => SessionManager.#default().delete(...given);
  /** @type {SessionManager["archive"]} */
  static archive = (...given) => SessionManager.#default().archive(...given);
  /** @type {SessionManager["restore"]} */
  static restore = (...given) => SessionManager.#default().restore(...given);

  /** @param {ConnectOptions} [options] */
  constructor(options = {}) {
    this.#connection = new Connection(options);
  }

  /** @param {NewSession} [session] @param {{ key?: string }} [options] */
  async create(session = {}, { key = randomUUID() } = {}) {
    const environment = { user_agent: USER_AGENT, context: { working_directory: currentFolder() } };
    const options = { json: encode({ ...environment, ...session }), key };
    const { value } = await this.#connection.call("POST", "/v1/sessions", options);
    return new Session(this.#connection, value);
  }

  /** @param {string} id */
  async load(id) {
    const { value, stale } = await this.#connection.call("GET", at`/v1/sessions/${id}`);
    return new Session(this.#connection, value, stale);
  }

  /** @param {ListOptions} [options] */
  async list(options = {}) {
    const query = new URLSearchParams();
    for (const [name, value] of Object.entries(options)) {
      if (value !== undefined) query.set(name, String(value));
    }
    const { value, stale } = await this.#connection.call("GET", `/v1/sessions?${query}`);
    return stale === undefined ? value : { ...value, stale_seconds: stale };
  }

  /** @param {string} id @param {WriteOptions} [options] */
  async delete(id, { key = randomUUID(), expected, base } = {}) {
    await this.#connection.call("DELETE", at`/v1/sessions/${id}`, { key, expected, base });
  }

  /** @param {string} id @param {{ idleSeconds?: number }} [options] */
  async archive(id, { idleSeconds } = {}) {
    const query = idleSeconds === undefined ? "" : `?idle_seconds=${idleSeconds}`;
    const path = at`/v1/sessions/${id}/archive` + query;
    return (await this.#connection.call("POST", path)).value;
  }

  /** @param {string} id */
  async restore(id) {
    return (await this.#connection.call("POST", at`/v1/sessions/${id}/restore`)).value;
  }

  /** @param {{ state?: ConflictState }} [options] @returns {Promise<ConflictRecord[]>} */
  async conflicts({ state } = {}) {
    const query = conflictsQuery(state);
    return (await this.#connection.call("GET", `/v1/conflicts${query}`)).value.conflicts;
  }

  /** @param {string} userId @returns {Promise<Preferences>} */
  async userPreferences(userId) {
    return (await this.#connection.call("GET", at`/v1/users/${userId}/preferences`)).value;
  }

  /** @param {string} userId @param {Preferences} patch @returns {Promise<Preferences>} */
  async changeUserPreferences(userId, patch) {
    const path = at`/v1/users/${userId}/preferences`;
    return (await this.#connection.call("PATCH", path, { json: encode(patch) })).value;
  }

  async close() {
    this.#connection.close();
  }
}

/** The current folder; nothing where it was removed. */
function currentFolder() {
  try {
    return process.cwd();
  } catch {
    return "";
  }
}

/** Put values into a path. @param {TemplateStringsArray} raw @param {unknown[]} values */
function at(raw, ...values) {
  return String.raw({ raw }, ...values.map((value) => encodeURIComponent(String(value))));
}

/** @param {ConflictState} [state] */
const conflictsQuery = (state) => `?limit=${MOST_CONFLICTS}${state ? at`&state=${state}` : ""}`;

/** @param {string} address */
function tcpTarget(address) {
  const [, host, port] = /^http:\/\/([^/]+):(\d+)\/?$/.exec(address) ?? [];
  if (host) return { host: host.replace(/^\[|\]$/g, ""), port };
  const hint = "give it as http://127.0.0.1:PORT";
  throw new SessiondError(`${address} is not an address`, { code: "invalid-input", hint });
}

/** @param {number} status @param {string} answer */
function problemOf(status, answer) {
  const { code, detail, hint, retryable } = JSON.parse(answer);
  const kind = code === "version-mismatch" ? VersionMismatch : SessiondError;
  return new kind(detail, { code, status, hint, retryable });
}

/**
 * Return what an attempt gives; where that fails for a while only, why.
 * @param {() => Promise<any>} attempt
 */
async function orWhy(attempt) {
  try {
    return await attempt();
  } catch (error) {
    if (!error.retryable) throw error;
    return { why: error.message };
  }
}

/** @param {any} cause */
function invalidInput(cause) {
  const code = "invalid-input";
  return new SessiondError(`this cannot be sent: ${cause.message}`, { code, cause });
}

/** @param {unknown} value */
function encode(value) {
  try {
    return JSON.stringify(value) ?? "null";
  } catch (cause) {
    throw invalidInput(cause);
  }
}

/** @param {string} position */
const offsetOf = (position) => Number(position.slice(position.lastIndexOf(":") + 1));

/** A version that stands for one that is only in a journal yet. @param {string} version */
const isJournaled = (version) => version.startsWith("ff");

/** @param {any} document @param {Change} change @returns {any} */
function patched(document, { set, unset }) {
  const kept = Object.entries(document).filter(([name]) => !unset.includes(name));
  return { ...Object.fromEntries(kept), ...set };
}

/**
 * Return a saved document with what was changed here since it was sent: field by field, and lists
 * by `mergedList`. Where both made something else of a value, that from here stays, and both are
 * added to `contests`: the next save puts it in the place of theirs.
 * @param {any} sent @param {any} here @param {any} saved
 * @param {Contest[]} [contests] @param {string[]} [path] @returns {any}
 */
export function carriedOver(sent, here, saved, contests = [], path = []) {
  if (same(here, sent)) return saved;
  if (same(saved, sent) || same(saved, here)) return here;
  if ([here, saved].every(Array.isArray)) {
    return mergedList(Array.isArray(sent) ? sent : [], here, saved);
  }
  if (![here, saved].every(isObject)) {
    const ours = here === undefined ? here : JSON.parse(encode(here)); // here, it may change
    contests.push({ path, base: sent, ours, theirs: saved });
    return here;
  }
  const before = isObject(sent) ? sent : {};
  const merged = Object.keys({ ...saved, ...here }).map((name) => {
    const values = /** @type {const} */ ([before[name], here[name], saved[name]]);
    return [name, carriedOver(...values, contests, [...path, name])];
  });
  return Object.fromEntries(merged.filter(([, value]) => value !== undefined));
}

/**
 * Return a list without what either removed, with what either added. Of equal items there are as
 * many as both changes together leave; what both added alike is there once.
 * @param {any[]} sent @param {any[]} here @param {any[]} saved
 */
function mergedList(sent, here, saved) {
  const [before, ours, theirs] = [sent, here, saved].map(counted);
  /** @param {string} item */
  const wanted = (item) => {
    const [was, is, other] = [before, ours, theirs].map((counts) => counts.get(item) ?? 0);
    return was ? is + other - was : Math.max(is, other);
  };
  const left = new Map([...ours.keys(), ...theirs.keys()].map((item) => [item, wanted(item)]));
  return [...here, ...saved].filter((value) => {
    const count = left.get(encode(value));
    left.set(encode(value), count - 1);
    return count > 0;
  });
}

/** @param {any[]} list @returns {Map<string, number>} */
function counted(list) {
  const counts = new Map();
  for (const item of list.map(encode)) counts.set(item, (counts.get(item) ?? 0) + 1);
  return counts;
}

/** @param {any} value */
const isObject = (value) => value?.constructor === Object;

/** Compare as JSON; `undefined` is nothing but itself. @param {any} one @param {any} other */
function same(one, other) {
  const isThere = one !== undefined && other !== undefined;
  return isThere ? encode(one) === encode(other) : one === other;
}

/** Return a message's parts; what one without says itself is its first. @param {Message} message */
function partsOf({ content, tool_calls, parts }) {
  if (parts) return parts;
  const own = content ? [{ id: "own-content", type: "text", text: content }] : [];
  return [...own, ...tool_calls.map((tool, n) => ({ id: `own-call-${n}`, type: "tool", tool }))];
}

/** @param {Message} message @param {Part[]} parts @returns {Message} */
function withParts(message, parts) {
  const texts = parts.filter((part) => part.type === "text" && typeof part.text === "string");
  const tools = parts.filter((part) => part.type === "tool" && "tool" in part);
  const content = texts.map((part) => part.text).join("\n");
  return { ...message, content, tool_calls: tools.map((part) => part.tool), parts };
}

/** Put a part, or take it out. @param {Message} message @param {string} id @param {Part} [part] */
function withPart(message, id, part) {
  const parts = new Map(partsOf(message).map((known) => [known.id, known]));
  if (part) parts.set(id, part);
  else parts.delete(id);
  return withParts(message, [...parts.values()]);
}

/** Parts that were put on their own stay. @param {Message} before @param {Message} body */
function edited(before, body) {
  if (!before.parts) return body;
  const own = body.parts ? [] : partsOf(body);
  return withParts(body, [...own, ...before.parts.filter(({ id }) => !id.startsWith("own-"))]);
}
