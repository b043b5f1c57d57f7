// A model card: the Markdown that mmjax writes (headings, lists, tables, code, emphasis) as elements. Nothing else of
// Markdown is known, and HTML in it stays text. Links are shown as text with their address.

import { make } from "./dom.js";

/** The card's Markdown as elements. Its title is left out: the page has one. */
export function card(markdown) {
  const lines = markdown.replaceAll("\r", "").split("\n");
  const blocks = [];
  while (lines.length) {
    const line = lines[0];
    const heading = /^(#{1,6})\s+(.*)$/.exec(line);
    if (!line.trim()) lines.shift();
    else if (heading) lines.shift() && heading[1].length > 1 && blocks.push(make(`h${Math.min(6, heading[1].length + 1)}`, {}, ...inline(heading[2])));
    else if (line.startsWith("```")) blocks.push(code(lines));
    else if (line.startsWith("|")) blocks.push(table(take(lines, (next) => next.startsWith("|"))));
    else if (/^[-*] /.test(line)) blocks.push(list(lines));
    else blocks.push(make("p", {}, ...inline(paragraph(lines).join(" "))));
  }
  return blocks;
}

function take(lines, belongs) {
  const taken = [];
  while (lines.length && belongs(lines[0])) taken.push(lines.shift());
  return taken;
}

function paragraph(lines) {
  return [lines.shift(), ...take(lines, (line) => line.trim() && !/^(#|\||```|[-*] )/.test(line))];
}

function code(lines) {
  lines.shift();
  const text = take(lines, (line) => !line.startsWith("```"));
  lines.shift();
  return make("pre", { tabindex: "0" }, make("code", {}, text.join("\n")));
}

function list(lines) {
  const items = [];
  while (lines.length && /^[-*] /.test(lines[0])) {
    items.push([lines.shift().slice(2), ...take(lines, (line) => /^\s+\S/.test(line))].join(" "));
  }
  return make("ul", {}, ...items.map((item) => make("li", {}, ...inline(item))));
}

function table(rows) {
  const cells = rows.map((row) => row.replace(/^\|/, "").replace(/\|\s*$/, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|")));
  const ruled = cells.length > 1 && cells[1].every((cell) => /^:?-+:?$/.test(cell));
  const sides = ruled ? cells[1].map((cell) => (cell.endsWith(":") && !cell.startsWith(":") ? "right" : "")) : [];
  const row = (name, given) => make("tr", {}, ...given.map((cell, i) => make(name, { class: sides[i] ?? "", scope: name === "th" ? "col" : null }, ...inline(cell))));
  const head = ruled ? [make("thead", {}, row("th", cells[0]))] : [];
  const body = make("tbody", {}, ...cells.slice(ruled ? 2 : 0).map((given) => row("td", given)));
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table" }, make("table", {}, ...head, body));
}

function inline(text) {
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*)/).map((part) => {
    if (/^`[^`]+`$/.test(part)) return make("code", {}, part.slice(1, -1));
    if (/^\*\*[^*]+\*\*$/.test(part)) return make("strong", {}, part.slice(2, -2));
    return part.replace(/\\([\\`*_|<>#[\]])/g, "$1");
  });
}
