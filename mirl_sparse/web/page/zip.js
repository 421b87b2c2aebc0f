/** Writes .zip files. Photos are compressed already, so they are only stored. */

const LOCAL_HEADER = 0x04034b50;
const CENTRAL_HEADER = 0x02014b50;
const END = 0x06054b50;
const VERSION = 20; // of the format: 2.0
const UTF8_NAMES = 0x0800;
const MAX_BYTES = 2 ** 32 - 1; // beyond, other headers would be needed
const MAX_FILES = 2 ** 16 - 1;

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? 0xedb88320 ^ (byte >>> 1) : byte >>> 1;
  return byte;
});

/**
 * Returns a .zip file.
 *
 * @param {{ name: string, blob: Blob }[]} files With names that differ.
 */
export async function zip(files) {
  /** @type {BlobPart[]} */
  const parts = [];
  /** @type {BlobPart[]} */
  const directory = [];
  const [time, date] = dosTime(new Date());
  let offset = 0;
  let directoryBytes = 0;
  for (const { name, blob } of files) {
    const bytes = new TextEncoder().encode(name);
    const sum = crc32(new Uint8Array(await blob.arrayBuffer()));
    // What the header before the file and the one in the directory have in common.
    const common = /** @type {const} */ ([
      [2, VERSION],
      [2, UTF8_NAMES],
      [2, 0],
      [2, time],
      [2, date],
      [4, sum],
      [4, blob.size],
      [4, blob.size],
      [2, bytes.length],
      [2, 0],
    ]);
    parts.push(fields([4, LOCAL_HEADER], ...common), bytes, blob);
    directory.push(
      fields([4, CENTRAL_HEADER], [2, VERSION], ...common, [2, 0], [2, 0], [2, 0], [4, 0], [4, offset]),
      bytes,
    );
    offset += 30 + bytes.length + blob.size;
    directoryBytes += 46 + bytes.length;
  }
  if (offset + directoryBytes > MAX_BYTES || files.length > MAX_FILES) {
    throw new RangeError("These photos are too large for one .zip file. Download them one by one.");
  }
  const end = fields(
    [4, END],
    [2, 0],
    [2, 0],
    [2, files.length],
    [2, files.length],
    [4, directoryBytes],
    [4, offset],
    [2, 0],
  );
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

/**
 * Returns numbers one after the other, little-endian.
 *
 * @param {...(readonly [bytes: 2 | 4, value: number])} values
 */
function fields(...values) {
  const view = new DataView(new ArrayBuffer(values.reduce((sum, [bytes]) => sum + bytes, 0)));
  let at = 0;
  for (const [bytes, value] of values) {
    if (bytes === 2) view.setUint16(at, value, true);
    else view.setUint32(at, value, true);
    at += bytes;
  }
  return view.buffer;
}

/** @param {Uint8Array} bytes */
function crc32(bytes) {
  let sum = ~0;
  for (const byte of bytes) sum = CRC_TABLE[(sum ^ byte) & 0xff] ^ (sum >>> 8);
  return ~sum >>> 0;
}

/** @param {Date} date */
function dosTime(date) {
  const time = (date.getHours() << 11) | (date.getMinutes() << 5) | (date.getSeconds() >> 1);
  return [time, ((date.getFullYear() - 1980) << 9) | ((date.getMonth() + 1) << 5) | date.getDate()];
}
