/** The button “add another object” on MIP Reference: makes the next reference of the chain. */

import { app } from "../../../scripts/app.js"
import { learn, say } from "./words.js"

const GAP = 40
const PADDING = 15 // of a group around its nodes

/**
 * Put a new MIPReference, with a picture from the same kind of node as the last one's, below the last of the chain:
 * whatever took the chain from the last takes it from the new one. One step for undo; works inside subgraphs.
 *
 * @param {object} clicked a MIPReference of the chain
 * @returns {object} the new MIPReference
 */
export function addObject(clicked) {
  const reference = lastOfChain(clicked)
  const { graph } = reference
  app.canvas.emitBeforeChange?.()
  graph.beforeChange()
  try {
    const next = LiteGraph.createNode("MIPReference")
    const { node: source, slot } = sourceOf(reference) ?? {}
    const picture = source?.clone()
    next.size = [...reference.size]
    if (picture) picture.title = picture.constructor.title // not the name that the other one was given
    place(graph, picture ? [[reference, next], [source, picture]] : [[reference, next]])

    const added = picture ? [picture, next] : [next]
    for (const each of added) graph.add(each)
    widenGroups(graph, reference, added)
    moveOutput(graph, reference, next)
    reference.connect(0, next, "references")
    picture?.connect(slot, next, "image")
    graph.updateExecutionOrder() // else Run does, which undo would count as a step
    return next
  } finally {
    graph.afterChange()
    app.canvas.emitAfterChange?.()
    graph.setDirtyCanvas(true, true)
  }
}

/** Follow the chain from one reference to the next for as long as it goes nowhere else. */
function lastOfChain(reference) {
  for (const seen = new Set(); !seen.has(reference); ) {
    seen.add(reference)
    const links = (reference.outputs[0].links ?? []).map((id) => reference.graph.getLink(id))
    const next = links.length === 1 && reference.graph.getNodeById(links[0]?.target_id)
    if (next?.comfyClass === "MIPReference") reference = next
  }
  return reference
}

/**
 * The node that a reference's picture comes from directly and that needs nothing from other nodes (Load Image, Draw
 * Miniature Object, …), and its slot; undefined for anything else: what it is connected with is not ours to double.
 */
function sourceOf(reference) {
  const link = reference.graph.getLink(reference.inputs.find((each) => each.name === "image")?.link)
  const node = link && reference.graph.getNodeById(link.origin_id)
  const alone = node && !node.subgraph && !node.isVirtualNode && !node.inputs?.some((each) => each.link != null)
  return alone ? { node, slot: link.origin_slot } : undefined
}

/** Give each new node the place below its model, all moved down alike until they cover nothing. */
function place(graph, pairs) {
  const title = LiteGraph.NODE_TITLE_HEIGHT
  const bottom = Math.max(...pairs.map(([model]) => model.pos[1] + model.size[1]))
  const top = Math.min(...pairs.map(([model]) => model.pos[1]))
  let down = bottom - top + title + GAP
  const taken = graph.nodes.map((node) => [node.pos[0], node.pos[1] - title, node.size[0], node.size[1] + title])
  const covered = () =>
    pairs.flatMap(([model, added]) => {
      const [x, y, width, height] = [model.pos[0], model.pos[1] + down - title, added.size[0], added.size[1] + title]
      return taken
        .filter((box) => x < box[0] + box[2] && box[0] < x + width && y < box[1] + box[3] && box[1] < y + height)
        .map((box) => box[1] + box[3] - y)
    })
  for (let moves; (moves = covered()).length; ) down += Math.max(...moves) + GAP
  for (const [model, added] of pairs) added.pos = [model.pos[0], model.pos[1] + down]
}

/** The groups that a reference lies in reach as far as what was added below it. */
function widenGroups(graph, reference, added) {
  for (const group of graph.groups ?? []) {
    const [x, y, width, height] = group._bounding
    const [inX, inY] = [reference.pos[0] - x, reference.pos[1] - y]
    if (inX < 0 || inY < 0 || inX > width || inY > height) continue
    const right = Math.max(x + width, ...added.map((node) => node.pos[0] + node.size[0] + PADDING))
    const bottom = Math.max(y + height, ...added.map((node) => node.pos[1] + node.size[1] + PADDING))
    group.size = [right - x, bottom - y]
  }
}

/** Everything that the first output of `from` feeds, through its reroutes too, is fed by `to`. */
function moveOutput(graph, from, to) {
  const links = [...(from.outputs[0].links ?? [])].map((id) => graph.getLink(id)).filter(Boolean)
  for (const link of links) {
    if (link.target_id === graph.outputNode?.id) {
      graph.outputNode.slots[link.target_slot].connect(to.outputs[0], to, link.parentId) // out of a subgraph
    } else {
      const taker = graph.getNodeById(link.target_id)
      const slot = taker.inputs.findIndex((each) => each.link === link.id) // link.target_slot can be out of date
      to.connect(0, taker, slot, link.parentId)
    }
  }
}

app.registerExtension({
  name: "MIP-Adapter.AddObject",
  init: learn,
  nodeCreated(node) {
    if (node.comfyClass !== "MIPReference") return
    const button = node.addWidget("button", say("add another object"), null, () => addObject(node), { serialize: false })
    button.serialize = false
  },
})
