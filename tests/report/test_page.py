"""The report page: what it shows, what it leaves out, and that hostile text stays text."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from s2l_ray.report import page, plots, strata
from s2l_ray.report.extensions import ExtensionLine, ExtensionsView, OldAndNew
from s2l_ray.report.page import (
    ArmScore,
    ClusterView,
    Comparison,
    PoolCounts,
    ReportData,
    StageLine,
)
from s2l_ray.report.selected_examples import SelectedExample
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
        self.text, self.title = "", ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, text):
        if "style" not in self._open:
            self.text += text
        if "title" in self._open:
            self.title += text

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
    view = replace(clusters(5), stratum_K=["a", "a", "a", "tiny", "b"], shrunk={"tiny": 1, "b": 1})
    told = page.cluster_facts(view)[-1]
    assert told.startswith("Fewer clusters than requested in 2 of 3 strata (tiny: 1, b: 1): ")
    assert "the sample had fewer distinct trajectories, or some clusters were left without" in told
    assert "requested (all: 5): the" in page.cluster_facts(replace(clusters(5), shrunk={"": 5}))[-1]
    assert not [fact for fact in page.cluster_facts(clusters(5)) if "requested" in fact]


def full(text: str = "plain") -> ReportData:
    """A report with every section, `text` standing wherever outside text can stand."""
    return ReportData(
        name=text,
        config={"seed": 7, "data": {"train": [text], "fields": {text: text, "id": None}}},
        versions={text: text},
        stages=[StageLine(text, 3723.0, text, {"num_rows": 12345, text: text})],
        counts=PoolCounts(15038, 15000, {text: 38}, 3141592, num_duplicates=12, num_cut=876),
        clusters=replace(clusters(5), stratum_K=[text, "b", text, "b", text]),
        strata=[StratumLine(text, 12000, 900), StratumLine("b", 3000, 600)],
        evaluation=[
            ArmScore(text, text, 1319, 1.23456, 1.2, 1.3, 0.327, 0.3, 0.35),
            ArmScore(text, "random", 1319, 1.25),
        ],
        comparisons=[Comparison(text, "loss", text, "random", -0.02, -0.03, -0.01)],
        extensions=ExtensionsView([EXTENSION, replace(EXTENSION, name=text)], text, text),
        examples=[SelectedExample(3, 2, text, text)],
    )


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
        html[html.index('<section id="extensions">') : html.index('<section id="examples">')]
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

    assert not re.search(r"(https?:)?//[a-z]|@import|url\((?!#)", html)
    for tag, attrs in Page(html).tags:
        assert tag not in {"script", "link", "img", "iframe", "object", "base", "form", "a"}
        for name in ("src", "href", "xlink:href", "srcset", "data"):
            assert (attrs.get(name) or "#").startswith("#")


def test_hostile_text_stays_text():
    html = page.render(full(HOSTILE))
    hostile = Page(html)

    plain = [tag for tag, _ in Page(page.render(full())).tags if tag in {"script", "img", "title"}]
    assert [tag for tag, _ in hostile.tags if tag in {"script", "img", "title"}] == plain
    assert not any(name.startswith("on") for _, attrs in hostile.tags for name in attrs)
    assert hostile.title == f"{HOSTILE}: S2L report"
    assert hostile.text.count(HOSTILE) >= 15


def test_a_stratum_name_that_looks_like_mathematics_or_holds_control_characters_is_drawn():
    view = replace(clusters(2), stratum_K=["$x_1^$", "a\x00\n\x1bb"])

    drawn = page.figures(view)["trajectories"]

    assert "0 in $x_1^$" in drawn
    assert "1 in a???b" in drawn


@pytest.mark.parametrize(
    ("left_out", "section"),
    [
        ({"evaluation": (), "comparisons": ()}, "evaluation"),
        ({"counts": None}, "pool"),
        ({"clusters": None}, "clusters"),
        ({"strata": ()}, "strata"),
        ({"extensions": None}, "extensions"),
        ({"examples": ()}, "examples"),
        ({"stages": ()}, "stages"),
        ({"config": {}, "versions": {}}, "configuration"),
    ],
)
def test_a_part_that_is_missing_leaves_the_other_sections_as_they_were(left_out, section):
    every = Page(page.render(full())).sections()

    fewer = Page(page.render(replace(full(), **left_out))).sections()

    assert section in every
    assert fewer == [name for name in every if name != section]


def test_a_report_of_nothing_is_a_page():
    empty = Page(page.render(ReportData(name="new")))

    assert empty.sections() == []
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

    sentence = page.verdict(comparison, 0.95)

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
    assert shown.text.count("includes zero") == 4


@pytest.mark.parametrize(("num_clusters", "num_drawn"), [(1, 1), (100, 100), (3000, 100)])
def test_at_most_a_hundred_clusters_are_drawn_and_the_labelled_ones_always(num_clusters, num_drawn):
    view = clusters(num_clusters)

    shown = plots.shown_clusters(view.size_K, view.selected_K)

    assert len(shown) == len(set(shown)) == num_drawn
    assert set(plots.labelled_clusters(view.size_K, view.selected_K)) <= set(shown)
    assert int(view.size_K.argmax()) in shown


def test_dots_stand_for_every_cluster_once_and_stay_few():
    view = clusters(20_000)

    _, _, count_D = plots.merged_dots(view.size_K, view.selected_K)

    assert count_D.sum() == 20_000
    assert len(count_D) < 200


@pytest.mark.parametrize("selected_K", [np.array([0, 0]), np.array([1, 1]), None])
def test_extreme_selections_can_be_drawn(selected_K):
    view = ClusterView(np.ones((2, 1), np.float32), np.array([1, 1]), ["", ""], None, selected_K)

    drawn = page.figures(view)

    assert set(drawn) == ({"trajectories"} if selected_K is None else {"trajectories", "selected"})
    assert ">checkpoint<" in drawn["trajectories"]


def test_labels_are_pushed_apart_and_stay_inside():
    np.testing.assert_allclose(plots.spread([0.1, 0.12, 0.5], gap=0.1), [0.1, 0.2, 0.5])
    np.testing.assert_allclose(plots.spread([0.97, 0.98, 0.99], gap=0.1), [0.8, 0.9, 1.0])
    assert plots.spread([], gap=0.1) == []


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
    assert page.duration(seconds) == text


def test_a_long_row_says_how_much_of_it_is_missing():
    assert page.excerpt("a" * (page.MAX_EXCERPT + 1200)).endswith("a ... (1,200 more characters)")
    assert page.excerpt("short") == "short"


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(1, 8, "12.5%"), (0, 9, "0.0%"), (1, 9000, "<0.1%"), (9, 9, "100.0%"), (0, 0, "n/a")],
)
def test_a_share_tells_few_from_none(part, whole, text):
    assert page.share(part, whole) == text
