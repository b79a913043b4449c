"""Multiple choice: rows with choices, and the choice that the target finds likeliest."""

import numpy as np
import pytest
import torch

from s2l_ray.config.data import DataConfig, FieldNames
from s2l_ray.config.load import from_tree
from s2l_ray.config.sections import EvaluationConfig
from s2l_ray.data.choices import read_choices
from s2l_ray.data.examples import RowError, read_example
from s2l_ray.data.templates import load_template
from s2l_ray.errors import ConfigError
from s2l_ray.evaluation import comparison, metrics, multiple_choice
from s2l_ray.evaluation.item_tables import items_table
from s2l_ray.evaluation.items import Item, Target
from tests import handmade, tiny

FIELDS = FieldNames(prompt="question", choices="choices")
CAPITAL = {"question": "Capital of France?", "choices": ["Rome", "Paris", "Oslo is"], "answer": 1}
ROWS = [
    CAPITAL,
    {"question": "2 + 2?", "choices": ["3", "4", "5", "22"], "answer": "B"},
    {"question": "Up?", "choices": ["down", "up"], "answer": "up"},
]
TEMPLATE = "Q: {prompt}\nA:"


@pytest.fixture
def target(tmp_path):
    file = tmp_path / "template.txt"
    file.write_text(TEMPLATE)
    template = load_template(DataConfig(train=["unused"], template=str(file)))
    device = torch.device("cpu")
    return Target(tiny.model(), tiny.tokenizer(), template, device, torch.float32, 64, 2)


def items(rows):
    return [Item("f", i, read_example(row, FIELDS), None) for i, row in enumerate(rows)]


def mean_log_likelihood(model, row, choice):
    """Of the choice and end-of-sequence after the prompt, from all logits of one text."""
    before = TEMPLATE.replace("{prompt}", row["question"]).encode()
    ids = torch.tensor([*before, *choice.encode(), 256])
    with torch.no_grad():
        log_p = model(ids[None]).logits[0].log_softmax(-1)
    return np.mean([log_p[i - 1, ids[i]].item() for i in range(len(before), len(ids))])


def test_the_choice_with_the_highest_mean_log_likelihood_is_the_targets(target):
    model = tiny.model()
    likeliest = [
        np.argmax([mean_log_likelihood(model, row, choice) for choice in row["choices"]])
        for row in ROWS
    ]
    expected = [
        float(right == best)
        for row, best in zip(ROWS, likeliest, strict=True)
        for right in range(len(row["choices"]))
    ]
    every = [{**row, "answer": right} for row in ROWS for right in range(len(row["choices"]))]

    assert multiple_choice.right(items(every), target) == expected
    assert sum(expected) == len(ROWS)  # one choice of each row


def test_an_item_with_a_choice_that_does_not_fit_has_no_number(target):
    long = {**CAPITAL, "choices": ["Rome", "Paris", "x" * 64]}

    found = multiple_choice.right(items([long, CAPITAL]), target)

    assert found[0] is None and found[1] is not None
    assert multiple_choice.right(items([long]), target) == [None]


def test_its_interval_is_that_of_a_share(target):
    config = EvaluationConfig(sets=["a"], metrics=["multiple-choice"])
    assert not metrics.need_completions(config, "a")
    answered = metrics.Answers(items(ROWS), [""] * 3, target, config)

    table = items_table("a", answered, [1.0, 1.0, 1.0])
    found = comparison.measure(table)["multiple_choice"]

    assert found["rate"] == np.mean(table["multiple_choice"].to_pylist())
    assert 0 <= found["low"] < found["rate"] + 1e-9 and found["items"] == 3


@pytest.mark.parametrize(
    ("choices", "answer", "right"),
    [
        (["a", "b", "c"], 2, 2),
        (["3", "1", "2"], "1", 1),  # its text comes before its number
        (["red", "blue"], "B", 1),
        (["red", "blue"], "a", 0),
        (["red", "blue"], "1", 1),
        ({"text": ["red", "blue"], "label": ["1", "2"]}, "1", 0),
        ({"text": ["red", "blue"], "label": ["A", "B"]}, "B", 1),
        ([1.5, 2], 1, 1),
    ],
)
def test_the_right_choice_is_named_in_many_ways(choices, answer, right):
    _, found = read_choices({"choices": choices, "answer": answer}, FIELDS)

    assert found == right


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": 1}, "no 'choices'"),
        ({"choices": ["a", "b"]}, "no 'answer', which names"),
        ({"choices": ["a"], "answer": 0}, "at least two choices"),
        ({"choices": "a, b", "answer": 0}, "at least two choices"),
        ({"choices": ["a", None], "answer": 0}, r"choices\[1\] is null"),
        ({"choices": ["a", " "], "answer": 0}, r"choices\[1\] holds no text"),
        ({"choices": ["a", "b"], "answer": 2}, "is 2, which names none of the 2 choices"),
        ({"choices": ["a", "b"], "answer": "E"}, "names none of the 2"),
        ({"choices": ["a", "b"], "answer": "neither"}, "names none of the 2"),
        ({"choices": ["a", "b"], "answer": True}, "is of type bool"),
    ],
)
def test_rows_without_usable_choices_are_refused(row, message):
    with pytest.raises(RowError, match=message):
        read_choices(row, FIELDS)


def test_the_right_choice_is_the_response_of_a_row_without_one():
    example = read_example(CAPITAL, FIELDS)

    assert (example.response, example.right_choice) == ("Paris", 1)
    assert read_example({**CAPITAL, "output": "Paris, of course"}, FIELDS).response != "Paris"


def test_rows_of_the_pool_need_no_choices():
    row = {"question": "2 + 2?", "output": "4"}

    assert read_example(row, FIELDS.of_pool).choices == ()


def test_a_set_without_the_field_of_its_choices_is_refused_at_the_start(tmp_path):
    tree = handmade.inputs(tmp_path)
    tree["evaluation"]["metrics"] = {"held": ["multiple-choice"]}

    with pytest.raises(ConfigError, match="multiple-choice on held needs the field of the choices"):
        from_tree(tree, "test")
