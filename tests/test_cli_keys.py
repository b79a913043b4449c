"""`s2l keys`: every key of a run file, what it is, and a hint for a wrong one."""

import pytest

from s2l_ray import cli
from s2l_ray.config.keys import all_keys
from s2l_ray.config.sections import RunConfig


@pytest.fixture
def said(capsys):
    """`said("clusters")`: what `s2l keys clusters` prints, and its exit code."""

    def keys(*names: str) -> tuple[str, int]:
        code = cli.main(["keys", *names])
        printed = capsys.readouterr()
        return printed.out + printed.err, code

    return keys


def test_every_key_that_holds_a_value_is_listed(said):
    text, code = said()
    words = set(text.replace(",", " ").split())
    leaves = {key.path for key in all_keys(RunConfig) if not key.sections}
    assert code == 0 and len(leaves) > 100
    assert {path.rpartition(".")[2] for path in leaves} <= words


def test_a_key_has_its_type_default_and_meaning(said):
    text, code = said(
        "target.lora.dropout", "data.train", "comparison.methods", "data.max_rejected"
    )
    assert code == 0
    assert "target.lora.dropout: number ≥ 0, < 1; default 0.0\n" in text
    assert "data.train: list of text; required\n    The pool: files, globs, directories," in text
    assert "default [{method: random}, {method: s2l}]" in text
    (line,) = [line for line in text.splitlines() if line.startswith("data.max_rejected: ")]
    assert line.endswith("; changing it redoes nothing")


@pytest.mark.parametrize("key", ["eval", "split", "decontaminate", "near_duplicates"])
def test_a_key_that_changes_the_pool_or_the_evaluation_is_said_to(said, key):
    text, _ = said(f"data.{key}")
    assert "redoes nothing" not in text


def test_a_section_is_shown_with_all_below_it(said):
    text, _ = said("target")
    shown = [line.partition(":")[0] for line in text.splitlines() if line.startswith("target")]
    assert shown == [key.path for key in all_keys(RunConfig) if key.path.startswith("target")]
    assert max(map(len, (line for line in text.splitlines() if line.startswith(" ")))) <= 80


def test_a_wrong_key_is_refused_with_the_nearest(said):
    assert said("clusters.num_cluster") == (
        "s2l: 'clusters.num_cluster' is no key of a run file; did you mean "
        "'clusters.num_clusters'?\n",
        2,
    )
    text, code = said("xyzzy")
    assert code == 2 and "`s2l keys` lists all of them" in text


@pytest.mark.parametrize(
    ("name", "holder"),
    [
        ("reference.model.tokenizer", "reference.model"),
        ("comparison.methods.selection", "comparison.methods"),
        ("data.eval.heldout.files", "data.eval"),
        ("reference.workers.max", "reference.workers"),
    ],
)
def test_a_key_of_one_line_is_told_by_the_one_that_holds_it(said, name, holder):
    text, code = said(name)
    assert code == 0 and text.startswith(f"{holder}: ")
