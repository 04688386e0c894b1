/** How the pack's nodes look: the colour of their title bar, of their links, and what a folded node says. */

import { app } from "../../../scripts/app.js"

const TITLE_BAR = "#37305a"
const LINKS = {
  MIP_ADAPTER: "#8f7ee7",
  MIP_REFERENCES: "#f2b84b",
  MIP_MERGE: "#5bc0a4",
  MIP_FUSION_HEAD: "#d98fbf",
  MIP_RELEVANCE: "#6db3e8",
  MIP_ENCODER: "#c9a66b",
  MIP_DETECTOR: "#e08a6d",
  MIP_DETECTIONS: "#9fc5a0",
}
// The widget that tells folded nodes of one kind apart.
const TOLD_APART_BY = { MIPReference: "text", MIPMerge: "strategy", MIPAdapterLoader: "adapter_name" }

// What people type who do not know our names yet; frontends that do not know aliases pass over them.
const ALIASES = {
  MIPAdapterLoader: ["ipadapter loader", "load ip-adapter"],
  MIPReference: ["ipadapter", "reference image", "subject", "multiple subjects"],
  MIPApply: ["ipadapter", "apply ip-adapter", "personalize", "multi subject"],
  MIPMerge: ["combine embeds", "ipadapter combine"],
  MIPRelevanceMaps: ["attention map", "heatmap", "segment objects"],
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
  addCustomNodeDefs(defs) {
    for (const [type, aliases] of Object.entries(ALIASES)) if (defs[type]) defs[type].search_aliases ??= aliases
  },
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name?.startsWith("MIP") || !nodeData.category?.startsWith("MIP-Adapter")) return
    nodeType.color ??= TITLE_BAR // of the class: not saved, and a colour that the user gives a node wins
    const widgetName = TOLD_APART_BY[nodeData.name]
    if (!widgetName) return
    const getTitle = nodeType.prototype.getTitle
    nodeType.prototype.getTitle = function () {
      const title = getTitle.call(this)
      const value = this.flags?.collapsed && this.widgets?.find((each) => each.name === widgetName)?.value
      return value && this.title === nodeType.title ? `${value} · ${title}` : title
    }
  },
  afterConfigureGraph: colourLinks, // the palette is read later than the extensions' setup
  setup() {
    app.ui.settings.addEventListener?.("Comfy.ColorPalette.change", () => setTimeout(colourLinks))
  },
})
