/**
 * App mode of newer frontends. A workflow that is queued there is saved with its pictures as one that opens there: the host
 * writes the mode into a workflow only where a user saves it as an app, so its own pictures would reopen as a graph.
 */

import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"

const AS_APP = ["app", "builder:arrange"] // the second is the preview of an app that is being built

/** @returns {boolean | undefined} whether the open workflow is shown as an app; undefined on hosts without that mode */
export function shownAsApp() {
  const open = app.extensionManager?.workflow?.activeWorkflow
  if (!open || !("activeMode" in open)) return undefined
  return AS_APP.includes(open.activeMode ?? open.initialMode)
}

/** @returns {boolean} whether a workflow is an app that shows what our nodes made */
const isOurApp = ({ extra, nodes }) =>
  extra?.linearData?.outputs?.length > 0 && nodes.some((node) => node.type.startsWith("MIP"))

app.registerExtension({
  name: "MIP-Adapter.AppMode",
  setup() {
    const queuePrompt = api.queuePrompt
    api.queuePrompt = function (number, prompt, ...given) {
      const [linearMode, { workflow }] = [shownAsApp(), prompt]
      if (linearMode !== undefined && isOurApp(workflow)) {
        prompt = { ...prompt, workflow: { ...workflow, extra: { ...workflow.extra, linearMode } } }
      }
      return queuePrompt.call(this, number, prompt, ...given)
    }
  },
})
