/** What is likely wrong with an object's text: what the host accepts and what still gives a picture without the object. */

import { say } from "./words.js"

const MOST_WORDS = 5 // as in common/text.py
// As in common/text.py: brackets and weights of the prompt's syntax.
const WEIGHTS = /(?<!\\)\(|(?::\s*[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?\s*)?(?<!\\)\)/g

/** @param {string} words @returns {string} without the prompt's syntax, upper case and further spaces */
const plain = (words) =>
  words.replace(WEIGHTS, " ").replace(/\\([()])/g, "$1").split(/\s+/).filter(Boolean).join(" ").toLowerCase()

/** @returns {boolean} whether a prompt holds the words, one after the other and not as a part of other words */
export function holds(prompt, text) {
  const words = plain(text).replace(/[.*+?^${}()|[\]\\]/g, "\\$&")
  return new RegExp(`(?<![a-z0-9])${words}(?![a-z0-9])`).test(plain(prompt))
}

/**
 * @param {{ connected: boolean, text: string, texts?: string[] }[]} objects of a chain; texts: of its more pictures
 * @param {string | null} prompt null: not known
 * @param {string[] | null} words the only ones that the text encoder knows; null: all sorts of them
 * @returns {string[]} for each object a few words in the user's language, empty where nothing is wrong
 */
export function mistakesIn(objects, prompt, words = null) {
  const texts = objects.map((each) => plain(each.text))
  return texts.map((text, i) => {
    if (!text) return say("no text")
    if (!objects[i].connected) return say("no picture")
    if (texts.indexOf(text) !== texts.lastIndexOf(text)) return say("same text twice")
    if (text.split(" ").length > MOST_WORDS) return say("too many words")
    if (words && !words.some((word) => holds(text, word))) return say("unknown to the miniature")
    if (prompt === null) return ""
    if (!holds(prompt, text)) return say("not in the prompt")
    const others = objects[i].texts?.map(plain).filter((each) => each && each !== text) ?? []
    return others.some((each) => holds(prompt, each)) ? say("more_pictures: other objects") : ""
  })
}
