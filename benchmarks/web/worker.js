/** Runs one engine in a Web Worker: the sparse one, or ONNX Runtime Web with the dense network. */

const SIZE_OF_RGB = 3;

/** @type {() => Promise<Uint8ClampedArray>} Restores the image once. */
let restore;

self.onmessage = async ({ data: message }) => {
  try {
    if (message.type === "start") {
      restore = await makers[message.engine](message);
      self.postMessage({});
    } else {
      const start = performance.now();
      const result = await restore();
      self.postMessage({ ms: performance.now() - start, result });
    }
  } catch (error) {
    self.postMessage({ error: String(error) });
  }
};

const bytesOf = async (url) => new Uint8Array(await (await fetch(url)).arrayBuffer());

const makers = {
  async sparse({ root, threads, relaxedSimd, pixels, size }) {
    const { Engine } = await import(`${root}mirl_sparse/web/src/engine.js`);
    const engine = await Engine.create({
      threads,
      relaxedSimd,
      wasm: (name) => bytesOf(`${root}wasm/${name}`),
      spawn: () => new Worker(`${root}mirl_sparse/web/src/thread.js`, { type: "module" }),
    });
    const program = engine.load(await bytesOf(`${root}ticket`));
    return async () => engine.restore(program, pixels, size, size);
  },

  async dense({ root, threads, pixels, size }) {
    const ort = await import(`${root}ort/ort.wasm.bundle.min.mjs`);
    ort.env.wasm.wasmPaths = `${root}ort/`;
    ort.env.wasm.numThreads = threads;
    const session = await ort.InferenceSession.create(await bytesOf(`${root}onnx`), {
      executionProviders: ["wasm"],
    });
    const area = size * size;
    const image = new Float32Array(SIZE_OF_RGB * area);
    for (let i = 0; i < image.length; i++) image[i] = pixels[4 * (i % area) + Math.floor(i / area)] / 255;
    const input = new ort.Tensor("float32", image, [1, SIZE_OF_RGB, size, size]);
    return async () => {
      const { data } = (await session.run({ image: input })).restored;
      const result = new Uint8ClampedArray(pixels);
      for (let i = 0; i < data.length; i++) result[4 * (i % area) + Math.floor(i / area)] = 255 * data[i];
      return result;
    };
  },
};
