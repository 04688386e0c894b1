/** How the pack's nodes look: the colour of their title bar, of their links, and what a folded node says. */

import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"

const TITLE_BAR = "#37305a"
const LIGHT_TITLE_BAR = "#b9b3d6" // as the host makes it of the other one where it draws it itself
const LINKS = {
  MIP_ADAPTER: "#8f7ee7",
  MIP_REFERENCES: "#f2b84b",
  MIP_PICTURES: "#f58fa8",
  "MIP_PICTURES,MIP_REFERENCES": "#f58fa8",
  MIP_MERGE: "#5bc0a4",
  MIP_FUSION_HEAD: "#d98fbf",
  MIP_BLOCK_STRENGTH: "#a99be0",
  MIP_RELEVANCE: "#6db3e8",
  MIP_ENCODER: "#c9a66b",
  MIP_DETECTOR: "#e08a6d",
  MIP_DETECTIONS: "#9fc5a0",
}
/** What an empty text shows, on nodes drawn by Vue; the frontend hands it on to texts of several lines alone. */
function showPlaceholders(node) {
  const { required, optional } = node.constructor.nodeData?.input ?? {}
  for (const widget of node.widgets ?? []) {
    const placeholder = { ...required, ...optional }[widget.name]?.[1]?.placeholder
    if (placeholder && widget.options) widget.options.placeholder ??= placeholder
  }
}

const LONGEST = 100 // letters of a title
// The widget that tells folded nodes of one kind apart.
const TOLD_APART_BY = { MIPReference: "text", MIPFaceReference: "text", MIPMerge: "strategy", MIPAdapterLoader: "adapter_name" }

/** What a folded node says before its title, to tell nodes of one kind apart; nothing where the user named the node. */
function toldApart(node) {
  const widgetName = TOLD_APART_BY[node.comfyClass]
  const value = widgetName && node.flags?.collapsed && node.widgets?.find((each) => each.name === widgetName)?.value
  return value && node.title === node.constructor.title ? `${String(value).slice(0, LONGEST)} · ` : ""
}

const rules = document.createElement("style")

// Where nodes are drawn by Vue: with a light palette titles are black.
const titleBar = document.createElement("style")
titleBar.textContent = `:root { --mip-title-bar: ${LIGHT_TITLE_BAR} } .dark-theme { --mip-title-bar: ${TITLE_BAR} }`

/** As a CSS string: what a stranger's workflow has for a text or an id becomes no rule of its own. */
const quoted = (text) => JSON.stringify(String(text))

/**
 * Nodes that Vue draws know neither the colour of a class nor `getTitle`: a style sheet gives them both, for the nodes of
 * the graph that is shown. A colour that the user gave a node stands on its element and wins.
 */
function styleTitles() {
  const ours = (app.canvas?.graph?.nodes ?? []).filter((node) => node.constructor.color === TITLE_BAR)
  rules.textContent = ours
    .map((node) => {
      const element = `.lg-node[data-node-id=${quoted(node.id)}]`
      const words = quoted(toldApart(node))
      return `${element} > [data-testid="node-inner-wrapper"] { background-color: var(--mip-title-bar) }
        ${element}[data-collapsed] [data-testid="node-title"]::before { content: ${words}; white-space: pre }`
    })
    .join("\n")
}

/** Colours of our sockets, unless the user's palette has its own. */
function colourLinks() {
  for (const [type, colour] of Object.entries(LINKS)) {
    for (const colours of [LGraphCanvas.link_type_colors, app.canvas?.default_connection_color_byType]) {
      if (colours && !colours[type]) colours[type] = colour
    }
    document.documentElement.style.setProperty(`--color-datatype-${type}`, colour) // for nodes drawn by Vue
  }
}

app.registerExtension({
  name: "MIP-Adapter.Look",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name?.startsWith("MIP") || !nodeData.category?.startsWith("MIP-Adapter")) return
    nodeType.color ??= TITLE_BAR // of the class: not saved, and a colour that the user gives a node wins
    if (!(nodeData.name in TOLD_APART_BY)) return
    const getTitle = nodeType.prototype.getTitle
    nodeType.prototype.getTitle = function () {
      return toldApart(this) + getTitle.call(this)
    }
  },
  nodeCreated(node) {
    if (node.comfyClass?.startsWith("MIP")) showPlaceholders(node)
    setTimeout(styleTitles) // when it has its id
  },
  afterConfigureGraph() {
    colourLinks() // the palette is read later than the extensions' setup
    styleTitles()
  },
  setup() {
    document.head.append(titleBar, rules)
    api.addEventListener("graphChanged", styleTitles)
    app.canvas?.canvas.addEventListener("litegraph:set-graph", () => setTimeout(styleTitles))
    app.ui.settings.addEventListener?.("Comfy.ColorPalette.change", () => setTimeout(colourLinks))
  },
})
