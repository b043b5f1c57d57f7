// The OpenAPI document of this server for people: each operation with its parameters, body, replies, and a way to try it.

import { ask, Refused, useKey } from "./api.js";
import { make, show } from "./dom.js";

const byId = (id) => document.getElementById(id);
const DEEPEST = 12;
let spec = null;

async function begin() {
  try {
    spec = (await ask("/openapi.json")).document;
    byId("key-form").hidden = true;
    byId("version").textContent = `${spec.info.title} ${spec.info.version}`;
    show("operations", ...spec.tags.map(({ name }) => group(name)));
  } catch (error) {
    show("operations");
    if (!(error instanceof Refused)) throw error;
    if (error.status === 401) {
      if (!byId("key-form").hidden) byId("key-told").textContent = error.message;
      byId("key-form").hidden = false;
      byId("key").focus();
    } else {
      byId("failure").textContent = error.message;
      byId("failure").hidden = false;
    }
  }
}

function group(tag) {
  const found = Object.entries(spec.paths).flatMap(([path, item]) => Object.entries(item).map(([method, told]) => ({ path, method, told })));
  const mine = found.filter(({ told }) => told.tags.includes(tag));
  return make("section", { class: "panel", "aria-label": tag }, make("h2", {}, tag), ...mine.map(operation));
}

function operation({ path, method, told }) {
  const summary = make("summary", {}, make("span", { class: "method" }, method.toUpperCase()), make("code", {}, path), make("span", { class: "hint flat" }, told.summary));
  const details = make("details", { class: "operation", id: told.operationId }, summary);
  // Its inside is made when it is first opened: there may be many models.
  details.addEventListener("toggle", () => details.childElementCount > 1 || details.append(...inside(path, method, told)));
  return details;
}

function inside(path, method, told) {
  const parts = [];
  if (told.parameters) {
    const rows = told.parameters.map((given) => [make("code", {}, given.name), `${given.in}${given.required ? ", required" : ""}`, words(given.schema), given.description ?? ""]);
    parts.push(make("h3", {}, "Parameters"), table(["name", "where", "what", ""], rows));
  }
  for (const [kind, body] of Object.entries(told.requestBody?.content ?? {})) {
    parts.push(make("h3", {}, "Body: ", make("code", {}, kind)), code(drawn(outline(body.schema))));
  }
  const replies = Object.entries(told.responses).map(([status, reply]) => [make("code", {}, status), reply.description, Object.keys(reply.content ?? {}).join(", ")]);
  parts.push(make("h3", {}, "Replies"), table(["status", "when", "as"], replies));
  for (const [kind, body] of Object.entries(told.responses["200"].content)) {
    if (body.schema.$ref) parts.push(make("h3", {}, "200: ", make("code", {}, kind)), code(drawn(outline(body.schema))));
  }
  parts.push(...trial(path, method, told));
  return parts;
}

function table(heads, rows) {
  const head = make("thead", {}, make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text))));
  const body = make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((cell) => make("td", {}, cell)))));
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table" }, make("table", {}, head, body));
}

function code(text) {
  return make("pre", { tabindex: "0" }, make("code", {}, text));
}

// ---- schemas

function followed(schema) {
  const name = schema.$ref?.replace("#/components/schemas/", "");
  return name ? spec.components.schemas[name] : schema;
}

/** A schema in a few words. */
function words(given) {
  const schema = followed(given ?? {});
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.anyOf && schema.description) return schema.description;
  if (schema.anyOf || schema.oneOf) return (schema.anyOf ?? schema.oneOf).map(words).join(" | ");
  const bounds = [schema.format, schema.minimum != null && `≥ ${schema.minimum}`, schema.maximum != null && `≤ ${schema.maximum}`];
  return [[schema.type ?? "anything"].flat().join(" | "), ...bounds.filter(Boolean)].join(" ");
}

/** A schema in the shape of what it describes, with words for values. */
function outline(given, depth = 0) {
  const schema = followed(given ?? {});
  if (depth > DEEPEST) return "…";
  const ways = schema.anyOf ?? schema.oneOf;
  if (ways?.some((way) => ["object", "array"].includes(followed(way).type) || followed(way).oneOf)) {
    return ways.length === 1 ? outline(ways[0], depth) : { "one of": ways.map((way) => outline(way, depth + 1)) };
  }
  if (schema.prefixItems) return schema.prefixItems.map((item) => outline(item, depth + 1));
  if (schema.type === "array") return [outline(schema.items, depth + 1)];
  if (schema.properties) {
    const needed = new Set(schema.required);
    return Object.fromEntries(Object.entries(schema.properties).map(([name, inner]) => [needed.has(name) ? name : `${name}?`, outline(inner, depth + 1)]));
  }
  return words(schema);
}

/** An outline as text: JSON but for the words, which are not quoted. */
function drawn(value, indent = "") {
  const inner = `${indent}  `;
  if (Array.isArray(value)) {
    return value.every((item) => typeof item === "string") ? `[${value.join(", ")}]` : `[\n${value.map((item) => inner + drawn(item, inner)).join(",\n")}\n${indent}]`;
  }
  if (typeof value !== "object") return String(value);
  const entries = Object.entries(value).map(([name, item]) => `${inner}${name}: ${drawn(item, inner)}`);
  return entries.length ? `{\n${entries.join(",\n")}\n${indent}}` : "{}";
}

/** A value that the schema allows, plain rather than clever. */
function example(given) {
  const schema = followed(given ?? {});
  if (schema.enum) return schema.enum[0];
  if (schema.anyOf || schema.oneOf) return example((schema.anyOf ?? schema.oneOf)[0]);
  if (schema.prefixItems) return schema.prefixItems.map(example);
  if (schema.properties) return Object.fromEntries((schema.required ?? []).map((name) => [name, example(schema.properties[name])]));
  if (schema.format === "date") return "2024-03-04";
  const kinds = { array: () => [example(schema.items)], boolean: () => true, integer: () => 1, number: () => 1, string: () => "a", object: () => ({}) };
  return (kinds[[schema.type].flat()[0]] ?? (() => null))();
}

// ---- trying

function trial(path, method, told) {
  const body = told.requestBody?.content["application/json"];
  if (told.requestBody && !body) return [];
  const id = `try-${told.operationId}`;
  const fields = (told.parameters ?? []).filter((given) => given.in !== "header").map((given) => {
    const input = make("input", { id: `${id}-${given.name}`, value: given.required ? String(example(given.schema)) : "", autocomplete: "off" });
    return { given, input, box: make("div", { class: "field" }, make("label", { for: input.id }, given.name), input) };
  });
  const text = body && make("textarea", { id: `${id}-body`, rows: "8", spellcheck: "false" });
  if (text) text.value = JSON.stringify(example(body.schema), null, 1);
  const out = make("pre", { "aria-live": "polite", tabindex: "0", hidden: true });
  const form = make("form", { "aria-label": `Try ${method.toUpperCase()} ${path}` }, make("h3", {}, "Try it"), make("div", { class: "fields" }, ...fields.map(({ box }) => box)));
  if (text) form.append(make("div", { class: "field" }, make("label", { for: text.id }, "Body"), text));
  form.append(make("div", { class: "row" }, make("button", { type: "submit" }, "Send")), out);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const options = text ? { method: "POST", headers: { "Content-Type": "application/json" }, body: text.value } : { method: method.toUpperCase() };
    out.hidden = false;
    out.textContent = await sent(address(path, fields), options);
  });
  return [form];
}

function address(path, fields) {
  const query = new URLSearchParams();
  for (const { given, input } of fields) {
    if (given.in === "path") path = path.replace(`{${given.name}}`, encodeURIComponent(input.value));
    else if (input.value) query.set(given.name, input.value);
  }
  return query.size ? `${path}?${query}` : path;
}

async function sent(path, options) {
  try {
    const { document, milliseconds } = await ask(path, { ...options, anyStatus: true });
    return `${milliseconds.toFixed(1)} ms\n${JSON.stringify(document, null, 1)}`;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    return error.message;
  }
}

byId("key-form").onsubmit = (event) => {
  event.preventDefault();
  useKey(byId("key").value.trim());
  begin();
};
begin();
