"use strict";
// Values of the page, elements, small curves and files to save. Text is only ever set as text.

const page = JSON.parse(document.getElementById("values").textContent);
const EXAMPLE = ["id", "prompt", "response", "cluster", "source", "selected", "kind", "reason", "losses"];
const LEAST_LOSS = 0.01;
const examples = page.examples.map((row) => Object.fromEntries(EXAMPLE.map((key, i) => [key, row[i]])));

function byId(id) {
  return document.getElementById(id);
}

/** Return an element with attributes (`text` is its text) and children. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") made.textContent = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function shape(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function count(number) {
  return number.toLocaleString("en-US");
}

function percent(part, whole) {
  if (!whole) return "n/a";
  const share = (100 * part) / whole;
  return share > 0 && share < 0.05 ? "<0.1%" : `${share.toFixed(1)}%`;
}

function loss(value) {
  return value === null ? "n/a" : value.toPrecision(3);
}

/** Return a function from a loss to its height, 0 to 1: logarithmic where no loss is below zero. */
function scaleOf(values) {
  const least = values.reduce((a, b) => Math.min(a, b), Infinity);
  const most = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const of = least < 0 ? (value) => value : (value) => Math.log(Math.max(value, LEAST_LOSS));
  const span = of(most) - of(least) || 1;
  return (value) => (of(value) - of(least)) / span;
}

/** Return a small drawing of losses, with a band if there is one. */
function curve(mean, band, scale) {
  const width = 120, height = 48;
  const x = (i) => (mean.length === 1 ? width / 2 : 2 + (i * (width - 4)) / (mean.length - 1));
  const y = (value) => 2 + (height - 4) * (1 - scale(value));
  const path = (values) => values.map((value, i) => `${x(i).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
  const drawn = shape("svg", { class: "curve", viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  if (band) {
    const back = path(band[1]).split(" ").reverse().join(" ");
    drawn.append(shape("polygon", { class: "band", points: `${path(band[0])} ${back}` }));
  }
  if (mean.length === 1) drawn.append(shape("circle", { class: "dot", cx: x(0), cy: y(mean[0]), r: 3 }));
  else drawn.append(shape("polyline", { class: "line", points: path(mean) }));
  return drawn;
}

function save(name, type, text) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = element("a", { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

/** Return rows as CSV. Text that a spreadsheet would read as a formula gets an apostrophe. */
function csv(rows) {
  const columns = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const cell = (value) => {
    if (value === null || value === undefined) return "";
    const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const lines = [columns, ...rows.map((row) => columns.map((column) => row[column]))];
  return lines.map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n";
}

function table(rows) {
  const columns = Object.keys(rows[0]);
  const shown = (value) => (typeof value === "number" ? String(+value.toPrecision(5)) : String(value ?? ""));
  return element("table", {},
    element("thead", {}, element("tr", {}, ...columns.map((text) => element("th", { scope: "col", text })))),
    element("tbody", {}, ...rows.slice(0, 500).map((row) =>
      element("tr", {}, ...columns.map((column) =>
        element("td", {}, element("bdi", { text: shown(row[column]) })))))));
}
