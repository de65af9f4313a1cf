// A plugin that writes down what its hooks see, in $PROBE_FOLDER/notes, one JSON a line.
// With a file $PROBE_FOLDER/wanted, turns wait for $PROBE_FOLDER/orders and do as it says:
// {created}: the message's time; {refuse}: the reason to refuse it.
import { Database } from "bun:sqlite"
import { appendFileSync, existsSync, readFileSync } from "node:fs"

const folder = process.env.PROBE_FOLDER
const database = `${process.env.XDG_DATA_HOME}/opencode/opencode.db`
const note = (what) => appendFileSync(`${folder}/notes`, `${JSON.stringify(what)}\n`)

const stored = (id) => {
  const reading = new Database(database, { readonly: true })
  try {
    return reading.query("SELECT type, data FROM event WHERE id = ?").get(id)
  } finally {
    reading.close()
  }
}

export const Probe = async () => ({
  event: async ({ event }) => {
    note({ hook: "event", event, stored: stored(event.id) })
  },
  "chat.message": async (input, output) => {
    note({ hook: "chat.message", session: input.sessionID, message: output.message.id })
    if (!existsSync(`${folder}/wanted`)) return
    while (!existsSync(`${folder}/orders`)) await Bun.sleep(5)
    const orders = JSON.parse(readFileSync(`${folder}/orders`, "utf8"))
    if (orders.refuse) throw new Error(orders.refuse)
    output.message.time.created = orders.created
  },
  // tries whatever might be an answer in place of the tool's
  "tool.execute.before": async (input, given) => {
    note({ hook: "before", call: input.callID, session: input.sessionID, args: given.args })
    const answer = { title: "answered", output: "answered", metadata: {} }
    Object.assign(given, answer, { result: answer })
    return answer
  },
  "tool.execute.after": async (input, answered) => {
    note({ hook: "after", call: input.callID, session: input.sessionID, output: answered.output })
  },
})
