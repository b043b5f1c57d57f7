// What a model says: labels, probabilities as bars, where the time went; or why it says nothing.

import { facts, make, short } from "./dom.js";

const MOST_BARS = 10;

/** What the first row of a reply says. */
export function answer(description, { document: reply, milliseconds, timing }) {
  const parts = [headline(description, reply)];
  if (reply.probabilities) parts.push(bars(description, reply));
  const told = new Map(timing);
  const stage = (name) => (told.has(name) ? duration(told.get(name)) : null);
  const version = reply.model.version == null ? "" : `, version ${reply.model.version}`;
  parts.push(
    facts([
      ["Interval", reply.intervals && reply.intervals[0].map((end) => number(end)).join(" to ")],
      ["Quantiles", reply.quantiles && quantiles(reply.quantiles[0])],
      ["Set", reply.sets && setOf(description, reply.sets[0])],
      ["Uncertainty", reply.uncertainty && uncertainty(description, reply.uncertainty[0])],
      ["Beware", reply.warnings && short(reply.warnings.join("; "), 400)],
      ["Abstained", reply.abstained && (reply.abstained[0] ? "yes: better ask somebody else" : "no")],
      ["Waiting", stage("queue")],
      ["Decoding", stage("decode")],
      ["Compiled call", duration(reply.inference_time_ms)],
      ["Encoding", stage("encode")],
      ["Seen from here", duration(milliseconds)],
      ["Answered by", `${reply.model.name}${version}`],
      ["Request", make("code", {}, reply.request_id)],
    ]),
  );
  return parts;
}

/** The quantiles of a row, in the order of their levels. */
function quantiles(byLevel) {
  const told = Object.entries(byLevel).map(([level, value]) => `${level}: ${number(value)}`);
  return short(told.join(", "), 400);
}

/** The classes, or labels, that the row may have; an empty set is an answer too. */
function setOf(description, names) {
  const what = description.task === "multilabel" ? "label" : "class";
  return short(names.join(", ") || `empty: no ${what} is as probable as true ones are`, 400);
}

/** How far the models of a model of several disagree. */
function uncertainty(description, value) {
  const unit = description.classes.length ? "of 1: how far its models disagree" : "standard deviation of its models";
  return `${brief(value)} (${unit})`;
}

function headline(description, reply) {
  const label = reply.labels?.[0];
  const what = Array.isArray(label) ? label.join(", ") || "none of the labels" : (label ?? number(reply.predictions[0]));
  return make("p", { class: "answer" }, make("small", {}, description.target), short(String(what), 200));
}

function bars(description, reply) {
  const several = description.task === "multilabel";
  const probabilities = reply.probabilities[0];
  const named = (name, i) => (several && reply.predictions[0][i] ? `${name} ✓` : name);
  const ranked = description.classes.map((name, i) => [named(name, i), probabilities[i]]).sort((a, b) => b[1] - a[1]);
  const list = make("ul", { class: "bars", "aria-label": "Probabilities" });
  for (const [name, share] of ranked.slice(0, MOST_BARS)) {
    const bar = make("div");
    bar.style.width = `${100 * share}%`;
    const track = make("div", { class: "track", "aria-hidden": "true" }, bar);
    list.append(make("li", {}, make("span", {}, short(name, 120)), make("span", { class: "share" }, percent(share)), track));
  }
  if (ranked.length <= MOST_BARS) return list;
  if (several) {
    list.append(make("li", {}, make("span", {}, `${ranked.length - MOST_BARS} more labels, each less probable`)));
    return list;
  }
  const rest = ranked.slice(MOST_BARS).reduce((sum, [, share]) => sum + share, 0);
  list.append(make("li", {}, make("span", {}, `${ranked.length - MOST_BARS} more classes`), make("span", { class: "share" }, percent(rest))));
  return list;
}

/** Why there is no answer. Lines about a field stand there; `others` are all the rest. */
export function refusal(error, others, told) {
  const lines = others.length ? make("ul", {}, ...others.map((line) => make("li", {}, line))) : "";
  const heading = make("strong", {}, told ? "The server could not take what is marked in the form." : "The server refused.");
  const status = error.status ? `${error.status} ${error.reason}` : error.reason;
  return [
    make("div", { class: "alert", role: "alert" }, heading, lines),
    facts([
      ["Reason", make("code", {}, status)],
      ["Request", error.requestId && make("code", {}, error.requestId)],
    ]),
  ];
}

/** `0.1234` as a share of a hundred. */
export function percent(share) {
  if (share > 0 && share < 0.001) return "< 0.1 %";
  if (share < 1 && share > 0.999) return "> 99.9 %";
  return `${(100 * share).toFixed(1)} %`;
}

/** Milliseconds with three digits. */
export function duration(milliseconds) {
  return milliseconds >= 1000 ? `${(milliseconds / 1000).toPrecision(3)} s` : `${brief(milliseconds)} ms`;
}

/** Seven digits, as many as an f32 has; of larger numbers all that stand left of the point, and one decimal. */
export function number(value) {
  return rounded(value, { maximumSignificantDigits: 7 }, { maximumFractionDigits: 1 });
}

/** Three digits; of larger numbers all that stand left of the point. */
function brief(value) {
  return rounded(value, { maximumSignificantDigits: 3 }, { maximumFractionDigits: 0 });
}

function rounded(value, few, large) {
  const most = 10 ** (few.maximumSignificantDigits - 1);
  return value.toLocaleString("en", { ...(Math.abs(value) < most ? few : large), useGrouping: false });
}
