/**
 * Runs in a Web Worker: makes an engine, and restores what `index.js` sends, one photo after the other.
 *
 * @module
 */

import { Engine } from "./engine.js";

// Progress is told at most this often; each message wakes the page.
const PROGRESS_MS = 50;

/** @type {(module: BufferSource | WebAssembly.Module) => void} */
let takeModule;
/** @type {Engine} */
let engine;
/** @type {number} */
let program;
let maxBytes = 0;

self.onmessage = async ({ data: message }) => {
  try {
    if (message.type === "wasm") takeModule(message.module);
    else if (message.type === "start") await start(message);
    else restore(message);
  } catch (error) {
    self.postMessage({ type: "error", message: error instanceof Error ? error.message : String(error) });
  }
};

/** @param {{ program: Uint8Array, threads: number, maxBytes: number, thread: string }} message */
async function start(message) {
  engine = await Engine.create({
    wasm: askForModule,
    threads: message.threads,
    spawn: () => new Worker(message.thread, { type: "module" }),
  });
  program = engine.load(message.program);
  maxBytes = message.maxBytes;
  self.postMessage({ type: "ready" });
}

/**
 * Asks the page for a WebAssembly module: only the page knows where they are.
 *
 * @param {string} name
 * @returns {Promise<any>}
 */
function askForModule(name) {
  return new Promise((resolve) => {
    takeModule = resolve;
    self.postMessage({ type: "wasm", name });
  });
}

/** @param {{ pixels: Uint8ClampedArray, width: number, height: number, strength: number }} message */
function restore({ pixels, width, height, strength }) {
  let told = 0;
  /** @param {number} done */
  const onProgress = (done) => {
    const now = performance.now();
    if (now - told < PROGRESS_MS) return;
    told = now;
    self.postMessage({ type: "progress", done });
  };
  const result = engine.restore(program, pixels, height, width, { strength, maxBytes, onProgress });
  self.postMessage({ type: "result", pixels: result }, { transfer: [result.buffer] });
}
