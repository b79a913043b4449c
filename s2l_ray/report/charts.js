// Charts by Vega-Lite: its expressions are interpreted, so the page's policy needs no `eval`.

const chosen = {};

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** Return a specification with the colours of the theme in place of their names. */
function themed(spec) {
  if (Array.isArray(spec)) {
    return spec.flatMap((item) => (item === "@series" ? [0, 1, 2, 3, 4, 5, 6, 7].map((i) => colour(`s${i}`)) : [themed(item)]));
  }
  if (spec && typeof spec === "object") {
    return Object.fromEntries(Object.entries(spec).map(([key, value]) => [key, themed(value)]));
  }
  return typeof spec === "string" && spec.startsWith("@") ? colour(spec.slice(1)) : spec;
}

function look(width) {
  const ink = colour("ink"), faint = colour("faint"), rule = colour("rule");
  const narrow = width < 480;
  return {
    background: "transparent",
    aria: false,
    font: getComputedStyle(document.body).fontFamily,
    view: { stroke: null },
    axis: {
      labelColor: faint, titleColor: faint, gridColor: rule, domainColor: rule, tickColor: rule, labelFontSize: 12,
      titleFontSize: 12, titleFontWeight: "normal", gridOpacity: 0.6, labelLimit: narrow ? 120 : 200, labelOverlap: true,
      titleLimit: width - 40,
    },
    axisX: { tickCount: narrow ? 4 : 7, labelSeparation: 8, labelFlush: true },
    legend: { labelColor: ink, titleColor: faint, labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal",
      labelLimit: narrow ? 130 : 180, ...(narrow ? { columns: 2 } : {}), columnPadding: 16 },
  };
}

/** Show what Vega says of the mark under the pointer. */
function hint(handler, event, item, value) {
  const box = byId("hint");
  box.hidden = !value;
  if (!value) return;
  const shown = (text) => (text !== "" && Number.isFinite(+text) ? String(+(+text).toPrecision(5)) : text);
  const lines = Object.entries(value).filter(([, text]) => text !== "" && text !== "null");
  box.textContent = lines.map(([key, text]) => `${key}: ${shown(String(text))}`).join("\n");
  const left = Math.min(event.pageX + 14, scrollX + document.documentElement.clientWidth - box.offsetWidth - 8);
  box.style.left = `${Math.max(8, left)}px`;
  box.style.top = `${event.pageY + 14}px`;
}

async function plot(place, spec, rows) {
  const width = Math.max(200, Math.floor(place.clientWidth));
  const whole = themed({ ...spec, data: { values: rows }, width, autosize: { type: "fit-x", contains: "padding" } });
  if (width < 480) narrowed(whole);
  const options = { ast: true, actions: false, defaultStyle: false, renderer: "svg", tooltip: hint, config: look(width) };
  await vegaEmbed(place, whole, options);
  // The place says in words what is drawn; its marks one by one would say less.
  place.querySelector("svg").setAttribute("aria-hidden", "true");
}

/** Give legends at most two columns, and put long titles of axes on several lines. */
function narrowed(spec) {
  for (const [key, value] of Object.entries(spec)) {
    if (key === "title" && typeof value === "string" && value.length > 28) spec.title = value.split(/(?<=,) /);
    if (!value || typeof value !== "object" || key === "values") continue;
    if (value.legend && value.legend.columns) value.legend = { ...value.legend, columns: 2 };
    narrowed(value);
  }
}

function shownRows(chart) {
  return chart.choice ? chart.rows.filter((row) => row[chart.choice] === chosen[chart.name]) : chart.rows;
}

function draw(figure) {
  const chart = page.charts[figure.dataset.chart];
  return plot(figure.querySelector(".plot"), chart.spec, shownRows(chart));
}

function drawAll() {
  return Promise.all([...document.querySelectorAll("figure[data-chart]")].map(draw));
}

/** Offer the values of the column that the chart's reader chooses from. */
function offerChoice(figure) {
  const chart = page.charts[figure.dataset.chart];
  if (!chart.choice) return;
  const values = [...new Set(chart.rows.map((row) => row[chart.choice]))];
  chosen[chart.name] = values[0];
  if (values.length < 2) return;
  const select = element("select", {}, ...values.map((text) => element("option", { text, value: text })));
  select.addEventListener("change", () => {
    chosen[chart.name] = select.value;
    draw(figure);
  });
  const label = element("label", { text: "Set and metric" }, select);
  figure.querySelector(".choice").append(element("div", { class: "controls" }, label));
}

function startCharts() {
  for (const figure of document.querySelectorAll("figure[data-chart]")) {
    const chart = page.charts[figure.dataset.chart];
    offerChoice(figure);
    figure.querySelector("[data-download]").addEventListener("click", () =>
      save(`${page.name}-${chart.name}.csv`, "text/csv", csv(chart.rows)));
    const button = figure.querySelector("[data-table]"), place = figure.querySelector(".table");
    button.addEventListener("click", () => {
      place.hidden = !place.hidden;
      button.setAttribute("aria-expanded", String(!place.hidden));
      if (!place.hidden) place.replaceChildren(table(shownRows(chart)));
    });
  }
}
