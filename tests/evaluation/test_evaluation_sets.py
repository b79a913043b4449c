import json
from pathlib import Path

import numpy as np
import pytest

from s2l_ray.artifacts.tables import original_rows, rows_name
from s2l_ray.config.data import DataConfig
from s2l_ray.config.sections import EvaluationConfig
from s2l_ray.data.held_out_rows import check_usable, chosen
from s2l_ray.errors import DataError
from s2l_ray.evaluation.evaluation_sets import staged_units
from s2l_ray.storage.input_files import expand
from s2l_ray.storage.location import Location

DIGESTS = [f"digest of row {row}" for row in range(50)]


def rows_of(start: int, stop: int) -> list[dict]:
    return [{"instruction": f"count to {n}", "output": f"so {n}"} for n in range(start, stop)]


def write(path: Path, rows: list) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def stage(folder: Path, sets: dict[str, list[Path]], *, max_rejected: float = 0.5, **settings):
    config = EvaluationConfig(sets=list(sets), rows_per_batch=2, **settings)
    files = {name: expand([str(path) for path in paths]) for name, paths in sets.items()}
    data = DataConfig(train=["unused"], max_rejected=max_rejected)
    return staged_units(config, data, files, Location.of(folder / "staged"))


def staged_rows(folder: Path, unit: dict) -> list[dict]:
    table = (Location.of(folder / "staged") / rows_name(unit["unit"])).read_table()
    return list(original_rows(table))


@pytest.mark.parametrize("max_items", [1, 7, 50, 80])
def test_the_same_rows_are_chosen_wherever_they_stand(max_items):
    order_N = np.random.default_rng(1).permutation(len(DIGESTS))
    shuffled = [DIGESTS[row] for row in order_N]

    one = {DIGESTS[row] for row in np.flatnonzero(chosen(DIGESTS, max_items))}
    other = {shuffled[row] for row in np.flatnonzero(chosen(shuffled, max_items))}

    assert one == other
    assert len(one) == min(max_items, len(DIGESTS))


def test_fewer_items_are_a_subset_of_more():
    assert (chosen(DIGESTS, 20) >= chosen(DIGESTS, 8)).all()


def test_of_equal_rows_the_first_are_chosen():
    np.testing.assert_array_equal(chosen(["same"] * 4, 2), [True, True, False, False])


def test_without_a_limit_every_row_is_chosen():
    assert chosen(DIGESTS, None).all()


def test_units_hold_all_rows_in_order_and_never_span_two_files(tmp_path):
    one, other = write(tmp_path / "a.jsonl", rows_of(0, 11)), tmp_path / "b.jsonl"
    write(other, rows_of(11, 14))

    plan = stage(tmp_path, {"counting": [one, other]})

    assert [unit["rows"] for unit in plan["units"]] == [8, 3, 3]
    found = [row for unit in plan["units"] for row in staged_rows(tmp_path, unit)]
    assert found == rows_of(0, 14)


def test_a_limited_set_keeps_the_input_order(tmp_path):
    path = write(tmp_path / "a.jsonl", rows_of(0, 40))

    plan = stage(tmp_path, {"counting": [path]}, max_items=10)

    found = [row for unit in plan["units"] for row in staged_rows(tmp_path, unit)]
    assert len(found) == 10
    assert found == [row for row in rows_of(0, 40) if row in found]


def test_rows_that_cannot_be_used_are_counted_with_their_places(tmp_path):
    path = write(tmp_path / "a.jsonl", ["{", {"instruction": "no answer"}, *rows_of(0, 4)])

    plan = stage(tmp_path, {"counting": [path]})

    assert plan["sets"]["counting"] == {
        "rows": 6,
        "failures": [
            ["malformed JSON", f"{path} row 0 (from 0)"],
            ["missing field", f"{path} row 1 (from 0)"],
        ],
    }
    assert [unit["rows"] for unit in plan["units"]] == [4]


def test_too_many_rows_that_cannot_be_used_are_refused_with_reason_and_place(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"instruction": "no answer"}, *rows_of(0, 4)])

    with pytest.raises(DataError, match=r"counting: 1 of 5 rows .*(20\.00%)") as error:
        stage(tmp_path, {"counting": [path]}, max_rejected=0.1)
    assert f"1 missing field (first: {path} row 0 (from 0))" in str(error.value)
    assert "raise data.max_rejected" in str(error.value)


def test_a_set_without_one_usable_row_is_refused_whatever_the_limit():
    with pytest.raises(DataError, match="2 of 2 rows") as error:
        check_usable("counting", 2, [("empty field", "a row 0")] * 2, 1.0)
    assert "raise data.max_rejected" not in str(error.value)


def test_an_empty_set_is_refused(tmp_path):
    with pytest.raises(DataError, match="counting: there are no rows"):
        stage(tmp_path, {"counting": [write(tmp_path / "a.jsonl", [])]})


def test_what_is_staged_is_not_staged_again(tmp_path):
    path = write(tmp_path / "a.jsonl", rows_of(0, 3))
    plan = stage(tmp_path, {"counting": [path]})
    (tmp_path / "staged" / rows_name(0)).unlink()

    assert stage(tmp_path, {"counting": [path]}) == plan
    assert not (tmp_path / "staged" / rows_name(0)).exists()
