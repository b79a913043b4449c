"""The page in headless Chromium: nothing fails, filters work, text does not overlap, and all of it
can be reached by keyboard and by readers of screens."""

import shutil
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from s2l_ray.report import page as report_page
from s2l_ray.report.cluster_cards import ClusterCard
from s2l_ray.report.clusters import ClusterView
from s2l_ray.report.comparison import comparison_view
from s2l_ray.report.contents import ArmScore, Comparison, PoolCounts, ReportData, StageLine
from s2l_ray.report.examples import ExampleRow
from s2l_ray.report.lengths import Lengths
from s2l_ray.report.provenance import Provenance
from s2l_ray.report.strata import StratumLine
from s2l_ray.storage.location import Location
from tests.report import compared

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]
RNG = np.random.default_rng(4)
STEPS = [100, 200, 300, 400]
SOURCES = ["chain sums", "</script><script>window.hurt = 1</script>", "\u202egnp.elif", "عربي"]
HOSTILE = '</script><img src=x onerror="window.hurt = 1"><b>=cmd\u202e'
OVERLAPS = Path(__file__).with_name("overlaps.js").read_text(encoding="utf-8")


def example(number: int) -> ExampleRow:
    cluster = number % 30
    losses = np.sort(RNG.gamma(2.0, size=4))[::-1].tolist()
    return ExampleRow(
        f"row-{number}",
        f"Question {number}?\n{HOSTILE}" if number % 5 == 0 else f"Question {number}?",
        f"The answer is {number}.",
        cluster,
        SOURCES[cluster % 4],
        number % 3 == 0,
        {0: "typical", 1: "extreme"}.get(number // 30, ""),
        losses=losses,
    )


def crafted(folder: Location) -> ReportData:
    """A report with every part, hostile text in it."""
    compared.write(folder, compared.rows())
    mean_KT = -np.sort(-RNG.gamma(2.0, size=(30, 4)), axis=1)
    size_K = RNG.integers(20, 5000, 30)
    view = ClusterView(
        mean_KT, size_K, [""] * 30, STEPS, np.minimum(size_K, 37), silhouette=0.4, stability=0.7,
        tried={"": {"num_clusters": [1, 8, 30, 60], "spread": [1.0, 0.4, 0.1, 0.05], "chosen": 30}},
        choice="auto chose 30 clusters: for a reason",
    )  # fmt: skip
    cards = [
        ClusterCard(k, size, 37, mean_KT[k], np.stack([0.8 * mean_KT[k], 1.3 * mean_KT[k]]),
                    [(SOURCES[k % 4], size - 3), ("other", 3)], 2)
        for k, size in enumerate(size_K.tolist())
    ]  # fmt: skip
    rejected = [
        ExampleRow(f"row {i} of a.jsonl", HOSTILE, reason=f"reason {i % 2}") for i in range(9)
    ]
    return ReportData(
        "a run",
        {"seed": 7, "data": {"train": ["a.jsonl"] * 20}},
        {"python": "3.13"},
        [StageLine(name, 75.0, "2026-01-01T00:00:00", {"num_rows": 9}, "0123456789abcdef")
         for name in ("prepare", "reference", "selection", "target")],
        PoolCounts(50_000, 49_991, {"reason 0": 5, "reason 1": 4}, 2_000_000, 3, 4),
        Lengths(RNG.integers(0, 99, 300), RNG.integers(0, 20, 300)),
        view,
        [StratumLine(name, 1000 * (i + 1), 90) for i, name in enumerate(SOURCES)],
        curve=[(step, 5 / step) for step in range(1, 60)],
        evaluation=[ArmScore("tasks", "s2l", 50, 0.5, 0.4, 0.6, 0.3, 0.2, 0.4)],
        comparisons=[Comparison("tasks", "loss", "s2l", "random", -0.1, -0.2, -0.05)],
        comparison=comparison_view(folder, "s2l", "384"),
        cards=cards,
        examples=[*map(example, range(240)), *rejected],
        provenance=Provenance("s2l run 'runs/a run/config.json'", "0" * 40),
    )  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    path = folder / "index.html"
    path.write_bytes(report_page.render(crafted(Location.of(folder / "run"))).encode())
    return path


def opened(browser, file, width: int = 1600, scheme: str = "light"):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    shown = context.new_page()
    shown.problems = []
    shown.on("console", lambda message: shown.problems.append(message.text))
    shown.on("pageerror", lambda error: shown.problems.append(str(error)))
    shown.on("request", lambda request: shown.problems.append(request.url)
             if not request.url.startswith(("file:", "blob:")) else None)  # fmt: skip
    shown.goto(file.as_uri())
    shown.wait_for_selector("html[data-drawn]", state="attached")
    return shown


@pytest.fixture(scope="module")
def shown(browser, file):
    """The page at 1600 pixels; tests leave it as they found it."""
    return opened(browser, file)


def found(shown) -> str:
    return shown.inner_text("#found")


def test_every_chart_is_drawn_and_nothing_is_said_on_the_console(shown):
    charts = shown.locator("figure[data-chart]").count()
    assert charts == shown.locator("figure[data-chart] .plot svg").count() == 8
    assert shown.problems == []
    assert shown.evaluate("window.hurt") is None


def test_filters_and_search_show_the_rows_that_they_name(shown):
    assert found(shown) == "249 of 249 rows" and shown.locator("#rows > li").count() == 20

    shown.fill("#find", "QUESTION 23")
    assert found(shown) == "11 of 249 rows"  # 23 and 230 to 239
    shown.select_option("#by-status", "selected")
    assert found(shown) == "3 of 249 rows"  # 231, 234, 237
    shown.click("#clear")
    assert found(shown) == "249 of 249 rows"
    shown.select_option("#by-cluster", "3")
    assert found(shown) == "8 of 249 rows"
    shown.select_option("#by-status", "extreme")
    assert found(shown) == "1 of 249 rows"
    shown.click("#clear")
    shown.select_option("#by-reason", "reason 1")
    assert found(shown) == "4 of 249 rows"
    shown.click("#clear")
    shown.select_option("#by-source", index=1)
    assert found(shown).split(" of ")[0] in {"56", "64"}
    shown.click("#clear")
    shown.click("#more-rows")
    assert shown.locator("#rows > li").count() == 40


def test_a_cluster_opens_by_keyboard_and_leads_to_its_examples(shown):
    shown.select_option("#card-order", "high")
    assert shown.locator(".card").count() == 24
    shown.click("#more-cards")
    assert shown.locator(".card").count() == 30
    shown.locator(".card").first.focus()
    shown.keyboard.press("Enter")
    shown.wait_for_selector(".detail .plot svg")
    assert shown.locator(".detail .example").count() == 2
    shown.locator(".detail button").focus()
    shown.keyboard.press("Enter")
    assert found(shown) == "8 of 249 rows"
    shown.click("#clear")
    shown.locator(".card").first.click()
    assert shown.locator(".detail").count() == 0
    assert shown.problems == []


def test_the_data_of_a_chart_can_be_saved_and_shown(shown, tmp_path):
    with shown.expect_download() as download:
        shown.click('[data-download="strata"]')
    lines = download.value.path().read_text(encoding="utf-8").splitlines()
    assert lines[0] == "stratum,part,examples,share" and len(lines) == 9
    assert lines[1] == "عربي,pool,4000,0.4"

    shown.click('[data-table="training"]')
    assert shown.locator('[data-chart="training"] tbody tr').count() == 59
    shown.click('[data-table="training"]')
    shown.locator('[data-chart="budgets"] select').select_option("other tasks: loss")
    shown.click('[data-table="budgets"]')
    assert shown.locator('[data-chart="budgets"] tbody tr').count() == 9
    shown.click('[data-table="budgets"]')


def test_cells_that_a_spreadsheet_would_run_are_text(shown):
    assert (
        shown.evaluate("csv([{a: '=cmd', b: 'x\"y', c: -1.5}])")
        == 'a,b,c\r\n\'=cmd,"x""y",-1.5\r\n'
    )


def test_the_command_is_copied(shown):
    shown.context.grant_permissions(["clipboard-read", "clipboard-write"])
    shown.click("#copy")
    # A function to wait for would be evaluated, which the page's policy forbids.
    shown.locator("#copied", has_text="copied").wait_for()
    assert shown.evaluate("navigator.clipboard.readText()") == "s2l run 'runs/a run/config.json'"


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1600, "dark")])
def test_no_text_lies_over_another_and_axe_finds_nothing_serious(browser, file, width, scheme):
    shown = opened(browser, file, width, scheme)
    shown.locator(".card").nth(1).click()
    shown.wait_for_selector(".detail .plot svg")
    shown.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")

    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    assert shown.evaluate(OVERLAPS) == []
    axe = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
    shown.evaluate(axe)
    violations = shown.evaluate("axe.run().then((result) => result.violations)")
    serious = [each for each in violations if each["impact"] in ("serious", "critical")]
    assert [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in serious] == []
    assert shown.problems == []
    shown.context.close()
