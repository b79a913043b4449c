"""The plan: what would run, how much there is, and that looking changes nothing."""

import gzip
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2l_ray import config, planning
from s2l_ray.errors import DataError, UserError
from tests import handmade
from tests.handmade import changed, finish

NUM_ROWS = 3_000


@pytest.fixture
def tree(tmp_path):
    return handmade.inputs(tmp_path)


def lines(tree) -> list[str]:
    return planning.lines(config.from_tree(tree, "test"))


def states(tree) -> dict[str, str]:
    """Stage -> what the plan says of it."""
    found = [line.split(maxsplit=1) for line in lines(tree)[2:10]]
    return {stage: state for stage, state in found}


def size(tree) -> planning.PoolSize:
    loaded = config.from_tree(tree, "test")
    return planning.pool_size(loaded, loaded.data)


def test_states_are_those_of_a_run(tree):
    assert set(states(tree).values()) == {"to do"}
    finish(tree, until="clusters")
    found = states(changed(tree, "clusters.num_clusters", 9))

    assert [found[stage] for stage in ("prepare", "reference", "trajectories")] == ["finished"] * 3
    assert found["clusters"] == "to do again: clusters.num_clusters changed"
    assert found["selection"] == found["report"] == "to do"


def test_planning_leaves_no_trace(tree, tmp_path):
    before = sorted(path.name for path in tmp_path.rglob("*"))
    lines(tree)

    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_small_pool_is_counted_row_by_row(tree):
    assert (size(tree).rows, size(tree).counted) == (30, False)


def test_a_misspelt_field_is_named_with_those_that_are_there(tree):
    misspelt = changed(tree, "data.fields", {"prompt": "quesion"})
    with pytest.raises(DataError, match=r"row 0: missing field: no 'quesion'; the row's fields"):
        lines(misspelt)


def test_a_prepared_pool_is_not_estimated(tree):
    finish(tree, until="prepare")

    assert size(tree) == planning.PoolSize(30, 1_234, 0, True)
    [pool] = [line for line in lines(tree) if line.startswith("pool")]
    assert pool.split() == ["pool", "30", "rows,", "1,234", "tokens"]


def large_pool(folder: Path) -> list[dict[str, str]]:
    """Rows of many lengths, more than are sampled."""
    return [
        {"instruction": f"question {number} " * (1 + number % 9), "output": "42 " * (number % 50)}
        for number in range(NUM_ROWS)
    ]


@pytest.mark.parametrize("kind", ["jsonl", "json", "jsonl.gz", "csv", "parquet"])
def test_a_large_pool_is_estimated_from_its_first_rows_within_a_quarter(tree, tmp_path, kind):
    rows = large_pool(tmp_path)
    path = tmp_path / f"large.{kind}"
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "csv":
        named = ["instruction,output", *(",".join(row.values()) for row in rows)]
        path.write_text("".join(f"{line}\n" for line in named))
    elif kind == "json":
        path.write_text(json.dumps(rows))
    else:
        path.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())

    found = size(changed(tree, "data.train", [str(path)]))
    assert not found.counted
    assert NUM_ROWS * 0.75 < found.rows < NUM_ROWS * 1.25
    characters = sum(len(value) for row in rows for value in row.values())
    assert 0.5 < found.tokens / (characters / 4 + 30 * NUM_ROWS) < 2


def test_no_row_counts_more_tokens_than_it_may_have(tree):
    assert size(changed(tree, "data.max_tokens", 5)).tokens == 30 * 5


def test_the_cost_follows_from_rows_steps_and_checkpoints(tree):
    finish(tree, until="prepare")
    shown = "\n".join(lines(changed(tree, "selection.baselines", ["random"])))

    # 6 steps of 8 and 5 of 4, at 1,234 tokens per 30 rows; the pool at 3 checkpoints.
    assert "reference       6 steps of 8, 1,974 tokens" in shown
    assert "trajectories    3,702 tokens (3 checkpoints)" in shown
    assert "target          5 steps of 4, 823 tokens, 2 arms" in shown


def test_trajectories_of_ones_own_cost_nothing(tree, tmp_path):
    shutil.copy(tmp_path / "pool.jsonl", tmp_path / "losses.parquet")
    tree = changed(tree, "trajectories.path", str(tmp_path / "losses.parquet"))
    for section in ("reference", "target", "evaluation"):
        tree = changed(tree, section, None)

    assert [line.split()[0] for line in lines(tree) if "tokens" in line] == ["pool"]


def test_a_missing_file_is_refused(tree):
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        lines(changed(tree, "data.train", ["/nowhere.jsonl"]))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("target.model", "/nowhere/model", "there is no /nowhere/model"),
        (
            "reference.model",
            {"architecture": {"model_type": "gpt_neox", "hiden_size": 8}, "tokenizer": "some/name"},
            "did you mean 'hidden_size'",
        ),
        ("data.template", "alpacca", "alpacca.*alpaca"),
    ],
)
def test_what_a_run_would_stumble_on_later_is_said_now(tree, key, value, message):
    with pytest.raises(UserError, match=message):
        lines(changed(tree, key, value))
