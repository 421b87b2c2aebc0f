/** Restores photos, one after the other. */

import { openFault, PhotoError, sizeFault } from "./photos.js";

/**
 * What restores photos: this browser, or a service.
 *
 * @typedef {object} Engine
 * @property {() => string} fault Returns why it cannot work here; nothing, if it can.
 * @property {(file: File, options: { signal: AbortSignal, onProgress: (done: number) => void }) =>
 *   Promise<ImageData>} restore Restores a photo at full strength. The result is upright, in sRGB.
 * @property {() => void} rest Frees what is not needed until the next photo.
 */

/** @typedef {"waiting" | "running" | "done" | "failed" | "cancelled"} State */

/** A photo of the user, and what has become of it. */
export class Photo {
  /** @type {State} */
  state = "waiting";
  /** Why it failed. */
  fault = "";
  /** Whether it may work the next time. */
  mayRetry = false;
  /** The share of the work that is done; null, if nobody tells. @type {number?} */
  progress = null;
  /** When the work began, as `performance.now()` says it. */
  start = 0;
  /** The share of the restored photo in the result. */
  strength = 1;
  /** "4000 × 3000", once that is known. */
  size = "";
  /** The pixels restored at full strength. In a Blob, the browser may keep them on the disk. @type {Blob?} */
  restored = null;
  /** Cancels the work. */
  abort = new AbortController();

  /** @param {File} file */
  constructor(file) {
    this.file = file;
  }
}

export class Queue {
  /** @type {Photo[]} */
  photos = [];
  #isWorking = false;
  #engine;
  #changed;

  /**
   * @param {Promise<Engine>} engine
   * @param {(photo: Photo) => void} changed Is called whenever a photo's state or progress changes.
   */
  constructor(engine, changed) {
    this.#engine = engine;
    this.#changed = changed;
  }

  /** @param {Iterable<File>} files */
  add(files) {
    const added = [...files].map((file) => new Photo(file));
    this.photos.push(...added);
    for (const photo of added) this.#changed(photo);
    this.#work();
    return added;
  }

  /** @param {Photo} photo */
  cancel(photo) {
    photo.abort.abort();
    this.#set(photo, "cancelled");
  }

  /** @param {Photo} photo */
  retry(photo) {
    photo.abort = new AbortController();
    this.#set(photo, "waiting");
    this.#work();
  }

  /** @param {Photo} photo */
  remove(photo) {
    photo.abort.abort();
    this.photos = this.photos.filter((other) => other !== photo);
  }

  /**
   * @param {Photo} photo
   * @param {State} state
   */
  #set(photo, state, fault = "") {
    photo.state = state;
    photo.fault = fault;
    photo.progress = null;
    this.#changed(photo);
  }

  async #work() {
    if (this.#isWorking) return;
    this.#isWorking = true;
    const engine = await this.#engine;
    let photo;
    while ((photo = this.photos.find(({ state }) => state === "waiting"))) {
      await this.#restore(photo, engine);
    }
    this.#isWorking = false;
    engine.rest();
  }

  /**
   * @param {Photo} photo
   * @param {Engine} engine
   */
  async #restore(photo, engine) {
    const { signal } = photo.abort;
    photo.start = performance.now();
    this.#set(photo, "running");
    try {
      const [width, height] = await sizeOf(photo.file);
      photo.size = `${width} × ${height}`;
      const fault = sizeFault(width, height);
      if (fault) throw new PhotoError(fault);
      signal.throwIfAborted();
      const onProgress = (/** @type {number} */ done) => {
        photo.progress = done;
        this.#changed(photo);
      };
      const { data } = await engine.restore(photo.file, { signal, onProgress });
      signal.throwIfAborted();
      photo.restored = new Blob([data]);
      this.#set(photo, "done");
    } catch (error) {
      if (signal.aborted) return; // its state says so already
      photo.mayRetry = !(error instanceof PhotoError);
      this.#set(photo, "failed", error instanceof Error ? error.message : String(error));
    }
  }
}

/**
 * Returns width and height of a photo; the browser reads them before it decodes all of it.
 *
 * @param {File} file
 * @returns {Promise<[width: number, height: number]>}
 */
async function sizeOf(file) {
  const image = new Image();
  image.src = URL.createObjectURL(file);
  try {
    await new Promise((resolve, reject) => {
      image.onload = resolve;
      image.onerror = () => reject(new PhotoError(openFault(file)));
    });
    return [image.naturalWidth, image.naturalHeight];
  } finally {
    URL.revokeObjectURL(image.src);
  }
}
