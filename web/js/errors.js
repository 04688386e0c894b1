/** Says what is wrong with our nodes where it is heard: the sentence in a toast. The host marks the inputs. */

import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"
import { BYPASSED, MUTED, nodeOf } from "./chain.js"
import { warningsOf } from "./warnings.js"
import { filled, learn, nodeWords, running, say } from "./words.js"

const FOLDER = decodeURIComponent(new URL(import.meta.url).pathname.split("/").at(-3)) // of the pack in custom_nodes
const LIFE = 15_000 // milliseconds

// The newer frontend's own box, “1 error”, lies where its toasts begin; it grows to this height and no further.
const BELOW_THE_HOSTS = document.createElement("style")
BELOW_THE_HOSTS.textContent = `body:has([data-testid="error-overlay"]) .p-toast-top-right { margin-top: 10rem }`

/** @typedef {{ type: string, message: string, details: string, extra_info?: { input_name?: string } }} HostError */

/**
 * The sentences about our nodes in the host's answer to a prompt, each once.
 *
 * @param {Record<string, { class_type: string, errors: HostError[] }>} errors by the node's id
 * @returns {{ id: string, type: string, sentence: string }[]}
 */
export function sentencesOf(errors) {
  const found = new Map()
  for (const [id, { class_type: type, errors: each }] of Object.entries(errors ?? {})) {
    if (!type.startsWith("MIP")) continue
    for (const error of each) {
      const sentence = sentenceOf(id, type, error)
      found.set(`${id} ${sentence}`, { id, type, sentence })
    }
  }
  return [...found.values()]
}

/** One error of the host in our words; where the host already has a sentence of ours, that one. */
function sentenceOf(id, type, { type: kind, message, details, extra_info: extra }) {
  const name = extra?.input_name ?? details
  const [input, socket] = name.split(".") // where an input has several sockets, both are named
  const words = nodeWords(type)?.inputs?.[input]
  const { required, optional } = LiteGraph.registered_node_types[type]?.nodeData?.input ?? {}
  const tooltip = words?.tooltip ?? (required?.[input] ?? optional?.[input])?.[1]?.tooltip ?? ""
  if (kind === "required_input_missing") {
    const sentence = {
      [MUTED]: say("What is connected to “%s” is muted."),
      [BYPASSED]: say("What is connected to “%s” is bypassed, and hands nothing on to it."),
    }[feedOf(id, name)?.mode]
    return running([filled(sentence ?? say("Nothing is connected to “%s”."), socket ?? words?.name ?? name), tooltip])
  }
  if (kind === "custom_validation_failed") return details.replace(`${name} - `, "")
  return `${message}: ${details}`
}

/** The node at the other end of an input's wire, if there is a wire. */
function feedOf(id, name) {
  const node = nodeOf(id)
  const slot = node?.inputs?.findIndex((each) => each.name === name) ?? -1
  return slot < 0 ? null : node.getInputNode(slot)
}

function toast(id, type, sentence, severity = "error") {
  const title = nodeOf(id)?.getTitle?.() ?? nodeWords(type)?.display_name ?? type
  app.extensionManager.toast.add({ severity, summary: title, detail: sentence, life: LIFE })
}

/** Whether the last line of a traceback is in our code: an error of ours that comes up in the sampler. */
const raisedHere = (traceback) =>
  traceback?.findLast?.((line) => line.includes('File "'))?.replaceAll("\\", "/").includes(`/${FOLDER}/`)

app.registerExtension({
  name: "MIP-Adapter.Errors",
  init: learn,
  setup() {
    document.head.append(BELOW_THE_HOSTS)
    const queuePrompt = api.queuePrompt
    const speak = (errors) => sentencesOf(errors).forEach((each) => toast(each.id, each.type, each.sentence))
    api.queuePrompt = function (number, prompt, ...given) {
      for (const [sentence, id] of warningsOf(prompt?.output)) toast(id, "MIPApply", sentence, "warn")
      const answer = queuePrompt.call(this, number, prompt, ...given)
      // Of a prompt with several outputs the host queues what it can, and says nothing about the others.
      answer.then((said) => speak(said?.node_errors), (error) => speak(error?.response?.node_errors))
      return answer
    }
    const warned = new Set() // in this run: a sampler can warn once for each picture that it details
    api.addEventListener("execution_start", () => warned.clear())
    api.addEventListener("mip_adapter.warning", ({ detail: { node_id: id, sentence } }) => {
      if (!warned.has(sentence)) toast(id, "MIPApply", sentence, "warn")
      warned.add(sentence)
    })
    api.addEventListener("execution_error", ({ detail }) => {
      const { node_id: id, node_type: type, exception_message: message, traceback } = detail
      if (type?.startsWith("MIP") || raisedHere(traceback)) toast(id, type, message.trim())
    })
  },
})
