// One plane on a canvas: the image, what lies over it, the cross-hair, the letters of the sides.

import { el, words } from "./dom.js";

const OPPOSITE = { A: "P", P: "A", R: "L", L: "R", S: "I", I: "S" };
/** The axes along columns and rows of each plane; both run against the index, as radiologists look at planes. */
const ACROSS = [[1, 2], [0, 2], [0, 1]];
const EDGE_PX = 1.6;

/** Loads pictures once, and forgets the oldest beyond a number of bytes. */
export class Pictures {
  constructor(load, most = 192 << 20) {
    this.load = load;
    this.most = most;
    this.bytes = 0;
    this.known = new Map();
  }

  get(axis, index, layer) {
    const name = `${axis}/${index}/${layer}`;
    const found = this.known.get(name);
    if (found) {
      this.known.delete(name);
      this.known.set(name, found);
      return found;
    }
    const made = this.load(axis, index, layer);
    this.known.set(name, made);
    made.then((picture) => this.#count(picture), () => this.known.delete(name));
    return made;
  }

  #count(picture) {
    this.bytes += picture.width * picture.height * 4;
    for (const [name, old] of this.known) {
      if (this.bytes <= this.most || this.known.size < 8) return;
      this.known.delete(name);
      old.then((gone) => { this.bytes -= gone.width * gone.height * 4; gone.close(); }, () => {});
    }
  }
}

/** A plane of an answer. `state` is the viewer's: position, layer, opacity, outline, brightness, contrast, cross. */
export class Plane {
  constructor(axis, info, state, pictures, on) {
    Object.assign(this, { axis, info, state, pictures, on, shown: null, busy: false });
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
      if (this.flat || event.ctrlKey) return;
      event.preventDefault();
      // A touchpad sends many small steps, a wheel few large ones.
      this.turned = (this.turned ?? 0) + event.deltaY * (event.deltaMode ? 40 : 1);
      const steps = Math.trunc(this.turned / 40);
      this.turned -= steps * 40;
      if (steps) this.on.move(this.axis, this.index - Math.sign(steps) * Math.min(Math.abs(steps), 4));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10, Home: -1e9, End: 1e9 }[event.key];
      if (!step || this.flat || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      this.on.move(this.axis, this.index + step);
    });
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button === 2) this.drag = [event.clientX, event.clientY];
      else if (event.button === 0 && !this.flat) { this.drag = "cross"; this.#point(event); } else return;
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (this.drag === "cross") this.#point(event);
      else if (this.drag) {
        this.on.window((event.clientX - this.drag[0]) / 150, (this.drag[1] - event.clientY) / 150);
        this.drag = [event.clientX, event.clientY];
      }
    });
    const end = () => { this.drag = null; };
    canvas.addEventListener("pointerup", end);
    canvas.addEventListener("pointercancel", end);
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  }

  #point(event) {
    if (!this.place) return;
    const box = this.canvas.getBoundingClientRect();
    const ratio = this.canvas.width / box.width;
    const share = [
      ((event.clientX - box.left) * ratio - this.place.x) / this.place.width,
      ((event.clientY - box.top) * ratio - this.place.y) / this.place.height,
    ];
    ACROSS[this.axis].forEach((axis, side) => {
      const count = this.info.axes[axis].count;
      this.on.move(axis, count - 1 - Math.floor(Math.min(Math.max(share[side], 0), 0.999999) * count));
    });
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
    const scale = Math.min(width / image.width, height / image.height);
    const size = [Math.max(1, Math.round(image.width * scale)), Math.max(1, Math.round(image.height * scale))];
    this.place = { x: Math.round((width - size[0]) / 2), y: Math.round((height - size[1]) / 2), width: size[0], height: size[1] };
    pen.imageSmoothingEnabled = true;
    pen.imageSmoothingQuality = "high";
    pen.filter = `brightness(${this.state.brightness}) contrast(${this.state.contrast})`;
    pen.drawImage(image, this.place.x, this.place.y, ...size);
    pen.filter = "none";
    if (over && layer === "mask") this.#mask(pen, over, size, ratio);
    else if (over) {
      pen.globalAlpha = this.state.opacity;
      pen.drawImage(over, this.place.x, this.place.y, ...size);
      pen.globalAlpha = 1;
    }
    if (!this.flat) this.#marks(pen, ratio);
  }

  // Filled as far as the opacity says; its outline stays visible, as on a workstation.
  #mask(pen, over, [width, height], ratio) {
    const layer = this.over;
    const made = [over, width, height, this.state.opacity, this.state.outline];
    if (!this.made?.every((value, place) => value === made[place])) {
      Object.assign(layer, { width, height });
      const brush = layer.getContext("2d", { willReadFrequently: true });
      brush.imageSmoothingEnabled = false;
      brush.drawImage(over, 0, 0, width, height);
      const pixels = brush.getImageData(0, 0, width, height);
      shade(pixels, this.state.opacity, this.state.outline ? Math.max(1, Math.round(EDGE_PX * ratio)) : 0);
      brush.putImageData(pixels, 0, 0);
      this.made = made;
    }
    pen.drawImage(layer, this.place.x, this.place.y);
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
    for (const [letter, across, down] of letters) {
      if (!letter) continue;
      pen.textAlign = across === 0.5 ? "center" : across ? "right" : "left";
      pen.textBaseline = down === 0.5 ? "middle" : down ? "bottom" : "top";
      const at = [x + inset + across * (width - 2 * inset), y + inset + down * (height - 2 * inset)];
      pen.strokeText(letter, ...at);
      pen.fillText(letter, ...at);
    }
  }

  close() { this.resize.disconnect(); }
}

/** Make the inside of RGBA pixels as opaque as `fill` (0 to 1), and a border of `edge` pixels along colours opaque. */
function shade({ data, width, height }, fill, edge) {
  const colours = new Uint32Array(data.buffer.slice(0));
  const inside = Math.round(255 * fill);
  for (let row = 0, at = 0; row < height; row += 1) {
    for (let column = 0; column < width; column += 1, at += 1) {
      const colour = colours[at];
      if (!colour) continue;
      let border = false;
      if (edge) {
        border = (column >= edge && colours[at - edge] !== colour) || (column < width - edge && colours[at + edge] !== colour)
          || (row >= edge && colours[at - edge * width] !== colour)
          || (row < height - edge && colours[at + edge * width] !== colour);
      }
      data[at * 4 + 3] = border ? 255 : inside;
    }
  }
}
