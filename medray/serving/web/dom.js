// Elements and words. All text goes in as text: nothing that a server or a file says becomes markup.

/** An element with properties and children (nodes or text; null and false are left out). */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") node.className = value;
    else if (name === "style") Object.assign(node.style, value);
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "role" || name === "for") node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** An SVG element with attributes and children. */
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export const byId = (id) => document.getElementById(id);
export const words = (text) => String(text).replaceAll("_", " ");
export const percent = (share) => `${(100 * share).toFixed(1)} %`;

/** Three digits that count. */
export function short(number) {
  if (number === 0) return "0";
  if (!Number.isFinite(number)) return "not a number";
  const size = Math.abs(number);
  if (size >= 1e6 || size < 1e-3) return number.toExponential(2);
  return size >= 100 ? number.toFixed(0) : String(Number(number.toPrecision(3)));
}

const UNITS = { mm2: "mm²", px: "pixels" };
export const unit = (name) => UNITS[name] ?? name;

/** Terms and what they are, as a description list; pairs without a value are left out. */
export function terms(pairs) {
  const shown = pairs.filter(([, value]) => value !== undefined && value !== null && value !== "");
  return el("dl", {}, shown.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}
