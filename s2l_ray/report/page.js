// What belongs to the whole page: parts to jump to, theme, copying, and drawing again.

function isDark() {
  const theme = document.documentElement.dataset.theme;
  return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function drawEverything() {
  byId("theme").textContent = isDark() ? "Light" : "Dark";
  drawDetail();
  return drawAll();
}

function startNavigation() {
  for (const section of document.querySelectorAll("main > section")) {
    const text = section.querySelector("h2").textContent;
    document.querySelector("nav").append(element("a", { href: `#${section.id}`, text }));
  }
}

function startTheme() {
  byId("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    drawEverything();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawEverything);
}

/** Copy the command; where the browser allows no page to copy, select it. */
async function copyCommand() {
  const command = byId("command");
  getSelection().selectAllChildren(command);
  try {
    await navigator.clipboard.writeText(command.textContent);
    byId("copied").textContent = "copied";
  } catch {
    byId("copied").textContent = document.execCommand("copy") ? "copied" : "selected: press Ctrl+C";
  }
}

function startResize() {
  let width = innerWidth, waiting;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(drawEverything, 150);
  });
}

startNavigation();
startTheme();
startCharts();
startClusters();
startBrowser();
startResize();
byId("copy")?.addEventListener("click", copyCommand);
byId("save-config")?.addEventListener("click", () =>
  save(`${page.name}-config.json`, "application/json", JSON.stringify(page.config, null, 1)));
drawEverything().then(() => { document.documentElement.dataset.drawn = "all"; });
