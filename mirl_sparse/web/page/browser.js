/** Restores photos in this browser, by WebAssembly. */

import { loadRestorer } from "./data.js";
import { open, pixelsOf } from "./photos.js";
import { detect } from "./src/engine.js";

/** @typedef {import("./queue.js").Engine} Engine */

/** @implements {Engine} */
export class BrowserEngine {
  /** @type {import("../index.js").Restorer | undefined} */
  #restorer;

  fault() {
    if (detect().simd) return "";
    return "This browser has no WebAssembly SIMD, which this page needs. Use a newer browser.";
  }

  /** @type {Engine["restore"]} */
  async restore(file, { signal, onProgress }) {
    const bitmap = await open(file);
    const image = pixelsOf(bitmap);
    bitmap.close();
    signal.throwIfAborted();
    this.#restorer ??= await loadRestorer();
    return this.#restorer.restore(image, { signal, onProgress });
  }

  rest() {
    this.#restorer?.close(); // it may hold a gigabyte
    this.#restorer = undefined;
  }
}
