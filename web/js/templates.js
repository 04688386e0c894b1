/** The pack's templates in the order in which one learns them; the host lists them as the disk happens to. */

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

app.registerExtension({
  name: "MIP-Adapter.Templates",
  setup() {
    const getWorkflowTemplates = api.getWorkflowTemplates
    api.getWorkflowTemplates = async function (...given) {
      const all = await getWorkflowTemplates.apply(this, given)
      return all?.[FOLDER] ? { ...all, [FOLDER]: ordered(all[FOLDER]) } : all
    }
  },
})
