/**
 * The pack's templates: in the order in which one learns them, where the host lists them as the disk happens to; and
 * their notes, titles and labels in the user's language, from web/templates/.
 */

import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"

const FOLDER = decodeURIComponent(new URL(import.meta.url).pathname.split("/").at(-3)) // of the pack in custom_nodes
const ORDER = [
  "start here - miniature",
  "two objects (base)",
  "three objects (plus)",
  "regions",
  "objects in a style",
  "two people",
  "two objects (FLUX)",
  "two references (Kontext)",
  "merge strategies side by side",
  "merging or training",
  "binding report and seed picker",
  "object relevance score",
  "quality of a picture's objects",
]

/** @param {string[]} names @returns {string[]} ordered; unknown ones last */
export function ordered(names) {
  const place = (name) => (ORDER.includes(name) ? ORDER.indexOf(name) : ORDER.length)
  return [...names].sort((a, b) => place(a) - place(b) || a.localeCompare(b))
}

/** Titles, labels and notes in the user's language, by the English ones. @type {Record<string, string>} */
let words = {}
const known = (text) => (Object.hasOwn(words, text) ? words[text] : undefined) // “constructor” is no text of ours

async function learnTexts() {
  const language = app.extensionManager?.setting?.get("Comfy.Locale")
  if (language !== "zh") return
  try {
    words = await (await fetch(new URL(`../templates/${language}.json`, import.meta.url))).json()
  } catch (error) {
    console.warn("MIP-Adapter: the templates' texts are not translated", error)
  }
}

/** Translate a graph that has a template's note as it is shipped; any other, an edited template too, stays as it is. */
function translateTexts(graph) {
  const nodes = graph?.nodes ?? []
  const note = nodes.find((node) => node.type === "MarkdownNote" && known(node.widgets?.[0]?.value))
  if (!note) return
  note.widgets[0].value = known(note.widgets[0].value)
  for (const each of [...nodes, ...(graph.groups ?? [])]) each.title = known(each.title) ?? each.title
  for (const each of nodes.flatMap((node) => [...(node.inputs ?? []), ...(node.widgets ?? [])])) {
    if (each.label) each.label = known(each.label) ?? each.label
  }
  for (const [, , about] of graph.extra?.linearData?.inputs ?? []) {
    if (about?.description) about.description = known(about.description) ?? about.description
  }
}

app.registerExtension({
  name: "MIP-Adapter.Templates",
  init: learnTexts,
  afterConfigureGraph: () => translateTexts(app.graph),
  setup() {
    const getWorkflowTemplates = api.getWorkflowTemplates
    api.getWorkflowTemplates = async function (...given) {
      const all = await getWorkflowTemplates.apply(this, given)
      return all?.[FOLDER] ? { ...all, [FOLDER]: ordered(all[FOLDER]) } : all
    }
  },
})
