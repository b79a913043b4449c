// The browser of examples: filters, search and pages.

const PAGE = 20;
const STATUS = {
  selected: (each) => each.selected === true,
  other: (each) => each.selected === false && !each.reason,
  typical: (each) => each.kind === "typical",
  extreme: (each) => each.kind === "extreme",
  rejected: (each) => each.reason !== "",
};
const scaleOfExamples = scaleOf(examples.flatMap((each) => each.losses));
let matching = [], numShown = 0;

function exampleItem(each) {
  const about = element("div", { class: "about" });
  if (each.selected) about.append(element("span", { class: "tag chosen", text: "selected" }));
  if (each.kind) about.append(element("span", { class: "tag", text: each.kind }));
  if (each.reason) about.append(element("span", { class: "tag bad", text: each.reason }));
  if (each.losses.length) {
    about.append(curve(each.losses, null, scaleOfExamples));
    about.append(element("div", { text: `loss ${loss(each.losses[0])} \u2192 ${loss(each.losses.at(-1))}` }));
  }
  if (each.cluster !== null) about.append(element("div", { text: `cluster ${each.cluster}` }));
  if (each.source) about.append(element("div", {}, element("bdi", { text: each.source })));
  about.append(element("div", {}, element("bdi", { text: each.id })));
  const texts = [each.prompt, each.response].filter((text) => text !== "");
  return element("li", { class: "example" }, about,
    element("div", {}, ...texts.map((text) => element("div", { class: "text", dir: "auto", text }))));
}

function matches(each, wanted) {
  return (!wanted.text || each.searched.includes(wanted.text)) &&
    (wanted.cluster === "" || each.cluster === +wanted.cluster) &&
    (wanted.source === "" || each.source === wanted.source) &&
    (wanted.reason === "" || each.reason === wanted.reason) &&
    (wanted.status === "" || STATUS[wanted.status](each));
}

function filter() {
  const value = (id) => byId(id).value;
  const wanted = {
    text: value("find").trim().toLowerCase(), cluster: value("by-cluster"), source: value("by-source"),
    reason: value("by-reason"), status: value("by-status"),
  };
  matching = examples.filter((each) => matches(each, wanted));
  numShown = 0;
  byId("rows").replaceChildren();
  byId("found").textContent = `${count(matching.length)} of ${count(examples.length)} rows`;
  showMore();
}

function showMore() {
  const next = matching.slice(numShown, numShown + PAGE).map(exampleItem);
  byId("rows").append(...next);
  numShown += next.length;
  byId("more-rows").hidden = numShown >= matching.length;
  return next[0];
}

function showCluster(number) {
  byId("filters").reset();
  byId("by-cluster").value = String(number);
  filter();
  byId("examples").scrollIntoView();
  byId("by-cluster").focus({ preventScroll: true });
}

function offer(id, values) {
  const select = byId(id);
  select.append(...values.map((value) => element("option", { value, text: String(value) })));
  select.parentElement.hidden = values.length < (id === "by-reason" ? 1 : 2);
}

function startBrowser() {
  if (!byId("filters")) return;
  const distinct = (key) => [...new Set(examples.map((each) => each[key]))].filter((value) => value !== null && value !== "");
  offer("by-cluster", distinct("cluster").sort((a, b) => a - b));
  offer("by-source", distinct("source").sort());
  offer("by-reason", distinct("reason").sort());
  for (const each of examples) each.searched = `${each.id}\n${each.prompt}\n${each.response}`.toLowerCase();
  const form = byId("filters");
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  byId("clear").addEventListener("click", () => {
    form.reset();
    filter();
  });
  byId("more-rows").addEventListener("click", () => {
    const first = showMore();
    first.tabIndex = -1;
    first.focus();
  });
  filter();
}
