// The middle of the page: planes of the image with what was found in it, or the volume in 3D where that is built.

import { bitmap, call, get } from "./api.js";
import { el } from "./dom.js";
import { Pictures } from "./pictures.js";
import { Plane } from "./planes.js";

const LAYERS = { mask: "Found", heat: "Explanation", none: "None" };
const OPACITY = { mask: 0.3, heat: 0.7, none: 0 };
const START = { brightness: 1, contrast: 1, cross: true, outline: true };

export class Viewer {
  constructor(root, fail) {
    this.root = root;
    this.fail = fail;
    this.about = get("/ui/about.json").catch(() => ({ volume: null }));
    this.empty();
  }

  empty(title = "No image yet") {
    this.wish = null;
    this.#close();
    this.root.replaceChildren(el("div", { class: "nothing" },
      el("p", { class: "big" }, title),
      el("p", { class: "soft" }, "Drop a file anywhere on this page. It goes to this service and nowhere else, and is forgotten after a while.")));
  }

  #close() {
    this.planes?.forEach((plane) => plane.close());
    this.volume?.close();
    this.planes = this.volume = null;
    this.root.classList.remove("in-3d");
  }

  /** Show the answer `body`. */
  async show(body) {
    const wish = (this.wish = Symbol("wish"));
    if (!body.links?.slices) {
      this.#close();
      this.root.replaceChildren(el("div", { class: "nothing" }, el("p", { class: "soft" }, "The pictures of this answer are not kept.")));
      return;
    }
    const info = await get(body.links.slices);
    if (wish !== this.wish) return;
    this.#close();
    this.body = body;
    this.info = info;
    const layers = info.layers.filter((layer) => layer !== "image");
    const layer = layers[0] ?? "none";
    this.opacities = { ...OPACITY };
    this.state = { ...START, position: info.axes.map((axis) => axis.start), layer, opacity: OPACITY[layer] };
    const pictures = new Pictures((axis, index, layer) => bitmap(`${body.links.slices}?${new URLSearchParams({ axis, index, layer })}`));
    const on = {
      move: (axis, index) => this.#move(axis, index),
      enlarge: (axis) => this.#enlarge(axis),
      window: (contrast, brightness) => this.#window(contrast, brightness),
      fail: (error) => this.fail(error),
    };
    const order = info.axes.length === 3 ? [2, 1, 0] : [0];
    this.planes = order.map((axis) => new Plane(axis, info, this.state, pictures, on));
    this.stage = el("div", { class: `stage ${info.axes.length === 3 ? "three" : "one"}` }, this.planes.map((plane) => plane.node));
    this.#fit();
    const bar = el("div", { class: "bar" }, this.#tabs(), this.#layers(layers), this.#sliders(layers));
    this.root.replaceChildren(bar, this.stage, this.#hint());
    this.#update();
  }

  // The large plane is as wide as its shape asks for, so that all three are shown at one scale.
  #fit() {
    if (this.info.axes.length !== 3) return;
    const [sagittal, coronal, axial] = this.info.axes.map((axis) => axis.size);
    const right = Math.max(sagittal[1], coronal[1]);
    const ratio = Math.min(Math.max((1.7 * axial[1]) / right, 0.9), 2.2);
    this.stage.style.setProperty("--wide", `${ratio}fr`);
  }

  #hint() {
    if (this.info.axes.length !== 3) return el("p", { class: "hint soft" }, "Wheel: zoom. Drag: move. Double click: all of it. Right button: brightness, contrast.");
    return el("p", { class: "hint soft" }, "Wheel, arrows: scroll. Click: cross-hair. Ctrl + wheel: zoom. Shift + drag: move. Right button: contrast.");
  }

  #move(axis, index) {
    const last = this.info.axes[axis].count - 1;
    const to = Math.min(Math.max(index, 0), last);
    if (to === this.state.position[axis]) return;
    this.state.position[axis] = to;
    this.#update();
  }

  #enlarge(axis) {
    const one = this.stage.dataset.only === String(axis);
    this.stage.dataset.only = one ? "" : String(axis);
  }

  #window(contrast, brightness) {
    this.state.contrast = Math.min(Math.max(this.state.contrast + contrast, 0.2), 5);
    this.state.brightness = Math.min(Math.max(this.state.brightness + brightness, 0.2), 5);
    this.controls.contrast.value = this.state.contrast;
    this.controls.brightness.value = this.state.brightness;
    this.#update();
  }

  #update() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = null;
      this.planes?.forEach((plane) => plane.update());
      this.volume?.set(this.state);
    });
  }

  #tabs() {
    if (this.info.axes.length !== 3) return null;
    const tab = (name, chosen, choose) => el("button", { type: "button", role: "tab", "aria-selected": String(chosen), onclick: choose }, name);
    const flat = tab("Planes", true, () => this.#tab(flat, solid, false));
    const solid = tab("3D", false, () => this.#tab(solid, flat, true));
    return el("div", { class: "tabs", role: "tablist", "aria-label": "View" }, flat, solid);
  }

  async #tab(chosen, other, volume) {
    this.root.classList.toggle("in-3d", volume);
    chosen.setAttribute("aria-selected", "true");
    other.setAttribute("aria-selected", "false");
    if (!volume) {
      this.volume?.close();
      this.volume = null;
      this.root.querySelector(".solid")?.replaceWith(this.stage);
      this.#update();
      return;
    }
    const place = el("div", { class: "stage solid" }, el("p", { class: "soft" }, "Loading the volume …"));
    this.stage.replaceWith(place);
    try {
      await this.#solid(place);
    } catch (error) {
      place.replaceChildren(el("div", { class: "nothing" },
        el("p", { class: "big" }, "No 3D view"), el("p", { class: "soft" }, error.detail || error.message)));
    }
  }

  async #solid(place) {
    const { volume } = await this.about;
    if (!volume) throw new Error("It is not part of this installation. To build it: cd medray/serving/web && npm install && npm run build, then start the service again.");
    if (!document.createElement("canvas").getContext("webgl2")) throw new Error("This browser has no WebGL 2. The planes show the same.");
    const { links } = this.body;
    const load = async (link) => (link ? (await call(link)).arrayBuffer() : null);
    const [{ Volume }, image, mask, heat] = await Promise.all([
      import(volume), load(links.image_preview), load(links.mask_preview), load(links.heat_preview),
    ]);
    if (!place.isConnected) return;
    const canvas = el("canvas", { tabIndex: 0, "aria-label": "The volume in three planes and in 3D; drag to turn it" });
    place.replaceChildren(canvas);
    const made = new Volume(canvas);
    await made.show({ image, mask, heat }, this.body.structures ?? [], this.#extent(), this.state);
    this.volume = made;
    this.volume.set(this.state);
  }

  #extent() {
    return Math.max(...this.info.axes.map((axis, place) => axis.count * this.info.spacing[place]));
  }

  #layers(layers) {
    if (!layers.length) return null;
    const choice = (name) => el("label", {},
      el("input", { type: "radio", name: "layer", value: name, checked: this.state.layer === name, onchange: () => {
        this.opacities[this.state.layer] = this.state.opacity;
        this.state.layer = name;
        this.state.opacity = this.opacities[name];
        this.controls.opacity.value = this.state.opacity;
        this.#update();
      } }), el("span", {}, LAYERS[name]));
    return el("fieldset", { class: "layers" }, el("legend", {}, "Show"), [...layers, "none"].map(choice));
  }

  #sliders(layers) {
    const slider = (name, label, min, max) => {
      const input = el("input", { type: "range", min, max, step: 0.01, value: this.state[name], "aria-label": label, oninput: () => {
        this.state[name] = Number(input.value);
        this.#update();
      } });
      return input;
    };
    const box = (name, label) => el("label", { class: "box" },
      el("input", { type: "checkbox", checked: this.state[name], onchange: (event) => {
        this.state[name] = event.target.checked;
        this.#update();
      } }), el("span", {}, label));
    this.controls = {
      opacity: slider("opacity", "Opacity", 0, 1),
      brightness: slider("brightness", "Brightness", 0.2, 5),
      contrast: slider("contrast", "Contrast", 0.2, 5),
    };
    const reset = el("button", { type: "button", class: "quiet", onclick: () => this.#window(1 - this.state.contrast, 1 - this.state.brightness) }, "Reset");
    const named = (text, input) => el("label", { class: "slider" }, el("span", {}, text), input);
    return el("div", { class: "sliders" },
      layers.length > 0 && named("Opacity", this.controls.opacity),
      layers.includes("mask") && box("outline", "Outline"),
      this.info.axes.length === 3 && box("cross", "Cross-hair"),
      el("span", { class: "window" }, named("Brightness", this.controls.brightness), named("Contrast", this.controls.contrast), reset));
  }
}
