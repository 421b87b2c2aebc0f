/** Tests of the page as `mirl-sparse serve` serves it, in Chromium. */

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { after, before, describe, test } from "node:test";
import { noisyPixels, png, startChromium, takeDownloads, unzip, writeFiles } from "./helpers.mjs";

const PYTHON = process.env.MIRL_PYTHON; // one that has mirl_sparse with its extra "serve"

/** Starts the service, and returns its process and its address. */
async function startService(...options) {
  const service = spawn(PYTHON, ["-m", "mirl_sparse", "serve", "--port", "0", ...options], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  let said = "";
  for await (const part of service.stdout) {
    said += part;
    const [url] = said.match(/http:\S+\/(?=;.*\n)/) ?? [];
    if (url) return { service, url };
  }
  throw new Error(`the service did not start: ${said}`);
}

describe("the page of the service", { skip: !PYTHON && "no MIRL_PYTHON" }, () => {
  let browser, service, url, page, errors, downloaded;
  before(async () => {
    ({ service, url } = await startService("--max-megapixels", "1"));
    browser = await startChromium();
    page = await browser.newPage();
    errors = [];
    page.on("pageerror", (error) => errors.push(String(error)));
    downloaded = await takeDownloads(page);
    await page.goto(url);
  });
  after(async () => {
    await browser?.close();
    service?.kill();
  });

  const states = () => page.$$eval(".row", (rows) => rows.map((row) => row.dataset.state));
  const text = (selector) => page.$eval(selector, (element) => element.textContent);
  const click = (selector) => page.$eval(selector, (element) => element.click());
  const settle = () =>
    page.waitForFunction(
      () => {
        const rows = [...document.querySelectorAll(".row")];
        return rows.length && rows.every(({ dataset }) => !["running", "waiting"].includes(dataset.state));
      },
      { timeout: 120_000 },
    );
  const restore = async (photos) => {
    if (await page.$(".row")) await click("#remove-all");
    const paths = await writeFiles(photos);
    await (await page.$("#files")).uploadFile(...paths);
    await settle();
    return paths;
  };
  const pixelsOf = (bytes) =>
    page.evaluate(async (base64) => {
      const bitmap = await createImageBitmap(
        new Blob([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))]),
      );
      const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
      context.drawImage(bitmap, 0, 0);
      return [...context.getImageData(0, 0, bitmap.width, bitmap.height).data];
    }, bytes.toString("base64"));

  test("it restores as the command does, and shows before and after", async () => {
    const [path] = await restore({ "photo.png": png(noisyPixels(203, 151), 203, 151) });
    assert.deepEqual(await states(), ["done"]);
    await page.waitForSelector("#divider:not([hidden])");
    const { name, bytes } = await downloaded(() => click("#download"));
    assert.equal(name, "photo_restored.png");
    const target = join(dirname(path), "native.png");
    execFileSync(PYTHON, ["-m", "mirl_sparse", "restore", path, "-o", target]);
    assert.deepEqual(await pixelsOf(bytes), await pixelsOf(await readFile(target)));
  });

  test("strength blends without a new request, and all are downloaded as one file", async () => {
    const pixels = noisyPixels(64, 48);
    await restore({ "a.png": png(pixels, 64, 48), "b.png": png(pixels, 64, 48) });
    const requests = [];
    const note = (request) => request.url().startsWith("http") && requests.push(request.url());
    page.on("request", note);
    await page.$eval("#strength", (range) => {
      range.value = 0;
      range.dispatchEvent(new Event("input", { bubbles: true }));
    });
    const files = unzip((await downloaded(() => click("#download-all"))).bytes);
    assert.deepEqual([...files.keys()], ["a_restored.png", "b_restored.png"]);
    assert.deepEqual(await pixelsOf(files.get("a_restored.png")), [...pixels]);
    page.off("request", note);
    assert.deepEqual(requests, []);
  });

  test("what the service refuses is said in the row, and the others go on", async () => {
    const large = png(noisyPixels(1200, 900), 1200, 900);
    await restore({ "large.png": large, "a.png": png(noisyPixels(64, 48), 64, 48) });
    assert.deepEqual(await states(), ["failed", "done"]);
    assert.match(await text(".row .state"), /1200x900 are 1,080,000 pixels; expected at most 1,000,000/);
  });

  test("a photo can be cancelled, and the next one follows", async () => {
    await click("#remove-all");
    const photos = { "large.png": png(noisyPixels(1000, 900), 1000, 900), "a.png": png(noisyPixels(64, 48), 64, 48) };
    await (await page.$("#files")).uploadFile(...(await writeFiles(photos)));
    await page.waitForFunction(() => document.querySelector(".row .state")?.textContent === "Restoring");
    await click(".row:nth-child(1) .act");
    await settle();
    assert.deepEqual(await states(), ["cancelled", "done"]);
  });

  test("it says where photos go, and may connect to the service alone", async () => {
    const seen = await page.evaluate(() => document.body.innerText);
    assert.match(seen, /Photos go to this service alone/);
    assert.doesNotMatch(seen, /stay on this device|nothing is uploaded/);
    const fetched = (address) => page.evaluate((a) => fetch(a).then(() => true, () => false), address);
    assert.equal(await fetched(`${url}health`), true);
    assert.equal(await fetched(url.replace("127.0.0.1", "localhost")), false);
    assert.deepEqual(errors, []);
  });
});
