// Whether a model's answers, and the images that they are of, have moved since the training.

import { get, useKey } from "./api.js";
import { problemOf } from "./answer.js";
import { byId, el, percent, short, svg, words } from "./dom.js";

const BAR = { width: 150, height: 34, gap: 2 };

async function load() {
  try {
    const { models } = await get("/v1/drift");
    byId("models").replaceChildren(...(models.length ? models.map(modelOf) : [el("p", { class: "soft" }, "No model is served.")]));
    byId("key-form").hidden = true;
  } catch (error) {
    if (error.status === 401 || error.status === 403) byId("key-form").hidden = false;
    byId("models").replaceChildren(problemOf(error));
  }
}

function modelOf(model) {
  const { answers, window: newest, enough, drifted, checks = [], warnings = {} } = model;
  const counted = `${answers} answer${answers === 1 ? "" : "s"}`;
  const text = !enough ? `Too few to say: ${counted} so far.` : drifted ? "Some have moved: look at the images, and at the model." : "Nothing has moved.";
  return el("section", { class: "drift-model" },
    el("h2", {}, model.model),
    el("p", { class: `state ${!enough ? "" : drifted ? "moved" : "same"}` }, text),
    enough && el("p", { class: "soft note" }, `${counted}, of which the newest ${newest} at most are compared.`),
    checks.length > 0 && el("div", { class: "scroll" }, table(checks)),
    Object.keys(warnings).length > 0 && el("p", { class: "note" },
      `Warnings: ${Object.entries(warnings).map(([word, share]) => `${words(word)} ${percent(share)}`).join(", ")}.`));
}

function table(checks) {
  const head = ["What", "PSI", "Moved from", "Training (grey) and now (blue)"].map((name) => el("th", { scope: "col" }, name));
  const order = [...checks].sort((one, other) => other.drifted - one.drifted || (other.psi ?? -1) - (one.psi ?? -1));
  return el("table", { class: "checks" }, el("thead", {}, el("tr", {}, head)), el("tbody", {}, order.map((check) =>
    el("tr", { class: check.drifted ? "moved" : "" },
      el("th", { scope: "row" }, words(check.name).replace("/", ": ")),
      el("td", {}, check.psi === null ? "–" : `${short(check.psi)}${check.drifted ? " ▲" : ""}`),
      el("td", { class: "soft" }, short(check.threshold)),
      el("td", {}, histogram(check))))));
}

function histogram({ expected = [], found = [], edges = [] }) {
  const top = Math.max(...expected, ...found, 1e-9);
  const step = BAR.width / Math.max(expected.length, 1);
  const bars = (shares, side, name) => shares.map((share, place) => {
    const height = (share / top) * BAR.height;
    const range = edges.length > shares.length ? `${short(edges[place])} to ${short(edges[place + 1])}: ` : "";
    return svg("rect", { class: name, x: place * step + (side * step) / 2 + (side ? 0 : BAR.gap / 2), y: BAR.height - height,
      width: Math.max(1, step / 2 - BAR.gap / 2), height }, titled(`${range}${percent(share)}`));
  });
  return svg("svg", { width: BAR.width, height: BAR.height, role: "img", "aria-label": `training ${expected.map(percent).join(", ")}; now ${found.map(percent).join(", ")}` },
    ...bars(expected, 0, "expected"), ...bars(found, 1, "found"));
}

function titled(text) {
  const title = svg("title");
  title.textContent = text;
  return title;
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value.trim());
  byId("key").value = "";
  load();
});
load();
setInterval(load, 60_000);
