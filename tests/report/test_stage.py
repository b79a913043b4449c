"""The report stage on a small run: its page, its tables, and what it leaves out."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from s2l_ray.artifacts.finished import finished_stages
from s2l_ray.artifacts.manifest import StageDir
from s2l_ray.artifacts.tables import Parts, part_name, rows_name, rows_table, trajectory_table
from s2l_ray.config import sections
from s2l_ray.config.load import from_tree
from s2l_ray.evaluation import comparison
from s2l_ray.pipeline import steps
from s2l_ray.report import stage as report
from s2l_ray.report import table
from s2l_ray.report.arms import arm_title, comparable_arms
from s2l_ray.report.cluster_rows import cluster_rows
from s2l_ray.report.clusters import clusters_view
from s2l_ray.report.contents import ArmScore, Comparison
from s2l_ray.report.examples import rows_by_id
from s2l_ray.report.strata import StratumLine, strata_lines
from s2l_ray.selection import stage as selection
from s2l_ray.selection.declaration import SELECTION
from s2l_ray.stages import STAGES
from s2l_ray.storage.location import Location

RNG = np.random.default_rng(3)
CLUSTER = [0] * 9 + [1] * 4 + [2] * 4 + [3] * 2 + [4]
STRATUM = ["common"] * 13 + ["rare"] * 7
SQDIST = [float(7 * i % 10) for i in range(20)]
ROWS_PER_PART = 8
RANDOM = "random-0.5-7"
NOTE = "2 row(s) are like a prompt of an evaluation set"
ITEM_SCHEMA = pa.schema(
    [
        ("set", pa.string()),
        ("file", pa.string()),
        ("item", pa.int64()),
        ("stratum", pa.string()),
        ("loss_nats", pa.float32()),
        ("correct", pa.bool_()),
    ]
)


def run_config(folder: Path, **changes: Any) -> sections.RunConfig:
    tree = {
        "run_dir": str(folder),
        "seed": 7,
        "data": {"train": ["train.jsonl"], "eval": {"sums": "sums.jsonl"}},
        "reference": {"model": "small"},
        "trajectories": {},
        "clusters": {},
        "selection": {"budget": 0.5, "baselines": ["random"]},
        "target": {"model": "large"},
        "evaluation": {"sets": ["sums"]},
    }
    return from_tree(tree | changes, "test")


def finish(place: Location, stage: str, summary: dict[str, Any], **inputs: Any) -> str:
    """Write a manifest; the fingerprint that later stages would name."""
    out = StageDir(place, stage, inputs)
    out.finish(summary, seconds=1.5)
    return out.fingerprint


def add_pool(run_dir: Location) -> None:
    """Prepared rows and the manifest of their preparation."""
    for part, rows in enumerate(chunks()):
        fields = [
            {"instruction": f"add {i} & 1", "output": f"sum {i + 1}", "source": STRATUM[i]}
            for i in rows
        ]
        ids = [f"id-{i}" for i in rows]
        (run_dir / "prepared" / rows_name(part)).write_table(rows_table(fields, ids, "f", rows))
    counts = {"rows": 23, "kept": 20, "rejected": {"empty field": 3}, "duplicates": 2}
    summary = counts | {
        "tokens": 4567,
        "strata": dict(Counter(STRATUM)),
        "rows_per_part": [8, 8, 4],
        "notes": [NOTE],
    }
    finish(run_dir / "prepared", "prepare", summary)


def chunks() -> list[list[int]]:
    starts = range(0, len(CLUSTER), ROWS_PER_PART)
    return [list(range(len(CLUSTER)))[start : start + ROWS_PER_PART] for start in starts]


def add_trajectories(run_dir: Location) -> None:
    """Losses of example i: i + 1 at the first checkpoint, and half of it at the second."""
    place = run_dir / "trajectories"
    for part, rows in enumerate(chunks()):
        ids, strata = [f"id-{i}" for i in rows], [STRATUM[i] for i in rows]
        loss_NT = np.array([[i + 1, (i + 1) / 2] for i in rows], np.float32)
        table = trajectory_table(pa.chunked_array([ids]), pa.chunked_array([strata]), loss_NT)
        (place / part_name(part)).write_table(table)
    finish(place, "trajectories", {"steps": [50, 100]})


def add_clusters(run_dir: Location, *, per_stratum: bool = True) -> None:
    place = run_dir / "clusters"
    for part, rows in enumerate(chunks()):
        columns = {
            "example_id": [f"id-{i}" for i in rows],
            "stratum": [STRATUM[i] for i in rows],
            "cluster": pa.array([CLUSTER[i] for i in rows], pa.int32()),
            "sqdist": pa.array([SQDIST[i] for i in rows], pa.float32()),
        }
        (place / part_name(part)).write_table(pa.table(columns))
    (place / "_centroids.npy").write_npy(RNG.gamma(2.0, size=(5, 2)).astype(np.float32))
    strata = ["common", "common", "rare", "rare", "rare"] if per_stratum else [""] * 5
    sizes = np.bincount(CLUSTER).tolist()
    finish(
        place,
        "clusters",
        {"stratum_of_cluster": strata, "size_of_cluster": sizes, "shrunk_strata": {}},
    )


def add_selection(run_dir: Location, budget: float = 0.5) -> dict[str, Any]:
    section = sections.SelectionConfig(budget=budget, stratify=False)
    out = SELECTION.directory(run_dir)
    summary = selection.run(section, selection.Sources(Parts(run_dir / "clusters")), out, seed=7)
    out.finish(summary, seconds=0.1)
    return summary


def items(losses: list[float], correct: list[bool], strata: list[str]) -> pa.Table:
    numbers = range(len(losses))
    rows = zip(numbers, strata, losses, correct, strict=True)
    return pa.Table.from_pylist(
        [dict(zip(ITEM_SCHEMA.names, ("sums", "f", *row), strict=True)) for row in rows],
        schema=ITEM_SCHEMA,
    )


def add_evaluation(
    run_dir: Location, arm: str, found: pa.Table, *, rate: float = 1e-4, came_from: str = ""
) -> None:
    """The target and evaluation stages of an arm, "" being the run's own."""
    place = run_dir / "arms" / arm if arm else run_dir
    label = f"target ({arm})" if arm else "target"
    target = finish(place / "target", "target", {"steps": 3}, **{"target.learning_rate": rate})
    inputs = {label: came_from or target, "evaluation.max_new_tokens": 8}
    finish(place / "evaluation", "evaluation", {"rows": found.num_rows}, **inputs)
    metrics = {"sets": {"sums": comparison.measure(found)}}
    (place / "evaluation" / "metrics.json").write_json(metrics)
    (place / "evaluation" / "items.parquet").write_table(found)


OWN = items([1.0, 2.0, 3.0, 5.0, 1.5], [True, True, False, True, True], ["a"] * 3 + ["b"] * 2)
OTHER = items([1.5, 2.5, 3.6, 5.5, 2.1], [True, False, False, False, True], ["a"] * 3 + ["b"] * 2)


@pytest.fixture
def whole(tmp_path) -> Location:
    """A run with every stage and a baseline."""
    run_dir = Location.of(tmp_path / "whole")
    add_pool(run_dir)
    add_trajectories(run_dir)
    add_clusters(run_dir)
    add_selection(run_dir)
    add_evaluation(run_dir, "", OWN)
    add_evaluation(run_dir, RANDOM, OTHER)
    return run_dir


def test_the_page_is_written_and_shows_every_part_of_the_run(whole, tmp_path):
    out = StageDir(whole / "report", "report", {})

    summary = report.run(whole, run_config(tmp_path), finished_stages(whole, STAGES), out)

    html = (out.location / "index.html").read_bytes().decode()
    assert summary == {"stages": 8, "arms": 2, "sets": 1, "examples": 20}
    for text in [
        "4,567",
        "empty field",
        "evaluation (random-0.5-7)",
        "2e-05",
        "add 19 \\u0026 1",
        NOTE,
    ]:
        assert text in html
    for section in ["evaluation", "pool", "clusters", "examples", "stages", "provenance"]:
        assert f'<section id="{section}"' in html


def test_the_same_run_gives_the_same_page(whole, tmp_path):
    pages = []
    for name in ("one", "two"):
        report.run(
            whole,
            run_config(tmp_path),
            finished_stages(whole, STAGES),
            StageDir(whole / name, "report", {}),
        )
        pages.append((whole / name / "index.html").read_bytes())

    assert pages[0] == pages[1]


def test_a_run_that_has_finished_nothing_has_a_page(tmp_path):
    run_dir = Location.of(tmp_path)

    summary = report.run(
        run_dir,
        run_config(tmp_path),
        finished_stages(run_dir, STAGES),
        StageDir(run_dir / "report", "report", {}),
    )

    assert summary == {"stages": 0, "arms": 0, "sets": 0, "examples": 0}
    assert report.summary_lines(finished_stages(run_dir, STAGES), run_config(tmp_path)) == []


def test_clusters_and_a_selection_are_enough(tmp_path):
    run_dir = Location.of(tmp_path)
    add_clusters(run_dir)
    summary = add_selection(run_dir)
    only = {name: None for name in ("data", "reference", "target", "evaluation")}
    brought = only | {"trajectories": {"path": "losses/*.parquet"}}

    found = report.collect(
        run_dir, run_config(tmp_path, **brought), finished_stages(run_dir, STAGES)
    )

    assert found.counts is None and found.clusters.steps is None
    assert {(row.prompt, row.losses) for row in found.examples} == {("", ())}
    assert sorted(row.id for row in found.examples) == sorted(f"id-{i}" for i in range(20))
    assert found.clusters.selected_K.tolist() == summary["selected_of_cluster"]
    assert [line.num_examples for line in found.strata] == [13, 7]


def test_without_a_selection_the_clusters_are_shown_alone(tmp_path):
    run_dir = Location.of(tmp_path)
    add_clusters(run_dir)

    found = report.collect(run_dir, run_config(tmp_path), finished_stages(run_dir, STAGES))

    assert found.clusters.selected_K is None and found.strata == []
    assert {row.is_selected for row in found.examples} == {None}


def test_clusters_after_the_last_one_that_gave_an_example_gave_none(tmp_path):
    run_dir = Location.of(tmp_path)
    add_clusters(run_dir)
    finish(run_dir / "selection", "selection", {"strata": {}, "selected_of_cluster": [0, 2]})

    view = clusters_view(finished_stages(run_dir, STAGES))

    assert view.selected_K.tolist() == [0, 2, 0, 0, 0]


@pytest.mark.parametrize("per_stratum", [True, False])
def test_strata_are_counted_whether_or_not_clusters_span_them(tmp_path, per_stratum):
    run_dir = Location.of(tmp_path)
    add_clusters(run_dir, per_stratum=per_stratum)
    taken = add_selection(run_dir)["strata"]

    finished = finished_stages(run_dir, STAGES)
    lines = strata_lines(finished, cluster_rows(finished, []).strata)

    pool = Counter(STRATUM)
    num_clusters = {"common": 2, "rare": 3} if per_stratum else {}
    assert lines == [
        StratumLine(name, pool[name], taken[name], num_clusters.get(name)) for name in sorted(pool)
    ]


def test_every_example_is_shown_with_its_text_its_losses_and_whether_it_is_selected(
    whole, tmp_path
):
    ranking = (whole / "selection" / "ranking.parquet").read_table().to_pylist()
    selected = {row["example_id"] for row in ranking if row["rank"] < 10}

    rows = report.collect(whole, run_config(tmp_path), finished_stages(whole, STAGES)).examples

    assert sorted(row.id for row in rows) == sorted(f"id-{i}" for i in range(20))
    for row in rows:
        number = int(row.id.removeprefix("id-"))
        assert (row.prompt, row.response) == (f"add {number} & 1", f"sum {number + 1}")
        assert (row.cluster, row.stratum) == (CLUSTER[number], STRATUM[number])
        assert row.losses == [number + 1, (number + 1) / 2]
        assert row.is_selected == (row.id in selected)


def test_typical_examples_are_nearest_to_the_centroid_and_extreme_ones_farthest(whole, tmp_path):
    rows = report.collect(whole, run_config(tmp_path), finished_stages(whole, STAGES)).examples

    by_distance = sorted(range(9), key=lambda i: SQDIST[i])
    kinds = {row.id: row.kind for row in rows}
    assert [kinds[f"id-{i}"] for i in by_distance] == ["typical"] * 2 + [""] * 5 + ["extreme"] * 2
    assert kinds["id-19"] == "typical"


def test_a_cluster_says_which_losses_and_strata_it_has(whole, tmp_path):
    add_clusters(whole, per_stratum=False)
    add_selection(whole)

    cards = report.collect(whole, run_config(tmp_path), finished_stages(whole, STAGES)).cards

    assert [card.size for card in cards] == [9, 4, 4, 2, 1]
    assert cards[0].strata == [("common", 9)] and cards[4].strata == [("rare", 1)]
    losses = np.array([[i + 1, (i + 1) / 2] for i in range(9)])
    np.testing.assert_allclose(cards[0].band_2T, np.quantile(losses, [0.1, 0.9], axis=0))


def test_rejected_rows_are_shown_with_their_reason(whole, tmp_path):
    table = {
        "file": ["f"] * 3,
        "row": [4, 5, 6],
        "reason": ["empty field"] * 3,
        "excerpt": ["a"] * 3,
    }
    (whole / "prepared" / "rejected.parquet").write_table(pa.table(table))

    rows = report.collect(whole, run_config(tmp_path), finished_stages(whole, STAGES)).examples

    shown = [(row.id, row.prompt, row.is_selected) for row in rows if row.reason == "empty field"]
    assert shown == [(f"f row {i} (from 0)", "a", None) for i in (4, 5, 6)]


def test_losses_of_other_rows_than_the_clusters_have_are_left_out(whole, tmp_path):
    part = whole / "trajectories" / part_name(1)
    part.write_table(part.read_table().slice(1))

    found = report.collect(whole, run_config(tmp_path), finished_stages(whole, STAGES))

    assert {row.losses for row in found.examples} == {()}
    assert {card.band_2T for card in found.cards} == {None}


def test_rows_after_the_last_example_are_not_read(whole):
    rows = Parts(whole / "prepared", "rows")
    rows.files()[-1].write_bytes(b"not parquet")

    assert rows_by_id(rows, ["id-9", "id-2"], 9)["id-9"]["output"] == "sum 10"
    assert list(rows_by_id(rows, ["id-9", "id-2"], 1)) == ["id-9"]


def test_a_stage_whose_origin_was_redone_is_left_out_with_what_follows(whole, tmp_path):
    old = StageDir(whole / "clusters", "clusters", {}).fingerprint
    finish(whole / "selection", "selection", {"strata": {}}, clusters=old)
    selected = StageDir(whole / "selection", "selection", {"clusters": old}).fingerprint
    finish(whole / "target", "target", {}, selection=selected)
    assert "target" in finished_stages(whole, STAGES)

    finish(whole / "clusters", "clusters", {}, **{"clusters.num_clusters": 9})

    found = finished_stages(whole, STAGES)
    assert {"selection", "target", "evaluation"}.isdisjoint(found)
    assert {"clusters", f"evaluation ({RANDOM})"} <= found.keys()


def test_an_arm_that_was_trained_otherwise_is_no_match(whole, tmp_path):
    add_evaluation(whole, "balanced-random-0.5-7", OTHER, rate=1e-3)

    judged = comparable_arms(finished_stages(whole, STAGES), run_config(tmp_path))

    assert [arm.name for arm in judged] == ["s2l", "random"]


@pytest.mark.parametrize(
    ("arm", "title"),
    [
        ("", "s2l"),
        ("balanced-random-0.5-7", "balanced-random"),
        ("random-0.1-7", "random-0.1-7"),
        ("random-0.5-8", "random-0.5-8"),
        ("s2l-0.5-7", "s2l-0.5-7"),
    ],
)
def test_an_arm_is_called_by_its_method_where_budget_and_seed_are_the_runs(tmp_path, arm, title):
    assert arm_title(arm, run_config(tmp_path)) == title


def test_an_arm_of_a_budget_of_tokens_is_called_by_its_method(tmp_path):
    section = {"budget": "20_000 tokens", "baselines": ["random"]}
    known = run_config(tmp_path, selection=section)
    assert steps.arm_name("random", known.selection.budget, 7) == "random-20K-tokens-7"
    assert arm_title("random-20K-tokens-7", known) == "random"


def test_strata_count_equally_in_scores_and_differences(whole, tmp_path):
    found = report.collect(whole, run_config(tmp_path), finished_stages(whole, STAGES))

    own, other = found.evaluation
    assert (own.arm, own.num_items, other.arm) == ("s2l", 5, "random")
    assert own.loss_nats == pytest.approx((2.0 + 3.25) / 2)
    assert own.exact_match == pytest.approx((2 / 3 + 1) / 2)
    by_metric = {pair.metric: pair for pair in found.comparisons}
    loss, rate = by_metric["loss"], by_metric["exact match"]
    assert loss.difference == pytest.approx(-(1.6 / 3 + 1.1 / 2) / 2)
    assert rate.difference == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert loss.low < loss.difference < loss.high < 0


def test_items_count_equally_in_a_set_of_one_stratum(tmp_path):
    run_dir = Location.of(tmp_path)
    add_evaluation(run_dir, "", items([1.0, 2.0, 6.0], [True, False, False], ["a"] * 3))

    found = report.collect(run_dir, run_config(tmp_path), finished_stages(run_dir, STAGES))

    assert found.evaluation[0].loss_nats == pytest.approx(3.0)
    assert found.evaluation[0].exact_match == pytest.approx(1 / 3)
    assert found.comparisons == []


def test_what_says_nothing_of_its_spread_is_shown_without_an_interval(tmp_path):
    run_dir = Location.of(tmp_path)
    add_evaluation(run_dir, "", items([1.0], [True], ["a"]))
    add_evaluation(run_dir, RANDOM, items([None], [True], ["a"]))

    lines = report.summary_lines(finished_stages(run_dir, STAGES), run_config(tmp_path))
    html = StageDir(run_dir / "report", "report", {})
    report.run(run_dir, run_config(tmp_path), finished_stages(run_dir, STAGES), html)

    assert [line.split()[2:3] for line in lines[2:4]] == [["1.0000"], ["n/a"]]


def test_the_terminal_shows_a_table_of_arms_and_one_of_differences(whole, tmp_path):
    title, header, own, other, *paired = report.summary_lines(
        finished_stages(whole, STAGES), run_config(tmp_path)
    )

    assert title == "sums: means of 2 strata, each counting the same"
    assert header.endswith("loss, nats per token (95% interval)  exact match (95% interval)")
    assert own.split()[:3] == ["s2l", "5", "2.6250"] and other.split()[:2] == ["random", "5"]
    assert own.index("2.6250") == other.index("3.1667") == header.index("loss")
    assert paired[0].endswith("(one training of each arm, 95% intervals):")
    assert re.fullmatch(
        r"  random     -0\.5417 \(-\S+ to -\S+\), better  "
        r"\+41\.7 \(\S+ to \S+\), not distinguishable",
        paired[2],
    )


@pytest.mark.parametrize(
    ("metric", "low", "high", "relation"),
    [
        ("loss", -0.2, -0.1, "better"),
        ("loss", 0.1, 0.2, "worse"),
        ("loss", -0.1, 0.2, "not distinguishable"),
        ("exact match", -0.2, -0.1, "worse"),
        ("exact match", 0.1, 0.2, "better"),
        ("exact match", 0.0, 0.2, "not distinguishable"),
    ],
)
def test_an_arm_is_better_only_if_the_interval_excludes_zero_on_its_side(
    metric, low, high, relation
):
    pair = Comparison("sums", metric, "s2l", "random", (low + high) / 2, low, high)

    *_, line, sentence = table.lines([ArmScore("sums", "s2l", 5)], [pair], 0.95)

    assert line.startswith("  random ") and line.endswith(f"), {relation}")
    assert re.fullmatch(f"  By {metric}, s2l is {relation} (than|from) random\\.", sentence)
