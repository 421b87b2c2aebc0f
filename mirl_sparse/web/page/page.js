/** Connects the parts of the page. */

import { List } from "./list.js";
import { blend, canvasIsExact, encode, open, outputName, outputType, pixelsOf } from "./photos.js";
import { Queue } from "./queue.js";
import { Viewer } from "./viewer.js";
import { zip } from "./zip.js";

/** @typedef {import("./queue.js").Photo} Photo */

/**
 * @template {HTMLElement} T
 * @param {string} id
 * @param {new () => T} type
 */
function element(id, type) {
  const found = document.getElementById(id);
  if (!(found instanceof type)) throw new Error(`the page has no ${type.name} ${id}`);
  return found;
}

/** Loads what restores photos: the service where the page comes from one, else this browser. */
async function loadEngine() {
  if (document.documentElement.dataset.engine === "service") {
    return new (await import("./service.js")).ServiceEngine();
  }
  return new (await import("./browser.js")).BrowserEngine();
}

const button = (/** @type {string} */ id) => element(id, HTMLButtonElement);
const any = (/** @type {string} */ id) => element(id, HTMLElement);
const fileInput = element("files", HTMLInputElement);
const strength = element("strength", HTMLInputElement);
const format = element("format", HTMLSelectElement);
const quality = element("quality", HTMLInputElement);
const overlay = any("overlay");

const engine = loadEngine();
const queue = new Queue(engine, onChange);
const list = new List(any("list"), element("row", HTMLTemplateElement), { pick: show, act, remove });
const viewer = new Viewer({
  stage: any("stage"),
  before: element("before", HTMLCanvasElement),
  after: element("after", HTMLCanvasElement),
  divider: any("divider"),
  zoom: any("zoom"),
});

/** The photo in the viewer. @type {Photo | undefined} */
let shown;
/** Its bitmap. @type {ImageBitmap | undefined} */
let shownBitmap;

// ---- Photos come in, are picked and leave.

/** @param {Iterable<File>} files */
function add(files) {
  const isFirst = queue.photos.length === 0;
  const added = queue.add(files);
  if (added.length === 0) return;
  document.body.dataset.view = "photos";
  if (isFirst) {
    show(added[0]);
    list.focus(added[0]);
  }
}

/** @param {Photo} photo */
async function show(photo) {
  shown = photo;
  list.mark(photo);
  any("shown-name").textContent = photo.file.name;
  document.title = `${photo.file.name} – mirl-sparse`;
  viewer.show();
  shownBitmap = undefined;
  updateTools();
  const bitmap = await open(photo.file).catch(() => undefined); // its row says what is wrong
  if (shown !== photo) return bitmap?.close();
  shownBitmap = bitmap;
  viewer.show(bitmap);
  await showResult(photo);
}

/**
 * Shows the result of the photo that is shown, once it is there.
 *
 * @param {Photo} photo
 */
async function showResult(photo) {
  const before = shownBitmap;
  if (!photo.restored || !before) return;
  const pixels = new Uint8ClampedArray(await photo.restored.arrayBuffer());
  const after = await createImageBitmap(new ImageData(pixels, before.width, before.height));
  if (shownBitmap === before) viewer.show(before, after, true);
  else after.close();
}

/** @param {Photo} photo */
function remove(photo) {
  const index = queue.photos.indexOf(photo);
  queue.remove(photo);
  list.remove(photo);
  const next = queue.photos[Math.min(index, queue.photos.length - 1)];
  if (!next) return empty();
  if (photo === shown) show(next);
  list.focus(next);
  updateSummary();
}

/** Shows the page as it was at first. */
function empty() {
  shown = shownBitmap = undefined;
  viewer.show();
  document.body.dataset.view = "empty";
  document.title = "Restore photos – mirl-sparse";
  /** @type {HTMLElement} */ (document.querySelector(".welcome .choose")).focus();
}

/** Does what the button in a row says. @param {Photo} photo */
function act(photo) {
  if (photo.state === "done") download(photo);
  else if (photo.state === "failed" || photo.state === "cancelled") queue.retry(photo);
  else queue.cancel(photo);
}

/** Is called whenever a photo's state or progress changes. @type {Map<Photo, string>} */
const lastStates = new Map();

/** @param {Photo} photo */
function onChange(photo) {
  const last = lastStates.get(photo);
  if (last === undefined) list.add(photo);
  lastStates.set(photo, photo.state);
  list.update(photo);
  if (photo === shown) updateTools();
  if (photo.state === last) return;
  updateSummary();
  if (photo.state === "failed") announce(`${photo.file.name}: ${photo.fault}`);
  if (photo.state === "done" && photo === shown) showResult(photo);
}

/** @param {string} text Is said by screen readers. */
function announce(text) {
  any("announcement").textContent = text;
}

function updateSummary() {
  const { photos } = queue;
  const done = photos.filter(({ state }) => state === "done").length;
  const failed = photos.filter(({ state }) => state === "failed").length;
  any("summary").textContent = `${done} of ${photos.length} restored${failed ? `, ${failed} failed` : ""}`;
  button("download-all").disabled = done === 0;
  button("strength-all").hidden = photos.length < 2;
}

/** Brings the tools and the text over the photo up to date. */
function updateTools() {
  if (!shown) return;
  const isDone = shown.state === "done";
  strength.value = String(Math.round(100 * shown.strength));
  any("strength-value").textContent = `${strength.value}%`;
  viewer.setStrength(shown.strength);
  for (const tool of [strength, button("strength-all"), button("download")]) tool.disabled = !isDone;
  overlay.hidden = isDone;
  overlay.dataset.state = shown.state;
  const texts = {
    waiting: "Waiting",
    running: shown.progress === null ? "Restoring" : `Restoring, ${Math.floor(100 * shown.progress)}%`,
    cancelled: "Cancelled",
    failed: shown.fault,
  };
  if (shown.state !== "done") overlay.textContent = texts[shown.state];
}

// ---- Results go out.

/**
 * @param {Photo} photo
 * @param {Set<string>} [names] That are taken already.
 */
async function resultFile(photo, names) {
  const bitmap = await open(photo.file);
  const image = pixelsOf(bitmap);
  bitmap.close();
  const restored = await /** @type {Blob} */ (photo.restored).arrayBuffer();
  blend(image, new Uint8ClampedArray(restored), photo.strength);
  const blob = await encode(image, outputType(format.value, photo.file.type), Number(quality.value) / 100);
  return { name: outputName(photo.file.name, blob.type, names), blob };
}

/**
 * @param {string} name
 * @param {Blob} blob
 */
function save(name, blob) {
  const link = Object.assign(document.createElement("a"), {
    href: URL.createObjectURL(blob),
    download: name,
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // until then, the browser has read it
}

/** @param {Photo} photo */
async function download(photo) {
  await warnOnError(async () => {
    const { name, blob } = await resultFile(photo);
    save(name, blob);
    announce(`Saved as ${name}`);
  });
}

async function downloadAll() {
  const all = button("download-all");
  const text = all.textContent;
  all.disabled = true;
  await warnOnError(async () => {
    const done = queue.photos.filter(({ state }) => state === "done");
    const files = [];
    /** @type {Set<string>} */
    const names = new Set();
    for (const photo of done) {
      all.textContent = `Packing ${files.length + 1} of ${done.length}`;
      files.push(await resultFile(photo, names));
    }
    save("restored.zip", await zip(files));
    announce(`Saved ${files.length} photos as restored.zip`);
  });
  all.textContent = text;
  updateSummary();
}

/** @param {() => Promise<void>} run Whose error is shown. */
async function warnOnError(run) {
  try {
    await run();
    warn("");
  } catch (error) {
    warn(error instanceof Error ? error.message : String(error));
  }
}

/** @param {string} text Is shown at the top of the page; nothing is, if it is empty. */
function warn(text) {
  any("warning").textContent = text;
  any("warning").hidden = !text;
}

// ---- Events of the page.

for (const choose of document.querySelectorAll(".choose")) {
  choose.addEventListener("click", () => fileInput.click());
}
fileInput.addEventListener("change", () => {
  add([...(fileInput.files ?? [])]);
  fileInput.value = ""; // the same file may be chosen again
});

addEventListener("paste", ({ clipboardData }) => add(clipboardData?.files ?? []));

let dragDepth = 0; // dragenter and dragleave come for each element below the pointer
addEventListener("dragenter", (event) => {
  if (!event.dataTransfer?.types.includes("Files")) return;
  dragDepth++;
  any("drop-hint").hidden = false;
});
addEventListener("dragleave", () => {
  dragDepth = Math.max(0, dragDepth - 1);
  any("drop-hint").hidden = dragDepth === 0;
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  dragDepth = 0;
  any("drop-hint").hidden = true;
  add(event.dataTransfer?.files ?? []);
});

strength.addEventListener("input", () => {
  if (shown) shown.strength = Number(strength.value) / 100;
  updateTools();
});
button("strength-all").addEventListener("click", () => {
  for (const photo of queue.photos) photo.strength = Number(strength.value) / 100;
  announce(`Strength ${strength.value}% for all photos`);
});
button("zoom-in").addEventListener("click", () => viewer.zoomBy(1));
button("zoom-out").addEventListener("click", () => viewer.zoomBy(-1));
button("zoom-fit").addEventListener("click", () => viewer.fit());
button("zoom-full").addEventListener("click", () => viewer.zoomToFull());
button("download").addEventListener("click", () => shown && download(shown));
button("download-all").addEventListener("click", downloadAll);
button("remove-all").addEventListener("click", () => {
  for (const photo of [...queue.photos]) {
    queue.remove(photo);
    list.remove(photo);
  }
  empty();
});
format.addEventListener("change", () => {
  any("quality-field").hidden = format.value === "image/png";
});
quality.addEventListener("input", () => {
  any("quality-value").textContent = quality.value;
});
addEventListener("beforeunload", (event) => {
  if (queue.photos.some(({ state }) => state === "running" || state === "waiting")) event.preventDefault();
});

engine.then(
  (engine) => {
    if (engine.fault()) warn(engine.fault());
    else if (!canvasIsExact()) {
      warn("This browser changes the pixels that pages read, to stop tracking. Allow this page to use canvases.");
    }
  },
  (error) => warn(error.message),
);
