/** Tests of the built page in Chromium: `node --test` in this folder, after `make web`. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { after, afterEach, before, beforeEach, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import {
  noisyPixels,
  peakOfRenderers,
  png,
  serve,
  startChromium,
  takeDownloads,
  unzip,
  withOrientation,
  writeFiles,
} from "./helpers.mjs";

const HERE = dirname(fileURLToPath(import.meta.url));
const BUILT = process.env.MIRL_PAGE ?? join(HERE, "../../mirl_sparse/web/built");
const PYTHON = process.env.MIRL_PYTHON; // one that has mirl_sparse, to compare with native
const BROKEN = Buffer.from("this is no photo");

let browser, server, page, errors, downloaded;
before(async () => {
  browser = await startChromium();
  server = await serve(BUILT, true);
});
after(async () => {
  await browser?.close();
  server?.close();
});
beforeEach(async () => {
  ({ page, errors, downloaded } = await openPage(server.url));
});
afterEach(async () => {
  assert.deepEqual(errors, []);
  await page.close({ runBeforeUnload: false });
});

async function openPage(url, viewport = { width: 1280, height: 800 }) {
  const page = await browser.newPage();
  const errors = [];
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  page.on("pageerror", (error) => errors.push(String(error)));
  const downloaded = await takeDownloads(page);
  await page.setViewport(viewport);
  await page.goto(url);
  return { page, errors, downloaded };
}

const upload = async (paths) => (await page.$("#files")).uploadFile(...paths);
const states = () => page.$$eval(".row", (rows) => rows.map((row) => row.dataset.state));
const text = (selector) => page.$eval(selector, (element) => element.textContent);
const dividerAt = () => page.$eval("#divider", (divider) => Number(divider.getAttribute("aria-valuenow")));
const isOver = () => {
  const rows = [...document.querySelectorAll(".row")];
  return rows.length > 0 && !rows.some(({ dataset }) => ["running", "waiting"].includes(dataset.state));
};

/** Waits until no photo waits or runs, and the first one is shown with its result. */
async function settle() {
  await page.waitForFunction(isOver, { timeout: 300_000 });
  if ((await states())[0] === "done") await page.waitForSelector("#divider:not([hidden])");
}

/** Makes photos, restores them, and returns their paths. */
async function restorePhotos(photos) {
  const paths = await writeFiles(photos);
  await upload(paths);
  await settle();
  return paths;
}

/** Returns size and RGBA of an encoded photo, as Chromium decodes it. */
async function decode(bytes) {
  const [width, height, pixels] = await page.evaluate(async (base64) => {
    const blob = new Blob([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))]);
    const bitmap = await createImageBitmap(blob);
    const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
    context.drawImage(bitmap, 0, 0);
    const { data } = context.getImageData(0, 0, bitmap.width, bitmap.height);
    return [bitmap.width, bitmap.height, btoa(Array.from(data, (c) => String.fromCharCode(c)).join(""))];
  }, bytes.toString("base64"));
  return { width, height, pixels: Buffer.from(pixels, "base64") };
}

const setRange = (selector, value) =>
  page.$eval(
    selector,
    (range, value) => {
      range.value = value;
      range.dispatchEvent(new Event("input", { bubbles: true }));
    },
    value,
  );
const click = (selector) => page.$eval(selector, (element) => element.click());
const download = (selector = "#download") => downloaded(() => click(selector));
const largestDifference = (a, b) => a.reduce((most, value, i) => Math.max(most, Math.abs(value - b[i])), 0);

describe("restoring", () => {
  test(
    "the result is that of the native runtime, within 1 of 255",
    { skip: !PYTHON && "no MIRL_PYTHON" },
    async () => {
      const [path] = await restorePhotos({ "photo.png": png(noisyPixels(203, 151), 203, 151) });
      const { bytes } = await download();
      const target = join(dirname(path), "native.png");
      execFileSync(PYTHON, ["-m", "mirl_sparse", "restore", path, "-o", target]);
      const [web, native] = [await decode(bytes), await decode(await readFile(target))];
      assert.equal(web.pixels.length, native.pixels.length);
      assert.ok(largestDifference(web.pixels, native.pixels) <= 1);
    },
  );

  test("a broken file and a HEIC get an error of one line, and the others go on", async () => {
    const photo = png(noisyPixels(64, 48), 64, 48);
    await restorePhotos({ "a.png": photo, "broken.jpg": BROKEN, "b.heic": BROKEN, "c.png": photo });
    assert.deepEqual(await states(), ["done", "failed", "failed", "done"]);
    assert.match(await text(".row:nth-child(2) .state"), /cannot be opened/);
    assert.match(await text(".row:nth-child(3) .state"), /HEIC/);
    assert.match(await text("#summary"), /2 of 4 restored, 2 failed/);
  });

  test("a photo with too many pixels is refused", async () => {
    const empty = png(Buffer.alloc(4 * 20000 * 10), 20000, 10);
    await restorePhotos({ "wide.png": empty });
    assert.match(await text(".row .state"), /sides of up to 16384/);
  });

  test("cancelling ends the work, the next photo follows, and trying again works", async () => {
    const [large, small] = [png(noisyPixels(700, 500), 700, 500), png(noisyPixels(32, 32), 32, 32)];
    await upload(await writeFiles({ "large.png": large, "small.png": small }));
    await page.waitForFunction(() => document.querySelector("progress").value > 0, { timeout: 60_000 });
    await click(".row:nth-child(1) .act");
    await settle();
    assert.deepEqual(await states(), ["cancelled", "done"]);
    await click(".row:nth-child(1) .act");
    assert.deepEqual(await states(), ["running", "done"]);
    await settle();
    assert.deepEqual(await states(), ["done", "done"]);
  });

  test("photos come by drop and by paste, too", async () => {
    const photo = png(noisyPixels(40, 40), 40, 40).toString("base64");
    await page.evaluate((base64) => {
      const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
      const give = (name) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], name, { type: "image/png" }));
        return transfer;
      };
      dispatchEvent(new DragEvent("drop", { dataTransfer: give("dropped.png"), cancelable: true }));
      dispatchEvent(new ClipboardEvent("paste", { clipboardData: give("pasted.png") }));
    }, photo);
    await settle();
    assert.deepEqual(await page.$$eval(".name", (names) => names.map((name) => name.textContent)), [
      "dropped.png",
      "pasted.png",
    ]);
  });

  test("without the headers for threads, one thread does it", async () => {
    const plain = await serve(BUILT, false);
    await page.close();
    ({ page, errors, downloaded } = await openPage(plain.url));
    assert.equal(await page.evaluate(() => crossOriginIsolated), false);
    await restorePhotos({ "a.png": png(noisyPixels(64, 48), 64, 48) });
    assert.deepEqual(await states(), ["done"]);
    plain.close();
  });

  const isLong = !process.env.MIRL_SLOW && "takes minutes; MIRL_SLOW=1 runs it";
  test("12 megapixels need less than 2.5 GB", { skip: isLong }, async (t) => {
    const [width, height] = [4000, 3000];
    const start = performance.now();
    await restorePhotos({ "large.png": png(noisyPixels(width, height), width, height) });
    assert.deepEqual(await states(), ["done"]);
    const peak = await peakOfRenderers(browser.process().pid);
    const seconds = (performance.now() - start) / 1000;
    t.diagnostic(
      `the page's process took ${(peak / 1e9).toFixed(2)} GB at most, ${seconds.toFixed(1)} s in all`,
    );
    assert.ok(peak < 2.5e9, `${peak}`);
  });
});

describe("results", () => {
  test("strength blends photo and result", async () => {
    const pixels = noisyPixels(90, 70);
    await restorePhotos({ "photo.png": png(pixels, 90, 70) });
    const full = await decode((await download()).bytes);
    assert.ok(largestDifference(full.pixels, pixels) > 5);
    await setRange("#strength", 0);
    const none = await decode((await download()).bytes);
    assert.deepEqual(none.pixels, pixels);
    await setRange("#strength", 50);
    assert.equal(await text("#strength-value"), "50%");
    const half = await decode((await download()).bytes);
    const expected = pixels.map((value, i) => Math.round((value + full.pixels[i]) / 2));
    assert.ok(largestDifference(half.pixels, expected) <= 1);
  });

  test("moving strength changes what is shown, without a new run", async () => {
    await restorePhotos({ "photo.png": png(noisyPixels(90, 70), 90, 70) });
    const shown = () => page.$eval("#after", (canvas) => canvas.toDataURL());
    const full = await shown();
    await setRange("#strength", 20);
    await page.evaluate(() => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve))));
    assert.notEqual(await shown(), full);
    assert.deepEqual(await states(), ["done"]);
  });

  test("all are downloaded as one .zip file, with names that differ", async () => {
    const photo = png(noisyPixels(64, 48), 64, 48);
    const one = await writeFiles({ "größe.png": photo });
    const two = await writeFiles({ "größe.png": photo });
    await upload([...one, ...two, ...(await writeFiles({ "c.webp": BROKEN }))]);
    await settle();
    const { name, bytes } = await download("#download-all");
    assert.equal(name, "restored.zip");
    const files = unzip(bytes);
    assert.deepEqual([...files.keys()], ["größe_restored.png", "größe_restored (2).png"]);
    const { width, height } = await decode(files.get("größe_restored.png"));
    assert.deepEqual([width, height], [64, 48]);
    const [file] = await writeFiles({ [name]: bytes });
    assert.match(execFileSync("python3", ["-m", "zipfile", "-t", file]).toString(), /^Done testing/);
  });

  test("each format is written; quality counts; alpha stays in PNG and WebP", async () => {
    const alpha = (x) => (x < 20 ? 0 : x < 40 ? 128 : 255);
    await restorePhotos({ "a.png": png(noisyPixels(60, 40, alpha), 60, 40) });
    const signatures = { png: /^\x89PNG/, jpeg: /^\xff\xd8\xff/, webp: /^RIFF....WEBP/s };
    for (const [type, signature] of Object.entries(signatures)) {
      await page.select("#format", `image/${type}`);
      const { name, bytes } = await download();
      assert.match(bytes.toString("latin1"), signature);
      assert.match(name, new RegExp(`^a_restored.*\\.${type === "jpeg" ? "jpg" : type}$`));
      const { pixels } = await decode(bytes);
      const [clear, half, solid] = [5, 30, 50].map((x) => pixels[4 * (20 * 60 + x) + 3]);
      assert.deepEqual([clear, half, solid], type === "jpeg" ? [255, 255, 255] : [0, 128, 255]);
    }
    await page.select("#format", "image/jpeg");
    const fine = (await download()).bytes.length;
    await setRange("#quality", 50);
    assert.ok((await download()).bytes.length < fine);
  });

  test("a photo with EXIF orientation comes out upright, as JPEG", async () => {
    const base64 = await page.evaluate(async () => {
      const canvas = new OffscreenCanvas(96, 48);
      const context = canvas.getContext("2d");
      context.fillStyle = "red"; // on the left; turned clockwise, it is at the top
      context.fillRect(0, 0, 48, 48);
      context.fillStyle = "blue";
      context.fillRect(48, 0, 48, 48);
      const bytes = new Uint8Array(await (await canvas.convertToBlob({ type: "image/jpeg" })).arrayBuffer());
      return btoa(String.fromCharCode(...bytes));
    });
    await restorePhotos({ "turned.jpg": withOrientation(Buffer.from(base64, "base64"), 6) });
    const { name, bytes } = await download();
    assert.equal(name, "turned_restored.jpg");
    const { width, height, pixels } = await decode(bytes);
    assert.deepEqual([width, height], [48, 96]);
    const [top, bottom] = [10, 86].map((y) => pixels.subarray(4 * (48 * y + 24)));
    assert.ok(top[0] > 200 && top[2] < 60 && bottom[0] < 60 && bottom[2] > 200);
  });
});

describe("the viewer", () => {
  const photo = () => restorePhotos({ "photo.png": png(noisyPixels(960, 720), 960, 720) });

  test("keys move the line between before and after", async () => {
    await photo();
    await page.focus("#divider");
    assert.equal(await dividerAt(), 50);
    for (const [key, at] of [
      ["ArrowRight", 52],
      ["ArrowLeft", 50],
      ["PageUp", 60],
      ["Home", 0],
      ["End", 100],
    ]) {
      await page.keyboard.press(key);
      assert.equal(await dividerAt(), at, key);
    }
    const clip = await page.$eval("#after", (canvas) => getComputedStyle(canvas).clipPath);
    assert.match(clip, /100%/);
  });

  test("the mouse moves the line; when zoomed, it moves the photo", async () => {
    await photo();
    const { x, y, width, height } = await (await page.$("#stage")).boundingBox();
    const drag = async (from, to) => {
      await page.mouse.move(x + from * width, y + 0.3 * height);
      await page.mouse.down();
      await page.mouse.move(x + to * width, y + 0.3 * height, { steps: 4 });
      await page.mouse.up();
    };
    await drag(0.5, 0.25);
    assert.equal(await dividerAt(), 25);
    await click("#zoom-full");
    await click("#zoom-in");
    await page.waitForFunction(() => document.getElementById("zoom").textContent === "125%");
    const shown = () => page.$eval("#before", (canvas) => canvas.toDataURL());
    const old = await shown();
    await drag(0.6, 0.8);
    assert.equal(await dividerAt(), 25);
    assert.notEqual(await shown(), old);
  });

  test("buttons, wheel and keys zoom", async () => {
    await photo();
    const zoom = async (act) => {
      await act();
      await page.evaluate(() => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve))));
      return parseInt(await text("#zoom"));
    };
    const fitted = await zoom(() => click("#zoom-fit"));
    assert.ok(fitted < 100);
    assert.ok((await zoom(() => click("#zoom-in"))) > fitted);
    assert.equal(await zoom(() => click("#zoom-full")), 100);
    await page.focus("#stage");
    assert.equal(await zoom(() => page.keyboard.press("0")), fitted);
    assert.equal(await zoom(() => page.keyboard.press("1")), 100);
    assert.equal(await zoom(() => page.keyboard.press("+")), 125);
    assert.equal(await zoom(() => page.keyboard.press("-")), 100);
    await page.mouse.move(400, 300);
    assert.equal(await zoom(() => page.mouse.wheel({ deltaY: -100 })), 125);
  });

  test("one finger moves the line, two zoom", async () => {
    await page.close();
    ({ page, errors, downloaded } = await openPage(server.url, {
      width: 390,
      height: 844,
      deviceScaleFactor: 2,
      isMobile: true,
      hasTouch: true,
    }));
    await photo();
    const { x, y, width, height } = await (await page.$("#stage")).boundingBox();
    const [middle, row] = [x + width / 2, y + height / 2];
    const session = await page.createCDPSession();
    const touch = (type, ...xs) =>
      session.send("Input.dispatchTouchEvent", { type, touchPoints: xs.map((x, id) => ({ x, y: row, id })) });
    await touch("touchStart", middle);
    await touch("touchMove", middle + 20);
    await touch("touchMove", middle + width / 4);
    await touch("touchEnd");
    assert.equal(await dividerAt(), 75);
    const fitted = parseInt(await text("#zoom"));
    await touch("touchStart", middle - 40, middle + 40);
    await touch("touchMove", middle - 80, middle + 80);
    await touch("touchEnd");
    await page.waitForFunction(
      (old) => parseInt(document.getElementById("zoom").textContent) > 1.5 * old,
      {},
      fitted,
    );
  });
});

describe("the page", () => {
  test("its policy refuses connections, from the page and from workers", async () => {
    const fetches = async (url) => {
      try {
        await fetch(url);
        return "fetched";
      } catch (error) {
        return error.name;
      }
    };
    assert.equal(await page.evaluate(fetches, server.url), "TypeError");
    const started = new Promise((resolve) => page.once("workercreated", resolve));
    // A restorer as the page's, but idle: it answers at once.
    await page.evaluate(async () => {
      const { loadRestorer } = await import("./data.js");
      globalThis.idleRestorer = await loadRestorer();
    });
    const worker = await started;
    assert.match(worker.url(), /^blob:/);
    assert.equal(await worker.evaluate(fetches, server.url), "TypeError");
    assert.ok(
      errors.length > 0 && errors.every((error) => /Content Security Policy|connect-src/i.test(error)),
      `${errors}`,
    );
    errors.length = 0;
    await page.evaluate(() => globalThis.idleRestorer.close());
  });

  test("it asks the server for nothing but its own files", async () => {
    const urls = [];
    page.on("request", (request) => urls.push(request.url()));
    await page.reload();
    await restorePhotos({ "a.png": png(noisyPixels(64, 48), 64, 48) });
    const others = urls.filter((url) => !url.startsWith(server.url) && !/^(blob|data):/.test(url));
    assert.deepEqual(others, []);
  });

  test("it can be used with the keyboard alone", async () => {
    const [path] = await writeFiles({ "a.png": png(noisyPixels(300, 200), 300, 200) });
    await page.keyboard.press("Tab");
    const [chooser] = await Promise.all([page.waitForFileChooser(), page.keyboard.press("Enter")]);
    await chooser.accept([path]);
    await settle();
    const reached = new Set();
    for (let i = 0; i < 30; i++) {
      await page.keyboard.press("Tab");
      const [name, outline] = await page.evaluate(() => {
        const { id, className } = document.activeElement;
        const marked = id === "divider" ? document.querySelector(".grip") : document.activeElement;
        return [id || className, getComputedStyle(marked).outlineStyle];
      });
      if (name) {
        assert.equal(outline, "solid", `the focus shows on ${name}`);
        reached.add(name);
      }
    }
    for (const name of [
      "stage",
      "divider",
      "zoom-in",
      "zoom-out",
      "zoom-fit",
      "zoom-full",
      "strength",
      "download",
      "choose",
      "pick",
      "icon-button act",
      "icon-button remove",
      "format",
      "quality",
      "download-all",
      "remove-all",
    ]) {
      assert.ok(reached.has(name), `${name} among ${[...reached]}`);
    }
    await page.focus("#strength");
    await page.keyboard.press("ArrowLeft");
    assert.equal(await text("#strength-value"), "99%");
    await page.focus("#download");
    const { name } = await downloaded(() => page.keyboard.press("Enter"));
    assert.equal(name, "a_restored.png");
    await page.focus(".remove");
    await page.keyboard.press("Enter");
    assert.equal(await page.evaluate(() => document.activeElement.textContent), "Choose photos");
  });

  for (const width of [320, 360, 768, 1280]) {
    test(`nothing is wider than a window of ${width} pixels`, async () => {
      await page.setViewport({ width, height: 640 });
      const overhang = () => page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.equal(await overhang(), 0);
      const photo = png(noisyPixels(64, 48), 64, 48);
      await restorePhotos({ "a-name-that-is-rather-long-for-a-small-phone.png": photo, "b.jpg": BROKEN });
      assert.equal(await overhang(), 0);
    });
  }

  for (const scheme of ["light", "dark"]) {
    test(`axe finds no fault in the ${scheme} page`, async () => {
      await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
      const source = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
      await page.evaluate(source);
      const faults = async () => {
        const { violations } = await page.evaluate(() => axe.run());
        return violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(" ")}`);
      };
      assert.deepEqual(await faults(), []);
      await restorePhotos({ "a.png": png(noisyPixels(64, 48), 64, 48), "b.jpg": BROKEN });
      assert.deepEqual(await faults(), []);
      const page_ = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
      const [red] = page_.match(/\d+/g).map(Number);
      assert.ok(scheme === "dark" ? red < 60 : red > 200);
    });
  }

  test("a browser without WebAssembly SIMD gets told so", async () => {
    await page.evaluateOnNewDocument(() => (WebAssembly.validate = () => false));
    await page.reload();
    assert.match(await text("#warning"), /no WebAssembly SIMD/);
  });

  test("nothing moves for those who ask for less motion", async () => {
    await page.emulateMediaFeatures([{ name: "prefers-reduced-motion", value: "reduce" }]);
    const durations = await page.$$eval("button", (all) =>
      all.map((b) => getComputedStyle(b).transitionDuration),
    );
    assert.ok(durations.every((duration) => duration === "0s"));
  });
});
