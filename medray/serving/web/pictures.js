// Pictures of planes: kept for a while, and shaded as a workstation shows masks.

/** Loads pictures once, and forgets those that were not asked for the longest, beyond a number of bytes. */
export class Pictures {
  constructor(load, most = 192 << 20) {
    Object.assign(this, { load, most, bytes: 0, known: new Map() });
  }

  get(axis, index, layer) {
    const name = `${axis}/${index}/${layer}`;
    const entry = this.known.get(name) ?? this.#fetch(name, axis, index, layer);
    this.known.delete(name);
    this.known.set(name, entry);
    return entry.picture;
  }

  #fetch(name, axis, index, layer) {
    const entry = { picture: this.load(axis, index, layer), bytes: 0 };
    entry.picture.then(
      ({ width, height }) => {
        entry.bytes = 4 * width * height;
        this.bytes += entry.bytes;
        this.#forget();
      },
      () => this.known.delete(name),
    );
    return entry;
  }

  // A bitmap is not closed: a plane that nobody has scrolled for long may still show it.
  #forget() {
    for (const [name, entry] of this.known) {
      if (this.bytes <= this.most) return;
      if (!entry.bytes) continue;
      this.known.delete(name);
      this.bytes -= entry.bytes;
    }
  }
}

/** Make the inside of RGBA pixels as opaque as `fill` (0 to 1), and a border of `edge` pixels along colours opaque. */
export function shade({ data, width, height }, fill, edge) {
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
