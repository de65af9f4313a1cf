/**
 * Types and contracts of sessiond's JavaScript client.
 *
 * Every write carries an `Idempotency-Key` and is repeated with the same key while the daemon
 * cannot be reached or asks for another try (5 tries, within 1 to 2 seconds), so that it is done
 * once. Writes through one `Session` object are sent in the order of the calls.
 *
 * All calls fail with a `SessiondError` and nothing else; its `code` tells what it is:
 * `daemon-unreachable`, `not-found`, `session-deleted`, `version-mismatch`, `already-exists`,
 * `invalid-input`, `too-large`, `unauthenticated`, `forbidden`, `store-unavailable`, `closed`, …
 */

export type Role = "user" | "assistant" | "system" | "tool";
export type Status = "active" | "archived" | "deleted";

/** A piece of a message: text, tool call, reasoning, file … */
export interface Part {
  id: string;
  type: string;
  [field: string]: unknown;
}

export interface Message {
  id: string;
  timestamp: string;
  role: Role;
  content: string;
  tool_calls: unknown[];
  metadata: Record<string, unknown>;
  parts?: Part[];
}

/** A message as its writer gives it. With `parts`, content and tool_calls follow from them. */
export type NewMessage = { role: Role } & Partial<Message>;

/** What an edit may change; `null` removes a member (JSON Merge Patch, RFC 7396). */
export interface MessagePatch {
  role?: Role;
  content?: string | null;
  tool_calls?: unknown[] | null;
  metadata?: Record<string, unknown> | null;
}

export interface Metadata {
  session_id: string;
  created_at: string;
  last_activity: string;
  user_agent: string;
  environment: string;
  status: Status;
  title?: string;
  user_id?: string;
  workspace?: string;
}

export interface Context {
  working_directory: string;
  active_files: string[];
  recent_commands: string[];
  state: Record<string, any>;
}

export type Preferences = Record<string, any>;

/** The documents that `save` sends. */
export type SavedDocument = "context" | "preferences";

/** `user_agent` and `context.working_directory` are this program's, where none are given. */
export interface NewSession {
  session_id?: string;
  user_id?: string;
  title?: string;
  workspace?: string;
  user_agent?: string;
  environment?: string;
  context?: Partial<Context>;
  preferences?: Preferences;
}

export interface LoadedSession {
  metadata: Metadata;
  conversation: { messages: Message[]; total_messages: number; context_window_used: number };
  context: Context;
  preferences: Preferences;
  position: string;
  versions: Record<"metadata" | "context" | "preferences", string>;
}

/** `tokens`: what the window may take, at least 64; else as the daemon is configured. */
export interface WindowOptions {
  tokens?: number;
  strategy?: "recent" | "pinned" | "tools" | "summary";
}

/** A run of messages that a window leaves out, or (`messages: 0`) what of one message it does. */
export interface LeftOut {
  reason: "older" | "summarised" | "tool-output" | "too-large";
  first: string;
  last: string;
  messages: number;
  tokens: number;
  parts?: string[];
}

/** What of a conversation fits a window of `budget` tokens, by an estimate. */
export interface Window {
  session_id: string;
  strategy: "recent" | "pinned" | "tools" | "summary";
  budget: number;
  tokens: number;
  messages: Message[];
  left_out: LeftOut[];
  total_messages: number;
  position: string;
  summary?: string;
  stale_seconds?: number;
}

export interface ListOptions {
  workspace?: string;
  status?: Status;
  user_id?: string;
  environment?: string;
  /** `cursor` of the page before. */
  cursor?: string;
  /** Sessions on a page: 50 unless said, 500 at most. */
  limit?: number;
}

/** One page of a listing, the most recently active first. `cursor` asks for the next page. */
export interface SessionPage {
  sessions: { metadata: Metadata; total_messages: number; position: string }[];
  cursor: string | null;
  /** How old this is, where it was answered while Redis was away. */
  stale_seconds?: number;
}

export interface WriteOptions {
  /** An Idempotency-Key of your own: the same call with the same key is done once. */
  key?: string;
  /** The only version that may be changed; another one is refused with a `VersionMismatch`. */
  expected?: string;
  /** The version that the change was made on: what others changed since is merged with it. */
  base?: string;
}

/**
 * `version` is what a further change of the same record may be based on; `conflicts` are the
 * numbers of those that a merge left behind.
 */
export interface WrittenRecord {
  id: string;
  version: string;
  conflicts?: string[];
}

/** `open` until somebody decides (strategy `manual`), `settled` by the rule, or `resolved`. */
export type ConflictState = "open" | "settled" | "resolved";
export type Take = "ours" | "theirs" | "base" | "merged";

/** What one side of a conflict had; without a value where it had removed it. */
export interface ConflictSide {
  value?: unknown;
  origin: string;
  at: string;
  version?: string;
}

/** A field that two changed at once, where a part of one is not in the merged value. */
export interface ConflictRecord {
  /** Of the conflict among those of its session; empty for one of `save` that is not in Redis. */
  number: string;
  session_id: string;
  document: "metadata" | "context" | "preferences" | "message" | "part";
  /** The message, or `<message>/<part>`; empty for documents. */
  id: string;
  /** Names of fields, and ids of objects in lists; empty for the whole. */
  path: string[];
  strategy: string;
  outcome: "ours" | "theirs" | "merged";
  base_version: string;
  base?: unknown;
  ours: ConflictSide;
  theirs: ConflictSide;
  merged?: unknown;
  at: string;
  state: ConflictState;
  resolution?: { take: Take | "value"; value?: unknown; origin: string; at: string; version: string };
}

/** Whose side to take, or the value to put in the place. */
export type Choice = { take: Take } | { value: unknown };

/** Fields of a document that were set and unset. */
export interface Change {
  set: Record<string, unknown>;
  unset: string[];
}

export type OperationName =
  | "session.create"
  | "session.delete"
  | "message.append"
  | "message.edit"
  | "message.remove"
  | "part.put"
  | "part.remove"
  | "document.change"
  | "conflict.record"
  | "conflict.resolve";

/**
 * One change of a session, as the log keeps it. `id`: of the message, `<message>/<part>`, or the
 * document's name; `body`: the message, the part, or a `Change`.
 */
export interface Operation {
  op: OperationName;
  session_id: string;
  position: string;
  at: string;
  origin: string;
  id: string;
  body: any;
}

/** Something passing: what another client announced with `sendLive`, or `{ presence: … }`. */
export interface Live {
  session_id: string;
  origin: string;
  body: any;
}

/**
 * A write that is journaled at this daemon and waits for Redis, as it was asked for; the event of
 * the operation follows when it has its place. Its messages are shown until then, behind all others.
 */
export interface JournaledOperation {
  op: OperationName;
  session_id: string;
  /** What stands for its version. */
  version: string;
  at: string;
  origin: string;
  id: string;
  /** The message or part; of edits and changes of documents, the merge patch. */
  body: any;
  /** Whether `body` is to replace the document. */
  replace: boolean;
}

/** An instance at a session. Times are milliseconds since 1970 by Redis's clock. */
export interface Presence {
  instance: string;
  /** The daemon that it is at. */
  machine: string;
  /** The program, if it says. */
  client: string;
  active_files: string[];
  since_ms: number;
  seen_ms: number;
  /** Until when it counts if it does not say again that it is there. */
  until_ms: number;
  /** It holds the lease of the session's turn. */
  has_turn: boolean;
}

/** Who is at a session, the longest there first. */
export interface SessionPresence {
  session_id: string;
  present: Presence[];
  /** Each file that two or more of them have open, and their instances. */
  shared_files: Record<string, string[]>;
  /** How long an announcement counts at this daemon that is not repeated. */
  valid_seconds: number;
}

/** Body of a live event, below `presence`. `lost`: it was not heard of in time. */
export interface PresenceChange {
  change: "came" | "changed" | "left" | "lost";
  who: Presence;
}

export interface NewPresence {
  /**
   * What this program works on, as others would name it: 256 at most, 1,024 characters each, and
   * 16 KiB of JSON in all.
   */
  active_files?: string[];
  /** The name under which others see it, until it leaves; one is made up otherwise. */
  instance?: string;
}

/** A tool call whose answer may be cached. */
export interface CacheCall {
  /** What else the answer depends on; anything that JSON has. */
  arguments?: unknown;
  /** The file that the answer depends on, relative to the project's folder, */
  path: string;
  /**
   * or, with "tree", the folder below which it depends on all files; with "revision", what it tells
   * the history of, as of the commit that is checked out.
   */
  scope?: "file" | "tree" | "revision";
}

/** `unknown`: what the call depends on cannot be told; `reason` says why. */
export interface CacheAnswer {
  key: string;
  outcome: "hit" | "stale" | "miss" | "unknown";
  value?: any;
  /** The machine where the tool ran. */
  machine?: string;
  /** The state of the files; empty where they changed less than 2 s ago. */
  stamp: string;
  reason: string;
}

/** What `get` found, to be given to `put` after the tool ran. */
export interface Looked {
  call: CacheCall & { tool: string };
  answer: CacheAnswer;
  /** Whether `value` is what the tool would answer now. */
  isHit: boolean;
  value?: any;
}

export interface CacheStored {
  key: string;
  stored: boolean;
  /** Why it was not. */
  reason: string;
}

/** What a session has cached, the latest used first; counts are those since it began. */
export interface CacheContents {
  counts: {
    entries: number;
    bytes: number;
    limit_bytes: number;
    hits: number;
    misses: number;
    stale: number;
    evicted: number;
  };
  entries: {
    key: string;
    tool: string;
    path: string;
    scope: "file" | "tree" | "revision";
    machine: string;
    bytes: number;
    stored_at: string;
    expires_at: string;
  }[];
}

/**
 * What tools answered, given only while the files that it depends on are what they were when the
 * tool ran. Where the daemon or its Redis is away nothing is found or cached; that is no error.
 */
export interface SessionCache {
  /** The same cache for another folder on this machine. */
  below(root: string): SessionCache;
  /** Look for what a tool answered; do so before it runs, to `put` its answer. */
  get(tool: string, call: CacheCall): Promise<Looked>;
  /** Cache what the tool answered, if the files are as they were at the `get`. */
  put(looked: Looked, value: unknown): Promise<CacheStored>;
  /** What is cached, else what the tool answers, which is cached then. */
  through(tool: string, call: CacheCall & { run: () => any }): Promise<any>;
  /** Drop what depends on files that changed, and tell others; return how many answers. */
  invalidate(...paths: string[]): Promise<number>;
  /** Drop all that the session has cached; return how many answers. */
  clear(): Promise<number>;
  contents(): Promise<CacheContents>;
}

/** The history is another one now: the session object was loaded anew, the whole log follows. */
export interface Reset {
  session_id: string;
  reason: "history-changed" | "trimmed" | "missing";
}

/** `id` is where a subscription resumes that has seen the event; live and reset have none. */
export type Event =
  | { name: OperationName; id: string; data: Operation }
  | { name: "live"; id: ""; data: Live }
  | { name: "journaled"; id: ""; data: JournaledOperation }
  | { name: "reset"; id: ""; data: Reset };

export interface ConnectOptions {
  /** The daemon's Unix socket; see `defaultSocket` for where it is looked up otherwise. */
  socket?: string;
  /** `http://127.0.0.1:PORT` instead, with `token`. */
  address?: string;
  /** Content of the daemon's token file. */
  token?: string;
  /** How the daemon is to name this program in the origin of what it writes. */
  name?: string;
  /** How often a call is tried in all; 5 unless said. */
  tries?: number;
}

export interface ErrorDetails {
  code?: string;
  status?: number;
  hint?: string;
  retryable?: boolean;
  cause?: unknown;
}

export class SessiondError extends Error {
  constructor(detail: string, more?: ErrorDetails);
  /** Stable: match on it. */
  readonly code: string;
  /** HTTP status of the answer; 0 without one. */
  readonly status: number;
  /** What happened. */
  readonly detail: string;
  /** What to do next; may be empty. */
  readonly hint: string;
  /** The same call may succeed later. */
  readonly retryable: boolean;
  /** Key of the write that failed: giving it again makes sure that the write is done once. */
  readonly key?: string;
}

/** Somebody else changed what only one version of was to be changed; nothing was written. */
export class VersionMismatch extends SessiondError {}

/** Nobody answers, or the answer broke off. A write may or may not have been done: see `key`. */
export class DaemonUnreachable extends SessiondError {}

export class Session {
  private constructor();
  readonly id: string;
  readonly metadata: Metadata;
  /** The conversation, in the order that is the same for all. */
  readonly messages: Message[];
  /** Change it in place, or assign it, and `save`. */
  context: Context;
  /** Change it in place, or assign it, and `save`. */
  preferences: Preferences;
  /** The place in the log that this state stands for. */
  readonly position: string;
  /** How old this state was when it was loaded while Redis was away; absent if it came from there. */
  readonly staleSeconds?: number;

  /** What of the conversation fits a window, and what is left out; the conversation stays whole. */
  window(options?: WindowOptions): Promise<Window>;
  /** Append a message and return it as it is stored. */
  addMessage(message: NewMessage, options?: { key?: string }): Promise<Message>;
  /** Append messages as one group, in neighbouring places, or none of them. */
  addMessages(messages: NewMessage[], options?: { key?: string }): Promise<Message[]>;
  editMessage(id: string, patch: MessagePatch, options?: WriteOptions): Promise<WrittenRecord>;
  removeMessage(id: string, options?: WriteOptions): Promise<WrittenRecord>;
  /** Write a part of a message: a new one, or the one with its id anew. */
  putPart(messageId: string, part: Part, options?: WriteOptions): Promise<WrittenRecord>;
  removePart(messageId: string, partId: string, options?: WriteOptions): Promise<WrittenRecord>;
  /**
   * Send `context` and `preferences` if they were changed here. What somebody else changed
   * meanwhile is merged with it by the daemon's rules, and is here afterwards; what the merge
   * left out is returned (of very many perhaps not all: `conflicts` has them).
   *
   * With it is returned what was changed here while the save was under way and by others before
   * it. What stands here is not saved yet; the next save puts it in the place of theirs. Such a
   * conflict is told here only: it is not in Redis, its `number` is empty, its `state` is `open`.
   * `ours` is what stands here, `theirs` what the others saved, `base` what was sent. To decide
   * it, change the document and save again.
   * @param options.strict refuse instead, if somebody else changed the document
   * @throws VersionMismatch in strict mode. The change is still here: keep a copy, `refresh`,
   *   apply it to what is there, and save again.
   */
  save(options?: { strict?: boolean }): Promise<ConflictRecord[]>;
  /** What merges left out in this session: all (the newest 10,000), or those of a state. */
  conflicts(options?: { state?: ConflictState }): Promise<ConflictRecord[]>;
  /**
   * Decide a conflict: take a side, or put a value in its place; `merged` leaves what stands.
   * @param options.expected only if the document or record is still at this version
   */
  resolve(
    number: string,
    choice: Choice,
    options?: { key?: string; expected?: string },
  ): Promise<ConflictRecord>;
  /** Load the session anew; unsaved changes are dropped. */
  refresh(): Promise<void>;
  /** Announce something passing, such as typing, to who listens now: at most once, not stored. */
  sendLive(body: unknown): Promise<void>;
  /**
   * Be at the session, for others to see, and say what this program works on. It is said again
   * in the background until `leave`, by a timer that does not keep the process alive; without
   * `leave` it ends by itself, `valid_seconds` after the program or its manager.
   */
  announce(options?: NewPresence): Promise<SessionPresence>;
  /** Be at the session no more. */
  leave(): Promise<void>;
  /** Who is at the session. */
  presence(): Promise<SessionPresence>;
  /** What tools answered here and on other machines, while it is right; of the current folder. */
  readonly cache: SessionCache;
  /**
   * Yield what happens, and keep this object up to date with it. Reconnects by itself, for as
   * long as it takes, and resumes where it was; documents with unsaved changes stay as they are.
   * Ends after `session.delete`, at `break`, when the signal aborts, and when the manager closes.
   * @param options.after a position to begin after instead of this object's own
   */
  subscribe(options?: { after?: string; signal?: AbortSignal }): AsyncGenerator<Event, void, void>;
}

/** Whether a session is archived; `bytes`: how large its archive is, if it was made just now. */
export interface ArchivedSession {
  session_id: string;
  position: string;
  archived: boolean;
  bytes?: number;
}

/** The static calls speak to the local daemon at `defaultSocket(process.env)`. */
export class SessionManager {
  private constructor();
  static connect(options?: ConnectOptions): SessionManager;
  static create(session?: NewSession, options?: { key?: string }): Promise<Session>;
  static load(id: string): Promise<Session>;
  static list(options?: ListOptions): Promise<SessionPage>;
  static conflicts(options?: { state?: ConflictState }): Promise<ConflictRecord[]>;
  static userPreferences(userId: string): Promise<Preferences>;
  static changeUserPreferences(userId: string, patch: Preferences): Promise<Preferences>;
  static delete(id: string, options?: WriteOptions): Promise<void>;
  static archive(id: string, options?: { idleSeconds?: number }): Promise<ArchivedSession>;
  static restore(id: string): Promise<ArchivedSession>;

  create(session?: NewSession, options?: { key?: string }): Promise<Session>;
  load(id: string): Promise<Session>;
  list(options?: ListOptions): Promise<SessionPage>;
  /** The conflicts of all sessions: all (10,000 at most), or those of a state. */
  conflicts(options?: { state?: ConflictState }): Promise<ConflictRecord[]>;
  /** What new sessions of a user begin with. */
  userPreferences(userId: string): Promise<Preferences>;
  /** Change it with a merge patch (null removes a field), and return all of it. */
  changeUserPreferences(userId: string, patch: Preferences): Promise<Preferences>;
  /**
   * Delete a session; its id is never used again.
   * @param options.expected only if the session is still at this position
   * @param options.base the position known here: what others appended since is kept as conflicts
   */
  delete(id: string, options?: WriteOptions): Promise<void>;
  /**
   * Let a session that nobody uses leave Redis; it comes back when it is loaded.
   * @param options.idleSeconds for how long nobody must have written to it; some minutes
   */
  archive(id: string, options?: { idleSeconds?: number }): Promise<ArchivedSession>;
  /** Bring an archived session back without loading it. */
  restore(id: string): Promise<ArchivedSession>;
  /** Give up requests under way, end subscriptions and let go of connections. */
  close(): Promise<void>;
}

/**
 * Where a daemon listens that nobody configured: `$SESSIOND_API_SOCKET`, else `api.sock` in
 * `$XDG_RUNTIME_DIR/sessiond`, `$XDG_STATE_HOME/sessiond/run` or `~/.local/state/sessiond/run`.
 * `sessions.yaml` is not read.
 */
export function defaultSocket(environ: Record<string, string | undefined>): string;

/** Milliseconds to wait after `failures + 1` failures; `random` from 0 to 1 spreads clients. */
export function backoff(failures: number, random: number): number;

/** A value of which the one from here stands, and another one was saved. */
export interface Contest {
  path: string[];
  base: any;
  ours: any;
  theirs: any;
}

/**
 * Returns a saved document with what was changed here since it was sent, and adds to `contests`
 * what others had changed, too.
 */
export function carriedOver(sent: any, here: any, saved: any, contests?: Contest[]): any;

/** Splits a stream of server-sent events, given in chunks of any size, into events. */
export class EventParser {
  push(chunk: Uint8Array): { name: string; id: string; data: string }[];
}
