/**
 * Restores photos in the browser. The work is done in a Web Worker, so pages stay responsive.
 *
 * @module
 */

import { detect } from "./engine.js";

/**
 * Where the package keeps the WebAssembly modules. Bundlers see each of these addresses, and keep the file.
 *
 * @type {Record<string, () => URL>}
 */
const MODULE_URLS = {
  "simd.wasm": () => new URL("../wasm/simd.wasm", import.meta.url),
  "simd-threads.wasm": () => new URL("../wasm/simd-threads.wasm", import.meta.url),
  "relaxed.wasm": () => new URL("../wasm/relaxed.wasm", import.meta.url),
  "relaxed-threads.wasm": () => new URL("../wasm/relaxed-threads.wasm", import.meta.url),
};

const MAX_THREADS = 8;
const DEFAULT_MAX_BYTES = 2 ** 30;

/**
 * Loads a compiled ticket and starts a worker for it.
 *
 * @param {string | URL | ArrayBuffer | Uint8Array} source The address of a .mirl file, or its bytes.
 * @param {import("../index.js").LoadOptions} [options]
 * @returns {Promise<Restorer>}
 */
export async function load(source, options = {}) {
  const found = detect();
  if (!found.simd) {
    throw new Error("this browser has no WebAssembly SIMD, which mirl-sparse needs; use a newer browser");
  }
  const { inheritPolicy = false, wasm = fetchModule, maxBytes = DEFAULT_MAX_BYTES } = options;
  const { threads = defaultThreads(found.threads) } = options;
  check(maxBytes > 0, `maxBytes is ${maxBytes}; expected a number of bytes above 0`);
  check(Number.isInteger(threads) && threads > 0, `threads is ${threads}; expected a whole number above 0`);
  check(threads === 1 || found.threads, `threads is ${threads}; above 1 needs a crossOriginIsolated page`);
  const program = await bytesOf(source);
  const restorer = new Restorer(program, { inheritPolicy, wasm, maxBytes, threads });
  try {
    await restorer.start();
  } catch (error) {
    restorer.close();
    throw error;
  }
  return restorer;
}

/**
 * One call of `restore` that is not over yet.
 *
 * @typedef {object} Job
 * @property {ImageData} image
 * @property {number} strength
 * @property {(done: number) => void} [onProgress]
 * @property {(result: ImageData) => void} resolve
 * @property {(reason: unknown) => void} reject
 */

/** Restores images, one after the other, in one worker. `load` makes it. */
class Restorer {
  /** @type {Uint8Array} */
  #program;
  #options;
  /** @type {Promise<Worker> | undefined} */
  #worker;
  /** Ends the worker, whether it has started or not. */
  #endWorker = () => {};
  /** @type {Job[]} */
  #waiting = [];
  /** @type {Job | undefined} */
  #current;
  #closed = false;

  /**
   * @param {Uint8Array} program
   * @param {Required<import("../index.js").LoadOptions>} options
   */
  constructor(program, options) {
    this.#program = program;
    this.#options = options;
  }

  /** How many threads compute. */
  get threads() {
    return this.#options.threads;
  }

  /**
   * Restores an image. Calls queue up.
   *
   * @param {ImageData} image Is left as it is.
   * @param {import("../index.js").RestoreOptions} [options]
   * @returns {Promise<ImageData>} A new image of the same size. Alpha stays as it was.
   */
  restore(image, { strength = 1, onProgress, signal } = {}) {
    return new Promise((resolve, reject) => {
      check(!this.#closed, "this restorer is closed; load a new one");
      const { data, width, height } = image;
      check(
        data instanceof Uint8ClampedArray && data.length === 4 * width * height && data.length > 0,
        "the image is not an ImageData with 8 bits a channel",
      );
      check(strength >= 0 && strength <= 1, `strength is ${strength}; expected 0 to 1`);
      signal?.throwIfAborted();
      const abort = () => this.#drop(job, /** @type {AbortSignal} */ (signal).reason);
      /** @type {Job} */
      const job = {
        image,
        strength,
        onProgress,
        resolve: (result) => (signal?.removeEventListener("abort", abort), resolve(result)),
        reject: (reason) => (signal?.removeEventListener("abort", abort), reject(reason)),
      };
      signal?.addEventListener("abort", abort);
      this.#waiting.push(job);
      this.#next();
    });
  }

  /** Ends the worker and frees its memory. Calls of `restore` that are not over are rejected. */
  close() {
    this.#closed = true;
    this.#stop();
    const jobs = this.#current ? [this.#current, ...this.#waiting] : this.#waiting;
    this.#current = undefined;
    this.#waiting = [];
    for (const job of jobs) job.reject(new DOMException("the restorer was closed", "AbortError"));
  }

  /** Starts a worker where none runs; `restore` does so by itself. */
  start() {
    this.#worker ??= this.#makeWorker();
    return this.#worker;
  }

  /** Starts the first job that waits, unless one is running. */
  async #next() {
    if (this.#current || this.#waiting.length === 0) return;
    const job = /** @type {Job} */ (this.#waiting.shift());
    this.#current = job;
    try {
      const worker = await this.start();
      if (job !== this.#current) return; // aborted or closed meanwhile
      const { data, width, height } = job.image;
      worker.postMessage({ type: "restore", pixels: data, width, height, strength: job.strength });
    } catch (error) {
      this.#drop(job, error);
    }
  }

  /**
   * Ends a job without a result. The worker computes without a pause, so only ending it stops a running job.
   *
   * @param {Job} job
   * @param {unknown} reason
   */
  #drop(job, reason) {
    if (job === this.#current) {
      this.#stop();
      this.#current = undefined;
    }
    this.#waiting = this.#waiting.filter((other) => other !== job);
    job.reject(reason);
    this.#next();
  }

  #stop() {
    this.#endWorker();
    this.#worker = undefined;
  }

  /** @returns {Promise<Worker>} */
  #makeWorker() {
    const { inheritPolicy, wasm, threads, maxBytes } = this.#options;
    const worker = startWorker(inheritPolicy);
    const threadUrl = new URL("./thread.js", import.meta.url);
    const thread = inheritPolicy ? blobUrl(threadUrl) : threadUrl.href;
    this.#endWorker = () => {
      worker.terminate();
      if (inheritPolicy) URL.revokeObjectURL(thread);
    };
    return new Promise((resolve, reject) => {
      /** @param {Error} error */
      const fail = (error) => {
        if (this.#current) this.#drop(this.#current, error);
        else this.#stop();
        reject(error);
      };
      worker.onerror = (event) => {
        event.preventDefault();
        fail(new Error(`the worker failed: ${event.message || "its script could not be loaded"}`));
      };
      worker.onmessage = async ({ data: message }) => {
        if (message.type === "wasm") {
          try {
            worker.postMessage({ type: "wasm", module: await wasm(message.name) });
          } catch (error) {
            fail(error instanceof Error ? error : new Error(String(error)));
          }
        } else if (message.type === "ready") {
          resolve(worker);
        } else if (message.type === "error") {
          fail(new Error(message.message));
        } else {
          this.#answer(message);
        }
      };
      worker.postMessage({ type: "start", program: this.#program, threads, maxBytes, thread });
    });
  }

  /**
   * @param {{ type: "progress", done: number }
   *   | { type: "result", pixels: Uint8ClampedArray<ArrayBuffer> }} message
   */
  #answer(message) {
    const job = this.#current;
    if (!job) return;
    if (message.type === "progress") {
      job.onProgress?.(message.done);
      return;
    }
    this.#current = undefined;
    const { width, height, colorSpace } = job.image;
    job.resolve(new ImageData(message.pixels, width, height, { colorSpace }));
    this.#next();
  }
}

/** @param {boolean} inheritPolicy */
function startWorker(inheritPolicy) {
  // Bundlers know this form, `new Worker(new URL(...))`.
  if (!inheritPolicy) return new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  const url = blobUrl(new URL("./worker.js", import.meta.url));
  const worker = new Worker(url, { type: "module" });
  URL.revokeObjectURL(url); // the worker has it already
  return worker;
}

/**
 * Returns an address whose script imports another: workers from blob: URLs inherit the page's policy.
 *
 * @param {URL} script
 */
function blobUrl(script) {
  const text = `import ${JSON.stringify(script.href)};`;
  return URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
}

/**
 * @param {string} name
 * @returns {Promise<Uint8Array>}
 */
function fetchModule(name) {
  return bytesOf(MODULE_URLS[name]());
}

/**
 * @param {string | URL | ArrayBuffer | Uint8Array} source
 * @returns {Promise<Uint8Array>}
 */
async function bytesOf(source) {
  if (source instanceof Uint8Array) return source;
  if (source instanceof ArrayBuffer) return new Uint8Array(source);
  const response = await fetch(source);
  if (!response.ok) throw new Error(`${source} could not be fetched: status ${response.status}`);
  return new Uint8Array(await response.arrayBuffer());
}

/** @param {boolean} possible */
function defaultThreads(possible) {
  return possible ? Math.min(navigator.hardwareConcurrency || 1, MAX_THREADS) : 1;
}

/**
 * @param {boolean} condition
 * @param {string} message
 */
function check(condition, message) {
  if (!condition) throw new RangeError(message);
}
