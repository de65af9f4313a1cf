// A program that goes on while Redis is away; a line of input leads it from step to step.

import { createInterface } from "node:readline";

import { SessionManager } from "../../sessiond/javascript/sessiond.mjs";

const manager = SessionManager.connect({ socket: process.argv[2] });
const input = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const say = (value) => console.log(typeof value === "string" ? value : JSON.stringify(value));
const shown = (session) => session.messages.map((message) => message.content);

const session = await manager.load("s");
await session.addMessage({ role: "user", content: "before" });
say("loaded");
await input.next();
await session.addMessage({ role: "user", content: "offline" });
for (const count of [1, 2]) {
  session.context.state.count = count;
  await session.save();
}
say(shown(session));
await input.next();
await session.addMessage({ role: "user", content: "after" });
say([shown(session), session.context.state, await session.conflicts()]);
await manager.close();
process.exit();
