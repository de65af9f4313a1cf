// @ts-check
/**
 * Sessions of a coding agent, kept in step by the local sessiond daemon. For Node (18 or newer)
 * and Bun; without dependencies.
 *
 *     import { SessionManager } from "./sessiond.mjs";
 *     const session = await SessionManager.create({ user_id: "user123" });
 *     await session.addMessage({ role: "user", content: "Help me analyze this codebase" });
 *     for await (const { name, data } of session.subscribe()) console.log(name, data);
 *
 * What fails, fails with a `SessiondError`. The contract of each call stands in `sessiond.d.mts`.
 */

import { randomUUID } from "node:crypto";
import http from "node:http";
import { homedir } from "node:os";
import { isAbsolute, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

/**
 * @import { ConnectOptions, Event, ListOptions, LoadedSession, Message, NewMessage, NewSession,
 *   Operation, Part, SavedDocument, WriteOptions } from "./sessiond.mjs"
 * @typedef {{ set: Record<string, unknown>, unset: string[] }} Change of a document's fields
 */

const FIRST_PAUSE_MS = 150;
const LONGEST_PAUSE_MS = 5_000;
const ANSWER_MS = 30_000;
const SILENCE_MS = 60_000; // a daemon sends a heartbeat every 15 s, unless configured otherwise
const PAGE = 500;
const START = "0:0";

/** @type {SavedDocument[]} */
const SAVED = ["context", "preferences"];

export class SessiondError extends Error {
  /** @type {string | undefined} */
  key;

  /** @param {string} detail @param {Partial<SessiondError>} [more] */
  constructor(detail, { code = "internal", status = 0, hint = "", retryable = false, cause } = {}) {
    super(hint ? `${detail} (${hint})` : detail, { cause });
    Object.assign(this, { name: new.target.name, detail, code, status, hint, retryable });
  }
}

export class VersionMismatch extends SessiondError {}

export class DaemonUnreachable extends SessiondError {}

/** The rules: HTML standard, 9.2 "Server-sent events"; `retry` is ignored. */
export class EventParser {
  #decoder = new TextDecoder();
  #rest = "";
  #event = { name: "", id: "", data: /** @type {string[]} */ ([]) };

  /** @param {Uint8Array} chunk */
  push(chunk) {
    const text = this.#decoder.decode(chunk, { stream: true });
    const before = this.#rest;
    this.#rest += text;
    if (!/[\r\n]/.test(text) && !before.endsWith("\r")) return []; // a long line still grows
    const lines = this.#rest.split(/\r\n|\n|\r(?!$)/); // a CR at the end may be half a CRLF
    this.#rest = lines.pop() ?? "";
    return lines.flatMap((line) => (line ? this.#take(line) : this.#dispatch()));
  }

  /** @param {string} line @returns {[]} */
  #take(line) {
    const [, field, value = ""] = /^([^:]*)(?:: ?(.*))?$/s.exec(line) ?? [];
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
  const configured = environ.SESSIOND_API_SOCKET;
  if (configured) return configured.replace(/^~(?=\/)/, home);
  const [runtime, state] = [environ.XDG_RUNTIME_DIR ?? "", environ.XDG_STATE_HOME ?? ""];
  if (isAbsolute(runtime)) return join(runtime, "sessiond", "api.sock");
  const stateHome = isAbsolute(state) ? state : join(home, ".local", "state");
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
   * `once`: at most once, on a connection of its own. `settled`: the problem from which a repeated
   * write learns that it was done before.
   * @param {string} method @param {string} path
   * @param {{ body?: string, once?: boolean, settled?: string } & WriteOptions} [options]
   * @returns {Promise<{ value: any, version: string }>}
   */
  async call(method, path, { body, key, expected, once = false, settled = "" } = {}) {
    const headers = {
      ...this.#headers,
      ...(body !== undefined && { "Content-Type": "application/json" }),
      ...(key && { "Idempotency-Key": key }),
      ...(expected && { "If-Match": `"${expected}"` }),
    };
    const agent = once ? false : this.#agent;
    for (let failures = 0; ; failures += 1) {
      if (failures) await sleep(backoff(failures - 1, Math.random()));
      try {
        const { response } = await this.#send({ method, path, headers, agent }, ANSWER_MS, body);
        const text = await this.#textOf(response);
        const version = (response.headers.etag ?? "").replaceAll('"', "");
        return { value: text && decode(text), version };
      } catch (error) {
        if (failures && error.code === settled) return { value: "", version: "" };
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
    const headers = { ...this.#headers, "Last-Event-ID": lastId };
    const request = { path, headers, agent: this.#agent, signal };
    const { response, timer } = await this.#send(request, SILENCE_MS);
    const parser = new EventParser();
    try {
      yield { name: "", id: "", data: null };
      for await (const chunk of this.#chunksOf(response)) {
        timer.refresh();
        for (const event of parser.push(chunk)) yield { ...event, data: decode(event.data) };
      }
    } finally {
      response.destroy();
    }
  }

  close() {
    this.#closed = true;
    for (const stop of this.stops) stop();
    this.#agent.destroy();
  }

  /**
   * Send a request once; return its answer as it begins, or throw the problem that it tells of.
   * When the timer ends before the answer does, it is given up.
   * @param {http.RequestOptions} options @param {number} limitMs @param {string} [body]
   * @returns {Promise<{ response: http.IncomingMessage, timer: NodeJS.Timeout }>}
   */
  async #send(options, limitMs, body) {
    const { response, timer } = await new Promise((resolve, reject) => {
      if (this.#closed) throw new Error("the connection was closed");
      const request = http.request({ ...this.#target, ...options });
      const giveUp = () => request.destroy(new Error("the request was given up"));
      const timer = setTimeout(giveUp, limitMs);
      this.stops.add(giveUp);
      request.once("response", (response) => resolve({ response, timer }));
      request.once("close", () => this.stops.delete(giveUp) && clearTimeout(timer));
      request.on("error", reject).end(body);
    }).catch((error) => Promise.reject(this.#lost(error)));
    if (response.statusCode < 400) return { response, timer };
    throw problemOf(response.statusCode, await this.#textOf(response));
  }

  /** @param {http.IncomingMessage} response */
  async #textOf(response) {
    const chunks = [];
    for await (const chunk of this.#chunksOf(response)) chunks.push(chunk);
    return Buffer.concat(chunks).toString();
  }

  /** @param {http.IncomingMessage} response @returns {AsyncGenerator<Buffer>} */
  async *#chunksOf(response) {
    try {
      yield* response;
    } catch (error) {
      throw this.#lost(error);
    }
  }

  /** @param {Error} cause */
  #lost(cause) {
    if (this.#closed) return new SessiondError("this manager was closed", { code: "closed", cause });
    if (cause instanceof TypeError) return invalidInput(cause); // a header that cannot be sent
    return new DaemonUnreachable(`no daemon answers at ${this.#where}: ${cause.message}`, {
      code: "daemon-unreachable",
      hint: "start one with `sessiond run`, or name its socket or address",
      retryable: true,
      cause,
    });
  }
}

/** Moves on with the log: with every write of its own, while it is subscribed, at `refresh`. */
export class Session {
  #connection;
  /** @type {Promise<unknown>} */
  #lastWrite = Promise.resolve();
  /**
   * What `save` compares with: `base` is the document as the daemon has it. `contested`: somebody
   * changed a field that was changed here, too, so `version` stays behind and `save` conflicts.
   * `sent`: the last attempt to save, whose answer may have been lost.
   * @type {Record<string, { base: any, version: string, contested?: boolean,
   *   sent?: { text: string, key: string } }>}
   */
  #documents = {};

  /** @param {Connection} connection @param {LoadedSession} loaded */
  constructor(connection, loaded) {
    this.#connection = connection;
    this.metadata = loaded.metadata;
    this.messages = loaded.conversation.messages;
    this.context = loaded.context;
    this.preferences = loaded.preferences;
    this.position = loaded.position;
    this.#adopt(loaded, SAVED);
  }

  get id() {
    return this.metadata.session_id;
  }

  /** @param {NewMessage} message @param {WriteOptions} [options] @returns {Promise<Message>} */
  async addMessage(message, options) {
    return (await this.addMessages([message], options))[0];
  }

  /** @param {NewMessage[]} messages @param {WriteOptions} [options] */
  addMessages(messages, options) {
    return this.#inOrder(async () => {
      const { records } = await this.#write("POST", "messages", options, { messages });
      return messages.map((given, place) => {
        const { id } = records[place];
        return this.messages[this.#indexOf(id)] ?? { ...given, id }; // removed again already
      });
    });
  }

  /** @param {string} id @param {object} patch @param {WriteOptions} [options] */
  editMessage(id, patch, options) {
    return this.#inOrder(() => this.#write("PATCH", at`messages/${id}`, options, patch));
  }

  /** @param {string} id @param {WriteOptions} [options] */
  removeMessage(id, options) {
    return this.#inOrder(() => this.#write("DELETE", at`messages/${id}`, options));
  }

  /** @param {string} messageId @param {Part} part @param {WriteOptions} [options] */
  putPart(messageId, part, options) {
    const path = at`messages/${messageId}/parts/${part.id}`;
    return this.#inOrder(() => this.#write("PUT", path, options, part));
  }

  /** @param {string} messageId @param {string} partId @param {WriteOptions} [options] */
  removePart(messageId, partId, options) {
    const path = at`messages/${messageId}/parts/${partId}`;
    return this.#inOrder(() => this.#write("DELETE", path, options));
  }

  save() {
    return this.#inOrder(async () => {
      for (const name of SAVED) if (this.#isUnsaved(name)) await this.#saveDocument(name);
    });
  }

  async refresh() {
    this.#adopt(await this.#call("GET", ""), SAVED);
  }

  /** @param {unknown} body @returns {Promise<void>} */
  sendLive(body) {
    return this.#inOrder(() => this.#call("POST", "/live", { body: encode(body), once: true }));
  }

  /** @param {{ after?: string, signal?: AbortSignal }} [options] */
  subscribe({ after, signal } = {}) {
    const stop = new AbortController();
    const abort = () => stop.abort();
    if (signal?.aborted) abort();
    signal?.addEventListener("abort", abort, { signal: stop.signal });
    const events = this.#follow(after ?? this.position, stop);
    return {
      next: () => events.next(),
      return: () => {
        abort(); // or `return` would wait behind a `next` that waits
        return events.return(undefined);
      },
      [Symbol.asyncIterator]() {
        return this;
      },
    };
  }

  /**
   * Yield events until stopped; connect again after the last one seen.
   * @param {string} lastId @param {AbortController} stop
   */
  async *#follow(lastId, stop) {
    const abort = () => stop.abort();
    this.#connection.stops.add(abort);
    try {
      for (let failures = 0; !stop.signal.aborted; failures += 1) {
        if (failures) await sleep(backoff(failures - 1, Math.random()), undefined, stop);
        try {
          for await (const event of this.#connection.stream(this.#path("/events"), lastId, stop.signal)) {
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
    } catch (error) {
      if (!stop.signal.aborted) throw error;
    } finally {
      abort();
      this.#connection.stops.delete(abort);
    }
  }

  /** Yield the deletion that came while nobody was connected: all that is left of the log. */
  async *#deletion() {
    for (const data of (await this.#call("GET", "/operations")).operations) {
      yield this.#take({ name: data.op, id: data.position, data });
    }
  }

  /** Take an event and return it. @param {Event} event */
  async #take(event) {
    if (event.name === "reset") await this.#reload();
    else if (event.name !== "live" && !this.#apply(event.data)) await this.#catchUp();
    return event;
  }

  /**
   * Run writes one after the other, in the order of the calls.
   * @template Outcome @param {() => Promise<Outcome>} write @returns {Promise<Outcome>}
   */
  #inOrder(write) {
    const outcome = this.#lastWrite.then(write);
    this.#lastWrite = outcome.catch(() => "told to who called it");
    return outcome;
  }

  /** @param {string} rest */
  #path(rest) {
    return at`/v1/sessions/${this.id}` + rest;
  }

  /** @param {string} method @param {string} rest @param {Parameters<Connection["call"]>[2]} [options] */
  async #call(method, rest, options) {
    return (await this.#connection.call(method, this.#path(rest), options)).value;
  }

  /**
   * @param {string} method @param {string} rest @param {WriteOptions} [options] @param {object} [body]
   */
  async #write(method, rest, { key = randomUUID(), expected } = {}, body) {
    const options = { body: body && encode(body), key, expected };
    const written = await this.#call(method, `/${rest}`, options);
    await this.#catchUp();
    return written;
  }

  /** @param {SavedDocument} name */
  #isUnsaved(name) {
    return encode(this[name]) !== encode(this.#documents[name].base);
  }

  /** @param {SavedDocument} name */
  async #saveDocument(name) {
    const text = encode(this[name]);
    const document = this.#documents[name];
    if (document.sent?.text !== text) document.sent = { text, key: randomUUID() };
    const options = { body: text, key: document.sent.key, expected: document.version };
    const { value, version } = await this.#connection.call("PUT", this.#path(`/${name}`), options);
    this.#documents[name] = { base: structuredClone(value), version };
    if (encode(this[name]) === text) this[name] = value; // or it was changed while it was sent
    await this.#catchUp();
  }

  /** Read the log on to its end. */
  async #catchUp() {
    for (let length = PAGE; length === PAGE; ) {
      const { operations, reset } = await this.#call(
        "GET",
        at`/operations?after=${this.position}&limit=${PAGE}`,
      );
      length = operations.length;
      for (const operation of operations) if (!this.#apply(operation)) return this.#reload();
      if (reset) return this.#reload();
    }
  }

  /** Take the session as it is now, but for what is not saved here: saving that will conflict. */
  async #reload() {
    const unsaved = SAVED.filter((name) => this.#isUnsaved(name));
    for (const name of unsaved) this.#documents[name].contested = true;
    try {
      this.#adopt(await this.#call("GET", ""), SAVED.filter((name) => !unsaved.includes(name)));
    } catch (error) {
      if (error.code !== "not-found") throw error;
      this.messages = []; // Redis lost it; should it return, its log begins anew
      this.position = START;
    }
  }

  /** @param {LoadedSession} loaded @param {SavedDocument[]} documents */
  #adopt(loaded, documents) {
    this.metadata = loaded.metadata;
    this.messages = loaded.conversation.messages;
    this.position = loaded.position;
    for (const name of documents) {
      this[name] = /** @type {any} */ (loaded[name]);
      this.#documents[name] = { base: structuredClone(loaded[name]), version: loaded.versions[name] };
    }
  }

  /** Move on by one operation; false when it does not continue what is known here.
   * @param {Operation} operation */
  #apply(operation) {
    const [known, offset] = [offsetOf(this.position), offsetOf(operation.position)];
    if (offset <= known) return true;
    if (operation.op === "session.delete") this.metadata.status = "deleted";
    else if (offset > known + 1 || operation.op === "session.create") return false;
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
    if (op === "message.append" && !message) this.messages.push(body);
    if (op === "message.edit" && message) this.messages[index] = edited(message, body);
    if (op === "message.remove" && message) this.messages.splice(index, 1);
    if (op === "part.put" && message) this.messages[index] = withPart(message, partId, body);
    if (op === "part.remove" && message) this.messages[index] = withPart(message, partId);
  }

  /** Fields that were changed here and are not saved yet stay. @param {Operation} operation */
  #changeDocument({ id: name, body, position }) {
    if (name === "metadata") this.metadata = patched(this.metadata, body);
    if (name !== "context" && name !== "preferences") return;
    const document = this.#documents[name];
    if (offsetOf(position) <= offsetOf(document.version)) return; // saved here
    const mine = difference(document.base, this[name]);
    document.base = patched(document.base, body);
    this[name] = patched(structuredClone(document.base), mine);
    const theirs = [...Object.keys(body.set), ...body.unset];
    const after = difference(document.base, this[name]);
    document.contested ||= theirs.some((field) => field in after.set || after.unset.includes(field));
    if (!document.contested) document.version = position;
  }

  /** @param {string} messageId */
  #indexOf(messageId) {
    return this.messages.findLastIndex((message) => message.id === messageId);
  }
}

export class SessionManager {
  #connection;

  /** @param {ConnectOptions} options */
  constructor(options) {
    this.#connection = new Connection(options);
  }

  /** @param {ConnectOptions} [options] */
  static connect = (options = {}) => new SessionManager(options);
  /** @type {SessionManager["create"]} */
  static create = (...given) => localManager().create(...given);
  /** @type {SessionManager["load"]} */
  static load = (...given) => localManager().load(...given);
  /** @type {SessionManager["list"]} */
  static list = (...given) => localManager().list(...given);
  /** @type {SessionManager["delete"]} */
  static delete = (...given) => localManager().delete(...given);

  /** @param {NewSession} [session] @param {{ key?: string }} [options] */
  async create(session = {}, { key = randomUUID() } = {}) {
    const options = { body: encode(session), key };
    const { value } = await this.#connection.call("POST", "/v1/sessions", options);
    return new Session(this.#connection, value);
  }

  /** @param {string} id */
  async load(id) {
    const { value } = await this.#connection.call("GET", at`/v1/sessions/${id}`);
    return new Session(this.#connection, value);
  }

  /** @param {ListOptions} [options] */
  async list(options = {}) {
    const given = Object.entries(options).filter(([, value]) => value !== undefined);
    const query = new URLSearchParams(given.map(([name, value]) => [name, String(value)]));
    return (await this.#connection.call("GET", `/v1/sessions?${query}`)).value;
  }

  /** @param {string} id @param {{ expected?: string }} [options] */
  async delete(id, { expected } = {}) {
    const options = { expected, settled: "session-deleted" };
    await this.#connection.call("DELETE", at`/v1/sessions/${id}`, options);
  }

  async close() {
    this.#connection.close();
  }
}

/** @type {SessionManager | undefined} */
let local;

function localManager() {
  local ??= SessionManager.connect();
  return local;
}

/** Put values into a path. @param {TemplateStringsArray} raw @param {unknown[]} values */
function at(raw, ...values) {
  return String.raw({ raw }, ...values.map((value) => encodeURIComponent(String(value))));
}

/** @param {string} address */
function tcpTarget(address) {
  const url = URL.canParse?.(address) ? new URL(address) : undefined;
  if (url?.protocol !== "http:") {
    const hint = "it looks like http://127.0.0.1:PORT";
    throw new SessiondError(`${address} is not an address`, { code: "invalid-input", hint });
  }
  return { host: url.hostname.replace(/^\[|\]$/g, ""), port: url.port || 80 };
}

/** @param {number} status @param {string} text */
function problemOf(status, text) {
  const { code, detail, hint, retryable } = decode(text);
  const kind = code === "version-mismatch" ? VersionMismatch : SessiondError;
  return new kind(detail, { code, status, hint, retryable });
}

/** @param {unknown} value */
function encode(value) {
  try {
    return JSON.stringify(value) ?? "null";
  } catch (cause) {
    throw invalidInput(cause);
  }
}

/** @param {string} text */
function decode(text) {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new SessiondError("the daemon's answer is not JSON", { cause });
  }
}

/** @param {string} position */
const offsetOf = (position) => Number(position.slice(position.lastIndexOf(":") + 1));

/** @param {Record<string, any>} before @param {Record<string, any>} after @returns {Change} */
function difference(before, after) {
  const fields = Object.entries(after);
  const set = fields.filter(([name, value]) => encode(before[name]) !== encode(value));
  const unset = Object.keys(before).filter((name) => !(name in after));
  return { set: Object.fromEntries(set), unset };
}

/** @param {any} document @param {Change} change */
function patched(document, { set, unset }) {
  const fields = Object.entries({ ...document, ...set });
  return Object.fromEntries(fields.filter(([name]) => name in set || !unset.includes(name)));
}

/** What a message without parts says itself counts as its first. @param {Message} message */
function partsOf({ content, tool_calls, parts }) {
  if (parts) return parts;
  const text = content ? [{ id: "own-content", type: "text", text: content }] : [];
  return [...text, ...tool_calls.map((tool, n) => ({ id: `own-call-${n}`, type: "tool", tool }))];
}

/** @param {Message} message @param {Part[]} parts @returns {Message} */
function withParts(message, parts) {
  const texts = parts.filter((part) => part.type === "text" && typeof part.text === "string");
  const tools = parts.filter((part) => part.type === "tool" && "tool" in part);
  const content = texts.map((part) => part.text).join("\n");
  return { ...message, content, tool_calls: tools.map((part) => part.tool), parts };
}

/** @param {Message} message @param {string} partId @param {Part} [part] */
function withPart(message, partId, part) {
  const parts = partsOf(message);
  const known = parts.some(({ id }) => id === partId);
  if (part && !known) return withParts(message, [...parts, part]);
  return withParts(message, parts.flatMap((old) => (old.id === partId ? part ?? [] : old)));
}

/** Its body was written anew; parts written on their own stay. @param {Message} before @param {Message} body */
function edited(before, body) {
  if (!before.parts) return body;
  const own = body.parts ? [] : partsOf(body);
  return withParts(body, [...own, ...before.parts.filter(({ id }) => !id.startsWith("own-"))]);
}

/** @param {any} cause */
function invalidInput(cause) {
  return new SessiondError(`this cannot be sent: ${cause.message}`, { code: "invalid-input", cause });
}
