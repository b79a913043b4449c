"""The report page: what it shows, what it leaves out, and that hostile text stays text."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from s2l_ray.report import clusters as report_clusters
from s2l_ray.report import data_block, numbers, page, sentences, strata
from s2l_ray.report.cluster_cards import ClusterCard
from s2l_ray.report.clusters import ClusterView
from s2l_ray.report.comparison import ComparedArm, ComparisonView
from s2l_ray.report.contents import ArmScore, Comparison, PoolCounts, ReportData, StageLine
from s2l_ray.report.examples import ExampleRow
from s2l_ray.report.extensions import ExtensionLine, ExtensionsView, OldAndNew
from s2l_ray.report.lengths import Lengths
from s2l_ray.report.provenance import Provenance
from s2l_ray.report.strata import StratumLine

EXTENSION = ExtensionLine(
    "001-0123456789abcdef",
    2_500,
    num_in_pool=321,
    num_rejected=7,
    num_clusters_used=101,
    num_clusters=288,
    updated=True,
    median_distance=OldAndNew(old=0.03, new=0.032),
    p95_distance=OldAndNew(old=0.0913, new=0.1946),
    share_beyond_p95=0.123,
    reclustering="due",
)
HOSTILE = """</title><script>alert("1")</script><img src=x onerror=y>'"&"""
RNG = np.random.default_rng(5)
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """The tags of a page, its visible text, and whether every tag is closed in order."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.title, self.style = "", "", ""
        self.scripts: list[str] = []
        """The text of every script; the first holds values."""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, text):
        if "script" in self._open:
            self.scripts[-1] += text
        elif "style" in self._open:
            self.style += text
        else:
            self.text += text
        if "title" in self._open:
            self.title += text

    def values(self) -> dict:
        """What the scripts of the page read."""
        return json.loads(self.scripts[0])

    def sections(self) -> list[str]:
        return [attrs["id"] for tag, attrs in self.tags if tag == "section" and "id" in attrs]


def clusters(num_clusters: int, num_steps: int = 4, stratum: str = "") -> ClusterView:
    size_K = RNG.integers(1, 5000, num_clusters)
    return ClusterView(
        centroid_KT=RNG.gamma(2.0, size=(num_clusters, num_steps)).astype(np.float32),
        size_K=size_K,
        stratum_K=[stratum] * num_clusters,
        steps=[500 * (step + 1) for step in range(num_steps)],
        selected_K=np.minimum(size_K, 17),
    )


def test_a_smaller_number_of_clusters_than_requested_is_told():
    view = replace(clusters(5), stratum_K=["a", "a", "a", "tiny", ""], shrunk={"tiny": 1, "": 1})
    told = report_clusters.cluster_facts(view)[-1]
    assert told.startswith("Fewer clusters than requested in 2 of 3 strata (tiny: 1, (none): 1): ")
    assert (
        "one for every clusters.rows_per_cluster rows, or fewer where trajectories are equal"
        in told
    )
    assert (
        "requested (all: 5): one"
        in report_clusters.cluster_facts(replace(clusters(5), shrunk={"": 5}))[-1]
    )
    assert not [fact for fact in report_clusters.cluster_facts(clusters(5)) if "requested" in fact]


def full(text: str = "plain") -> ReportData:
    """A report with every section, `text` standing wherever outside text can stand."""
    return ReportData(
        name=text,
        config={"seed": 7, "data": {"train": [text], "fields": {text: text, "id": None}}},
        versions={text: text},
        stages=[StageLine(text, 3723.0, text, {"num_rows": 12345, text: text}, text, [text])],
        counts=PoolCounts(15038, 15000, {text: 38}, 3141592, num_duplicates=12, num_cut=876),
        clusters=replace(clusters(5), stratum_K=[text, "b", text, "b", text]),
        lengths=Lengths(np.array([0, 4, 5, 9]), np.array([0, 3, 1, 0])),
        strata=[StratumLine(text, 12000, 900), StratumLine("b", 3000, 600)],
        curve=[(10, 2.5), (20, 1.25)],
        target_curve=[(5, 3.5), (10, 2.25)],
        held_out=[(5, {text: 3.75}), (10, {text: 3.5, "b": 1.0})],
        evaluation=[
            ArmScore(text, text, 1319, 1.23456, 1.2, 1.3, 0.327, 0.3, 0.35),
            ArmScore(text, "random", 1319, 1.25),
        ],
        comparisons=[Comparison(text, "loss", text, "random", -0.02, -0.03, -0.01)],
        extensions=ExtensionsView([EXTENSION, replace(EXTENSION, name=text)], text, text),
        comparison=compared(text),
        cards=[ClusterCard(3, 77, 5, np.array([2.0, 1.0]), None, [(text, 70), ("b", 7)], 2)],
        examples=[
            ExampleRow(text, text, text, 3, text, True, "typical", losses=[2.5, 1.5]),
            ExampleRow(text, text, reason=text),
        ],
        provenance=Provenance(f"s2l run {text}", text),
    )


def compared(text: str) -> ComparisonView:
    own = ComparedArm(
        text, "loss", "384", text, "s2l", True, 3, 384, 17_664, 0.536, 0.5, 0.57, -0.149, -0.2,
        -0.1, 0.0123, 187.0, 13.0, 3.2e12,
    )  # fmt: skip
    random = ComparedArm(text, "loss", "384", "random", "random", mean=0.685)
    return ComparisonView([own, random], own)


def test_the_page_shows_every_number_it_was_given():
    shown = Page(page.render(full())).text

    for number in [
        "15,038",
        "15,000",
        "38",
        "0.3%",
        "876",
        "3,141,592",
        "1 h 02 min",
        "12,345 rows",
    ]:
        assert number in shown
    for number in ["12,000", "900", "7.5%", "1.2346", "32.7%", "1,319", "-0.0200"]:
        assert number in shown


def test_the_page_shows_what_came_of_extensions():
    unplaced = ExtensionLine("002-0123456789abcdef", 5, 0, 0)
    broken = ExtensionsView([EXTENSION, unplaced], fit="12.3% are out", problem="not finished")
    html = page.render(replace(full(), extensions=broken))
    section = Page(
        html[html.index('<section id="extensions"') : html.index('<section id="stages"')]
    )
    shown = " ".join(section.text.split())
    for text in ["2,500", "321", "101 of 288", "0.032 (0.03)", "0.195 (0.0913)", "12.3%"]:
        assert text in shown
    assert "not finished" in shown and "Fit after the last extension: 12.3% are out." in shown
    cells = "".join(section.text.split())
    assert "001-0123456789abcdefcentroidsupdated2,500" in cells and "12.3%due" in cells
    assert "002-0123456789abcdef500Distances" in cells


def test_the_page_refers_to_nothing_outside_itself():
    html = page.render(full())
    without_scripts = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)

    assert not re.search(r"(https?:)?//[a-z]|@import|url\((?!#)", without_scripts)
    for tag, attrs in Page(html).tags:
        assert tag not in {"link", "img", "iframe", "object", "base"}
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert (attrs.get(name) or "#").startswith("#")
        assert "style" not in attrs


def test_the_policy_lets_run_the_scripts_of_the_page_and_no_others():
    shown = Page(page.render(full(HOSTILE)))
    (policy,) = [
        attrs["content"] for tag, attrs in shown.tags if tag == "meta" and "http-equiv" in attrs
    ]
    parts = dict(part.split(" ", 1) for part in policy.split("; "))

    def hashed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert parts["default-src"] == "'none'" and "unsafe" not in policy
    assert parts["script-src"].split() == [hashed(text) for text in shown.scripts[1:]]
    assert parts["style-src"] == hashed(shown.style)
    assert len(shown.scripts) == 3


def test_hostile_text_stays_text():
    html = page.render(full(HOSTILE))
    hostile, named = Page(html), {"script", "img", "title"}

    plain = [tag for tag, _ in Page(page.render(full())).tags if tag in named]
    assert [tag for tag, _ in hostile.tags if tag in named] == plain
    assert not any(name.startswith("on") for _, attrs in hostile.tags for name in attrs)
    assert hostile.title == f"{HOSTILE}: S2L report"
    assert hostile.text.count(HOSTILE) >= 12
    assert hostile.scripts[1:] == Page(page.render(full())).scripts[1:]
    first = hostile.values()["examples"][0]
    assert first[:3] == [HOSTILE] * 3 and "<" not in hostile.scripts[0]


@pytest.mark.parametrize(
    "text", ["</script>", "<!--<script>", "\u2028\u2029", "a&lt;b", '"\\', "é中"]
)
def test_values_are_the_same_after_a_browser_read_them(text):
    block = data_block.as_json({text: [text, 1, None, True]})

    assert json.loads(block) == {text: [text, 1, None, True]}
    assert not set(block) & set("<>&\u2028\u2029")


def test_numbers_of_a_block_are_short_and_finite():
    given = {"a": [0.123456789, float("nan"), float("inf")], "b": (np.float64(2.0),)}
    assert data_block.as_json(given) == '{"a":[0.12346,null,null],"b":[2.0]}'


def test_marks_that_turn_text_around_are_written_out():
    assert numbers.with_marks("a\u202eb\x00\n\t") == "a[U+202E]b[U+0000]\n\t"
    assert numbers.name("a\u2066\n b" + 50 * "c", 20) == "a[U+2066] bcccccc..."
    joined = "\U0001f469\u200d\U0001f469"
    assert numbers.with_marks(joined) == joined


@pytest.mark.parametrize(
    ("left_out", "section"),
    [
        ({"evaluation": (), "comparisons": ()}, "evaluation"),
        ({"counts": None, "strata": (), "lengths": None}, "pool"),
        ({"clusters": None}, "clusters"),
        ({"curve": ()}, "reference"),
        ({"target_curve": ()}, "target"),
        ({"comparison": None}, "comparison"),
        ({"extensions": None}, "extensions"),
        ({"examples": ()}, "examples"),
        ({"stages": ()}, "stages"),
        ({"config": {}, "versions": {}, "provenance": Provenance()}, "provenance"),
    ],
)
def test_a_part_that_is_missing_leaves_the_other_sections_as_they_were(left_out, section):
    every = Page(page.render(full())).sections()

    fewer = Page(page.render(replace(full(), **left_out))).sections()

    assert section in every
    assert fewer == [name for name in every if name != section]


def test_a_report_of_nothing_is_a_page():
    empty = Page(page.render(ReportData(name="new")))

    assert empty.sections() == ["summary"]
    assert "Nothing has been measured yet." in empty.text


def test_equal_reports_give_equal_bytes():
    report = full()

    assert page.render(report) == page.render(report)


@pytest.mark.parametrize(
    ("metric", "difference", "low", "high", "expected"),
    [
        ("loss", -0.02, -0.03, -0.01, "s2l is better than random"),
        ("loss", 0.02, 0.01, 0.03, "random is better than s2l"),
        ("loss", -0.02, -0.05, 0.01, "shows no better arm"),
        ("loss", -0.02, -0.05, 0.0, "shows no better arm"),
        ("exact match", 0.02, 0.01, 0.03, "s2l is better than random"),
        ("exact match", -0.02, -0.03, -0.01, "random is better than s2l"),
        ("exact match", 0.0, 0.0, 0.0, "shows no better arm"),
    ],
)
def test_an_arm_is_called_better_only_if_the_interval_excludes_zero(
    metric, difference, low, high, expected
):
    comparison = Comparison("gsm8k", metric, "s2l", "random", difference, low, high)

    sentence = sentences.verdict(comparison, 0.95)

    assert expected in sentence
    assert ("excludes zero" in sentence) == ("is better than" in sentence)
    assert "95% interval" in sentence


def test_scores_of_a_set_stand_together_in_whatever_order_they_come():
    scores = [ArmScore(name, arm, 10, 1.0) for arm in ("s2l", "random") for name in ("x", "y")]
    comparisons = [
        Comparison(name, metric, "s2l", "random", 0.0, -1.0, 1.0)
        for metric in ("loss", "exact match")
        for name in ("x", "y")
    ]

    shown = Page(page.render(ReportData("r", evaluation=scores, comparisons=comparisons)))

    assert [tag for tag, _ in shown.tags].count("h3") == 2
    assert shown.text.count("interval, -1.0000 to +1.0000, includes zero") == 2
    assert shown.text.count("interval, -100.0 to +100.0, includes zero") == 2


@pytest.mark.parametrize(("num_clusters", "num_drawn"), [(1, 1), (100, 100), (3000, 100)])
def test_at_most_so_many_clusters_are_shown_and_the_labelled_ones_always(num_clusters, num_drawn):
    view = clusters(num_clusters)

    shown = report_clusters.shown_clusters(view.size_K, view.selected_K, 100)

    assert len(shown) == len(set(shown)) == num_drawn
    assert set(report_clusters.labelled_clusters(view.size_K, view.selected_K)) <= set(shown)
    assert int(view.size_K.argmax()) in shown


def test_many_strata_are_folded_without_losing_an_example():
    many = [StratumLine(f"s{n}", n, n // 2) for n in range(1, 251)]

    lines = strata.folded(many)

    assert len(lines) == strata.MAX_STRATA
    assert lines[0].name == "s250"
    assert lines[-1].name == "151 smaller strata"
    assert sum(line.num_examples for line in lines) == sum(range(1, 251))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.96, "10 s"),
        (59.7, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (7322, "2 h 02 min"),
    ],
)
def test_a_duration_reads_as_two_units(seconds, text):
    assert numbers.duration(seconds) == text


def test_a_long_row_says_how_much_of_it_is_missing():
    assert numbers.excerpt("a" * 1700, 500).endswith("a ... (1,200 more characters)")
    assert numbers.excerpt("short", 500) == "short"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (850, "850"),
        (999_999, "999,999"),
        (1_234_567, "1.23 M"),
        (9.996e8, "1 G"),
        (3.05e12, "3.05 T"),
    ],
)
def test_a_large_number_has_a_prefix(number, text):
    assert numbers.power(number) == text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(1, 8, "12.5%"), (0, 9, "0.0%"), (1, 9000, "<0.1%"), (9, 9, "100.0%"), (0, 0, "n/a")],
)
def test_a_share_tells_few_from_none(part, whole, text):
    assert numbers.share(part, whole) == text
