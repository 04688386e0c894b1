/**
 * Our nodes in the user's language on frontends that forget the packs' translations once a language is loaded (before
 * 1.34, https://github.com/Comfy-Org/ComfyUI_frontend/pull/7214). Elsewhere it says what the frontend says anyway.
 */

import { app } from "../../../scripts/app.js"
import { learn, nodeWords } from "./words.js"

app.registerExtension({
  name: "MIP-Adapter.Translate",
  init: learn,
  addCustomNodeDefs(defs) {
    for (const [type, def] of Object.entries(defs)) {
      const words = nodeWords(type)
      if (!words) continue
      def.display_name = words.display_name ?? def.display_name
      def.description = words.description ?? def.description
      for (const inputs of Object.values(def.input)) {
        for (const [name, [, options]] of Object.entries(inputs)) {
          if (options && words.inputs?.[name]?.tooltip) options.tooltip = words.inputs[name].tooltip
        }
      }
      def.output_tooltips = def.output?.map((_, i) => words.outputs?.[i]?.tooltip ?? def.output_tooltips?.[i])
    }
  },
  nodeCreated(node) {
    const words = nodeWords(node.comfyClass)
    if (!words) return
    for (const input of node.inputs ?? []) input.localized_name = words.inputs?.[input.name]?.name ?? input.localized_name
    for (const widget of node.widgets ?? []) widget.label = words.inputs?.[widget.name]?.name ?? widget.label
    node.outputs?.forEach((output, i) => (output.localized_name = words.outputs?.[i]?.name ?? output.localized_name))
  },
})
