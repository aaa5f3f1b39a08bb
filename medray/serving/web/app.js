// What happens when: models, files, answers, history. The parts are in the modules beside this one.

import { get, hasKey, onMissingKey, predict, Problem, useKey } from "./api.js";
import { answerOf, inShort, problemOf } from "./answer.js";
import { cardOf } from "./card.js";
import { byId, el, words } from "./dom.js";
import { dropped, uploads } from "./files.js";
import { Viewer } from "./viewer.js";

const METHODS = {
  none: "off", gradcam: "Grad-CAM", "gradcam++": "Grad-CAM++", occlusion: "occlusion",
  integrated_gradients: "integrated gradients", smoothgrad: "SmoothGrad",
};
/** Of a model that answers per voxel only these are fast enough to be defined. */
const DENSE = ["none", "gradcam", "gradcam++"];

const answer = byId("answer");
const fail = (error) => {
  if (error.name === "AbortError") return;
  answer.querySelector(":scope > .problem")?.remove();
  answer.prepend(problemOf(error));
};
const viewer = new Viewer(byId("viewer"), fail);
const state = { models: [], stop: null, history: [] };

// --- models ---

const chosen = () => state.models[byId("model").selectedIndex];
const asked = (model) => (model.role === "canary" ? `${model.name}@${model.version}` : model.name);

async function loadModels() {
  try {
    const { models } = await get("/v1/models");
    state.models = models.filter((model) => model.role !== "shadow");
    const options = state.models.map((model) =>
      el("option", {}, `${model.name}/${model.version}${model.role === "canary" ? " (canary)" : ""}`));
    byId("model").replaceChildren(...options);
    byId("model").selectedIndex = Math.max(0, state.models.findIndex((model) => model.default));
    byId("model").disabled = byId("card-button").disabled = !state.models.length;
    offerMethods();
  } catch (error) {
    answer.replaceChildren(problemOf(error));
  }
}

function offerMethods() {
  const names = chosen()?.task === "segmentation" ? DENSE : Object.keys(METHODS);
  const before = byId("explain").value;
  byId("explain").replaceChildren(...names.map((name) => el("option", { value: name }, METHODS[name])));
  byId("explain").value = names.includes(before) ? before : "none";
}

async function showCard() {
  const drawer = byId("card");
  drawer.replaceChildren(el("p", { class: "soft" }, "Loading …"));
  drawer.showModal();
  try {
    const model = chosen();
    const card = await get(`/v1/models/${encodeURIComponent(asked(model))}`);
    drawer.replaceChildren(...cardOf({ ...model, ...card }, () => drawer.close()));
  } catch (error) {
    drawer.replaceChildren(problemOf(error), el("button", { type: "button", onclick: () => drawer.close() }, "Close"));
  }
}

// --- images ---

function say(text, share) {
  byId("work").hidden = false;
  byId("work-text").textContent = share === null ? `${text} …` : `${text}, ${Math.round(100 * share)} %`;
  if (share === null) byId("work-bar").removeAttribute("value");
  else byId("work-bar").value = share;
}

async function ask(files) {
  if (!state.models.length) await loadModels();
  if (!files.length || state.stop || !state.models.length) return;
  const stop = (state.stop = new AbortController());
  document.body.classList.add("busy");
  try {
    const found = await uploads(files);
    if (!found.length) throw new Problem(0, { title: "no image", detail: "There is no image among these files." });
    for (const [number, { name, content }] of found.entries()) {
      const prefix = found.length > 1 ? `${number + 1} of ${found.length}: ` : "";
      const tell = (text, share) => say(prefix + text, share);
      const query = { model: asked(chosen()), explain: byId("explain").value, keep: true };
      try {
        const body = await predict(await content(tell), query, tell, stop.signal);
        remember(name, body);
        show(body);
      } catch (error) {
        if (error.name === "AbortError") throw error;
        remember(name, null, error);
        showProblem(error);
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") showProblem(error);
  } finally {
    state.stop = null;
    byId("work").hidden = true;
    document.body.classList.remove("busy");
  }
}

function show(body) {
  answer.replaceChildren(...answerOf(body, fail));
  answer.scrollTop = 0;
  viewer.show(body).catch(fail);
}

function showProblem(error) {
  viewer.empty("No picture");
  answer.replaceChildren(problemOf(error));
}

// --- this session, in memory alone ---

function remember(name, body, error) {
  state.history.unshift({ name, body, error, time: new Date() });
  state.history.length = Math.min(state.history.length, 50);
  byId("history").hidden = false;
  byId("history-list").replaceChildren(...state.history.map((entry, place) => el("li", {},
    el("button", { type: "button", "aria-current": place === 0 ? "true" : undefined, onclick: (event) => again(entry, event.currentTarget) },
      el("span", { class: "name" }, entry.name),
      el("span", { class: "soft" }, `${entry.time.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })}  ${entry.body ? inShort(entry.body) : words(entry.error.title)}`)))));
}

function again(entry, button) {
  for (const other of byId("history-list").querySelectorAll("[aria-current]")) other.removeAttribute("aria-current");
  button.setAttribute("aria-current", "true");
  if (entry.body) show(entry.body);
  else showProblem(entry.error);
}

// --- key ---

let keyWaits = null;

function askKey(problem) {
  // Several requests may be refused at once; one question is enough.
  keyWaits ??= new Promise((resolve) => {
    const dialog = byId("key-dialog");
    byId("key-why").textContent = problem
      ? `${problem.detail || "The service wants an API key."} It is kept in this tab's memory alone.`
      : "It is kept in this tab's memory alone, and forgotten when the tab is closed or reloaded.";
    dialog.returnValue = "";
    dialog.addEventListener("close", () => {
      keyWaits = null;
      const given = dialog.returnValue === "use" ? byId("key").value.trim() : "";
      byId("key").value = "";
      if (given) useKey(given);
      byId("key-button").textContent = hasKey() ? "API key set" : "API key";
      resolve(given);
    }, { once: true });
    dialog.showModal();
    byId("key").focus();
  });
  return keyWaits;
}

onMissingKey(askKey);

// --- wiring ---

byId("model").addEventListener("change", offerMethods);
byId("card-button").addEventListener("click", showCard);
byId("card").addEventListener("click", (event) => { if (event.target === byId("card")) byId("card").close(); });
byId("key-button").addEventListener("click", async () => { if (await askKey(null)) loadModels(); });
byId("key-cancel").addEventListener("click", () => byId("key-dialog").close(""));
byId("work-cancel").addEventListener("click", () => state.stop?.abort());
for (const name of ["files", "folder"]) {
  byId(name).addEventListener("change", (event) => {
    const files = [...event.target.files];
    event.target.value = "";
    ask(files);
  });
}
let depth = 0;
const over = (change) => {
  depth = Math.max(0, depth + change);
  document.body.classList.toggle("over", depth > 0);
};
addEventListener("dragenter", (event) => { event.preventDefault(); over(1); });
addEventListener("dragleave", () => over(-1));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", async (event) => {
  event.preventDefault();
  over(-depth);
  ask(await dropped(event.dataTransfer));
});
answer.append(el("p", { class: "soft first" }, "The answer will be here: what the model says, how sure it is, and what to be careful about."));
loadModels();
