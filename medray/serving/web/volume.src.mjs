// The volume in three planes and in 3D, by NiiVue. `npm run build` makes dist/volume.js of it.

import NiiVue from "@niivue/niivue/webgl2";

const [MULTIPLANAR, ALWAYS, GRID] = [3, 1, 2];
/** Grey, and so transparent in 3D that what was found shines through; planes are opaque all the same. */
const FAINT = { R: [0, 255], G: [0, 255], B: [0, 255], A: [0, 24], I: [0, 255] };
const LEAST = 0.2;

const file = (content, name) => new File([content], name);

export class Volume {
  constructor(canvas) {
    this.canvas = canvas;
    this.view = new NiiVue({
      backgroundColor: [0, 0, 0, 1], isRadiological: true, isDragDropEnabled: false, isOrientCubeVisible: false,
      isColorbarVisible: false, isLegendVisible: false, crosshairColor: [0.47, 0.78, 1, 0.6], fontColor: [0.81, 0.85, 0.87, 1],
      sliceType: MULTIPLANAR, showRender: ALWAYS, multiplanarType: GRID, placeholderText: "",
    });
  }

  /** Show NIfTI contents {image, mask, heat} of a longest edge `extent`; `structures` say the mask's colours. */
  async show({ image, mask, heat }, structures, extent, state) {
    await this.view.attachToCanvas(this.canvas);
    this.view.crosshairWidth = extent / 700;
    this.layers = {};
    const colormap = this.view.addColormap("faint", FAINT);
    const parts = [{ url: file(image, "image.nii.gz"), colormap }];
    if (mask) {
      this.layers.mask = parts.length;
      parts.push({ url: file(mask, "mask.nii.gz"), opacity: state.opacity });
    }
    if (heat) {
      this.layers.heat = parts.length;
      parts.push({ url: file(heat, "heat.nii.gz"), colormap: "inferno", calMin: 64, calMax: 255, opacity: 0 });
    }
    await this.view.loadVolumes(parts);
    if (mask) await this.view.setColormapLabel(this.layers.mask, labels(structures));
    this.set(state);
  }

  /** Follow the layer and opacity of the page. */
  set({ layer, opacity }) {
    const wish = JSON.stringify([layer, opacity]);
    if (!this.layers || wish === this.said) return;
    this.said = wish;
    for (const [name, index] of Object.entries(this.layers)) {
      this.view.setVolume(index, { opacity: name === layer ? LEAST + (1 - LEAST) * opacity : 0 });
    }
  }

  close() {
    this.view.destroy();
  }
}

function labels(structures) {
  const colours = [[0, 0, 0], ...structures.map(({ colour }) => [1, 3, 5].map((at) => Number.parseInt(colour.slice(at, at + 2), 16)))];
  return {
    R: colours.map(([red]) => red), G: colours.map(([, green]) => green), B: colours.map(([, , blue]) => blue),
    A: colours.map((_, value) => (value ? 255 : 0)), I: colours.map((_, value) => value),
    labels: ["", ...structures.map(({ label }) => label)],
  };
}
