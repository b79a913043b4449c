"""Oracle: the operations that torch counts while the trial computes; the clock is set here."""

import itertools
import threading

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from s2l_ray.estimate import trial
from s2l_ray.models import flops
from s2l_ray.models.dimensions import shape_of
from tests import tiny

# The counter knows no fused attention.
COUNTABLE = {"attn_implementation": "eager", "hidden_size": 64, "intermediate_size": 128}
STAGES = ("reference", "trajectories", "target", "evaluation")


def speed(stage, model, rows, *, dtype=torch.float32, num_threads=1, **changes) -> float:
    tried = trial.Trial(model, rows, dtype, torch.device("cpu"))
    return trial.flops_per_second(stage, tried, num_threads=num_threads, **changes)


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


@pytest.mark.parametrize("stage", ["target", "trajectories"])
def test_operations_per_second_are_those_of_a_pass_in_its_time(one_second_a_pass, stage):
    rows = trial.BatchShape(count=3, prompt_tokens=20, response_tokens=12, new_tokens=6)
    found, operations = counted(stage, rows)

    # A pass of one row set up, and the one of three took a second. What a row's last token would
    # need is counted and not computed.
    assert found == pytest.approx(operations * 3 / (1 + 3), rel=0.08)


def test_a_long_answer_takes_as_long_for_every_token_as_a_short_one(monkeypatch):
    """On a clock that passes of the model move on: one second for each."""
    seconds = itertools.count()
    model, now = tiny.model("llama", **COUNTABLE), [0.0]
    model.model.register_forward_pre_hook(lambda *_: now.__setitem__(0, next(seconds)))
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    monkeypatch.setattr(trial.time, "thread_time", lambda: now[0])
    rows = trial.BatchShape(count=2, prompt_tokens=80, response_tokens=4, new_tokens=160)

    found = speed("evaluation", model, rows)

    shape = shape_of(model)
    operations = flops.forward(shape, tokens=168, logits=8, context=84)
    operations += flops.answers(shape, rows=2, prompt=80, new_tokens=160)
    # 160 passes for the answers, and one or two of the scorer.
    assert found == pytest.approx(operations / 161, rel=0.01)


@pytest.mark.parametrize("stage", STAGES)
def test_rows_may_be_as_long_as_a_model_can_read(monkeypatch, stage):
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    model = tiny.model("gpt2", n_positions=64)

    # The last token is predicted and not read; answers have the room that is left, if any.
    assert speed(stage, model, trial.BatchShape(2, 60, 5, new_tokens=9)) > 0
    assert speed(stage, model, trial.BatchShape(2, 64, 1, new_tokens=9)) > 0


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["gpt_neox", "gemma2", "gpt2", "mixtral"])
def test_every_stage_can_be_tried(monkeypatch, stage, dtype, architecture):
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    rows = trial.BatchShape(count=2, prompt_tokens=5, response_tokens=3, new_tokens=2)

    assert speed(stage, tiny.model(architecture), rows, dtype=dtype) > 0


def test_workers_that_share_a_machine_are_tried_at_once(monkeypatch):
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    met, tried = threading.Barrier(3, timeout=60), []

    def measure(one):
        met.wait()
        tried.append(one.model)
        return one.training()

    monkeypatch.setitem(trial.MEASURED, "reference", measure)
    model, rows = tiny.model(), trial.BatchShape(2, 5, 3)

    assert speed("reference", model, rows, num_workers=3) > 0
    assert len({id(one) for one in tried}) == 3
    # Where these are too large for memory, fewer are.
    monkeypatch.setattr(trial, "MOST_WEIGHTS", 3.5 * model.num_parameters())
    assert speed("reference", model, rows, num_workers=99) > 0
    assert len(tried) == 3 + 3


def test_rows_are_no_more_than_a_pass_needs_and_threads_are_what_they_were(monkeypatch):
    monkeypatch.setattr(trial, "SECONDS", 0.0)
    before = torch.get_num_threads()
    # All of these would be a billion tokens.
    speed("trajectories", tiny.model(), trial.BatchShape(10**7, 60, 40), num_threads=before + 1)

    assert torch.get_num_threads() == before
