/** Shows the photos of the queue as a list, with progress and buttons. */

/** @typedef {import("./queue.js").Photo} Photo */

const ICONS = {
  cancel: "M6 6l12 12M18 6 6 18",
  download: "M12 4v11m0 0-4.5-4.5M12 15l4.5-4.5M5 20h14",
  retry: "M19 12a7 7 0 1 1-2-5l2 2m0-5v5h-5",
};

// Earlier, the time that is left cannot be told.
const PROGRESS_BEFORE_GUESS = 0.03;
const SECONDS_BEFORE_GUESS = 3;

/** @typedef {{ row: HTMLElement, pick: HTMLElement, act: HTMLElement, remove: HTMLElement,
 *   state: HTMLElement, icon: Element, progress: HTMLProgressElement }} Parts */

export class List {
  /** @type {Map<Photo, Parts>} */
  #rows = new Map();

  /**
   * @param {HTMLElement} element
   * @param {HTMLTemplateElement} template
   * @param {Record<"pick" | "act" | "remove", (photo: Photo) => void>} does What buttons do.
   *   `act` does what the row's button says: cancel, download or try again.
   */
  constructor(element, template, does) {
    this.element = element;
    this.template = template;
    this.does = does;
  }

  /** @param {Photo} photo */
  add(photo) {
    const row = /** @type {HTMLElement} */ (this.template.content.cloneNode(true)).firstElementChild;
    if (!(row instanceof HTMLElement)) throw new Error("the template of rows is empty");
    const find = (/** @type {string} */ selector) => /** @type {HTMLElement} */ (row.querySelector(selector));
    const parts = {
      row,
      pick: find(".pick"),
      act: find(".act"),
      remove: find(".remove"),
      state: find(".state"),
      icon: find(".act path"),
      progress: /** @type {HTMLProgressElement} */ (find("progress")),
    };
    find(".name").textContent = photo.file.name;
    find(".name").title = photo.file.name;
    parts.remove.ariaLabel = `Remove ${photo.file.name}`;
    parts.progress.ariaLabel = `Progress of ${photo.file.name}`;
    for (const name of /** @type {const} */ (["pick", "act", "remove"])) {
      parts[name].addEventListener("click", () => this.does[name](photo));
    }
    showThumbnail(photo.file, /** @type {HTMLImageElement} */ (find("img")));
    this.#rows.set(photo, parts);
    this.element.append(row);
  }

  /** @param {Photo} photo */
  update(photo) {
    const parts = this.#rows.get(photo);
    if (!parts) return;
    const isActive = photo.state === "waiting" || photo.state === "running";
    const action = isActive ? "cancel" : photo.state === "done" ? "download" : "retry";
    parts.row.dataset.state = photo.state;
    parts.state.textContent = describe(photo);
    parts.progress.hidden = photo.state !== "running";
    if (photo.progress === null) parts.progress.removeAttribute("value");
    else parts.progress.value = photo.progress;
    parts.remove.hidden = isActive;
    parts.act.hidden = photo.state === "failed" && !photo.mayRetry;
    if (parts.act.dataset.action === action) return;
    parts.act.dataset.action = action;
    parts.icon.setAttribute("d", ICONS[action]);
    parts.act.title = { cancel: "Cancel", download: "Download", retry: "Try again" }[action];
    parts.act.ariaLabel = `${parts.act.title}: ${photo.file.name}`;
  }

  /**
   * Marks the photo that is shown.
   *
   * @param {Photo} [photo]
   */
  mark(photo) {
    for (const [other, { pick }] of this.#rows) pick.ariaCurrent = other === photo ? "true" : null;
  }

  /** @param {Photo} photo */
  remove(photo) {
    this.#rows.get(photo)?.row.remove();
    this.#rows.delete(photo);
  }

  /** @param {Photo} photo */
  focus(photo) {
    this.#rows.get(photo)?.pick.focus();
  }
}

/** @param {Photo} photo */
function describe(photo) {
  switch (photo.state) {
    case "waiting":
      return "Waiting";
    case "running":
      if (photo.progress === null) return "Restoring";
      return `Restoring, ${Math.floor(100 * photo.progress)}%${timeLeft(photo.progress, photo.start)}`;
    case "done":
      return `Restored, ${photo.size}`;
    case "cancelled":
      return "Cancelled";
    case "failed":
      return photo.fault;
  }
}

/**
 * @param {number} progress
 * @param {number} start
 */
function timeLeft(progress, start) {
  const seconds = (performance.now() - start) / 1000;
  if (seconds < SECONDS_BEFORE_GUESS || progress < PROGRESS_BEFORE_GUESS) return "";
  const left = (seconds / progress) * (1 - progress);
  if (left < 90) return `, ${Math.max(5, 5 * Math.ceil(left / 5))} s left`;
  return `, ${Math.ceil(left / 60)} min left`;
}

/**
 * @param {File} file
 * @param {HTMLImageElement} image
 */
function showThumbnail(file, image) {
  const url = URL.createObjectURL(file);
  const release = () => URL.revokeObjectURL(url);
  image.addEventListener("load", release);
  image.addEventListener("error", () => {
    release();
    image.hidden = true;
  });
  image.src = url;
}
