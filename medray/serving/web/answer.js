// The right side of the page: what the model says, how sure it is, what to be careful about, and what to do next.

import { call, download, save } from "./api.js";
import { el, percent, short, terms, unit, words } from "./dom.js";

const FILES = {
  report: ["Report", "report.html"],
  dicom_seg: ["Mask as DICOM SEG", "seg.dcm"],
  mask: ["Mask", "mask"],
  overlay: ["Picture of the mask", "overlay.png"],
  explanation: ["Picture of the explanation", "explanation.png"],
};

/** Nodes of the whole answer. `fail` hears of what goes wrong later. */
export function answerOf(body, fail) {
  return [
    verdict(body),
    warnings(body.warnings),
    body.predictions && probabilities(body),
    body.values && values(body.values),
    body.structures && structures(body.structures),
    downloads(body, fail),
    feedback(body, fail),
    details(body),
  ].filter(Boolean);
}

/** Nodes of a problem: what was wrong, and how to mend it. */
export function problemOf(error) {
  const { title, detail, hint, requestId } = error;
  return el("div", { class: "problem", role: "alert" },
    el("p", { class: "title" }, words(title || "something went wrong")),
    el("p", {}, detail || error.message || ""),
    hint && el("p", { class: "mend" }, hint),
    requestId && el("p", { class: "soft id" }, `Request ${requestId}`));
}

/** The answer in a few words. */
export function inShort(body) {
  if (body.values?.length) return body.values.map((item) => `${words(item.name)} ${short(item.value)}`).join(", ");
  if (body.labels.length) return body.labels.map(words).join(", ");
  return body.task === "segmentation" ? "nothing found" : "none of the classes";
}

function verdict(body) {
  const found = body.task === "segmentation" && body.labels.length;
  const many = found > 1 ? `${found} of ${body.structures.length} structures` : inShort(body);
  return el("div", { class: "verdict" },
    el("p", { class: "soft" }, found ? "The model found" : "The model says"),
    el("h1", {}, many),
    el("p", { class: "soft" }, `${body.model.name}/${body.model.version}`));
}

function warnings(found) {
  return el("ul", { class: "warnings", "aria-label": "Be careful" }, found.map(({ word, meaning }) =>
    el("li", {}, el("strong", {}, words(word)), meaning && words(word) !== meaning && el("span", {}, meaning))));
}

function probabilities(body) {
  const possible = new Set(body.conformal_set ?? []);
  const likeliest = [...body.predictions].sort((one, other) => other.probability - one.probability);
  const rows = likeliest.map(({ label, probability, threshold }) => {
    const picked = body.labels.includes(label);
    const tick = threshold === undefined ? null : el("i", { class: "tick", style: { left: `${100 * threshold}%` }, title: `threshold ${percent(threshold)}` });
    const bar = el("div", { class: "track" }, el("div", { class: "fill", style: { width: `${100 * probability}%` } }), tick);
    const mark = possible.has(label) && el("span", { class: "mark", title: "cannot be ruled out" }, "◆");
    const spoken = `${words(label)} ${percent(probability)}${picked ? ", the answer" : ""}${possible.has(label) ? ", cannot be ruled out" : ""}`;
    return el("li", { class: picked ? "picked" : "", "aria-label": spoken },
      el("span", { class: "label" }, words(label), mark), el("span", { class: "number" }, percent(probability)), bar);
  });
  const ticks = body.predictions.some(({ threshold }) => threshold !== undefined);
  const notes = [ticks && "The tick is the threshold of the class.", body.conformal_set && "◆ cannot be ruled out at the model's level."];
  return section("Probabilities", el("ul", { class: "bars" }, rows), el("p", { class: "soft note" }, notes.filter(Boolean).join(" ")));
}

function values(found) {
  const rows = found.map(({ name, value, interval }) => [
    words(name),
    el("span", {}, el("strong", {}, short(value)), interval && el("span", { class: "soft" }, `  ${short(interval[0])} to ${short(interval[1])}`)),
  ]);
  return section("Measured", terms(rows));
}

function structures(found) {
  const rows = found.map(({ label, volume, unit: name, colour }) => el("li", { class: volume ? "" : "absent" },
    el("i", { class: "key", style: { background: colour } }),
    el("span", { class: "label" }, words(label)),
    el("span", { class: "number" }, volume ? `${short(volume)} ${unit(name)}` : "not found")));
  return section("Structures", el("ul", { class: "legend" }, rows));
}

function downloads(body, fail) {
  const links = body.links ?? {};
  const names = Object.keys(FILES).filter((name) => links[name] && !(name === "mask" && links.dicom_seg));
  const button = (label, run) => el("button", { type: "button", onclick: async (event) => {
    event.target.disabled = true;
    try { await run(); } catch (error) { fail(error); } finally { event.target.disabled = false; }
  } }, label);
  const buttons = names.map((name) => button(FILES[name][0], () => download(links[name], FILES[name][1])));
  const json = button("JSON", async () => save(new Blob([JSON.stringify(body, null, 1)], { type: "application/json" }), "answer.json"));
  const until = body.expires && el("p", { class: "soft note" }, `Files are kept until ${new Date(body.expires).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })}.`);
  return section("Download", el("div", { class: "row" }, buttons, json), until);
}

function feedback(body, fail) {
  const place = el("div", { class: "row" });
  const send = async (correct, label) => {
    try {
      await call("/v1/feedback", { method: "POST", json: { request_id: body.request_id, correct, label } });
      place.replaceChildren(el("p", { class: "soft", role: "status" }, "Thank you, it is noted."));
    } catch (error) { fail(error); }
  };
  const classes = (body.predictions ?? body.structures ?? []).map(({ label }) => label);
  const wrong = () => {
    if (!classes.length) return send(false, null);
    const select = el("select", { "aria-label": "What is it?" }, el("option", { value: "" }, "I do not know"),
      classes.map((name) => el("option", { value: name }, words(name))));
    place.replaceChildren(el("label", { class: "grow" }, el("span", { class: "soft" }, body.structures ? "Which is wrong?" : "What is it?"), select),
      el("button", { type: "button", class: "main", onclick: () => send(false, select.value || null) }, "Send"));
    select.focus();
    return null;
  };
  place.append(el("button", { type: "button", onclick: () => send(true, null) }, "Yes"), el("button", { type: "button", onclick: wrong }, "No"));
  return section("Was this right?", place);
}

const KINDS = { gzip: "NIfTI", nifti: "NIfTI", dicom: "DICOM", png: "PNG", jpeg: "JPEG", nrrd: "NRRD" };
const STEPS = ["read", "decode", "preprocess", "queue", "forward", "postprocess", "total"];

function details(body) {
  const { input, timings_ms: timings = {}, quality = {} } = body;
  const shape = `${input.shape.join(" x ")}${input.channels > 1 ? `, ${input.channels} channels` : ""}`;
  const edges = `${input.spacing.map(short).join(" x ")} ${unit(input.unit)}`;
  const time = STEPS.filter((step) => step in timings).map((step) => `${step} ${short(timings[step])}`).join(" · ");
  return el("details", {}, el("summary", {}, "Details"), terms([
    ["Image", `${KINDS[input.kind] ?? input.kind}, ${shape}`],
    ["Voxel edges", input.unit === "mm" ? edges : ""],
    ["Modality", input.modality === "OT" ? "" : input.modality],
    ["Explanation", body.explanation && `${body.explanation.method} of ${words(body.explanation.target)}`],
    ["Time in ms", time],
    ["Images in the pass", body.batch],
    ...Object.entries(quality).map(([name, value]) => [words(name), short(value)]),
    ["Request", el("code", {}, body.request_id)],
    ["Model digest", el("code", {}, body.model.digest)],
    ["Upload SHA-256", el("code", {}, input.sha256)],
  ]));
}

function section(title, ...children) {
  return el("section", {}, el("h2", {}, title), children);
}
