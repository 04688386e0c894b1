/**
 * Reads the graph as the host does when it queues it: through reroutes, subgraphs, bypassed and virtual nodes.
 *
 * A *place* is a node and where it is: `{ node, path }`, path being the subgraph nodes around it, outermost first.
 * One subgraph can stand in a workflow several times, so the node alone does not say what flows into it.
 *
 * @typedef {{ node: object, path: object[] }} Place
 * @typedef {{ picture: string | null, connected: boolean, text: string }} ObjectOfChain
 *   picture: a /view query, null where there is none or it is not known; connected: something gives one
 */

const MUTED = 2
const BYPASSED = 4
const MOST_OBJECTS = 16 // as many as MIP Apply accepts
const MOST_STEPS = 200 // a loop in the graph ends here

/**
 * The objects that reach a node's `references`, first one first.
 *
 * @param {object} node a MIPApply
 * @returns {ObjectOfChain[]}
 */
export function objectsOf(node) {
  const found = []
  let at = source({ node, path: pathTo(node.graph) }, "references")
  while (at?.node?.comfyClass === "MIPReference" && found.length < MOST_OBJECTS) {
    const connected = source(at, "image") !== null
    found.unshift({ picture: pictureFor(at), connected, text: String(value(at, "text") ?? "").trim() })
    at = source(at, "references")
  }
  return found
}

/**
 * The subgraph nodes that lead from the workflow's root to a graph; of several ways the first.
 *
 * @param {object} graph
 * @returns {object[]}
 */
function pathTo(graph) {
  const search = (from, path) => {
    if (from === graph) return path
    for (const node of from?.nodes ?? []) {
      const found = node.subgraph && !path.includes(node) && search(node.subgraph, [...path, node])
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
 * @param {number} [steps] what is left of MOST_STEPS
 * @returns {(Place & { value?: unknown }) | null} null: nothing is connected, or it is muted
 */
function source({ node, path }, input, steps = MOST_STEPS) {
  const slot = typeof input === "number" ? node.inputs?.[input] : node.inputs?.find((each) => each.name === input)
  const link = slot?.link == null ? null : node.graph?.getLink(slot.link)
  if (!link || steps <= 0) return null
  if (link.origin_id === node.graph.inputNode?.id) return sourceOutside(path, link.origin_slot, steps - 1)
  return maker({ node: node.graph.getNodeById(link.origin_id), path }, link.origin_slot, slot.type, steps - 1)
}

/** The same for an input of the subgraph around: go out through its node. */
function sourceOutside(path, slot, steps) {
  const node = path.at(-1)
  const input = node?.inputs?.[slot]
  if (!input) return null
  if (input.link != null) return source({ node, path: path.slice(0, -1) }, slot, steps)
  const widget = node.widgets?.find((each) => each.name === input.widget?.name || each.name === input.name)
  return widget ? { node: null, path: [], value: widget.value } : null
}

/** The node that really makes an output: not a bypassed one, not a reroute, not the shell of a subgraph. */
function maker({ node, path }, slot, type, steps) {
  if (!node || steps <= 0 || node.mode === MUTED) return null
  if (node.mode === BYPASSED) {
    const same = node.inputs?.[slot]?.type === type ? slot : node.inputs?.findIndex((each) => each.type === type)
    return same >= 0 ? source({ node, path }, same, steps - 1) : null
  }
  if (node.subgraph) {
    const inner = node.subgraph.getLink(node.subgraph.outputNode?.slots[slot]?.linkIds[0])
    if (!inner) return null
    const within = [...path, node]
    if (inner.origin_id === node.subgraph.inputNode?.id) return sourceOutside(within, inner.origin_slot, steps - 1)
    return maker({ node: node.subgraph.getNodeById(inner.origin_id), path: within }, inner.origin_slot, type, steps - 1)
  }
  if (node.isVirtualNode) {
    const through = node.getInputLink?.(slot) // of a reroute its own, of a "get" node its "set" node's
    const into = through && node.graph.getNodeById(through.target_id)
    return into ? source({ node: into, path }, through.target_slot, steps - 1) : null
  }
  return { node, path }
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
 * @param {Place} place a MIPReference
 * @returns {string | null}
 */
function pictureFor(place) {
  let at = source(place, "image")
  for (let steps = 0; at?.node && steps < MOST_STEPS; steps++) {
    const shown = shownBy(at)
    if (shown) return new URLSearchParams(shown).toString()
    const input = at.node.inputs?.findIndex((each) => each.type === "IMAGE" && each.link != null) ?? -1
    at = input < 0 ? null : source(at, input)
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
  const [, path, type = "input"] = name.match(/^(.*?)(?: \[(\w+)\])?$/)
  const cut = path.lastIndexOf("/")
  return { filename: path.slice(cut + 1), subfolder: path.slice(0, Math.max(cut, 0)), type }
}
