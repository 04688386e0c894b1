/**
 * Reads the graph as the host does when it queues it: through reroutes, subgraphs, bypassed and virtual nodes.
 *
 * A *place* is a node and where it is: `{ node, path }`, path being the subgraph nodes around it, outermost first.
 * One subgraph can stand in a workflow several times, so the node alone does not say what flows into it.
 *
 * @typedef {{ node: object, path: object[] }} Place
 * @typedef {{ picture: string | null, connected: boolean, text: string, mapColor: unknown, texts: string[],
 *   lostPictures: { muted: number, cut: number, by: object | null } }} ObjectOfChain picture: a /view query, null where there
 *   is none or it is not known; connected: something gives one; texts: those of references that are connected as more
 *   pictures of this object; lostPictures: how many of those are muted, how many stand before a muted one, and the last one
 */

export const MUTED = 2
export const BYPASSED = 4
const MOST_OBJECTS = 16 // as many as MIP Apply accepts, and as many styles
const OBJECTS = ["MIPReference", "MIPFaceReference"]
const SEVERAL = "MIPSeveralReferences"
const LINKS = [...OBJECTS, SEVERAL, "MIPStyleReference"] // a style stands in the chain and is no object
const PROMPTS = ["positive", "conditioning"] // inputs of samplers and guiders
const PICTURES = ["MIPPicture", ...OBJECTS] // workflows from before there was MIP Picture have references
// A stranger's graph is read at every drawing. A loop in it ends here; and two links to one node, at many nodes in a row,
// would be followed along all their ways.
export const MOST_STEPS = 200
const LONGEST_TEXT = 1000 // letters of an object's text; the host accepts 300
const LONGEST = 20_000 // letters of any other text, as many as the host accepts

/** @param {string} id of the host, “12” or “12:3” inside a subgraph @returns {object | null | undefined} the node */
export function nodeOf(id) {
  let [graph, node] = [window.app.rootGraph ?? window.app.graph, null]
  for (const step of String(id).split(":")) {
    node = graph?.getNodeById(step) ?? graph?.getNodeById(Number(step))
    graph = node?.subgraph
  }
  return node
}

/**
 * The objects that reach a node's `references`, first one first.
 *
 * @param {object} node a MIPApply
 * @returns {ObjectOfChain[]}
 */
export function objectsOf(node) {
  return objectsAt(linksOf(node, false))
}

/** @returns {boolean} whether a node or a subgraph around it is muted */
const isMuted = ({ node, path }) => [node, ...path].some((each) => each.mode === MUTED)

/**
 * The objects that a muted node keeps from a node's `references`, first one first: the host forgets a muted reference
 * together with everything before it in the chain.
 *
 * @param {object} node a MIPApply
 * @returns {{ objects: (ObjectOfChain & { muted: boolean })[], by: object | null }} muted: the object itself is, it is not
 *   cut off by another; by: the last muted node
 */
export function lostOf(node) {
  const all = linksOf(node, true)
  const lost = all.slice(0, all.length - linksOf(node, false).length)
  const objects = lost.flatMap((at) => objectsAt([at]).map((each) => ({ ...each, muted: isMuted(at) })))
  return { objects: objects.slice(-2 * MOST_OBJECTS), by: lost.findLast(isMuted)?.node ?? null }
}

/**
 * The nodes of the chain that ends at a node's `references`, first one first.
 *
 * @param {object} node a MIPApply
 * @param {boolean} muted whether to read on through muted nodes, as if they were not
 * @returns {Place[]}
 */
const linksOf = (node, muted) => chainAt({ node, path: pathTo(node.graph) }, "references", LINKS, muted)

/** The nodes of these kinds that end in a chain at an input, first one first. muted: as for `linksOf`. */
function chainAt(at, input, kinds, muted) {
  const found = []
  while (found.length < 2 * MOST_OBJECTS) {
    at = source(at, input, { muted })
    if (!kinds.includes(at?.node?.comfyClass)) break
    found.unshift(at)
    input = at.node.comfyClass === "MIPPicture" ? "pictures" : "references"
  }
  return found
}

/** What a muted node keeps from the `more_pictures` of a reference. @returns {{ muted: number, cut: number, by: object | null }} */
function lostPicturesAt(at) {
  const all = chainAt(at, "more_pictures", PICTURES, true)
  const lost = all.slice(0, all.length - chainAt(at, "more_pictures", PICTURES, false).length)
  const cut = lost.filter((each) => !isMuted(each)).length
  return { muted: lost.length - cut, cut, by: lost.findLast(isMuted)?.node ?? null }
}

/** @param {Place[]} links @returns {ObjectOfChain[]} a style is none, a MIPSeveralReferences several */
function objectsAt(links) {
  const found = links.flatMap((at) => {
    if (at.node.comfyClass === SEVERAL) return severalOf(at)
    if (!OBJECTS.includes(at.node.comfyClass)) return []
    const texts = textsOfChain(source(at, "more_pictures"))
    const lostPictures = lostPicturesAt(at)
    return [{ ...object(at, "image", value(at, "text"), value(at, "map_color")), texts, lostPictures }]
  })
  return found.slice(-2 * MOST_OBJECTS)
}

/** @returns {ObjectOfChain} */
const object = (at, input, text, mapColor) => ({
  picture: pictureFor(at, input),
  connected: source(at, input) !== null,
  text: String(text ?? "").slice(0, LONGEST_TEXT).trim(),
  mapColor,
  texts: [],
  lostPictures: { muted: 0, cut: 0, by: null },
})

/** @returns {string[]} the texts of a chain of MIPReference that ends at a place */
function textsOfChain(at) {
  const texts = []
  for (; OBJECTS.includes(at?.node?.comfyClass) && texts.length < MOST_OBJECTS; at = source(at, "references")) {
    texts.push(String(value(at, "text") ?? "").slice(0, LONGEST_TEXT))
  }
  return texts
}

/** The objects of a MIPSeveralReferences: names and pictures by their numbers, as nodes/several.py pairs them. */
function severalOf(at) {
  const names = String(value(at, "names") ?? "")
    .slice(0, LONGEST)
    .split(/[\n,;]/)
    .filter((each) => each.trim())
  const slots = at.node.inputs.filter((each) => each.name.startsWith("pictures.") && source(at, each.name))
  const last = Math.max(names.length, ...slots.map((each) => Number(each.name.split(" ")[1])))
  return Array.from({ length: Math.min(last, MOST_OBJECTS) }, (_, i) => object(at, `pictures.picture ${i + 1}`, names[i]))
}

/**
 * The prompt that the model of a MIPApply is sampled with: what its input says, else the texts of the positive
 * conditioning of the samplers behind it.
 *
 * @param {object} node a MIPApply
 * @returns {string | null} null where some part of it is not written in a widget, or no sampler takes the model
 */
export function promptOf(node) {
  const at = { node, path: pathTo(node.graph) }
  const left = { steps: MOST_STEPS }
  if (node.inputs?.find((each) => each.name === "prompt")?.link != null) return written(source(at, "prompt"), left)
  const texts = samplersBehind(at).map((sampler) => {
    const { name } = sampler.node.inputs.find((each) => PROMPTS.includes(each.name))
    return textsOf(source(sampler, name), left)
  })
  return texts.length ? joined(texts) : null
}

/** @param {object} node a MIPApply @returns {string[] | null} the words that its text encoder knows; null: all sorts of them */
export function wordsKnownTo(node) {
  const from = source({ node, path: pathTo(node.graph) }, "clip")
  if (from?.node?.comfyClass !== "MIPMiniatureLoader") return null
  const [list, about] = LiteGraph.registered_node_types.MIPMiniatureObject.nodeData.input.required.kind
  return about?.options ?? list
}

/** Texts one below the other; null if one of them is null, or if they are longer than the host accepts. */
function joined(texts) {
  const whole = texts.includes(null) ? null : texts.join("\n")
  return whole?.length > LONGEST ? null : whole
}

/** @param {Place} start @returns {Place[]} what takes a node's model, through other nodes too, together with a conditioning */
function samplersBehind(start) {
  const all = [start]
  const seen = new Set()
  const left = { steps: MOST_STEPS }
  for (const { node, path } of all) {
    const models = node.outputs?.filter((output) => output.type === "MODEL") ?? []
    const behind = models.flatMap(({ links }) => takers(node.graph, path, links, left))
    for (const at of behind) {
      const key = [...at.path, at.node].map((each) => each.id).join(":")
      if (!seen.has(key)) all.push(at)
      seen.add(key)
    }
  }
  const takesPrompt = ({ node }) => node.inputs?.some((input) => PROMPTS.includes(input.name))
  return all.slice(1).filter(takesPrompt)
}

/** The places to which links of a graph lead, out of subgraphs and into them. path: of the graph; left: as for `textsOf`. */
function takers(graph, path, ids, left) {
  return (ids ?? []).flatMap((id) => {
    const link = graph?.getLink(id)
    if (!link || left.steps-- <= 0) return []
    if (link.target_id === graph.outputNode?.id) {
      const shell = path.at(-1)
      return takers(shell?.graph, path.slice(0, -1), shell?.outputs?.[link.target_slot]?.links, left)
    }
    const node = graph.getNodeById(link.target_id)
    if (!node?.subgraph) return node ? [{ node, path }] : []
    return takers(node.subgraph, [...path, node], node.subgraph.inputNode?.slots[link.target_slot]?.linkIds, left)
  })
}

/**
 * All texts that a conditioning is made of; null if one of them is not written in a widget.
 *
 * @param {{ steps: number }} left how many nodes may still be looked at, on all ways together
 */
function textsOf(at, left) {
  const into = at?.node?.inputs?.filter((each) => each.type === "CONDITIONING" && each.link != null) ?? []
  if (!at?.node || left.steps-- <= 0) return null
  if (!into.length) return at.node.inputs?.some((each) => each.type === "CLIP") ? written(at, left) : null
  return joined(into.map((each) => textsOf(source(at, each.name), left)))
}

/** The text in a node's widgets, where no other node gives a part of it. left: as for `textsOf`. */
function written(at, left) {
  if (!at?.node) return typeof at?.value === "string" ? at.value : null
  if (left.steps-- <= 0) return null
  const texts = at.node.widgets?.filter((each) => typeof each.value === "string" && each.type !== "combo") ?? []
  const linked = texts.filter((each) => at.node.inputs?.find((input) => input.name === each.name)?.link != null)
  const parts = texts.map((each) => (linked.includes(each) ? written(source(at, each.name), left) : each.value))
  return parts.length ? joined(parts) : null
}

/**
 * The subgraph nodes that lead from the workflow's root to a graph; of several ways the first.
 *
 * @param {object} graph
 * @returns {object[]}
 */
function pathTo(graph) {
  const seen = new Set()
  const search = (from, path) => {
    if (from === graph) return path
    seen.add(from)
    for (const node of from?.nodes ?? []) {
      const found = node.subgraph && !seen.has(node.subgraph) && search(node.subgraph, [...path, node])
      if (found) return found
    }
    return null
  }
  return search(graph?.rootGraph ?? graph, []) ?? []
}

/**
 * What feeds an input: a place whose node makes the value, or `{ value }` where a widget on a subgraph node gives it.
 *
 * @param {Place} place
 * @param {string | number} input name or index
 * @param {{ steps?: number, muted?: boolean, type?: string }} [how] steps: what is left of MOST_STEPS; muted: whether a
 *   muted node counts; type: of the input that everything flows into, by which a bypassed node is passed
 * @returns {(Place & { value?: unknown }) | null} null: nothing is connected, or it is muted
 */
function source({ node, path }, input, { steps = MOST_STEPS, muted = false, type } = {}) {
  const slot = typeof input === "number" ? node.inputs?.[input] : node.inputs?.find((each) => each.name === input)
  const link = slot?.link == null ? null : node.graph?.getLink(slot.link)
  if (!link || steps <= 0) return null
  const how = { steps: steps - 1, muted, type: type ?? slot.type }
  if (link.origin_id === node.graph.inputNode?.id) return sourceOutside(path, link.origin_slot, how)
  return maker({ node: node.graph.getNodeById(link.origin_id), path }, link.origin_slot, how)
}

/** The same for an input of the subgraph around: go out through its node. */
function sourceOutside(path, slot, how) {
  const node = path.at(-1)
  const input = node?.inputs?.[slot]
  if (!input) return null
  if (input.link != null) return source({ node, path: path.slice(0, -1) }, slot, how)
  const widget = node.widgets?.find((each) => each.name === input.widget?.name || each.name === input.name)
  return widget ? { node: null, path: [], value: widget.value } : null
}

/** The node that really makes an output: not a bypassed one, not a reroute, not the shell of a subgraph. */
function maker({ node, path }, slot, { steps, muted, type }) {
  if (!node || steps <= 0 || (node.mode === MUTED && !muted)) return null
  const how = { steps: steps - 1, muted, type }
  if (node.mode === BYPASSED) {
    const into = bypassSlot(node, slot, type)
    return into >= 0 ? source({ node, path }, into, how) : null
  }
  if (node.subgraph) {
    const inner = node.subgraph.getLink(node.subgraph.outputNode?.slots[slot]?.linkIds[0])
    if (!inner) return null
    const within = [...path, node]
    if (inner.origin_id === node.subgraph.inputNode?.id) return sourceOutside(within, inner.origin_slot, how)
    return maker({ node: node.subgraph.getNodeById(inner.origin_id), path: within }, inner.origin_slot, how)
  }
  if (node.isVirtualNode) {
    const through = node.getInputLink?.(slot) // of a reroute its own, of a "get" node its "set" node's
    const into = through && node.graph.getNodeById(through.target_id)
    return into ? source({ node: into, path }, through.target_slot, how) : null
  }
  return { node, path }
}

/** The input that an output of a bypassed node stands for; -1 if there is none. Inputs may be of several types. */
function bypassSlot({ inputs = [], outputs = [] }, slot, type) {
  const fits = (input) => [outputs[slot]?.type, type].every((each) => LiteGraph.isValidConnection(input?.type, each))
  if (inputs[slot] && fits(inputs[slot])) return slot
  const same = inputs.findIndex((each) => each.type === type)
  return same >= 0 ? same : inputs.findIndex(fits)
}

/** A widget's value; where the widget is linked, what stands at the other end, if that is a value too. */
function value(place, name) {
  const linked = place.node.inputs?.find((each) => each.name === name)?.link != null
  if (!linked) return place.node.widgets?.find((each) => each.name === name)?.value
  const from = source(place, name)
  if (!from?.node) return from?.value
  return from.node.widgets?.find((each) => typeof each.value === "string")?.value
}

/**
 * The query of a reference's picture: of the nearest node upstream that shows one.
 *
 * @param {Place} place a MIPReference or MIPSeveralReferences
 * @param {string} input of its picture
 * @returns {string | null}
 */
function pictureFor(place, input) {
  let at = source(place, input)
  for (let steps = 0; at?.node && steps < MOST_STEPS; steps++) {
    const shown = shownBy(at)
    if (shown) return new URLSearchParams(shown).toString()
    const through = at.node.inputs?.findIndex((each) => each.type === "IMAGE" && each.link != null) ?? -1
    at = through < 0 ? null : source(at, through)
  }
  return null
}

/** What /view needs for the picture that a node loads or previews: `{ filename, subfolder, type }`. */
function shownBy(place) {
  const { node } = place
  const output = window.app?.nodeOutputs?.[node.graph?.isRootGraph === false ? `${node.graph.id}:${node.id}` : node.id]
  const made = output?.images?.[0]
  const loads = node.widgets?.find((each) => each.name === "image" && each.options?.values)
  if (!loads) return made?.filename ? { filename: made.filename, subfolder: made.subfolder ?? "", type: made.type } : null
  const name = value(place, "image")
  if (typeof name !== "string" || !name) return null
  const [, path, type = "input"] = name.match(/^(.*?)(?: \[(\w+)\])?$/s)
  const cut = path.lastIndexOf("/")
  return { filename: path.slice(cut + 1), subfolder: path.slice(0, Math.max(cut, 0)), type }
}
