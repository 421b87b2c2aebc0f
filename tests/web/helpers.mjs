/** What the tests share: a static server, Chromium, and photos that are made on the spot. */

import { createServer } from "node:http";
import { mkdtemp, readdir, readFile, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { extname, join } from "node:path";
import { crc32, deflateSync } from "node:zlib";
import puppeteer from "puppeteer-core";

const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";
const TYPES = {
  ".html": "text/html",
  ".css": "text/css",
  ".js": "text/javascript",
  ".json": "application/json",
  ".wasm": "application/wasm",
};

/**
 * Serves a folder below /some/folder/, like any server of static files: with no policy of its own.
 *
 * @param {string} folder
 * @param {boolean} isolated Sends the headers that make pages crossOriginIsolated.
 */
export async function serve(folder, isolated) {
  const server = createServer(async (request, response) => {
    const path = new URL(request.url, "http://x").pathname
      .replace(/^\/some\/folder\//, "")
      .replace(/^$/, "index.html");
    if (isolated) {
      response.setHeader("Cross-Origin-Opener-Policy", "same-origin");
      response.setHeader("Cross-Origin-Embedder-Policy", "require-corp");
    }
    try {
      const body = await readFile(join(folder, path));
      response
        .writeHead(200, { "Content-Type": TYPES[extname(path)] ?? "application/octet-stream" })
        .end(body);
    } catch {
      response.writeHead(404).end();
    }
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { url: `http://127.0.0.1:${server.address().port}/some/folder/`, close: () => server.close() };
}

export function startChromium() {
  const args = ["--no-sandbox", "--disable-background-networking"];
  return puppeteer.launch({ executablePath: CHROMIUM, headless: true, args });
}

/**
 * Returns an image with a smooth pattern and noise, as RGBA.
 *
 * @param {number} width
 * @param {number} height
 * @param {(x: number, y: number) => number} alpha
 */
export function noisyPixels(width, height, alpha = () => 255) {
  const pixels = Buffer.alloc(4 * width * height);
  let seed = 1;
  const noise = () => (((seed = (seed * 1103515245 + 12345) & 0x7fffffff) >> 16) % 41) - 20;
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at += 4) {
      const waves = [Math.sin(x / 17), Math.cos(y / 13), Math.sin((x + y) / 29)];
      waves.forEach((wave, c) => (pixels[at + c] = Math.min(Math.max(128 + 80 * wave + noise(), 0), 255)));
      pixels[at + 3] = alpha(x, y);
    }
  }
  return pixels;
}

/**
 * @param {Buffer} pixels RGBA.
 * @param {number} width
 * @param {number} height
 */
export function png(pixels, width, height) {
  const chunk = (name, data) => {
    const body = Buffer.concat([Buffer.from(name), data]);
    const [length, sum] = [Buffer.alloc(4), Buffer.alloc(4)];
    length.writeUInt32BE(data.length);
    sum.writeUInt32BE(crc32(body));
    return Buffer.concat([length, body, sum]);
  };
  const header = Buffer.from([0, 0, 0, 0, 0, 0, 0, 0, 8, 6, 0, 0, 0]); // 8 bits, RGBA
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  const rows = Array.from({ length: height }, (_, y) => pixels.subarray(4 * width * y, 4 * width * (y + 1)));
  const data = deflateSync(Buffer.concat(rows.flatMap((row) => [Buffer.of(0), row])), { level: 1 });
  const signature = Buffer.from("\x89PNG\r\n\x1a\n", "latin1");
  return Buffer.concat([
    signature,
    chunk("IHDR", header),
    chunk("IDAT", data),
    chunk("IEND", Buffer.alloc(0)),
  ]);
}

/**
 * Returns a JPEG with an EXIF orientation.
 *
 * @param {Buffer} jpeg Without EXIF.
 * @param {number} orientation 1 to 8.
 */
export function withOrientation(jpeg, orientation) {
  const tiff = Buffer.from("MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\0\0\0\0\0\0\0", "latin1");
  tiff.writeUInt16BE(orientation, 18);
  const body = Buffer.concat([Buffer.from("Exif\0\0", "latin1"), tiff]);
  const head = Buffer.from([0xff, 0xe1, 0, body.length + 2]);
  return Buffer.concat([jpeg.subarray(0, 2), head, body, jpeg.subarray(2)]);
}

/** @param {Record<string, Buffer>} files */
export async function writeFiles(files) {
  const folder = await mkdtemp(join(tmpdir(), "mirl-web-"));
  return Promise.all(
    Object.entries(files).map(async ([name, bytes]) => {
      await writeFile(join(folder, name), bytes);
      return join(folder, name);
    }),
  );
}

/**
 * Returns the files of a .zip file without compression, by name; the sums are checked.
 *
 * @param {Buffer} bytes
 */
export function unzip(bytes) {
  const end = bytes.length - 22;
  if (bytes.readUInt32LE(end) !== 0x06054b50) throw new Error("no end of the directory");
  const files = new Map();
  let at = bytes.readUInt32LE(end + 16);
  for (let left = bytes.readUInt16LE(end + 10); left > 0; left--) {
    if (bytes.readUInt32LE(at) !== 0x02014b50) throw new Error("no entry of the directory");
    const [sum, size] = [bytes.readUInt32LE(at + 16), bytes.readUInt32LE(at + 20)];
    const nameLength = bytes.readUInt16LE(at + 28);
    const name = bytes.subarray(at + 46, at + 46 + nameLength).toString();
    const local = bytes.readUInt32LE(at + 42);
    if (bytes.readUInt32LE(local) !== 0x04034b50) throw new Error(`no header of ${name}`);
    const data = bytes.subarray(local + 30 + nameLength, local + 30 + nameLength + size);
    if (crc32(data) !== sum) throw new Error(`${name} is damaged`);
    files.set(name, data);
    at += 46 + nameLength;
  }
  return files;
}

/**
 * Lets a page download, and returns a function that starts a download and returns its name and bytes.
 *
 * @param {import("puppeteer-core").Page} page
 */
export async function takeDownloads(page) {
  const downloadPath = await mkdtemp(join(tmpdir(), "mirl-web-out-"));
  const session = await page.createCDPSession();
  const browserContextId = page.browserContext().id;
  // Files are named by their ids: so two of the same name do not overwrite each other.
  const options = { behavior: "allowAndName", downloadPath, browserContextId, eventsEnabled: true };
  await session.send("Browser.setDownloadBehavior", options);
  return async (act) => {
    const begun = once(session, "Browser.downloadWillBegin", () => true);
    const ended = once(session, "Browser.downloadProgress", ({ state }) => state === "completed");
    await act();
    const [{ guid, suggestedFilename }] = await Promise.all([begun, ended]);
    return { name: suggestedFilename, bytes: await readFile(join(downloadPath, guid)) };
  };
}

function once(emitter, name, isWanted) {
  return new Promise((resolve, reject) => {
    const limit = setTimeout(() => reject(new Error(`no ${name} came`)), 60_000);
    const take = (event) => {
      if (!isWanted(event)) return;
      clearTimeout(limit);
      emitter.off(name, take);
      resolve(event);
    };
    emitter.on(name, take);
  });
}

/**
 * Returns the largest memory that a process of Chromium for pages has had, in bytes.
 *
 * @param {number} parent The process that was started.
 */
export async function peakOfRenderers(parent) {
  let peak = 0;
  for (const id of (await readdir("/proc")).filter((name) => /^\d+$/.test(name))) {
    try {
      const command = await readFile(`/proc/${id}/cmdline`, "latin1");
      if (!command.includes("--type=renderer") || !(await isChild(id, parent))) continue;
      const status = await readFile(`/proc/${id}/status`, "latin1");
      peak = Math.max(peak, 1024 * Number(/VmHWM:\s+(\d+)/.exec(status)?.[1]));
    } catch {
      // The process has ended.
    }
  }
  return peak;
}

async function isChild(id, ancestor) {
  for (let at = Number(id); at > 1;) {
    if (at === ancestor) return true;
    at = Number(/PPid:\s+(\d+)/.exec(await readFile(`/proc/${at}/status`, "latin1"))?.[1]);
  }
  return false;
}
