"""Conditions and scores are checked on first rows, and on prepared ones, before anything trains."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2l_ray.artifacts.tables import Parts
from s2l_ray.config.load import from_tree
from s2l_ray.errors import ConfigError, DataError
from s2l_ray.pipeline import preflight
from s2l_ray.selection import checks
from s2l_ray.selection.declaration import SELECTION
from tests import handmade
from tests.handmade import IDS, ROWS, changed, finish

GRADED = [row | {"grade": number, "meta": {"x": 1}} for number, row in enumerate(ROWS)]


@pytest.fixture
def tree(tmp_path):
    made = handmade.inputs(tmp_path)
    (tmp_path / "pool.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in GRADED))
    return made


def write_scores(folder, ids=IDS) -> str:
    values = pa.array(range(len(ids)), pa.int32())
    pq.write_table(pa.table({"example_id": ids, "reward": values}), folder / "s.parquet")
    return f"{folder}/s.parquet#reward"


def config(tree, **keys):
    return from_tree(changed(tree, "selection", {"budget": 6, **keys}), "test")


@pytest.mark.parametrize(
    "keys",
    [
        {"where": "grade > 3 and meta.x = 1 and tokens < 9 and stratum = 'a' or last_loss > 2"},
        {"method": "score", "score": "grade"},
        {"within": "score", "score": "meta.x", "score_order": "lowest"},
        {"method": "score", "score": "last_loss", "where": "grade is not null"},
    ],
)
def test_what_the_first_rows_have_is_taken(tree, keys):
    SELECTION.check(config(tree, **keys))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"where": "grad > 3"}, r"grad is no field of the first 30 rows .*did you mean grade\?"),
        ({"where": "source > 3"}, r"compares source \(text\) with 3 \(a number\)"),
        ({"where": "stratum > 3"}, r"compares stratum \(text\) with 3"),
        ({"where": "cluster = 'a'"}, r"compares cluster \(a number\) with 'a' \(text\)"),
        ({"where": "meta.y = 3"}, r"there is no 'y' in meta; it has: x"),
        ({"method": "score", "score": "grades"}, r"selection\.score: grades is no field of the fi"),
        ({"method": "score", "score": "output"}, r"of 30 first rows 30 have a score that is no"),
        ({"method": "score", "score": "gone.parquet#x"}, r"selection\.score: .*matches no file"),
    ],
)
def test_what_the_first_rows_do_not_have_is_refused(tree, keys, message):
    with pytest.raises((ConfigError, DataError), match=message):
        SELECTION.check(config(tree, **keys))


def test_columns_of_files_are_looked_for(tree, tmp_path):
    score = write_scores(tmp_path)
    SELECTION.check(config(tree, method="score", score=score))
    with pytest.raises(DataError, match=r"no column 'rewards'; did you mean 'reward'\?"):
        SELECTION.check(config(tree, method="score", score=f"{score}s"))


def test_tokens_that_no_stage_counts_are_refused(tree, tmp_path):
    imported = changed(changed(tree, "reference", None), "trajectories", {"path": "t.parquet"})
    with pytest.raises(DataError, match=r"in a condition, .*`data\.tokenizer` is not given"):
        SELECTION.check(config(imported, where="tokens < 9"))
    alone = {key: imported[key] for key in ("run_dir", "trajectories", "clusters")}
    with pytest.raises(ConfigError, match="grade is no field of the rows, as there is no `data`"):
        SELECTION.check(config(alone, where="grade < 9"))


def test_nothing_is_learned_by_copies_that_are_not_trained(tree):
    perturbed = {"model": "org/model", "perturbations": 3}
    with pytest.raises(ConfigError, match="are no course of a training"):
        SELECTION.check(config(changed(tree, "reference", perturbed), unlearned="last"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"where": "source = 'code'", "budget": 11}, r"budget of 11 .* holds for 10 of 30 exam"),
        ({"where": "tokens > 41", "budget": 0.2}, r"budget of 6 examples: .* for 4 of 30"),
        ({"method": "score", "score": "SCORES"}, r"of 30 examples 2 have no score \(first: e0, e1"),
    ],
)
def test_prepared_rows_show_what_would_fail_after_training(tree, tmp_path, keys, message):
    keys = {k: write_scores(tmp_path, IDS[2:]) if v == "SCORES" else v for k, v in keys.items()}
    tree = changed(tree, "selection", {"budget": 6, **keys})
    finish(tree, "prepare")
    with pytest.raises(DataError, match=message):
        preflight.check_pool(from_tree(tree, "test"))
    finish(tree, "trajectories")  # then the selection itself will say so soon
    preflight.check_pool(from_tree(tree, "test"))


@pytest.mark.parametrize(
    "keys",
    [
        {"where": "source = 'code'", "budget": 10},
        {"where": "last_loss > 99", "budget": 10},
        {"where": "source = 'code'", "budget": "9M tokens"},
        {"method": "score", "score": "SCORES", "where": "tokens < 42"},
    ],
)
def test_what_may_do_is_not_refused_before_training(tree, tmp_path, keys):
    keys = {k: write_scores(tmp_path, IDS[4:]) if v == "SCORES" else v for k, v in keys.items()}
    run = finish(tree, "prepare")
    checks.check_prepared(config(tree, **keys), Parts(run / "prepared"))
