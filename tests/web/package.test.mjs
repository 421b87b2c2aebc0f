/** Tests of the package's interface, in Chromium, with the files of the built page. */

import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { serve, startChromium } from "./helpers.mjs";

const HERE = dirname(fileURLToPath(import.meta.url));
const PACKAGE = join(HERE, "../../mirl_sparse/web");
const BUILT = process.env.MIRL_PAGE ?? join(PACKAGE, "built");

let browser, server, page;
before(async () => {
  browser = await startChromium();
  server = await serve(BUILT, true);
  page = await browser.newPage();
  await page.goto(server.url);
  await page.evaluate(async () => {
    const { load } = await import(new URL("src/index.js", document.baseURI));
    const embedded = async (name) => {
      const { default: text } = await import(new URL(`data/${name}.js`, document.baseURI));
      return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    };
    globalThis.ticket = await embedded("ticket");
    globalThis.load = (options, program = ticket) =>
      load(program, { inheritPolicy: true, wasm: embedded, ...options });
    globalThis.makeImage = (width, height) => {
      const image = new ImageData(width, height);
      for (let i = 0; i < image.data.length; i++) image.data[i] = i % 4 === 3 ? 200 : (i * i) % 251;
      return image;
    };
    globalThis.fault = (promise) =>
      promise.then(
        () => "none",
        (error) => `${error.name}: ${error.message}`,
      );
    globalThis.same = (a, b) => a.data.every((value, i) => value === b.data[i]);
  });
});
after(async () => {
  await browser?.close();
  server?.close();
});

const run = (does) => page.evaluate(does);

test("restores an image, tells progress and leaves the input as it is", async () => {
  const result = await run(async () => {
    const restorer = await load();
    const image = makeImage(200, 100);
    const seen = [];
    const output = await restorer.restore(image, { onProgress: (done) => seen.push(done) });
    restorer.close();
    const alphaStays = output.data.every((value, i) => i % 4 !== 3 || value === 200);
    return {
      size: [output.width, output.height],
      isNew: !same(output, image),
      untouched: same(image, makeImage(200, 100)),
      alphaStays,
      inRange: seen.every((done) => done >= 0 && done <= 1),
      told: seen.length > 0,
    };
  });
  assert.deepEqual(result, {
    size: [200, 100],
    isNew: true,
    untouched: true,
    alphaStays: true,
    inRange: true,
    told: true,
  });
});

test("calls at the same time queue up, and each gets its own result", async () => {
  const result = await run(async () => {
    const restorer = await load();
    const images = [makeImage(64, 48), makeImage(80, 40), makeImage(64, 48)];
    const order = [];
    const outputs = await Promise.all(
      images.map((image, i) => restorer.restore(image).then((output) => (order.push(i), output))),
    );
    restorer.close();
    return [order, outputs.map(({ width }) => width), same(outputs[0], outputs[2])];
  });
  assert.deepEqual(result, [[0, 1, 2], [64, 80, 64], true]);
});

test("one thread and several give the same", async () => {
  const result = await run(async () => {
    const outputs = [];
    for (const threads of [1, 2]) {
      const restorer = await load({ threads });
      outputs.push(await restorer.restore(makeImage(96, 64)));
      restorer.close();
    }
    return same(outputs[0], outputs[1]);
  });
  assert.equal(result, true);
});

test("an AbortSignal stops a call that runs or waits; the restorer stays usable", async () => {
  const result = await run(async () => {
    const restorer = await load();
    const [running, waiting] = [new AbortController(), new AbortController()];
    const faults = [
      fault(
        restorer.restore(makeImage(1500, 1000), {
          signal: running.signal,
          onProgress: () => running.abort(),
        }),
      ),
      fault(restorer.restore(makeImage(64, 64), { signal: waiting.signal })),
    ];
    const last = restorer.restore(makeImage(32, 32));
    waiting.abort(new Error("not now"));
    const late = await fault(restorer.restore(makeImage(8, 8), { signal: AbortSignal.abort() }));
    const result = [...(await Promise.all(faults)), late, (await last).width];
    restorer.close();
    return result;
  });
  assert.match(result[0], /^AbortError/);
  assert.equal(result[1], "Error: not now");
  assert.match(result[2], /^AbortError/);
  assert.equal(result[3], 32);
});

test("closing rejects calls that are not over, and later ones", async () => {
  const result = await run(async () => {
    const restorer = await load();
    const faults = [fault(restorer.restore(makeImage(900, 900))), fault(restorer.restore(makeImage(9, 9)))];
    restorer.close();
    return Promise.all([...faults, fault(restorer.restore(makeImage(9, 9)))]);
  });
  assert.match(result[0], /^AbortError/);
  assert.match(result[1], /^AbortError/);
  assert.match(result[2], /closed/);
});

test("wrong arguments and files are errors that say so", async () => {
  const result = await run(async () => {
    const restorer = await load();
    const faults = await Promise.all([
      fault(load({ threads: 0 })),
      fault(load({ maxBytes: -1 })),
      fault(restorer.restore(makeImage(8, 8), { strength: 2 })),
      fault(restorer.restore({ data: new Uint8ClampedArray(3), width: 1, height: 1 })),
      fault(
        load({
          wasm: async () => {
            throw new Error("no such module");
          },
        }),
      ),
      fault(load({}, new TextEncoder().encode("this is no program"))),
    ]);
    restorer.close();
    return faults;
  });
  assert.match(result[0], /threads is 0/);
  assert.match(result[1], /maxBytes is -1/);
  assert.match(result[2], /strength is 2/);
  assert.match(result[3], /not an ImageData/);
  assert.equal(result[4], "Error: no such module");
  assert.match(result[5], /^Error: ./);
});

test("little memory means tiles, and a result that hardly differs", async () => {
  const most = await run(async () => {
    const outputs = [];
    for (const maxBytes of [2 ** 30, 48 * 2 ** 20]) {
      const restorer = await load({ maxBytes });
      outputs.push(await restorer.restore(makeImage(512, 384)));
      restorer.close();
    }
    const [whole, tiled] = outputs;
    return whole.data.reduce((most, value, i) => Math.max(most, Math.abs(value - tiled.data[i])), 0);
  });
  assert.ok(most < 64, `${most}`);
});

const isComplete = ["small.mirl", "wasm/simd.wasm"].every((file) => existsSync(join(PACKAGE, file)));
test(
  "the package as it is published fetches its modules and the ticket",
  { skip: !isComplete && "not built" },
  async () => {
    const published = await serve(PACKAGE, true);
    const plain = await browser.newPage();
    await plain.goto(new URL("package.json", published.url).href); // a page without a policy
    const width = await plain.evaluate(async (url) => {
      const { load } = await import(`${url}src/index.js`);
      const restorer = await load(`${url}small.mirl`);
      const { width } = await restorer.restore(new ImageData(40, 30));
      restorer.close();
      return width;
    }, published.url);
    assert.equal(width, 40);
    published.close();
  },
);
