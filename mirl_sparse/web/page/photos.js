/** Decodes photos, blends them, and encodes them, with what the browser has. */

/** Larger photos are refused: the browser would need several gigabytes for them. */
export const MAX_PIXELS = 60e6;
const MAX_SIDE = 16384; // of a canvas, in the browsers that allow least

/** What can be written, and the ending of the file. @type {Record<string, string>} */
const ENDINGS = { "image/jpeg": "jpg", "image/png": "png", "image/webp": "webp" };

/** Says in one line why a photo cannot be restored. */
export class PhotoError extends Error {}

/**
 * Returns why a photo of this size is refused, if it is.
 *
 * @param {number} width
 * @param {number} height
 */
export function sizeFault(width, height) {
  if (width * height > MAX_PIXELS) {
    const megapixels = Math.round((width * height) / 1e6);
    return `This photo has ${megapixels} megapixels; ${MAX_PIXELS / 1e6} are possible here. Make it smaller.`;
  }
  if (Math.max(width, height) > MAX_SIDE) {
    return `This photo is ${width} × ${height} pixels; sides of up to ${MAX_SIDE} are possible here.`;
  }
  return "";
}

/**
 * Returns what a user can do about a file that the browser does not open.
 *
 * @param {File} file
 */
export function openFault(file) {
  if (/^image\/hei[cf]/.test(file.type) || /\.hei[cf]$/i.test(file.name)) {
    return "This browser cannot open HEIC photos. Save it as JPEG first.";
  }
  if (file.type && !file.type.startsWith("image/")) return "This is not a photo.";
  return "This file cannot be opened. It is damaged, or of a kind that this browser does not know.";
}

/**
 * Opens a photo, turned as its EXIF orientation says, in sRGB.
 *
 * @param {File} file
 * @returns {Promise<ImageBitmap>}
 */
export async function open(file) {
  try {
    return await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    throw new PhotoError(openFault(file));
  }
}

/**
 * Returns the pixels of a photo.
 *
 * @param {ImageBitmap} bitmap
 */
export function pixelsOf(bitmap) {
  const { width, height } = bitmap;
  const context = makeCanvas(width, height).getContext("2d", { willReadFrequently: true });
  if (!context) throw new PhotoError("This browser has no memory left for this photo.");
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, width, height);
}

/**
 * Returns whether canvases give back the pixels that were drawn. Some browsers change them, against tracking.
 */
export function canvasIsExact() {
  const context = makeCanvas(16, 16).getContext("2d", { willReadFrequently: true });
  if (!context) return false;
  const drawn = context.createImageData(16, 16);
  for (let i = 0; i < drawn.data.length; i++) drawn.data[i] = i % 4 === 3 ? 255 : (i * 7) % 256;
  context.putImageData(drawn, 0, 0);
  const read = context.getImageData(0, 0, 16, 16).data;
  return read.every((value, i) => value === drawn.data[i]);
}

/**
 * Blends two photos of the same size: `photo` becomes `strength` of `restored`, and the rest of itself.
 *
 * @param {ImageData} photo Is changed.
 * @param {Uint8ClampedArray} restored
 * @param {number} strength From 0 to 1.
 */
export function blend(photo, restored, strength) {
  const { data } = photo;
  // The array rounds what it is given.
  for (let i = 0; i < data.length; i++) data[i] += strength * (restored[i] - data[i]);
}

/**
 * Returns the type to write: `choice`, or the type of the input where it can be written, else PNG.
 *
 * @param {string} choice A type, or "same".
 * @param {string} inputType
 */
export function outputType(choice, inputType) {
  if (choice !== "same") return choice;
  return inputType in ENDINGS ? inputType : "image/png";
}

/**
 * Encodes a photo.
 *
 * @param {ImageData} photo
 * @param {string} type
 * @param {number} quality From 0 to 1, of JPEG and WebP.
 * @returns {Promise<Blob>} Its type is PNG where the browser cannot write `type`.
 */
export function encode(photo, type, quality) {
  const canvas = makeCanvas(photo.width, photo.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (!context) throw new PhotoError("This browser has no memory left for this photo.");
  context.putImageData(photo, 0, 0);
  if (type === "image/jpeg") {
    context.globalCompositeOperation = "destination-over"; // JPEG has no transparency: white shows through
    context.fillStyle = "#fff";
    context.fillRect(0, 0, photo.width, photo.height);
  }
  return new Promise((resolve, reject) => {
    const take = (/** @type {Blob | null} */ blob) =>
      blob ? resolve(blob) : reject(new PhotoError("This browser could not write the photo."));
    canvas.toBlob(take, type, quality);
  });
}

/**
 * Returns the name of the restored file, such as photo_restored.jpg, and makes it differ from those taken.
 *
 * @param {string} name Of the input.
 * @param {string} type Of the output.
 * @param {Set<string>} [taken] Gets the name.
 */
export function outputName(name, type, taken = new Set()) {
  const stem = `${name.replace(/\.[^.]*$/, "") || "photo"}_restored`;
  let result = `${stem}.${ENDINGS[type]}`;
  for (let i = 2; taken.has(result); i++) result = `${stem} (${i}).${ENDINGS[type]}`;
  taken.add(result);
  return result;
}

/**
 * @param {number} width
 * @param {number} height
 */
function makeCanvas(width, height) {
  return Object.assign(document.createElement("canvas"), { width, height });
}
