/** What this pack says in the user's language, from locales/<language>/, by way of the host's route /i18n. */

import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"

/** @type {{ mipAdapter?: Record<string, string>, nodeDefs?: Record<string, object> }} */
let known = {}
let spoken = "en" // the language of what is known
let fetched

/** Fetch the translations; await it before the first use of the others here. Without them everything is English. */
export function learn() {
  fetched ??= (async () => {
    const language = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en"
    if (language === "en") return
    try {
      known = (await (await api.fetchApi("/i18n")).json())[language] ?? {}
      if (known.mipAdapter) spoken = language
    } catch (error) {
      console.warn("MIP-Adapter: no translations", error)
    }
  })()
  return fetched
}

/** @param {string} english @returns {string} the same in the user's language, where it is known */
export const say = (english) => known.mipAdapter?.[english] ?? english

/** @param {string} sentence @param {...string} words @returns {string} the sentence with a word for each %s */
export const filled = (sentence, ...words) => sentence.replace(/%s/g, () => words.shift())

/** @param {string[]} names @returns {string} “a, b, and c”, as the language of `say` joins them */
export const listed = (names) => new Intl.ListFormat(spoken).format(names)

/** @param {string[]} sentences of the language of `say` @returns {string} one behind the other; Chinese puts no space between */
export const running = (sentences) => sentences.filter(Boolean).join(spoken.startsWith("zh") ? "" : " ")

/** @param {string} text of the language of `say` @returns {string[]} its words, spaces and marks: between them a line may end */
export const pieces = (text) => [...new Intl.Segmenter(spoken, { granularity: "word" }).segment(text)].map((each) => each.segment)

/** @param {string} type of a node @returns {object | undefined} its entry of nodeDefs.json */
export const nodeWords = (type) => (type?.startsWith("MIP") ? known.nodeDefs?.[type] : undefined)
