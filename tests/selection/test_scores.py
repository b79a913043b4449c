"""Scores of others: a field of the rows, or a column of files, in both orders."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2l_ray.errors import ConfigError, DataError
from s2l_ray.storage.location import Location
from tests.pool_of_sixty import (
    CLUSTERS,
    IDS,
    NUM_ROWS,
    ROWS,
    STRATA,
    in_order,
    order_of,
    ranking,
    selected,
    write_rows,
)

REWARD = np.random.default_rng(11).permutation(NUM_ROWS) / 8 - 3


@pytest.fixture
def folder(tmp_path) -> Location:
    return Location.of(tmp_path)


def rows_with(folder: Location, **values) -> object:
    """Rows in five parts; a value of None leaves the field out."""
    own = [
        row | {name: of(number) for name, of in values.items() if of(number) is not None}
        for number, row in enumerate(ROWS)
    ]
    return write_rows(folder / "rows", in_order(5), own)


def write_scores(folder: Location, parts, reward=REWARD, kind=None, more=()) -> str:
    """Files of scores; the pattern that names them."""
    (folder / "scores" / "mark").write_bytes(b"")
    for number, part in enumerate(parts):
        ids = [IDS[row] for row in part] + [name for name, _ in more]
        values = [reward[row] for row in part] + [value for _, value in more]
        table = pa.table({"example_id": ids, "reward": pa.array(values, kind or pa.float64())})
        pq.write_table(table, f"{folder}/scores/{number}.parquet")
    return f"{folder}/scores/*.parquet#reward"


def ranked_by(folder: Location, score: str, **keys) -> list[int]:
    _, out = selected(folder / "out", method="score", score=score, stratify=False, **keys)
    return order_of(out)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("whole numbers", lambda n: int(8 * REWARD[n])),
        ("fractions", lambda n: float(REWARD[n])),
        ("both in one part", lambda n: float(REWARD[n]) if n % 2 else int(REWARD[n])),
        ("text, as a CSV file has it", lambda n: f" {REWARD[n]:+.3e}"),
        ("both text and numbers", lambda n: str(REWARD[n]) if n % 7 == 0 else float(REWARD[n])),
        ("inside objects", lambda n: {"judge": {"mean": float(REWARD[n])}}),
    ],
)
def test_a_field_orders_the_pool(folder, kind, value):
    name = "grade.judge.mean" if kind == "inside objects" else "grade"
    order = ranked_by(folder, name, rows=rows_with(folder, grade=value))

    def number(row):
        found = value(row)
        return float(found["judge"]["mean"] if isinstance(found, dict) else found)

    assert [number(row) for row in order] == sorted(map(number, range(NUM_ROWS)), reverse=True)


def test_a_field_with_a_dot_in_its_name_is_that_field(folder):
    rows = rows_with(folder, **{"a.b": lambda n: float(REWARD[n]), "a": lambda n: {"b": n}})
    assert ranked_by(folder, "a.b", rows=rows) == np.argsort(-REWARD).tolist()


@pytest.mark.parametrize("score_order", ["highest", "lowest"])
@pytest.mark.parametrize("kind", [pa.float32(), pa.float64(), pa.decimal128(12, 4)])
def test_files_order_the_pool_whatever_their_order(folder, score_order, kind):
    shuffled = np.array_split(np.random.default_rng(2).permutation(NUM_ROWS), 3)
    reward = REWARD.astype(object) if pa.types.is_decimal(kind) else REWARD
    if pa.types.is_decimal(kind):
        reward = [pa.scalar(str(value)).cast(kind).as_py() for value in REWARD.tolist()]
    score = write_scores(folder, [[], *shuffled], reward, kind)
    order = ranked_by(folder, score, score_order=score_order)

    sign = -1 if score_order == "highest" else 1
    assert order == np.argsort(sign * REWARD).tolist()


def test_a_number_that_the_run_knows_is_a_score(folder):
    order = ranked_by(folder, "cluster", score_order="lowest")
    assert [CLUSTERS[row] for row in order] == sorted(CLUSTERS)


def test_clusters_give_their_highest_first(folder):
    score = write_scores(folder, [range(NUM_ROWS)])
    _, out = selected(folder / "out", within="score", score=score)
    _, plain = selected(folder / "plain")

    assert ranking(out)["cluster"] == ranking(plain)["cluster"]
    for cell in set(zip(STRATA, CLUSTERS, strict=True)):
        found = [REWARD[row] for row in order_of(out) if (STRATA[row], CLUSTERS[row]) == cell]
        assert found == sorted(found, reverse=True)


def test_equal_scores_come_in_random_order_and_subsets_nest(folder):
    rows = rows_with(folder, grade=lambda n: n % 2)
    orders = {}
    for seed in (1, 2):
        _, out = selected(
            folder / f"{seed}", rows=rows, method="score", score="grade", stratify=False, seed=seed
        )
        orders[seed] = order_of(out)
    assert orders[1] != orders[2]
    assert all({row % 2 for row in order[:30]} == {1} for order in orders.values())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda n: None if n < 4 else 1.5, r"examples 4 have no score \(first: e0, e1, e2, ...\)"),
        (lambda n: "" if n < 2 else "1.5", r"examples 2 have no score \(first: e0, e1\)"),
        (lambda n: "good" if n == 9 else 1, r"1 have a score that is no number \(first: e9\)"),
        (lambda n: "good" if n == 9 else "1", r"1 have a score that is no number \(first: e9\)"),
        (lambda n: n > 3, r"60 have a score that is no number \(first: e0, e1, e2, ...\)"),
        (lambda n: float("nan") if n == 8 else 1.0, r"1 have the score NaN \(first: e8\)"),
        (
            lambda n: [None, "x", float("nan"), *range(57)][n],
            r"of 60 examples 1 have no .*e0\), 1 have a .*e1\), 1 have the score NaN \(first: e2\)",
        ),
    ],
)
def test_fields_that_are_not_all_numbers_are_refused(folder, value, message):
    with pytest.raises(DataError, match=message):
        ranked_by(folder, "grade", rows=rows_with(folder, grade=value))


def test_only_what_can_be_selected_needs_a_score(folder):
    rows = rows_with(folder, grade=lambda n: float(REWARD[n]) if n >= 30 else None)
    order = ranked_by(folder, "grade", rows=rows, where="grade is not null")
    assert order == [row for row in np.argsort(-REWARD).tolist() if row >= 30]


def test_ids_of_no_example_are_not_used_and_counted_if_they_are_most(folder):
    more = [(f"other{n}", float(n)) for n in range(70)]
    score = write_scores(folder, [range(NUM_ROWS)], more=more)
    summary, _ = selected(folder / "out", method="score", score=score)
    assert summary["notes"] == [
        f"{score}: 70 of 130 scores are of no example of the pool, and not used"
    ]
    few = write_scores(folder / "few", [range(NUM_ROWS)], more=more[:9])
    assert "notes" not in selected(folder / "two", method="score", score=few)[0]


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (
            "{}/scores/*.parquet#rewards",
            r"no column 'rewards'; did you mean 'reward'\? It has exam",
        ),
        (
            "{}/scores/*.parquet#example_id",
            "'example_id' .* has values of type string, not numbers",
        ),
        ("{}/gone/*.parquet#reward", r"selection\.score: .*matches no file"),
        ("{}/scores/mark.jsonl#reward", r"1 of 1 files are no \.parquet"),
    ],
)
def test_files_that_hold_no_such_numbers_are_refused(folder, score, message):
    write_scores(folder, [range(NUM_ROWS)])
    (folder / "scores" / "mark.jsonl").write_bytes(b"{}")
    with pytest.raises(DataError, match=message):
        ranked_by(folder, score.format(folder))


def test_missing_and_repeated_ids_of_files_are_named(folder):
    score = write_scores(folder, [range(3, NUM_ROWS)], more=[("e", 1.0), (None, 1.0)])
    with pytest.raises(DataError, match=r"60 examples 3 have no score \(first: e0, e1, e2\)"):
        ranked_by(folder, score)
    again = write_scores(folder / "again", [range(NUM_ROWS), [5, 6]])
    with pytest.raises(DataError, match=r"several scores of an example \(first: e5, e6\)"):
        ranked_by(folder, again)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ("qualty", r"selection\.score: qualty is no field of the rows .*did you mean quality\?"),
        ("stratum", "strata are names, not numbers"),
    ],
)
def test_names_of_no_number_are_refused(folder, score, message):
    with pytest.raises(ConfigError, match=message):
        ranked_by(folder, score, rows=write_rows(folder / "rows", in_order(2)))
