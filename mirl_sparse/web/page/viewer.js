/** Shows a photo before and after, with a line between both that moves, zoom and panning. */

const ZOOM_STEP = 1.25;
const MAX_SCALE = 16;
const PAN_STEP = 60; // CSS pixels for each press of an arrow key
const SHARP_SCALE = 2; // from here on, the pixels of the photo are shown as squares

/** @typedef {{ x: number, y: number }} Point */

export class Viewer {
  /** @type {ImageBitmap | undefined} */
  #before;
  /** @type {ImageBitmap | undefined} */
  #after;
  #strength = 1;
  /** Pixels of the screen for each pixel of the photo. */
  #scale = 1;
  #isFitted = true;
  /** The point of the photo that is in the middle of the stage. */
  #middle = { x: 0, y: 0 };
  #frame = 0;
  /** Fingers and mouse buttons that are down on the stage. @type {Map<number, Point>} */
  #pointers = new Map();

  /**
   * @param {{ stage: HTMLElement, before: HTMLCanvasElement, after: HTMLCanvasElement, divider: HTMLElement,
   *   zoom: HTMLElement }} parts
   */
  constructor(parts) {
    this.parts = parts;
    new ResizeObserver(() => this.#redraw()).observe(parts.stage);
    this.#listenToKeys();
    this.#listenToPointers();
    parts.stage.addEventListener("wheel", (event) => this.#onWheel(event), { passive: false });
    this.#setDivider(50);
  }

  /**
   * Shows a photo; the viewer owns the bitmaps from now on.
   *
   * @param {ImageBitmap} [before]
   * @param {ImageBitmap} [after] The photo restored at full strength. Without it there is no line.
   * @param {boolean} [keepsView] Keeps zoom and position.
   */
  show(before, after, keepsView = false) {
    if (before !== this.#before) this.#before?.close();
    if (after !== this.#after) this.#after?.close();
    this.#before = before;
    this.#after = after;
    this.parts.after.hidden = this.parts.divider.hidden = !after;
    this.parts.stage.classList.toggle("compares", !!after);
    if (!keepsView) this.#isFitted = true;
    this.#redraw();
  }

  /** @param {number} strength From 0 to 1. */
  setStrength(strength) {
    this.#strength = strength;
    this.#redraw();
  }

  /** Shows the whole photo. */
  fit() {
    this.#isFitted = true;
    this.#redraw();
  }

  /** Shows each pixel of the photo as one of the screen. */
  zoomToFull() {
    this.#zoomTo(1);
  }

  /** @param {1 | -1} direction */
  zoomBy(direction) {
    this.#zoomTo(this.#scale * ZOOM_STEP ** direction);
  }

  /**
   * Zooms; the point of the photo under `anchor` stays where it is.
   *
   * @param {number} scale
   * @param {Point} [anchor] In CSS pixels, from the middle of the stage.
   */
  #zoomTo(scale, anchor = { x: 0, y: 0 }) {
    const ratio = devicePixelRatio;
    const old = this.#scale;
    this.#scale = Math.min(Math.max(scale, this.#fittedScale()), MAX_SCALE);
    this.#isFitted = this.#scale === this.#fittedScale();
    this.#middle.x += anchor.x * ratio * (1 / old - 1 / this.#scale);
    this.#middle.y += anchor.y * ratio * (1 / old - 1 / this.#scale);
    this.#redraw();
  }

  /**
   * @param {number} dx In CSS pixels.
   * @param {number} dy
   */
  #pan(dx, dy) {
    this.#middle.x -= (dx * devicePixelRatio) / this.#scale;
    this.#middle.y -= (dy * devicePixelRatio) / this.#scale;
    this.#redraw();
  }

  #fittedScale() {
    if (!this.#before) return 1;
    const { clientWidth, clientHeight } = this.parts.stage;
    const { width, height } = this.#before;
    const scale = Math.min(clientWidth / width, clientHeight / height) * devicePixelRatio;
    return Math.min(scale, Math.max(1, devicePixelRatio)); // small photos are not blown up
  }

  #redraw() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#draw();
    });
  }

  #draw() {
    const { stage, before, after, zoom } = this.parts;
    if (this.#isFitted) this.#scale = this.#fittedScale();
    this.#clampMiddle();
    stage.classList.toggle("zoomed", !this.#isFitted);
    zoom.textContent = `${Math.round(100 * this.#scale)}%`;
    const [first, second, strength] = [this.#before, this.#after, this.#strength];
    this.#drawLayer(before, first ? [[first, 1]] : []);
    // The sum is the blend, whatever the transparency.
    if (first && second)
      this.#drawLayer(after, [
        [first, 1 - strength],
        [second, strength],
      ]);
  }

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {[bitmap: ImageBitmap, share: number][]} summands
   */
  #drawLayer(canvas, summands) {
    const { clientWidth, clientHeight } = this.parts.stage;
    canvas.width = Math.round(clientWidth * devicePixelRatio); // this clears it, too
    canvas.height = Math.round(clientHeight * devicePixelRatio);
    const context = canvas.getContext("2d");
    if (!context) return;
    const scale = this.#scale;
    const x = Math.round(canvas.width / 2 - this.#middle.x * scale);
    const y = Math.round(canvas.height / 2 - this.#middle.y * scale);
    context.setTransform(scale, 0, 0, scale, x, y);
    context.imageSmoothingEnabled = scale < SHARP_SCALE;
    context.imageSmoothingQuality = "high";
    context.globalCompositeOperation = "lighter";
    for (const [bitmap, share] of summands) {
      context.globalAlpha = share;
      context.drawImage(bitmap, 0, 0);
    }
  }

  /** Keeps the photo over the whole stage, or in its middle where it is smaller. */
  #clampMiddle() {
    if (!this.#before) return;
    const { clientWidth, clientHeight } = this.parts.stage;
    const clamp = (/** @type {number} */ value, /** @type {number} */ size, /** @type {number} */ room) => {
      const half = (room * devicePixelRatio) / this.#scale / 2;
      return half * 2 >= size ? size / 2 : Math.min(Math.max(value, half), size - half);
    };
    this.#middle.x = clamp(this.#middle.x, this.#before.width, clientWidth);
    this.#middle.y = clamp(this.#middle.y, this.#before.height, clientHeight);
  }

  /** @param {number} percent Of the stage's width. */
  #setDivider(percent) {
    const at = Math.min(Math.max(percent, 0), 100);
    const { stage, divider } = this.parts;
    stage.style.setProperty("--divider", `${at}%`);
    divider.setAttribute("aria-valuenow", String(Math.round(at)));
    divider.setAttribute("aria-valuetext", `${Math.round(at)}% before`);
  }

  #listenToKeys() {
    const { stage, divider } = this.parts;
    divider.addEventListener("keydown", (event) => {
      const now = Number(divider.getAttribute("aria-valuenow"));
      const step = event.shiftKey ? 10 : 2;
      /** @type {Record<string, number>} */
      const targets = {
        ArrowLeft: now - step,
        ArrowDown: now - step,
        ArrowRight: now + step,
        ArrowUp: now + step,
        PageDown: now - 10,
        PageUp: now + 10,
        Home: 0,
        End: 100,
      };
      if (!(event.key in targets) || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      event.stopPropagation();
      this.#setDivider(targets[event.key]);
    });
    stage.addEventListener("keydown", (event) => {
      /** @type {Record<string, () => void>} */
      const actions = {
        "+": () => this.zoomBy(1),
        "=": () => this.zoomBy(1),
        "-": () => this.zoomBy(-1),
        0: () => this.fit(),
        1: () => this.zoomToFull(),
        ArrowLeft: () => this.#pan(PAN_STEP, 0),
        ArrowRight: () => this.#pan(-PAN_STEP, 0),
        ArrowUp: () => this.#pan(0, PAN_STEP),
        ArrowDown: () => this.#pan(0, -PAN_STEP),
      };
      const action = actions[event.key];
      if (!action || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      action();
    });
  }

  #listenToPointers() {
    const { stage, divider } = this.parts;
    let movesDivider = false;
    stage.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !this.#before) return;
      const onDivider = event.target instanceof Element && divider.contains(event.target);
      movesDivider = this.#pointers.size === 0 && (onDivider || (this.#isFitted && !divider.hidden));
      stage.setPointerCapture(event.pointerId);
      this.#pointers.set(event.pointerId, this.#point(event));
      if (movesDivider) this.#dragDivider(event);
    });
    stage.addEventListener("pointermove", (event) => {
      const from = this.#pointers.get(event.pointerId);
      if (!from) return;
      const to = this.#point(event);
      const other = [...this.#pointers].find(([id]) => id !== event.pointerId)?.[1];
      if (other) this.#pinch(other, from, to);
      else if (movesDivider) this.#dragDivider(event);
      else this.#pan(to.x - from.x, to.y - from.y);
      this.#pointers.set(event.pointerId, to);
    });
    for (const name of /** @type {const} */ (["pointerup", "pointercancel"])) {
      stage.addEventListener(name, (event) => {
        this.#pointers.delete(event.pointerId);
        movesDivider = false; // a finger that is left after a pinch moves the photo
      });
    }
    stage.addEventListener("dblclick", (event) => {
      if (this.#isFitted) this.#zoomTo(Math.max(1, 2 * this.#scale), this.#point(event));
      else this.fit();
    });
  }

  /** @param {MouseEvent} event */
  #dragDivider(event) {
    const { left, width } = this.parts.stage.getBoundingClientRect();
    this.#setDivider((100 * (event.clientX - left)) / width);
  }

  /**
   * @param {Point} still The finger that did not move.
   * @param {Point} from
   * @param {Point} to
   */
  #pinch(still, from, to) {
    const before = Math.hypot(from.x - still.x, from.y - still.y);
    const after = Math.hypot(to.x - still.x, to.y - still.y);
    if (before > 0) this.#zoomTo((this.#scale * after) / before, still);
  }

  /** @param {WheelEvent} event */
  #onWheel(event) {
    // Where the page is longer than the window, the wheel scrolls it.
    const scrolls = document.documentElement.scrollHeight > innerHeight;
    if (!this.#before || (scrolls && !event.ctrlKey)) return;
    event.preventDefault();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_PIXEL ? event.deltaY / 100 : event.deltaY / 3;
    this.#zoomTo(this.#scale * ZOOM_STEP ** -Math.min(Math.max(lines, -2), 2), this.#point(event));
  }

  /**
   * Returns where an event is, in CSS pixels, from the middle of the stage.
   *
   * @param {MouseEvent} event
   * @returns {Point}
   */
  #point(event) {
    const { left, top, width, height } = this.parts.stage.getBoundingClientRect();
    return { x: event.clientX - left - width / 2, y: event.clientY - top - height / 2 };
  }
}
