/** Restores photos in the browser with a compiled ticket of mirl-sparse. */

export interface LoadOptions {
  /** Memory that the restoration of one photo may take, in bytes. Larger photos are restored in tiles.
   * Default: 1 GiB. */
  maxBytes?: number;
  /** Threads to compute with. More than 1 needs a page that is crossOriginIsolated. Default: as many as the
   * machine has, at most 8, where the page is; else 1. */
  threads?: number;
  /** Starts workers from blob: URLs, so that they inherit the page's Content-Security-Policy.
   * Default: false. */
  inheritPolicy?: boolean;
  /** Gives the WebAssembly module of a name, such as "simd.wasm". Default: fetches it from the package. */
  wasm?: (name: string) => Promise<ArrayBuffer | Uint8Array | WebAssembly.Module>;
}

export interface RestoreOptions {
  /** The share of the restored photo in the result, 0 to 1. The rest is the photo as it was. Default: 1. */
  strength?: number;
  /** Is called now and then with the share of the work that is done, 0 to 1. */
  onProgress?: (done: number) => void;
  /** Stops the restoration. The promise is then rejected with the signal's reason, by default an
   * AbortError. */
  signal?: AbortSignal;
}

export interface Restorer {
  /** How many threads compute. */
  readonly threads: number;
  /** Restores an image and gives a new one of the same size. Alpha stays as it was. Calls queue up. */
  restore(image: ImageData, options?: RestoreOptions): Promise<ImageData>;
  /** Ends the worker and frees its memory. Calls that are not over are rejected with an AbortError. */
  close(): void;
}

/** Loads a compiled ticket, given by the address of a .mirl file or by its bytes. */
export function load(
  source: string | URL | ArrayBuffer | Uint8Array,
  options?: LoadOptions,
): Promise<Restorer>;
