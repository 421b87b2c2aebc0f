// Web Workers in Node, as far as the engine needs them.
import { Worker } from "node:worker_threads";

const BEGIN = `
  const { parentPort, workerData } = require("node:worker_threads");
  globalThis.onmessage = null; // a name that modules may assign to
  globalThis.postMessage = (message) => parentPort.postMessage(message);
  import(workerData).then(() => parentPort.on("message", (data) => onmessage({ data })));
`;

/** Returns a function that makes workers which run a script. */
export const spawner = (/** @type {URL} */ script) => () => {
  const worker = new Worker(BEGIN, { eval: true, workerData: String(script) });
  const web = {
    onmessage: null,
    onerror: null,
    postMessage: (m) => worker.postMessage(m),
    terminate: () => worker.terminate(),
  };
  worker.on("message", (data) => web.onmessage?.({ data }));
  worker.on("error", (error) => web.onerror?.(error));
  return web;
};
