/** Workflows that were saved before a node had all of its inputs sample as they did. */

import { app } from "../../../scripts/app.js"

// What a node did before it had the widget. A widget that a workflow does not know gets the default of new nodes.
const BEFORE = { MIPMerge: { measure: "each site" } }

app.registerExtension({
  name: "MIP-Adapter.SavedBefore",
  beforeRegisterNodeDef(nodeType, nodeData) {
    const before = BEFORE[nodeData.name]
    if (!before) return
    const onConfigure = nodeType.prototype.onConfigure
    nodeType.prototype.onConfigure = function (saved) {
      onConfigure?.call(this, saved)
      const known = saved.widgets_values?.length ?? Infinity
      for (const widget of this.widgets?.slice(known) ?? []) widget.value = before[widget.name] ?? widget.value
    }
  },
})
