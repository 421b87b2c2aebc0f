/**
 * Times the sparse engine against ONNX Runtime Web with the same network, dense. All run in one page of
 * Chromium, in turns; results are compared.
 *
 *     npm install && python -m benchmarks.web.export small --size 256 -o dense.onnx
 *     node bench.mjs --onnx dense.onnx --ticket small.mirl --wasm ../../mirl_sparse/web/wasm --size 256
 */

import { createReadStream, existsSync } from "node:fs";
import { createServer } from "node:http";
import { cpus } from "node:os";
import { dirname, extname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import puppeteer from "puppeteer-core";

const HERE = dirname(fileURLToPath(import.meta.url));
const { values: options } = parseArgs({
  options: {
    onnx: { type: "string", default: "dense.onnx" },
    ticket: { type: "string", default: "small.mirl" },
    wasm: { type: "string", default: join(HERE, "../../mirl_sparse/web/wasm") },
    size: { type: "string", default: "256" },
    rounds: { type: "string", default: "7" },
    threads: { type: "string", default: "1,2" },
  },
});

const FOLDERS = {
  mirl_sparse: join(HERE, "../../mirl_sparse"),
  web: HERE,
  wasm: resolve(options.wasm),
  ort: join(HERE, "node_modules/onnxruntime-web/dist"),
};
const FILES = { "/ticket": resolve(options.ticket), "/onnx": resolve(options.onnx) };
const TYPES = { ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm" };

const server = createServer((request, response) => {
  const path = new URL(request.url, "http://x").pathname;
  const [, first, ...rest] = path.split("/");
  const file = FILES[path] ?? join(FOLDERS[first] ?? "none", ...rest);
  response.setHeader("Cross-Origin-Opener-Policy", "same-origin");
  response.setHeader("Cross-Origin-Embedder-Policy", "require-corp");
  if (path === "/") return response.setHeader("Content-Type", "text/html").end("<!doctype html>");
  if (!existsSync(file)) return response.writeHead(404).end();
  response.setHeader("Content-Type", TYPES[extname(file)] ?? "application/octet-stream");
  createReadStream(file).pipe(response);
});
await new Promise((done) => server.listen(0, "127.0.0.1", done));
const root = `http://127.0.0.1:${server.address().port}/`;

/** Runs in the page: times every engine in turns, and returns the times, and how far results are apart. */
async function measure({ root, size, rounds, threads }) {
  const pixels = new Uint8ClampedArray(4 * size * size);
  for (let i = 0; i < pixels.length; i++) {
    const [x, y] = [(i >> 2) % size, Math.floor((i >> 2) / size)];
    pixels[i] =
      i % 4 === 3 ? 255 : 128 + 60 * Math.sin(x / 19 + (i % 4)) * Math.cos(y / 23) + ((i * 7919) % 41) - 20;
  }
  const ask = (worker, message) =>
    new Promise((resolve, reject) => {
      worker.onmessage = ({ data }) => (data.error ? reject(new Error(data.error)) : resolve(data));
      worker.onerror = (event) => reject(new Error(event.message));
      worker.postMessage(message);
    });
  const engines = [];
  for (const count of threads) {
    for (const [name, engine, relaxedSimd] of [
      ["sparse, relaxed SIMD", "sparse", true],
      ["sparse, SIMD", "sparse", false],
      ["dense, ONNX Runtime Web", "dense"],
    ]) {
      const worker = new Worker(`${root}web/worker.js`, { type: "module" });
      await ask(worker, { type: "start", engine, root, threads: count, relaxedSimd, pixels, size });
      engines.push({ name, threads: count, worker, times: [] });
    }
  }
  for (let round = -1; round < rounds; round++) {
    for (const engine of engines) {
      const { ms, result } = await ask(engine.worker, { type: "run" });
      if (round >= 0) engine.times.push(ms); // the first round warms up
      engine.result = result;
      await new Promise((done) => setTimeout(done, 100)); // until the threads of this one sleep
    }
  }
  const [first] = engines;
  return engines.map(({ name, threads, times, result }) => {
    const difference = result.reduce(
      (most, value, i) => Math.max(most, Math.abs(value - first.result[i])),
      0,
    );
    return { name, threads, times, difference };
  });
}

const browser = await puppeteer.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-background-networking"],
  protocolTimeout: 3_600_000,
});
try {
  const page = await browser.newPage();
  await page.goto(root);
  const threads = options.threads.split(",").map(Number);
  const rows = await page.evaluate(measure, {
    root,
    size: Number(options.size),
    rounds: Number(options.rounds),
    threads,
  });
  const { size, rounds } = options;
  console.log(`${cpus()[0].model}, ${await browser.version()}, ${size}x${size}, ${rounds} rounds`);
  for (const { name, threads, times, difference } of rows) {
    const sorted = times.toSorted((a, b) => a - b);
    const [best, median] = [sorted[0], sorted[sorted.length >> 1]].map((ms) => `${ms.toFixed(0)} ms`);
    console.log(`${name}, threads: ${threads}: median ${median}, best ${best}; off by ${difference} of 255`);
  }
} finally {
  await browser.close();
  server.close();
}
