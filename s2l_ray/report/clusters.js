// Small multiples of the clusters, and what is in each.

const NUM_CARDS = 24;
const ORDERS = {
  large: (a, b) => b.size - a.size,
  small: (a, b) => a.size - b.size,
  high: (a, b) => b.mean.at(-1) - a.mean.at(-1),
  low: (a, b) => a.mean.at(-1) - b.mean.at(-1),
  fall: (a, b) => b.mean[0] - b.mean.at(-1) - (a.mean[0] - a.mean.at(-1)),
  taken: (a, b) => (b.taken ?? 0) / b.size - (a.taken ?? 0) / a.size,
};
const losses = page.clusters.flatMap((each) => [...each.mean, ...(each.band ? each.band.flat() : [])]);
const scale = scaleOf(losses);
let allCards = false;

function takenOf(cluster) {
  return cluster.taken === null ? "" : `, ${count(cluster.taken)} taken`;
}

function rowsOf(cluster) {
  return `${count(cluster.size)} ${cluster.size === 1 ? "row" : "rows"}`;
}

function cardOf(cluster) {
  const [first, last] = [cluster.mean[0], cluster.mean.at(-1)];
  const source = cluster.strata.length ? cluster.strata[0][0] : "";
  const more = cluster.numStrata > 1 ? ` and ${count(cluster.numStrata - 1)} more` : "";
  const words = `Cluster ${cluster.number}: ${rowsOf(cluster)}${takenOf(cluster)}; ` +
    `mean loss from ${loss(first)} to ${loss(last)}` + (source ? `; ${source}${more}` : "");
  const card = element("button", { type: "button", class: "card", "aria-expanded": "false", "aria-label": words },
    element("b", { text: `Cluster ${cluster.number}` }),
    element("small", {}, element("bdi", { text: source ? `${source}${more}` : "\u00a0" })),
    curve(cluster.mean, cluster.band, scale),
    element("small", { text: `${loss(first)} \u2192 ${loss(last)}` }),
    element("small", { text: `${rowsOf(cluster)}${takenOf(cluster)}` }));
  card.addEventListener("click", () => toggle(card, cluster));
  return card;
}

function toggle(card, cluster) {
  const wasOpen = card.getAttribute("aria-expanded") === "true";
  for (const open of document.querySelectorAll(".card[aria-expanded='true']")) open.setAttribute("aria-expanded", "false");
  document.querySelector(".detail")?.remove();
  if (wasOpen) return;
  card.setAttribute("aria-expanded", "true");
  card.after(detailOf(cluster));
  drawDetail();
}

function detailOf(cluster) {
  const share = cluster.taken === null ? "" : `, ${count(cluster.taken)} taken (${percent(cluster.taken, cluster.size)})`;
  const words = `Mean loss of cluster ${cluster.number} at each checkpoint: ${cluster.mean.map(loss).join(", ")}.`;
  const drawn = element("div", { class: "plot", role: "img", "aria-label": words });
  drawn.dataset.cluster = cluster.number;
  const own = examples.filter((each) => each.cluster === cluster.number);
  const browse = element("button", { type: "button", text: `Browse its ${count(own.length)} examples below` });
  browse.addEventListener("click", () => showCluster(cluster.number));
  return element("div", { class: "detail", role: "region", "aria-label": `Cluster ${cluster.number}` },
    element("h3", { text: `Cluster ${cluster.number}: ${rowsOf(cluster)}${share}` }),
    element("div", { class: "pair" }, drawn, stratumBars(cluster)),
    ...exampleBlock("Typical: nearest to the mean", own, "typical"),
    ...exampleBlock("Extreme: farthest from the mean", own, "extreme"),
    ...(own.length ? [element("p", {}, browse)] : []));
}

function stratumBars(cluster) {
  if (!cluster.strata.length) return element("div");
  const lines = cluster.strata.map(([name, number]) =>
    element("li", {},
      element("bdi", { text: name || "(none)" }),
      element("span", { text: `${count(number)} (${percent(number, cluster.size)})` }),
      shape("svg", { viewBox: "0 0 100 1", preserveAspectRatio: "none", "aria-hidden": "true" },
        shape("rect", { width: (100 * number) / cluster.size, height: 1 }))));
  const left = cluster.numStrata - cluster.strata.length;
  return element("div", {},
    element("ul", { class: "bars" }, ...lines),
    ...(left ? [element("p", { class: "note", text: `and ${count(left)} more strata` })] : []));
}

function exampleBlock(title, own, kind) {
  const found = own.filter((each) => each.kind === kind);
  if (!found.length) return [];
  return [element("h3", { text: title }), element("ul", { class: "plain" }, ...found.map(exampleItem))];
}

function drawDetail() {
  const place = document.querySelector(".detail .plot");
  if (!place) return;
  const cluster = page.clusters.find((each) => each.number === +place.dataset.cluster);
  const rows = cluster.mean.map((value, i) => ({
    step: page.steps ? page.steps[i] : i + 1, mean: value,
    low: cluster.band ? cluster.band[0][i] : value, high: cluster.band ? cluster.band[1][i] : value,
  }));
  const x = { field: "step", type: "quantitative", title: page.steps ? "training step" : "checkpoint", scale: { zero: false, nice: false } };
  const y = (field) => ({ field, type: "quantitative", title: "loss, nats per token", scale: { zero: false } });
  plot(place, {
    height: 180,
    encoding: { x, tooltip: ["step", "mean", "low", "high"].map((field) => ({ field, type: "nominal" })) },
    layer: [
      { mark: { type: "area", color: "@accent", opacity: 0.2 }, encoding: { y: y("low"), y2: { field: "high" } } },
      { mark: { type: "line", color: "@accent", point: true }, encoding: { y: y("mean") } },
    ],
  }, rows);
}

function drawCards() {
  const ordered = [...page.clusters].sort(ORDERS[byId("card-order").value] || ORDERS.large);
  byId("cards").replaceChildren(...(allCards ? ordered : ordered.slice(0, NUM_CARDS)).map(cardOf));
  byId("more-cards").hidden = allCards || ordered.length <= NUM_CARDS;
  byId("more-cards").textContent = `Show all ${count(ordered.length)} clusters`;
}

function startClusters() {
  if (!byId("cards")) return;
  byId("card-order").addEventListener("change", drawCards);
  byId("more-cards").addEventListener("click", () => {
    allCards = true;
    drawCards();
    byId("cards").children[NUM_CARDS].focus();
  });
  drawCards();
}
