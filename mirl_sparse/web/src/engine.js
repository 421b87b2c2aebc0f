// The runtime in WebAssembly, and the threads that it works with. What it does blocks, so use it in a Web
// Worker.

/** What `python kernels/web.py` makes. */
export const MODULES = ["simd.wasm", "simd-threads.wasm", "relaxed.wasm", "relaxed-threads.wasm"];

const INITIAL_PAGES = 64; // as in web.py
const MOST_PAGES = 65535; // as in web.py
const STACK_BYTES = 1 << 20; // of a thread
const CANCELLED = 4; // of MirlStatus

/**
 * Tells whether this browser accepts a function.
 *
 * @param {...number} code Its instructions, which leave a vector.
 * @returns {boolean}
 */
function accepts(...code) {
  const header = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0];
  return WebAssembly.validate(
    new Uint8Array([...header, 10, code.length + 4, 1, code.length + 2, 0, ...code, 11]),
  );
}

/**
 * Tells what this browser can do, on this page.
 *
 * @returns {{simd: boolean, relaxedSimd: boolean, threads: boolean}} `simd` must be true, or nothing runs.
 *   `threads` is true only on pages that are cross-origin isolated, and in Node.
 */
export function detect() {
  const vector = [65, 0, 253, 15]; // i8x16.splat(0)
  return {
    simd: accepts(...vector),
    relaxedSimd: accepts(...vector, ...vector, ...vector, 253, 133, 2), // f32x4.relaxed_madd
    threads: typeof SharedArrayBuffer !== "undefined" && globalThis.crossOriginIsolated !== false,
  };
}

/**
 * Makes memory that threads share. It cannot move as it grows, so that there must be room for all of it from
 * the beginning: as much as the system gives.
 *
 * @returns {WebAssembly.Memory}
 */
function sharedMemory() {
  for (let maximum = MOST_PAGES; ; maximum = Math.floor(maximum / 2)) {
    try {
      return new WebAssembly.Memory({ initial: INITIAL_PAGES, maximum, shared: true });
    } catch (error) {
      if (maximum < 4 * INITIAL_PAGES) throw error;
    }
  }
}

/** @returns {never} */
function outOfMemory() {
  throw new Error("memory ran out; close other pages, or restore a smaller photo");
}

/** What WebAssembly tells as it works. */
class Progress {
  /** @type {((done: number) => unknown) | undefined} */
  #tell;
  /** @type {{error: unknown} | undefined} */
  #thrown;

  /** @param {((done: number) => unknown) | undefined} tell What to call from now on. */
  begin(tell) {
    this.#tell = tell;
    this.#thrown = undefined;
  }

  /** Throws what was thrown since then: exceptions must not pass through WebAssembly. */
  end() {
    if (this.#thrown) throw this.#thrown.error;
  }

  /** What WebAssembly calls; 1 stops it. */
  report = (/** @type {number} */ done) => {
    try {
      return this.#tell?.(done) ? 1 : 0;
    } catch (error) {
      this.#thrown = { error };
      return 1;
    }
  };
}

/**
 * Starts a worker's thread.
 *
 * @param {Worker} worker One that runs thread.js.
 * @param {object} start What thread.js takes.
 * @returns {Promise<void>} Done when the thread waits for work. (A browser may need this thread to start
 *   others, so that it must not block before.)
 */
function startThread(worker, start) {
  return new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => (data === "ready" ? resolve() : reject(new Error(data)));
    worker.onerror = (event) => reject(new Error(`a thread cannot start: ${event.message ?? "no worker"}`));
    worker.postMessage(start);
  });
}

/** Runs compiled tickets. */
export class Engine {
  /** Whether it cannot be used any more: it was closed, memory ran out, or WebAssembly failed. */
  broken = false;
  #exports;
  #memory;
  #progress;
  /** @type {Worker[]} */
  #workers = [];

  /**
   * For `create`.
   *
   * @param {Record<string, any>} exports
   * @param {WebAssembly.Memory} memory
   * @param {Progress} progress
   */
  constructor(exports, memory, progress) {
    this.#exports = exports;
    this.#memory = memory;
    this.#progress = progress;
  }

  /**
   * Makes an engine.
   *
   * @param {object} options
   * @param {(name: string) => Promise<BufferSource | WebAssembly.Module>} options.wasm Gives one of
   *   `MODULES`.
   * @param {number} [options.threads] How many threads work, this one included. More than 1 only where
   *   `detect` finds threads.
   * @param {boolean} [options.relaxedSimd] Whether to use relaxed SIMD. Default: what `detect` finds.
   * @param {() => Worker} [options.spawn] Makes a worker that runs thread.js, for more than one thread.
   * @returns {Promise<Engine>}
   */
  static async create({ wasm, threads = 1, relaxedSimd = detect().relaxedSimd, spawn }) {
    const source = await wasm(`${relaxedSimd ? "relaxed" : "simd"}${threads > 1 ? "-threads" : ""}.wasm`);
    const module = source instanceof WebAssembly.Module ? source : await WebAssembly.compile(source);
    const env = threads > 1 ? { memory: sharedMemory() } : undefined;
    const progress = new Progress();
    const mirl = { progress: progress.report, out_of_memory: outOfMemory };
    const instance = await WebAssembly.instantiate(module, env ? { env, mirl } : { mirl });
    const exports = /** @type {Record<string, any>} */ (instance.exports);
    exports._initialize();
    const engine = new Engine(exports, env?.memory ?? exports.memory, progress);
    if (spawn && threads > 1) await engine.#start(module, threads - 1, spawn);
    return engine;
  }

  /**
   * Starts threads.
   *
   * @param {WebAssembly.Module} module
   * @param {number} count
   * @param {() => Worker} spawn
   */
  async #start(module, count, spawn) {
    try {
      const starting = [];
      while (starting.length < count) {
        const stack = this.#allocate(STACK_BYTES + this.#exports.__tls_size.value) + STACK_BYTES;
        const worker = spawn();
        this.#workers.push(worker);
        starting.push(startThread(worker, { module, memory: this.#memory, stack }));
      }
      await Promise.all(starting);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** How many threads work. */
  get threads() {
    return this.#workers.length + 1;
  }

  /**
   * Loads a program.
   *
   * @param {Uint8Array} bytes A file that `mirl-sparse compile` wrote.
   * @returns {number} The program, to hand to the other functions.
   */
  load(bytes) {
    return (
      this.#use((exports) => {
        const data = this.#copyIn(bytes);
        const program = exports.mirl_web_load(data, bytes.length) >>> 0;
        exports.mirl_web_free(data);
        return program;
      }) || this.#fail()
    );
  }

  /**
   * Gives back a program's memory.
   *
   * @param {number} program
   */
  free(program) {
    this.#use((exports) => exports.mirl_web_unload(program));
  }

  /**
   * Returns how much memory it takes to restore a photo whole.
   *
   * @param {number} program
   * @param {number} height
   * @param {number} width
   * @returns {number} Bytes; -1 for a size that is not possible.
   */
  requiredBytes(program, height, width) {
    return this.#use((exports) => exports.mirl_web_required_bytes(program, height, width));
  }

  /**
   * Restores a photo.
   *
   * @param {number} program
   * @param {Uint8ClampedArray | Uint8Array} rgba Its pixels. They are left as they are.
   * @param {number} height
   * @param {number} width
   * @param {object} [options]
   * @param {number} [options.strength] The share of the restored photo in the result, 0 to 1.
   * @param {number} [options.maxBytes] Memory to use; larger photos are restored in tiles. Default: 1 GiB.
   * @param {(done: number) => unknown} [options.onProgress] Takes the share of the work that is done, 0 to 1,
   *   now and then. Stops the work by returning something true: that throws an "AbortError".
   * @returns {Uint8ClampedArray<ArrayBuffer>} The restored photo, with the alpha that was there.
   */
  restore(program, rgba, height, width, { strength = 1, maxBytes = 0, onProgress } = {}) {
    if (rgba.length !== height * width * 4)
      throw new Error(`${rgba.length} bytes given; ${height}x${width} pixels have ${height * width * 4}`);
    this.#progress.begin(onProgress);
    const { status, result } = this.#use((exports) => {
      const pixels = this.#copyIn(rgba);
      const status = exports.mirl_web_restore(
        program,
        pixels,
        height,
        width,
        strength,
        maxBytes,
        this.threads,
      );
      const result = status === 0 ? new Uint8ClampedArray(this.#bytes(pixels, rgba.length)) : undefined;
      exports.mirl_web_free(pixels);
      return { status, result };
    });
    this.#progress.end();
    return result ?? this.#fail(status);
  }

  /** Ends the threads. The engine cannot be used after it. */
  close() {
    this.broken = true;
    for (const worker of this.#workers) worker.terminate();
    this.#workers = [];
  }

  /**
   * Calls something of WebAssembly's. After what it throws, its memory is in no order.
   *
   * @template T
   * @param {(exports: Record<string, any>) => T} f
   * @returns {T}
   */
  #use(f) {
    if (this.broken) throw new Error("this engine is closed, or failed before; create a new one");
    try {
      return f(this.#exports);
    } catch (error) {
      this.close();
      throw error instanceof WebAssembly.RuntimeError
        ? new Error(`WebAssembly failed: ${error.message}`)
        : error;
    }
  }

  /**
   * Throws the runtime's error.
   *
   * @param {number} [status]
   * @returns {never}
   */
  #fail(status) {
    const from = this.#use((exports) => exports.mirl_web_message()) >>> 0;
    const all = new Uint8Array(this.#memory.buffer);
    const message = new TextDecoder().decode(all.slice(from, all.indexOf(0, from)));
    throw status === CANCELLED ? new DOMException(message, "AbortError") : new Error(message);
  }

  /** @param {number} bytes */
  #allocate(bytes) {
    return this.#exports.mirl_web_allocate(bytes) >>> 0 || outOfMemory();
  }

  /**
   * @param {number} from
   * @param {number} length
   */
  #bytes(from, length) {
    return new Uint8Array(this.#memory.buffer, from, length);
  }

  /** @param {Uint8ClampedArray | Uint8Array} bytes */
  #copyIn(bytes) {
    const to = this.#allocate(bytes.length || 1);
    this.#bytes(to, bytes.length).set(bytes);
    return to;
  }
}
