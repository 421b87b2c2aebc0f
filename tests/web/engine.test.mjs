// Tests the engine: MIRL_FIXTURES=FOLDER node --test tests/web/engine.test.mjs, where engine_fixtures.py has
// written the folder. MIRL_WASM is the folder of the modules (kernels/web.py).
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";

import { Engine, MODULES, detect } from "../../mirl_sparse/web/src/engine.js";
import { spawner } from "./node_worker.mjs";

const folder = process.env.MIRL_FIXTURES;
const modules = process.env.MIRL_WASM ?? new URL("../../mirl_sparse/web/wasm", import.meta.url).pathname;
const spawn = spawner(new URL("../../mirl_sparse/web/src/thread.js", import.meta.url));
const wasm = (name) => readFile(`${modules}/${name}`);
const file = async (name) => new Uint8Array(await readFile(`${folder}/${name}`));

const small = await file("small.mirl");
const photos = [];
for (const [height, width] of JSON.parse(new TextDecoder().decode(await file("sizes.json"))))
  photos.push({
    height,
    width,
    pixels: await file(`${height}x${width}.rgba`),
    restored: await file(`${height}x${width}.restored.rgba`),
  });
const [first] = photos;

// Every module that this Node can run.
const variants = MODULES.map((name) => ({
  name,
  relaxedSimd: name.startsWith("relaxed"),
  threads: name.includes("threads") ? 2 : 1,
})).filter(({ relaxedSimd }) => !relaxedSimd || detect().relaxedSimd);

async function withEngine(options, use) {
  const engine = await Engine.create({ wasm, spawn, ...options });
  try {
    return await use(engine, engine.load(small));
  } finally {
    engine.close();
  }
}

const restore = (engine, program, photo, options) =>
  engine.restore(program, photo.pixels, photo.height, photo.width, options);

function difference(a, b) {
  assert.equal(a.length, b.length);
  return a.reduce((most, x, i) => Math.max(most, Math.abs(x - b[i])), 0);
}

test("detects what there is", () => {
  const found = detect();
  assert.equal(found.simd, true);
  assert.equal(found.threads, true);
});

for (const { name, ...options } of variants)
  test(`${name} restores as the native library does`, () =>
    withEngine(options, (engine, program) => {
      assert.equal(engine.threads, options.threads);
      for (const photo of photos) {
        const before = photo.pixels.slice();
        // 1: sums are rounded in another order
        assert.ok(
          difference(restore(engine, program, photo), photo.restored) <= 1,
          `${photo.height}x${photo.width}`,
        );
        assert.deepEqual(photo.pixels, before);
      }
    }));

test("the number of threads makes no difference", async () => {
  const results = [];
  for (const threads of [1, 2, 3])
    results.push(await withEngine({ threads, relaxedSimd: false }, (engine, p) => restore(engine, p, first)));
  assert.deepEqual(results[1], results[0]);
  assert.ok(difference(results[2], results[0]) <= 1); // three cut the photo elsewhere, and sum up so
});

test("strength 0 leaves the photo as it is", () =>
  withEngine({}, (engine, program) => {
    assert.deepEqual([...restore(engine, program, first, { strength: 0 })], [...first.pixels]);
    assert.throws(() => restore(engine, program, first, { strength: 2 }), /strength/);
    assert.equal(engine.broken, false);
  }));

test("little memory makes tiles", () =>
  withEngine({}, (engine, program) => {
    const whole = engine.requiredBytes(program, first.height, first.width);
    assert.ok(whole > 1e6);
    const tiled = restore(engine, program, first, { maxBytes: whole * 0.9 });
    assert.notDeepEqual(tiled, restore(engine, program, first));
    assert.throws(() => restore(engine, program, first, { maxBytes: 1000 }), /memory/);
    assert.ok(difference(restore(engine, program, first, { maxBytes: 1e15 }), first.restored) <= 1);
  }));

test("progress rises to 1, and can stop the work", () =>
  withEngine({ threads: 2 }, (engine, program) => {
    const told = [];
    restore(engine, program, first, { onProgress: (done) => void told.push(done) });
    assert.ok(told.length > 5);
    assert.deepEqual(
      told,
      told.toSorted((a, b) => a - b),
    );
    assert.equal(told.at(-1), 1);
    assert.throws(() => restore(engine, program, first, { onProgress: () => true }), { name: "AbortError" });
    const error = new Error("mine");
    const fail = () => {
      throw error;
    };
    assert.throws(
      () => restore(engine, program, first, { onProgress: fail }),
      (thrown) => thrown === error,
    );
    assert.ok(difference(restore(engine, program, first), first.restored) <= 1);
  }));

test("what is no program gives an error", () =>
  withEngine({}, (engine) => {
    assert.throws(() => engine.load(new Uint8Array()), /expected a file from mirl-sparse compile/);
    assert.throws(() => engine.load(small.slice(0, -4)), Error);
    for (let i = 0; i < 40; ++i) {
      const damaged = small.slice();
      damaged[Math.floor((damaged.length * i) / 40)] ^= 1 << (i % 8);
      assert.throws(() => engine.load(damaged), Error);
    }
    assert.equal(engine.broken, false);
    engine.free(engine.load(small));
  }));

test("sizes that do not fit the pixels are refused", () =>
  withEngine({}, (engine, program) => {
    assert.throws(() => engine.restore(program, first.pixels, first.height, first.width + 1), /bytes given/);
    assert.throws(() => engine.restore(program, new Uint8Array(), 0, 0), /photo is 0x0/);
  }));

test("a closed engine says so", async () => {
  const engine = await Engine.create({ wasm, spawn });
  engine.close();
  assert.throws(() => engine.load(small), /create a new one/);
});

test("a worker that does not start gives an error", async () => {
  const missing = spawner(new URL("no-such-file.js", import.meta.url));
  await assert.rejects(Engine.create({ wasm, threads: 2, spawn: missing }), /a thread cannot start/);
});
