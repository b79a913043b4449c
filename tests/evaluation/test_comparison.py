import numpy as np
import pyarrow as pa
import pytest

from s2l_ray.evaluation.comparison import PairedDifference, compare, measure

RNG = np.random.default_rng(7)


def items(num_items: int, *, name: str = "sums", num_strata: int = 3) -> pa.Table:
    """Random scores; item n belongs to stratum n modulo `num_strata`."""
    number_N = np.arange(num_items)
    return pa.table(
        {
            "set": [name] * num_items,
            "file": ["a"] * num_items,
            "item": number_N,
            "stratum": [f"kind {n % num_strata}" for n in number_N],
            "loss_nats": pa.array(RNG.gamma(2.0, size=num_items), pa.float32()),
            "correct": RNG.random(num_items) < 0.4,
        }
    )


def replaced(table: pa.Table, column: str, values: list) -> pa.Table:
    place = table.column_names.index(column)
    return table.set_column(place, column, pa.array(values, table.schema.field(column).type))


def by_metric(found: list[PairedDifference]) -> dict[tuple[str, str], PairedDifference]:
    return {(pair.metric, pair.over): pair for pair in found}


def test_plain_scores_are_means_over_items():
    table = items(40)
    found = measure(table)

    assert found["items"] == found["loss_nats"]["items"] == 40
    assert found["loss_nats"]["mean"] == pytest.approx(np.mean(table["loss_nats"].to_numpy()))
    assert found["exact_match"]["rate"] == np.mean(table["correct"].to_numpy())
    assert found["loss_nats"]["low"] < found["loss_nats"]["mean"] < found["loss_nats"]["high"]


def test_macro_scores_are_means_over_strata_whatever_their_size():
    table = items(30).filter(pa.array([n % 3 != 2 or n < 6 for n in range(30)]))
    found = measure(table)

    strata = found["strata"].values()
    assert sorted(group["items"] for group in strata) == [2, 10, 10]
    means = [group["loss_nats"]["mean"] for group in strata]
    rates = [group["exact_match"]["rate"] for group in strata]
    assert found["macro"]["strata"] == 3
    assert found["macro"]["loss_nats"]["mean"] == pytest.approx(np.mean(means))
    assert found["macro"]["exact_match"]["rate"] == pytest.approx(np.mean(rates))


def test_one_stratum_has_the_plain_numbers_as_macro():
    found = measure(items(20, num_strata=1))

    assert found["macro"]["loss_nats"] == found["loss_nats"]
    assert found["macro"]["exact_match"] == pytest.approx(found["exact_match"])


def test_an_item_without_a_loss_counts_for_exact_match_alone():
    table = replaced(items(4), "loss_nats", [1.0, None, 3.0, None])
    found = measure(table)

    assert found["loss_nats"]["items"] == 2
    assert found["loss_nats"]["mean"] == 2.0
    assert found["items"] == 4
    assert found["strata"]["kind 1"]["loss_nats"] == {
        "mean": None,
        "low": None,
        "high": None,
        "items": 0,
    }


def test_a_difference_is_that_of_the_same_items_whatever_their_order():
    one = items(12)
    losses, matches = one["loss_nats"].to_numpy(), one["correct"].to_numpy()
    other = replaced(one, "loss_nats", (losses - np.float32(0.25)).tolist())
    other = replaced(other, "correct", (~matches).tolist())
    shuffled = other.take(pa.array(RNG.permutation(12)))

    found = by_metric(compare(one, shuffled))

    assert len(found) == 4
    assert found["loss", "items"].difference == pytest.approx(0.25, abs=1e-6)
    assert found["loss", "items"].low == pytest.approx(0.25, abs=1e-5)
    expected = np.mean(matches.astype(float) - (~matches).astype(float))
    assert found["exact match", "items"].difference == pytest.approx(expected)
    assert found["exact match", "items"].num_items == 12
    assert found["exact match", "items"].num_unpaired == 0


def test_strata_count_the_same_in_a_macro_difference():
    one = items(9, num_strata=1)
    one = replaced(one, "stratum", ["big"] * 8 + ["small"])
    one = replaced(one, "loss_nats", [2.0] * 8 + [5.0])
    other = replaced(one, "loss_nats", [1.0] * 9)

    found = by_metric(compare(one, other))

    assert found["loss", "items"].difference == pytest.approx((8 * 1 + 4) / 9)
    assert found["loss", "strata"].difference == pytest.approx((1 + 4) / 2)


def test_items_without_a_partner_or_a_loss_are_counted_and_left_out():
    one = replaced(items(6), "loss_nats", [1.0, 2.0, 3.0, 4.0, 5.0, None])
    other = replaced(one, "loss_nats", [None, 1.0, 1.0, 1.0, 1.0, 1.0]).slice(0, 5)

    found = by_metric(compare(one, other))

    assert found["loss", "items"].num_items == 4
    assert found["loss", "items"].num_unpaired == 2
    assert found["loss", "items"].difference == pytest.approx(2.5)
    assert found["exact match", "items"].num_items == 5
    assert found["exact match", "items"].num_unpaired == 1


def test_sets_are_compared_apart_and_one_without_a_partner_not_at_all():
    one = pa.concat_tables([items(5, name="z"), items(5, name="a"), items(5, name="only here")])

    found = compare(one, one.slice(0, 10))

    assert list(dict.fromkeys(pair.set for pair in found)) == ["z", "a"]
    assert all(pair.difference == 0 for pair in found)


def test_one_pair_of_losses_gives_a_difference_without_an_interval():
    found = by_metric(compare(items(1), items(1)))

    assert (found["loss", "items"].low, found["loss", "items"].high) == (None, None)


@pytest.mark.parametrize("over", ["items", "strata"])
def test_arms_that_agree_on_every_item_are_not_known_to_be_the_same(over):
    found = by_metric(compare(one := items(30), one))["exact match", over]

    assert found.difference == 0
    assert found.low < -0.01 and found.high > 0.01
