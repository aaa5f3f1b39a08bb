// About a model: what its card says, for a person to read.

import { el, percent, short, terms, unit, words } from "./dom.js";

const MEASURES = {
  accuracy: "accuracy", balanced_accuracy: "balanced accuracy", auroc: "AUROC", average_precision: "average precision",
  f1: "F1", recall: "sensitivity", specificity: "specificity", ece: "calibration error", brier: "Brier score", kappa: "kappa",
  mcc: "MCC", dice: "Dice", mae: "mean absolute error", rmse: "RMSE", r2: "R²",
};

/** Nodes of the card of `model`, the body of /v1/models/{name}. */
export function cardOf(model, close) {
  const card = model.card ?? {};
  return [
    el("div", { class: "drawer-head" },
      el("div", {}, el("p", { class: "soft" }, "Model"), el("h1", {}, `${model.name}/${model.version}`)),
      el("button", { type: "button", class: "quiet", "aria-label": "Close", onclick: close }, "✕")),
    el("p", { class: "use" }, card.intended_use ?? "Research use only. Not a medical device."),
    part("What it does", purpose(model, card)),
    measured(card),
    part("How it decides", decision(card)),
    part("What it was trained on", training(card)),
    ranges(card.contract),
    part("What it is", terms([
      ["Name in service", model.alias && `${model.alias}${model.role && model.role !== "serving" ? `, ${model.role}` : ""}`],
      ["Share of requests", model.share !== undefined && model.share < 1 ? percent(model.share) : ""],
      ["Digest", el("code", {}, model.digest)],
      ["Made with", environment(card.environment)],
    ])),
  ].filter(Boolean);
}

function part(title, ...children) {
  const found = children.filter((child) => child && child.childNodes.length);
  return found.length ? el("section", {}, el("h2", {}, title), found) : null;
}

function purpose(model, card) {
  const list = model.structures?.length ? model.structures : model.classes ?? card.classes;
  return terms([
    ["Task", words(model.task ?? "")],
    [model.structures?.length ? "Structures" : "Classes", list?.map(words).join(", ")],
    ["Takes", `${model.axes ?? card.input?.axes}D images with ${model.channels ?? card.input?.channels} channel${(model.channels ?? 1) === 1 ? "" : "s"}`],
  ]);
}

function measured(card) {
  const metrics = card.metrics ?? {};
  const set = Object.keys(metrics).some((name) => name.startsWith("test/")) ? "test" : "val";
  const rows = Object.entries(metrics).filter(([name]) => name.startsWith(`${set}/`) && name !== `${set}/loss`);
  if (!rows.length) return null;
  const known = Object.keys(MEASURES);
  const place = (name) => (known.indexOf(name) + 1 || known.length + 1);
  const table = el("table", {}, el("tbody", {}, rows
    .map(([name, value]) => [name.slice(set.length + 1), value, card.intervals?.[name]])
    .sort(([one], [other]) => place(one) - place(other))
    .map(([name, value, interval]) => el("tr", {},
      el("th", { scope: "row" }, MEASURES[name] ?? words(name)),
      el("td", { class: "number" }, typeof value === "number" ? value.toFixed(3) : String(value)),
      el("td", { class: "soft number" }, interval ? `${interval[0].toFixed(3)} to ${interval[1].toFixed(3)}` : "")))));
  const cases = card.cases?.[set];
  const where = set === "test" ? "cases that were kept apart" : "validation cases, by which it was chosen";
  return part("How well", table, el("p", { class: "soft note" }, `On ${cases ? `${cases} ` : ""}${where}. Ranges are 95 % intervals.`));
}

function decision(card) {
  const trust = card.trust ?? {};
  const points = (trust.operating_points ?? []).map((point) => `${words(point.label ?? point.class ?? "")} from ${short(point.threshold)}`);
  return terms([
    ["Rule", card.decision],
    ["Thresholds", points.join(", ")],
    ["Calibration", trust.temperature ? `temperature ${short(trust.temperature)}` : ""],
    ["Conformal set", trust.conformal ? `holds the right class in ${percent(1 - trust.conformal.alpha)} of cases like those it was made with` : ""],
  ]);
}

function training(card) {
  const contract = card.contract ?? {};
  const counted = (counts) => Object.entries(counts ?? {}).map(([name, count]) => `${name === "OT" ? "not said" : name} (${count})`).join(", ");
  const cases = card.cases ?? {};
  return terms([
    ["Cases", ["train", "val", "test"].filter((name) => cases[name] !== undefined).map((name) => `${cases[name]} ${name}`).join(", ")],
    ["Modality", counted(contract.modalities)],
    ["Data fingerprint", card.data && el("code", {}, card.data)],
  ]);
}

function ranges(contract) {
  const found = Object.entries(contract?.ranges ?? {});
  if (!found.length) return null;
  const named = (name) => {
    const [what, axis] = name.split("_");
    if (axis === undefined) return { p01: "darkest (1 %)", p50: "median", p99: "brightest (99 %)" }[name] ?? words(name);
    return `${{ spacing: "voxel edge", extent: "length shown" }[what] ?? what} ${Number(axis) + 1}, ${unit(contract.unit)}`;
  };
  const rows = found.map(([name, [low, high]]) => el("tr", {},
    el("th", { scope: "row" }, named(name)), el("td", { class: "number" }, short(low)), el("td", { class: "number" }, short(high))));
  return part("Images that it knows", el("table", {}, el("tbody", {}, rows)),
    el("p", { class: "soft note" }, "What lies outside gets a warning."));
}

function environment(found = {}) {
  return ["medray", "torch", "monai"].filter((name) => found[name]).map((name) => `${name} ${found[name]}`).join(", ");
}
