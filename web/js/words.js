/** What the scripts of this pack say on the canvas, in the user's language: `mipAdapter` of locales/<language>/main.json. */

import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"

let translated = {}

/** Fetch the translations; call before the first `say`. Without them everything is English. */
export async function learn() {
  const language = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en"
  try {
    const all = await (await api.fetchApi("/i18n")).json()
    translated = all[language]?.mipAdapter ?? {}
  } catch (error) {
    console.warn("MIP-Adapter: no translations", error)
  }
}

/** @param {string} english @returns {string} the same in the user's language, where it is known */
export const say = (english) => translated[english] ?? english
