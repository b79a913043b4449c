"""Oracle: the operations that torch counts while the trial computes; the clock is set here."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from s2l_ray.modelling import trial
from tests import tiny

# The counter knows no fused attention.
COUNTABLE = {"attn_implementation": "eager", "hidden_size": 64, "intermediate_size": 128}
STAGES = ("reference", "trajectories", "target", "evaluation")


def speed(stage, model, rows, **changes) -> float:
    options = {"dtype": torch.float32, "device": torch.device("cpu"), "num_threads": 1}
    return trial.flops_per_second(stage, model, rows, **options | changes)


def counted(stage, rows) -> tuple[float, int]:
    """Operations per second as measured, and operations as torch counts them in this thread."""
    model = tiny.model("llama", **COUNTABLE)
    tried = trial.Trial(model, rows, torch.float32, torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        return trial.MEASURED[stage](tried), counter.get_total_flops()


@pytest.fixture
def one_second_a_pass(monkeypatch):
    """One pass that sets up, and one that takes a second."""
    ticks = itertools.count()
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    monkeypatch.setattr(trial.time, "thread_time", lambda: float(next(ticks)))


@pytest.mark.parametrize(
    ("stage", "kinds"), [("target", 1), ("trajectories", 1), ("evaluation", 2)]
)
def test_operations_per_second_are_those_of_a_pass_in_its_time(one_second_a_pass, stage, kinds):
    rows = trial.Rows(count=3, prompt_tokens=20, response_tokens=12, new_tokens=6)
    found, operations = counted(stage, rows)

    # Every kind of pass was made twice, and the second one took a second. What a row's last token
    # would need, and the last of an answer, is counted and not computed.
    assert found == pytest.approx(operations / 2 / kinds, rel=0.08)


def test_a_long_answer_is_tried_in_part_and_costs_as_much_as_all_of_it(one_second_a_pass):
    rows = trial.Rows(count=2, prompt_tokens=8, response_tokens=4, new_tokens=16)
    short, computed = counted("evaluation", rows)
    long, still_computed = counted("evaluation", replace(rows, new_tokens=160))

    assert still_computed == computed
    # 24 tokens are read in a second; answers have 48 or 336, in a second and in seven.
    assert long / short == pytest.approx((24 + 336) / 8 / ((24 + 48) / 2), rel=0.1)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["gpt_neox", "gemma2", "gpt2", "mixtral"])
def test_every_stage_can_be_tried(monkeypatch, stage, dtype, architecture):
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    rows = trial.Rows(count=2, prompt_tokens=5, response_tokens=3, new_tokens=2)

    assert speed(stage, tiny.model(architecture), rows, dtype=dtype) > 0


def test_workers_that_share_a_machine_are_tried_at_once(monkeypatch):
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    rows, tried = trial.Rows(2, 5, 3), []
    measure = trial.MEASURED["reference"]
    monkeypatch.setitem(trial.MEASURED, "reference", lambda one: tried.append(one) or measure(one))

    assert speed("reference", tiny.model(), rows, num_workers=3) > 0
    assert len({id(one.model) for one in tried}) == 3


def test_rows_are_no_more_than_a_pass_needs_and_threads_are_what_they_were(monkeypatch):
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    before = torch.get_num_threads()
    # All of these would be a billion tokens.
    speed("trajectories", tiny.model(), trial.Rows(10**7, 60, 40), num_threads=before + 1)

    assert torch.get_num_threads() == before
