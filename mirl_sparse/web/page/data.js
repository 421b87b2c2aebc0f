/** Gives what the build put into the page: JavaScript modules that hold a file each, in base64. */

import { load } from "./src/index.js";

/** Loads the ticket that is built into the page. The page may connect to nowhere, so nothing is fetched. */
export async function loadRestorer() {
  return load(await embedded("ticket"), { inheritPolicy: true, wasm: embedded });
}

/**
 * @param {string} name
 * @returns {Promise<Uint8Array>}
 */
async function embedded(name) {
  const { default: text } = await import(`./data/${name}.js`);
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}
