// The page: which models there are, a form for the one that is picked, its answer.

import { ask, Refused, useKey } from "./api.js";
import { card } from "./card.js";
import { make, show } from "./dom.js";
import { features, field, imageField, imagePlace } from "./form.js";
import { watch } from "./live.js";
import { answer, refusal } from "./result.js";

const byId = (id) => document.getElementById(id);
const named = (model) => (model.version == null ? model.name : `${model.name}:${model.version}`);
let watching = false;
let asked = 0; // so that an answer that comes late does not replace a later one

async function begin() {
  try {
    const { models } = (await ask("/models")).document;
    byId("key-form").hidden = true;
    byId("work").hidden = false;
    offer(models);
    if (!watching) watch();
    watching = true;
  } catch (error) {
    if (error.status !== 401) return fail(error);
    if (!byId("key-form").hidden) byId("key-told").textContent = error.message;
    byId("key-form").hidden = false;
    byId("key").focus();
  } finally {
    byId("loading").hidden = true;
  }
}

function fail(error) {
  if (!(error instanceof Refused)) throw error;
  byId("failure").textContent = error.message;
  byId("failure").hidden = false;
}

function offer(models) {
  const wanted = decodeURIComponent(location.hash.slice(1));
  const chosen = Math.max(0, models.findIndex((model) => named(model) === wanted));
  show("model", ...models.map((model, i) => make("option", { value: String(i), selected: i === chosen }, named(model))));
  byId("model").onchange = () => pick(models[Number(byId("model").value)]);
  pick(models[chosen]);
}

async function pick(model) {
  history.replaceState(null, "", `#${encodeURIComponent(named(model))}`);
  for (const id of ["about", "form", "card"]) show(id, "Loading …");
  const version = model.version == null ? "" : `?version=${model.version}`;
  try {
    const { document: description } = await ask(`/models/${encodeURIComponent(model.name)}${version}`);
    const each = description.task === "multilabel" ? `, ${description.classes.length} labels of which any number hold` : null;
    const classes = each ?? (description.classes.length ? `, one of ${description.classes.length} classes` : "");
    byId("about").textContent = `Predicts ${description.target}${classes}.`;
    show("result", make("p", { class: "hint" }, "No question asked yet."));
    show("card", ...card(description.card));
    byId("card-panel").hidden = !description.card.trim();
    const form = { image: imageForm, table: tableForm, multimodal: mixedForm }[description.modality];
    form(description);
    byId("failure").hidden = true;
  } catch (error) {
    for (const id of ["about", "form", "card"]) show(id);
    fail(error);
  }
}

function tableForm(description) {
  const fields = features(description.schema).map(field);
  const button = make("button", { type: "submit" }, "Predict");
  const clear = make("button", { type: "reset", class: "quiet" }, "Clear");
  show("form", make("div", { class: "fields" }, ...fields.map((made) => made.box)), make("div", { class: "row" }, button, clear));
  byId("form").onreset = () => fields.forEach((made) => made.tell(""));
  byId("form").onsubmit = (event) => {
    event.preventDefault();
    const row = Object.fromEntries(fields.map((made) => [made.name, made.read()]));
    const { name: model, version } = description;
    const body = JSON.stringify({ model, version: version ?? undefined, rows: [row] });
    const empty = Object.values(row).every((cell) => cell === null);
    predict(description, "/predict/tabular", { headers: { "Content-Type": "application/json" }, body }, fields, button, empty);
  };
}

/** Fields for the cells and a file for each image; what is left empty is missing. */
function mixedForm(description) {
  const spec = description.schema.image;
  const fields = features(description.schema).map(field);
  const files = spec.columns.map((name, index) => imageField(name, index, spec));
  const button = make("button", { type: "submit" }, "Predict");
  const clear = make("button", { type: "reset", class: "quiet" }, "Clear");
  const all = [...files, ...fields];
  show("form", make("div", { class: "fields" }, ...all.map((made) => made.box)), make("div", { class: "row" }, button, clear));
  byId("form").onreset = () => all.forEach((made) => (made.tell(""), made.forget?.()));
  byId("form").onsubmit = (event) => {
    event.preventDefault();
    const body = new FormData();
    for (const made of fields) body.append(made.name, made.read() ?? "");
    for (const made of files) if (made.read()) body.append(made.name, made.read());
    const empty = files.every((made) => !made.read()) && fields.every((made) => made.read() === null);
    predict(description, `/predict?${queryOf(description)}`, { body }, all, button, empty);
  };
}

function queryOf(description) {
  const query = new URLSearchParams({ model: description.name });
  if (description.version != null) query.set("version", description.version);
  return query;
}

function imageForm(description) {
  const query = queryOf(description);
  const chosen = (file) =>
    predict(description, `/predict/image?${query}`, { headers: { "Content-Type": file.type.startsWith("image/") ? file.type : "image/*" }, body: file }, []);
  show("form", ...imagePlace(description.schema.image, chosen));
  byId("form").onsubmit = (event) => event.preventDefault();
}

async function predict(description, path, request, fields, button, empty) {
  const number = ++asked;
  fields.forEach((made) => made.tell(""));
  if (button) button.disabled = true;
  byId("result").setAttribute("aria-busy", "true");
  try {
    const reply = await ask(path, { method: "POST", ...request });
    if (number !== asked) return;
    const note = empty ? [make("p", { class: "hint", id: "empty" }, "All fields were empty: the model was told nothing about this row.")] : [];
    show("result", ...note, ...answer(description, reply));
    byId("result-title").scrollIntoView({ block: "nearest" }); // on narrow screens it is below the form
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (number === asked) show("result", ...refused(error, fields));
  } finally {
    if (button) button.disabled = false;
    byId("result").removeAttribute("aria-busy");
  }
}

/** What the server says of a cell, for who fills in a form: there a missing cell is an empty field. */
function forField(text) {
  return text.startsWith("expected a number") ? `${text.replace("expected a number or null,", "expected a number,")}; leave it empty if it is not known` : text;
}

/** Puts what is wrong with a column beside its field, and returns the rest. */
function refused(error, fields) {
  const others = [];
  const marked = [];
  for (const line of error.lines) {
    const made = fields.find(({ name }) => line.startsWith(`column '${name}', row 1: `));
    if (made) {
      made.tell(forField(line.slice(`column '${made.name}', row 1: `.length)));
      marked.push(made);
    } else others.push(line);
  }
  marked[0]?.focus();
  return refusal(error, others, marked.length > 0);
}

async function health() {
  const badge = byId("health");
  try {
    const { status } = (await ask("/health", { anyStatus: true })).document;
    badge.textContent = { ok: "Ready", starting: "Starting", stopping: "Stopping" }[status] ?? String(status);
    badge.className = `badge ${status === "ok" ? "good" : "wrong"}`;
  } catch {
    badge.textContent = "No answer";
    badge.className = "badge wrong";
  }
}

byId("key-form").onsubmit = (event) => {
  event.preventDefault();
  useKey(byId("key").value.trim());
  begin();
};
for (const kind of ["dragover", "drop"]) {
  document.addEventListener(kind, (event) => event.preventDefault()); // so that a file beside the field is not opened
}
health();
setInterval(() => document.hidden || health(), 5000);
begin();
