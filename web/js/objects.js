/**
 * On MIP Apply: a small picture of every object that reaches it, with its text, in the colours of the relevance maps; and
 * faint before them those that a muted node keeps from it.
 */

import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"
import { lostOf, objectsOf, promptOf, wordsKnownTo } from "./chain.js"
import { mistakesIn } from "./mistakes.js"
import { learn, pieces, say } from "./words.js"

const COLUMNS = 4
const SIDE = 64
const TEXT = 16
const GAP = 6
const ABOVE = 8
const NODE_MARGIN = 15
const MOST_KEPT = 64
const LONGEST = 64 // letters that could fit under a thumbnail: every shorter text is measured in turn
const [WRONG, WRONG_TEXT, LEFT_OUT] = ["#b3261e", "#ff6b60", "#555555"]
const FAINT = 0.35 // of a picture that is left out
// As in common/drawing.py, which says why.
const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#f0e442"]

const NAMES = ["blue", "orange", "green", "pink", "red", "light blue", "yellow"] // the choices of map_color

/** @param {unknown[]} chosen map_color of every object @returns {number[]} the number of every object's colour */
export function colourNumbers(chosen) {
  const numbers = chosen.map((each) => NAMES.indexOf(each))
  let next = 0
  const left = () => {
    while (numbers.includes(next)) next++
    return next++
  }
  return numbers.map((number) => (number < 0 ? left() : number))
}

/** @param {number} number of a colour, from 0 @returns {string} */
export function colour(number) {
  const turn = number - COLOURS.length
  return COLOURS[number] ?? `hsl(${(115 + turn * 137.5) % 360}, 65%, ${[25, 70, 55][turn % 3]}%)`
}

/** Pictures by query, the least recently drawn first. @type {Map<string, HTMLImageElement>} */
const kept = new Map()
/** Queries that gave no picture, asked again when the graph changes or has run. @type {Set<string>} */
const failed = new Set()

/** @param {string} query of /view @returns {HTMLImageElement} perhaps still loading: the canvas is drawn again then */
function image(query) {
  const found = kept.get(query) ?? new Image()
  kept.delete(query)
  kept.set(query, found)
  if (!found.src) {
    found.onload = () => redraw()
    found.onerror = () => failed.add(query)
    found.src = api.apiURL(`/view?${query}`)
  }
  if (kept.size > MOST_KEPT) kept.delete(kept.keys().next().value)
  return found
}

const WIDGET = "mip_objects"

/** Draw every MIPApply that can be seen again; `triggerDraw` is what the Vue renderer of nodes listens to. */
function redraw() {
  for (const node of app.canvas?.graph?.nodes ?? []) {
    if (node.comfyClass === "MIPApply") node.widgets?.find((each) => each.name === WIDGET)?.triggerDraw?.()
  }
  app.canvas?.setDirty(true, true)
}

function refresh() {
  for (const query of failed) kept.delete(query)
  failed.clear()
  redraw()
}

/** A label for more pictures of an object that do not reach it. */
function lostPictures({ lostPictures: { muted, cut } }) {
  if (cut) return say("pictures cut off")
  return muted ? say("pictures muted") : ""
}

/** The objects, or none while a workflow is being loaded or is in a state that cannot be read. */
function objects(node) {
  try {
    const all = objectsOf(node)
    const mistakes = mistakesIn(all, promptOf(node), wordsKnownTo(node))
    const numbers = colourNumbers(all.map((each) => each.mapColor))
    const lost = lostOf(node).objects.map((each) => ({
      ...each,
      ink: LiteGraph.WIDGET_SECONDARY_TEXT_COLOR,
      label: each.muted ? say("muted") : say("cut off"),
      isWrong: !each.muted, // what a user muted is left out on purpose; what stands before it is not
      isLost: true,
    }))
    const present = all.map((each, i) => ({
      ...each,
      ink: colour(numbers[i]),
      label: mistakes[i] || lostPictures(each),
      isWrong: !!mistakes[i] || each.lostPictures.cut > 0,
    }))
    return [...lost, ...present]
  } catch (error) {
    console.debug("MIP-Adapter: the chain of references cannot be read", error)
    return []
  }
}

/** @returns {number} what the thumbnails of `count` objects need, in canvas units */
const height = (count) => (count ? ABOVE + Math.ceil(count / COLUMNS) * (SIDE + TEXT + GAP) : 0)

/** Draw the whole picture, as large as fits into the square. */
function drawPicture(ctx, picture, x, y) {
  const scale = SIDE / Math.max(picture.naturalWidth, picture.naturalHeight)
  const [width, height] = [picture.naturalWidth * scale, picture.naturalHeight * scale]
  ctx.drawImage(picture, x + (SIDE - width) / 2, y + (SIDE - height) / 2, width, height)
}

/** Of pictures that a node makes while the graph runs nothing is known before: the text's first letter stands for them. */
function drawInstead(ctx, connected, text, ink, x, y) {
  const font = ctx.font
  ctx.fillStyle = connected ? ink : LiteGraph.WIDGET_SECONDARY_TEXT_COLOR
  if (connected) ctx.font = `bold 32px ${LiteGraph.NODE_FONT ?? "sans-serif"}`
  ctx.fillText(connected ? ([...text][0] ?? "?").toUpperCase() : say("no picture"), x, y)
  ctx.font = font
}

/** @returns {string[]} a label in lines that fit over a thumbnail, with the font that is set */
export function linesOf(ctx, label) {
  const lines = [""]
  for (const piece of pieces(label)) {
    const longer = lines.at(-1) + piece
    if (ctx.measureText(longer.trim()).width < SIDE - 2 || !lines.at(-1)) lines[lines.length - 1] = longer
    else lines.push(piece)
  }
  return lines.map((line) => line.trim())
}

/** On a ground over the picture's lower edge: what is likely wrong with the object, or why it is not among the others. */
function drawLabel(ctx, label, ground, x, y) {
  const font = ctx.font
  ctx.font = `10px ${LiteGraph.NODE_FONT ?? "sans-serif"}`
  const lines = linesOf(ctx, label)
  const height = 12 * lines.length + 2
  ctx.fillStyle = ground
  ctx.fillRect(x, y + SIDE - height, SIDE, height)
  ctx.fillStyle = "white"
  lines.forEach((line, i) => ctx.fillText(line, x + SIDE / 2, y + SIDE - height + 7 + 12 * i))
  ctx.font = font
}

/** @returns {string} the text, cut so that it fits under a thumbnail */
function fitted(ctx, text) {
  text = text.slice(0, LONGEST)
  if (ctx.measureText(text).width <= SIDE + GAP - 2) return text
  let end = text.length
  while (end > 1 && ctx.measureText(`${text.slice(0, end)}…`).width > SIDE + GAP - 2) end--
  return `${text.slice(0, end)}…`
}

function draw(ctx, node, width, top, _height, lowQuality) {
  const all = objects(node)
  const needed = node.computeSize()[1]
  if (node.size[1] < needed) node.setSize([node.size[0], needed])
  const columns = Math.min(all.length, COLUMNS)
  const left = Math.max(NODE_MARGIN, (width - columns * (SIDE + GAP) + GAP) / 2)
  ctx.save()
  ctx.textAlign = "center"
  ctx.textBaseline = "middle"
  ctx.font = `12px ${LiteGraph.NODE_FONT ?? "sans-serif"}`
  all.forEach(({ picture, connected, text, ink, label, isWrong, isLost }, i) => {
    const x = left + (i % COLUMNS) * (SIDE + GAP)
    const y = top + ABOVE + Math.floor(i / COLUMNS) * (SIDE + TEXT + GAP)
    const middle = x + SIDE / 2
    const loaded = picture && image(picture)
    ctx.fillStyle = LiteGraph.WIDGET_BGCOLOR
    ctx.fillRect(x, y, SIDE, SIDE)
    ctx.globalAlpha = isLost ? FAINT : 1
    if (loaded?.complete && loaded.naturalWidth) drawPicture(ctx, loaded, x, y)
    else if (!lowQuality) drawInstead(ctx, connected, text, ink, middle, y + SIDE / 2)
    ctx.globalAlpha = 1
    ctx.fillStyle = LiteGraph.WIDGET_SECONDARY_TEXT_COLOR
    ctx.strokeStyle = ink
    ctx.lineWidth = 2
    ctx.strokeRect(x, y, SIDE, SIDE)
    if (lowQuality) return
    if (label) drawLabel(ctx, label, isWrong ? WRONG : LEFT_OUT, x, y)
    ctx.fillStyle = isWrong ? WRONG_TEXT : LiteGraph.WIDGET_SECONDARY_TEXT_COLOR
    if (text && !label) ctx.fillStyle = LiteGraph.WIDGET_TEXT_COLOR
    ctx.fillText(fitted(ctx, text || say("no text")), middle, y + SIDE + TEXT / 2 + 2)
  })
  ctx.restore()
}

let made = 0 // widgets

app.registerExtension({
  name: "MIP-Adapter.Objects",
  init: learn,
  nodeCreated(node) {
    if (node.comfyClass !== "MIPApply") return
    node.addCustomWidget({
      name: WIDGET,
      label: say("objects"), // in the parameters panel
      // Undo makes a node anew. Vue would go on drawing the old node's widget, were the new one's name and type the same.
      type: `mip_objects ${++made}`,
      value: null,
      serialize: false, // nothing of it is saved: it shows what the links say
      options: { serialize: false },
      computeSize: () => [COLUMNS * (SIDE + GAP), height(objects(node).length)],
      draw,
    })
  },
  setup() {
    api.addEventListener("graphChanged", refresh)
    api.addEventListener("executed", refresh)
  },
  afterConfigureGraph: refresh,
})
