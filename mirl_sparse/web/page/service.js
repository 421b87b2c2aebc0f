/** Restores photos by the service that this page comes from, `mirl-sparse serve`. */

import { open, PhotoError, pixelsOf } from "./photos.js";

/** @typedef {import("./queue.js").Engine} Engine */

const ADDRESS = "restore?format=png&metadata=false"; // the colour profile is kept
const TOO_MANY_REQUESTS = 429;

/** @implements {Engine} */
export class ServiceEngine {
  fault() {
    return "";
  }

  /** @type {Engine["restore"]} */
  async restore(file, { signal }) {
    let response = await send(file, signal);
    while (response.status === TOO_MANY_REQUESTS) {
      await pause(Number(response.headers.get("Retry-After")) || 1, signal);
      response = await send(file, signal);
    }
    if (!response.ok) throw await fault(response);
    const bitmap = await open(new File([await response.blob()], file.name, { type: "image/png" }));
    const image = pixelsOf(bitmap);
    bitmap.close();
    return image;
  }

  rest() {}
}

/**
 * @param {File} file
 * @param {AbortSignal} signal
 */
async function send(file, signal) {
  try {
    return await fetch(ADDRESS, { method: "POST", body: file, signal });
  } catch (error) {
    signal.throwIfAborted();
    throw new Error("The service does not answer.", { cause: error });
  }
}

/**
 * Returns what the service says against a photo. What is the photo's fault will not work the next time.
 *
 * @param {Response} response
 */
async function fault(response) {
  const { detail } = await response.json().catch(() => ({ detail: `The service failed (${response.status}).` }));
  return response.status < 500 ? new PhotoError(detail) : new Error(detail);
}

/**
 * @param {number} seconds
 * @param {AbortSignal} signal
 */
function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const timer = setTimeout(resolve, 1000 * seconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });
}
