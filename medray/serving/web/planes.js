// One plane on a canvas: the image, what lies over it, the cross-hair, the letters of the sides.

import { el, words } from "./dom.js";
import { shade } from "./pictures.js";

const OPPOSITE = { A: "P", P: "A", R: "L", L: "R", S: "I", I: "S" };
/** The axes along columns and rows of each plane; both run against the index, as radiologists look at planes. */
const ACROSS = [[1, 2], [0, 2], [0, 1]];
const EDGE_PX = 1.6;
/** What a wheel turns by in one step, in the pixels that it would scroll. */
const NOTCH = 90;
const MOST_ZOOM = 12;
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/** A plane of an answer. `state` is the viewer's: position, layer, opacity, outline, brightness, contrast, cross. */
export class Plane {
  constructor(axis, info, state, pictures, on) {
    Object.assign(this, { axis, info, state, pictures, on, shown: null, busy: false, zoom: 1, centre: [0.5, 0.5] });
    this.about = info.axes[axis];
    this.flat = this.about.name === "image";
    this.canvas = el("canvas", { tabIndex: 0, role: "img", "aria-label": `${this.about.name} plane` });
    this.over = document.createElement("canvas");
    this.slider = el("input", {
      type: "range", min: 0, max: this.about.count - 1, step: 1, "aria-label": `${this.about.name} slice`,
      oninput: () => this.on.move(axis, Number(this.slider.value)),
    });
    this.where = el("output", { class: "where" });
    this.node = el("figure", { class: `plane plane-${axis}` }, this.#caption(), this.canvas);
    this.#listen();
    this.resize = new ResizeObserver(() => this.draw());
    this.resize.observe(this.canvas);
  }

  #caption() {
    if (this.flat) return null;
    const enlarge = el("button", {
      type: "button", class: "quiet", title: "This plane alone, or all three", "aria-label": `Enlarge ${this.about.name}`,
      onclick: () => this.on.enlarge(this.axis),
    }, "⤢");
    return el("figcaption", {}, el("span", { class: "name" }, words(this.about.name)), this.slider, this.where, enlarge);
  }

  #listen() {
    const { canvas } = this;
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const pixels = event.deltaY * (event.deltaMode ? 40 : 1);
      if (this.flat || event.ctrlKey) {
        this.#magnify(2 ** (-pixels / (4 * NOTCH)), this.#share(event));
        return;
      }
      // A touchpad sends many small steps, a wheel few large ones.
      this.turned = (this.turned ?? 0) + pixels;
      const steps = Math.trunc(this.turned / NOTCH);
      this.turned -= steps * NOTCH;
      if (steps) this.on.move(this.axis, this.index - Math.sign(steps) * Math.min(Math.abs(steps), 4));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const factor = { "+": 1.25, "=": 1.25, "-": 0.8, 0: 0 }[event.key];
      if (factor !== undefined) this.#magnify(factor, this.centre);
      const step = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10, Home: -1e9, End: 1e9 }[event.key];
      if (!step || this.flat) return;
      event.preventDefault();
      this.on.move(this.axis, this.index + step);
    });
    canvas.addEventListener("pointerdown", (event) => {
      const moves = event.button === 1 || (event.button === 0 && (this.flat || event.shiftKey));
      this.drag = moves ? "move" : event.button === 2 ? "window" : "cross";
      this.last = [event.clientX, event.clientY];
      if (this.drag === "cross") this.#point(event);
      event.preventDefault();
      canvas.focus({ preventScroll: true });
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.drag) return;
      const [right, down] = [event.clientX - this.last[0], event.clientY - this.last[1]];
      this.last = [event.clientX, event.clientY];
      if (this.drag === "cross") this.#point(event);
      else if (this.drag === "window") this.on.window(right / 150, -down / 150);
      else this.#pan(right, down);
    });
    canvas.addEventListener("dblclick", () => this.#magnify(0, this.centre));
    const end = () => { this.drag = null; };
    canvas.addEventListener("pointerup", end);
    canvas.addEventListener("pointercancel", end);
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  }

  /** Where in the picture the pointer is, from 0 to 1. */
  #share(event) {
    if (!this.place) return [0.5, 0.5];
    const box = this.canvas.getBoundingClientRect();
    const ratio = this.canvas.width / box.width;
    return [
      ((event.clientX - box.left) * ratio - this.place.x) / this.place.width,
      ((event.clientY - box.top) * ratio - this.place.y) / this.place.height,
    ];
  }

  #point(event) {
    const share = this.#share(event);
    ACROSS[this.axis].forEach((axis, side) => {
      const count = this.info.axes[axis].count;
      this.on.move(axis, count - 1 - Math.floor(clamp(share[side], 0, 0.999999) * count));
    });
  }

  /** Zoom by a factor, 0 for all of it; what is at `share` of the picture stays where it is. */
  #magnify(factor, share) {
    const zoom = factor ? clamp(this.zoom * factor, 1, MOST_ZOOM) : 1;
    this.centre = this.centre.map((at, side) => (zoom === 1 ? 0.5 : clamp(share[side] + ((at - share[side]) * this.zoom) / zoom, 0, 1)));
    this.zoom = zoom;
    this.draw();
  }

  #pan(right, down) {
    if (!this.place || this.zoom === 1) return;
    const ratio = window.devicePixelRatio || 1;
    const moved = [(right * ratio) / this.place.width, (down * ratio) / this.place.height];
    this.centre = this.centre.map((at, side) => clamp(at - moved[side], 0, 1));
    this.draw();
  }

  get index() { return this.state.position[this.axis]; }

  get layer() { return this.state.layer === "none" ? null : this.state.layer; }

  /** Show what the state says; while one picture is on its way only the newest wish is kept. */
  async update() {
    this.slider.value = this.index;
    this.where.textContent = `${this.index + 1} / ${this.about.count}`;
    this.draw();
    if (this.busy) return;
    this.busy = true;
    try {
      while (this.shown?.index !== this.index || this.shown?.layer !== this.layer) {
        const [index, layer] = [this.index, this.layer];
        const [image, over] = await Promise.all([
          this.pictures.get(this.axis, index, "image"),
          layer ? this.pictures.get(this.axis, index, layer) : null,
        ]);
        this.shown = { index, layer, image, over };
        this.draw();
      }
      this.#ahead();
    } catch (error) {
      this.on.fail(error);
    } finally {
      this.busy = false;
    }
  }

  #ahead() {
    for (const index of [this.index + 1, this.index - 1, this.index + 2, this.index - 2]) {
      if (index < 0 || index >= this.about.count) continue;
      this.pictures.get(this.axis, index, "image").catch(() => {});
      if (this.layer) this.pictures.get(this.axis, index, this.layer).catch(() => {});
    }
  }

  draw() {
    const box = this.canvas.getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(box.width * ratio), Math.round(box.height * ratio)];
    if (!width || !height) return;
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    const pen = this.canvas.getContext("2d");
    pen.filter = "none";
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, width, height);
    if (!this.shown) return;
    const { image, over, layer } = this.shown;
    const scale = Math.min(width / image.width, height / image.height) * this.zoom;
    const size = [Math.max(1, Math.round(image.width * scale)), Math.max(1, Math.round(image.height * scale))];
    const [x, y] = [Math.round(width / 2 - this.centre[0] * size[0]), Math.round(height / 2 - this.centre[1] * size[1])];
    this.place = { x, y, width: size[0], height: size[1] };
    pen.imageSmoothingEnabled = true;
    pen.imageSmoothingQuality = "high";
    pen.filter = `brightness(${this.state.brightness}) contrast(${this.state.contrast})`;
    pen.drawImage(image, x, y, ...size);
    pen.filter = "none";
    if (over && layer === "mask") this.#mask(pen, over, ratio);
    else if (over) {
      pen.globalAlpha = this.state.opacity;
      pen.drawImage(over, x, y, ...size);
      pen.globalAlpha = 1;
    }
    if (!this.flat) this.#marks(pen, ratio);
  }

  // Filled as far as the opacity says; its outline stays visible, as on a workstation.
  #mask(pen, over, ratio) {
    const layer = this.over;
    const { x, y, width, height } = this.place;
    const made = [over, x, y, width, height, this.state.opacity, this.state.outline];
    if (!this.made?.every((value, place) => value === made[place])) {
      Object.assign(layer, { width: this.canvas.width, height: this.canvas.height });
      const brush = layer.getContext("2d", { willReadFrequently: true });
      brush.imageSmoothingEnabled = false;
      brush.drawImage(over, x, y, width, height);
      const pixels = brush.getImageData(0, 0, layer.width, layer.height);
      shade(pixels, this.state.opacity, this.state.outline ? Math.max(1, Math.round(EDGE_PX * ratio)) : 0);
      brush.putImageData(pixels, 0, 0);
      this.made = made;
    }
    pen.drawImage(layer, 0, 0);
  }

  #marks(pen, ratio) {
    const { x, y, width, height } = this.place;
    if (this.state.cross) {
      const [left, top] = ACROSS[this.axis].map((axis) => {
        const count = this.info.axes[axis].count;
        return (count - 0.5 - this.state.position[axis]) / count;
      });
      pen.strokeStyle = "rgba(120, 200, 255, 0.55)";
      pen.lineWidth = ratio;
      pen.beginPath();
      pen.moveTo(x + left * width, y);
      pen.lineTo(x + left * width, y + height);
      pen.moveTo(x, y + top * height);
      pen.lineTo(x + width, y + top * height);
      pen.stroke();
    }
    const [side, up] = this.about.sides;
    const letters = [[side, 0, 0.5], [OPPOSITE[side], 1, 0.5], [up, 0.5, 0], [OPPOSITE[up], 0.5, 1]];
    pen.font = `600 ${13 * ratio}px system-ui, sans-serif`;
    pen.lineWidth = 3 * ratio;
    pen.strokeStyle = "#000";
    pen.fillStyle = "#cfd8df";
    const inset = 6 * ratio;
    // On the image where there is room for them, else beside it.
    const whole = this.zoom === 1;
    const across = whole && width > 70 * ratio ? [x, width] : [0, this.canvas.width];
    const down = whole && height > 70 * ratio ? [y, height] : [0, this.canvas.height];
    for (const [letter, right, below] of letters) {
      if (!letter) continue;
      pen.textAlign = right === 0.5 ? "center" : right ? "right" : "left";
      pen.textBaseline = below === 0.5 ? "middle" : below ? "bottom" : "top";
      const at = [across[0] + inset + right * (across[1] - 2 * inset), down[0] + inset + below * (down[1] - 2 * inset)];
      pen.strokeText(letter, ...at);
      pen.fillText(letter, ...at);
    }
  }

  close() { this.resize.disconnect(); }
}
