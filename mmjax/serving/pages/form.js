// The form of a model: a field for each column of its schema, or a place for an image.

import { make, short } from "./dom.js";

const MOST_OPTIONS = 60;
const IMAGES = "image/jpeg,image/png,image/webp,image/bmp,image/gif";
const KINDS = ["numeric", "categorical", "boolean", "datetime"];

/** The columns that a model sees, in order. */
export function features(schema) {
  return schema.columns.filter((column) => KINDS.includes(column.kind));
}

/** A field for a column, with `read()`, the cell in it, and `tell(text)`, which says what is wrong with it. */
export function field(column, index) {
  const id = `field-${index}`;
  const controls = { numeric, categorical, boolean: categorical, datetime }[column.kind](column, id);
  const hint = make("p", { class: "hint", id: `${id}-hint` }, controls.hint);
  const wrong = make("p", { class: "wrong", id: `${id}-wrong`, hidden: true });
  for (const input of controls.inputs) input.setAttribute("aria-describedby", `${id}-hint ${id}-wrong`);
  const box =
    controls.inputs.length > 1
      ? make("fieldset", { class: "field" }, make("legend", {}, column.name), make("div", { class: "pair" }, ...controls.inputs))
      : make("div", { class: "field" }, make("label", { for: id }, column.name), ...controls.inputs);
  box.append(...(controls.extra ?? []), hint, wrong);
  const tell = (text) => {
    wrong.textContent = text;
    wrong.hidden = !text;
    for (const input of controls.inputs) input.setAttribute("aria-invalid", String(Boolean(text)));
  };
  return { name: column.name, box, read: controls.read, tell, focus: () => controls.inputs[0].focus() };
}

function numeric(column, id) {
  const input = make("input", { id, type: "text", inputmode: "decimal", autocomplete: "off", placeholder: "missing" });
  const bounds = [column.minimum != null && `from ${column.minimum}`, column.maximum != null && `to ${column.maximum}`];
  const hint = [column.integer ? "whole number" : "number", ...bounds.filter(Boolean)].join(" ");
  // A text that is no number goes to the server as it is: it knows the schema's words for missing, and says what is wrong.
  const read = () => {
    const text = input.value.trim();
    const plain = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text) && Number.isFinite(Number(text));
    return text === "" ? null : plain ? Number(text) : text;
  };
  return { inputs: [input], hint, read };
}

function categorical(column, id) {
  const words = column.vocabulary;
  if (words.length > MOST_OPTIONS || words.length === 0) return suggested(column, id);
  const options = [make("option", { value: "" }, "(missing)"), ...words.map((word, i) => make("option", { value: String(i) }, short(word, 80)))];
  const input = make("select", { id }, ...options);
  const hint = column.kind === "boolean" ? "yes or no" : `one of ${words.length}`;
  return { inputs: [input], hint, read: () => (input.value === "" ? null : words[Number(input.value)]) };
}

function suggested(column, id) {
  const input = make("input", { id, type: "text", autocomplete: "off", list: `${id}-list`, placeholder: "missing" });
  const list = make("datalist", { id: `${id}-list` }, ...column.vocabulary.slice(0, 2000).map((word) => make("option", { value: word })));
  return { inputs: [input], extra: [list], hint: `one of ${column.vocabulary.length}`, read: () => input.value || null };
}

function datetime(column, id) {
  if (column.datetime_format !== "iso") {
    const input = make("input", { id, type: "text", autocomplete: "off", placeholder: "missing" });
    return { inputs: [input], hint: `date as ${column.datetime_format}`, read: () => input.value.trim() || null };
  }
  const day = make("input", { id, type: "date", "aria-label": `${column.name}, date`, max: "9999-12-31" });
  const time = make("input", { id: `${id}-time`, type: "time", step: "1", "aria-label": `${column.name}, time` });
  const read = () => (day.value ? (time.value ? `${day.value}T${time.value}` : day.value) : null);
  return { inputs: [day, time], hint: "date, and time where it matters", read };
}

/** A field for an image column, as `field` makes them; `read()` is the file, `forget()` hides its preview. */
export function imageField(name, index, spec) {
  const id = `image-${index}`;
  const input = make("input", { id, type: "file", accept: IMAGES, "aria-describedby": `${id}-hint ${id}-wrong` });
  const preview = make("img", { class: "preview", alt: "", hidden: true });
  const hint = make("p", { class: "hint", id: `${id}-hint` }, `image; the model sees ${spec.width_px} × ${spec.height_px} pixels of it`);
  const wrong = make("p", { class: "wrong", id: `${id}-wrong`, hidden: true });
  const forget = () => {
    URL.revokeObjectURL(preview.src);
    preview.hidden = true;
  };
  input.addEventListener("change", () => {
    forget();
    if (!input.files[0]) return;
    preview.src = URL.createObjectURL(input.files[0]);
    preview.alt = `The image for ${name}: ${short(input.files[0].name, 80)}`;
    preview.hidden = false;
  });
  preview.addEventListener("error", () => (preview.hidden = true));
  const tell = (text) => {
    wrong.textContent = text;
    wrong.hidden = !text;
    input.setAttribute("aria-invalid", String(Boolean(text)));
  };
  const box = make("div", { class: "field" }, make("label", { for: id }, name), input, preview, hint, wrong);
  return { name, box, read: () => input.files[0] ?? null, tell, forget, focus: () => input.focus() };
}

/** A place to choose an image or drop one; `chosen(file)` is called with it. */
export function imagePlace(spec, chosen) {
  const input = make("input", { id: "image", type: "file", accept: IMAGES, "aria-describedby": "image-hint" });
  const hint = make("span", { class: "hint", id: "image-hint" }, `JPEG, PNG, WebP, BMP or GIF; the model sees ${spec.width_px} × ${spec.height_px} pixels of it`);
  const place = make("label", { class: "drop", for: "image" }, input, make("span", {}, make("strong", {}, "Choose an image"), " or drop it here"), hint);
  const preview = make("img", { class: "preview", alt: "", hidden: true });
  const take = (file) => {
    if (!file) return;
    URL.revokeObjectURL(preview.src);
    preview.src = URL.createObjectURL(file);
    preview.alt = `The image that was asked about: ${short(file.name, 80)}`;
    preview.hidden = false;
    chosen(file);
  };
  preview.addEventListener("load", () => preview.classList.toggle("small", preview.naturalWidth < 96));
  preview.addEventListener("error", () => (preview.hidden = true));
  input.addEventListener("change", () => take(input.files[0]));
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    place.addEventListener(kind, (event) => {
      event.preventDefault();
      place.classList.toggle("over", kind === "dragenter" || kind === "dragover");
      if (kind === "drop") take(event.dataTransfer.files[0]);
    });
  }
  return [place, preview];
}
