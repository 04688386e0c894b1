/** What the host runs without a word, though it is hardly meant: sentences about a prompt before it is queued. */

import { app } from "../../../scripts/app.js"
import { shownAsApp } from "./app_mode.js"
import { lostOf, MOST_STEPS, nodeOf, objectsOf, promptOf, wordsKnownTo } from "./chain.js"
import { mistakesIn } from "./mistakes.js"
import { filled, listed, say } from "./words.js"

/** @typedef {Record<string, { class_type: string, inputs: Record<string, unknown> }>} Output of a prompt, by id */

/**
 * @param {Output} output
 * @returns {Map<string, string>} sentences, each with the id of a MIPApply: several that share a chain say it once
 */
export function warningsOf(output) {
  const warnings = new Map()
  for (const [id, { class_type: type }] of Object.entries(output ?? {})) {
    const node = type === "MIPApply" && nodeOf(id)
    if (!node) continue
    for (const sentence of [...lossesOf(node), ...unseenMistakes(node), unused(output, id), twice(output, id)]) {
      if (sentence) warnings.set(sentence, id)
    }
  }
  return warnings
}

const titleOf = (id) => nodeOf(id)?.getTitle() ?? id
const isFrom = (link, id, slot) => Array.isArray(link) && link[0] === id && link[1] === slot

/** What `read` finds; nothing where a chain is in a state that cannot be read: a run is never kept from starting. */
function tried(read) {
  try {
    return read()
  } catch (error) {
    console.debug("MIP-Adapter: the chain of references cannot be read", error)
    return []
  }
}

/** What a MIPApply samples without, because muted nodes cut it off: objects of its chain, and more pictures of an object. */
const lossesOf = (node) =>
  tried(() => {
    const { objects, by } = lostOf(node)
    const cut = objects.filter((each) => !each.muted).map((each) => `“${each.text}”`)
    const sentence = say("“%s” is muted, and that cuts off what stands before it in the chain: %s. Bypass it instead (Ctrl+B).")
    const ofPictures = say("“%s” is muted, and that cuts off the pictures of “%s” before it. Bypass it instead (Ctrl+B).")
    const pictures = objectsOf(node).filter((each) => each.lostPictures.cut)
    return [
      ...(cut.length ? [filled(sentence, by.getTitle(), listed(cut))] : []),
      ...pictures.map((each) => filled(ofPictures, each.lostPictures.by.getTitle(), each.text)),
    ]
  })

/** The labels over the thumbnails of a MIPApply, where nobody sees them; the host refuses what has no text or picture. */
const unseenMistakes = (node) =>
  tried(() => {
    if (!shownAsApp() && !node.flags?.collapsed && node.graph === app.canvas?.graph) return []
    const objects = objectsOf(node)
    const mistakes = mistakesIn(objects, promptOf(node), wordsKnownTo(node))
    const accepted = ({ text, connected }, i) => mistakes[i] && text && connected
    return objects.map((each, i) => (accepted(each, i) ? filled(say("Likely wrong with “%s”: %s."), each.text, mistakes[i]) : ""))
  })

/** Of a MIPApply whose relevance is looked at while its model is sampled by nobody. */
function unused(output, id) {
  const links = Object.values(output).flatMap((each) => Object.values(each.inputs ?? {}))
  if (!links.some((link) => isFrom(link, id, 1)) || links.some((link) => isFrom(link, id, 0))) return ""
  return filled(say("The model of “%s” goes to no sampler: its references do not act, and its maps say nothing of this run."), titleOf(id))
}

/** Of a MIPApply behind another one that applies the same references by the same adapter at the same time. */
function twice(output, id) {
  const { inputs } = output[id]
  let before = inputs.model?.[0]
  for (let steps = 0; output[before] && steps < MOST_STEPS; steps++) {
    const { class_type: type, inputs: others } = output[before]
    const same = ["references", "adapter"].every((name) => inputs[name] && String(inputs[name]) === String(others[name]))
    const together = inputs.start_percent < others.end_percent && others.start_percent < inputs.end_percent
    if (type === "MIPApply" && same && together) {
      return filled(say("“%s” applies the same references as “%s” before it: they act twice."), titleOf(id), titleOf(before))
    }
    before = others.model?.[0]
  }
  return ""
}
