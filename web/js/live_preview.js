/** The setting that draws the relevance over the sampler's preview. The server reads it when a sampling begins. */

import { app } from "../../../scripts/app.js"

app.registerExtension({
  name: "MIP-Adapter.LivePreview",
  settings: [
    {
      id: "MIP-Adapter.LivePreview",
      category: ["MIP-Adapter", "Preview", "LivePreview"],
      name: "Show relevance while sampling",
      tooltip:
        "Colours the preview of samplers whose model comes from MIP Apply: which object claims which part of the picture. " +
        "From the next run on.",
      type: "boolean",
      defaultValue: false,
    },
  ],
})
