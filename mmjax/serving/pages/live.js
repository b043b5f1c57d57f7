// What the server does at this moment, from the figures of /metrics: differences between two looks.

import { ask } from "./api.js";
import { make, show } from "./dom.js";
import { duration } from "./result.js";

const EVERY_MS = 2000;
const KEPT = 60;
const ANSWERS = /^\/predict\/|\/infer$/;

/** Draws the figures every two seconds while the page is seen. */
export function watch() {
  let before = null;
  const history = [];
  const look = async () => {
    if (document.hidden) return;
    try {
      const seen = figures((await ask("/metrics?format=json")).document, performance.now());
      if (before) history.push(between(before, seen));
      before = seen;
      if (history.length > KEPT) history.shift();
      tell(history.length ? "" : "The first figures come in two seconds.");
      if (history.length) draw(history);
    } catch (error) {
      before = null;
      tell(error.status === 404 ? "This server tells no figures." : `No figures: ${error.message}`);
    }
  };
  look();
  setInterval(look, EVERY_MS);
}

function tell(text) {
  const told = document.getElementById("live-told");
  told.textContent = text;
  told.hidden = !text;
}

/** The figures that are drawn, as totals since the server began. */
export function figures(families, at) {
  const samples = Object.values(families).flatMap((family) => family.samples ?? []);
  const named = (name, keep = () => true) => samples.filter((sample) => sample.name === name && keep(sample.labels));
  const sum = (found) => found.reduce((total, sample) => total + sample.value, 0);
  const answers = (labels) => ANSWERS.test(labels.route ?? "");
  const buckets = new Map();
  for (const { labels, value } of named("mmjax_request_seconds_bucket", answers)) {
    const end = labels.le === "+Inf" ? Infinity : Number(labels.le);
    buckets.set(end, (buckets.get(end) ?? 0) + value);
  }
  const requests = named("mmjax_requests_total", answers);
  return {
    at,
    requests: sum(requests),
    refused: sum(requests.filter((sample) => Number(sample.labels.status) >= 400)),
    buckets: [...buckets].sort((a, b) => a[0] - b[0]),
    waiting: sum(named("mmjax_waiting")),
    memory: sum(named("process_resident_memory_bytes")),
  };
}

/** What happened between two looks. */
export function between(before, after) {
  const seconds = (after.at - before.at) / 1000;
  const earlier = new Map(before.buckets);
  const counts = after.buckets.map(([end, count]) => [end, count - (earlier.get(end) ?? 0)]);
  return {
    rate: Math.max(0, after.requests - before.requests) / seconds,
    refused: Math.max(0, after.refused - before.refused) / seconds,
    median: quantile(counts, 0.5),
    slow: quantile(counts, 0.99),
    waiting: after.waiting,
    memory: after.memory,
  };
}

/** Milliseconds below which this share of requests lies, from cumulated counts; null when there were none. */
export function quantile(counts, share) {
  const total = counts.at(-1)?.[1] ?? 0;
  if (total <= 0) return null;
  let [start, below] = [0, 0];
  for (const [end, count] of counts) {
    if (count >= share * total) {
      const inside = count > below ? (share * total - below) / (count - below) : 1;
      return 1000 * (Number.isFinite(end) ? start + inside * (end - start) : start);
    }
    [start, below] = [end, count];
  }
  return 1000 * start;
}

function draw(history) {
  const now = history.at(-1);
  const time = (value) => (value == null ? "–" : duration(value));
  const last = (key) => history.findLast((look) => look[key] != null)?.[key];
  show(
    "live",
    make(
      "div",
      { class: "charts" },
      chart("Answers per second", now.rate.toFixed(now.rate < 10 ? 1 : 0), history.map((look) => look.rate)),
      chart("Median latency in the server", time(last("median")), history.map((look) => look.median)),
      chart("99th percentile", time(last("slow")), history.map((look) => look.slow)),
      chart("Waiting requests", String(now.waiting), history.map((look) => look.waiting)),
    ),
  );
}

function chart(title, now, values) {
  const caption = make("figcaption", {}, make("div", {}, title), make("div", { class: "now" }, now));
  return make("figure", { class: "chart" }, caption, line(values));
}

/** A line through values at equal distances; it is broken where there is none. */
function line(values) {
  const most = Math.max(...values.map((value) => value ?? 0), Number.EPSILON);
  const points = values.map((value, i) => (value == null ? null : [KEPT - values.length + i, 30 - (28 * value) / most]));
  const steps = points.map((point, i) => point && `${i && points[i - 1] ? "L" : "M"}${point[0].toFixed(1)} ${point[1].toFixed(1)}`);
  const svg = vector("svg", { viewBox: `0 0 ${KEPT - 1} 32`, preserveAspectRatio: "none", "aria-hidden": "true" });
  svg.append(vector("line", { x1: 0, x2: KEPT - 1, y1: 31, y2: 31 }), vector("path", { d: steps.filter(Boolean).join("") }));
  return svg;
}

function vector(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  return made;
}
