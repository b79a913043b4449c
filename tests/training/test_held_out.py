"""The held-out loss in a training.

Oracle: the scorer of the stage `evaluation`, on the weights of that moment.
"""

from functools import partial

import numpy as np
import pytest
import ray.train
import torch

from s2l_ray.errors import ModelError
from s2l_ray.models.scoring import Scorer
from s2l_ray.training import loop, ray_train
from s2l_ray.training.held_out import HeldOut
from tests import tiny
from tests.training.test_loop import CPU, STEPS, TinyParts, plan_of, settings, tiny_model


def held_out(every=2, rows_per_pass=3):
    return HeldOut({"one": TinyParts(), "two": FewParts()}, every, rows_per_pass)


class FewParts(TinyParts):
    """Other parts: the first rows of two of them."""

    num_rows = (3, 4)

    def read(self, part):
        rows = super().read(part % 2)
        return rows.take(np.arange(self.num_rows[part]))


def scored(model, parts):
    """The mean of the losses of all rows, each scored alone."""
    rows = [parts.read(part) for part in range(len(parts.num_rows))]
    scorer = Scorer(model, dtype=model.dtype, device=CPU, tokens_per_batch=1)
    losses = []
    for part in rows:
        bounds = list(zip(part.offset[:-1], part.offset[1:], strict=True))
        ids = [part.token_ids[start:end] for start, end in bounds]
        losses.append(scorer.score(ids, [part.learned[start:end] for start, end in bounds]).loss_N)
    return np.concatenate(losses).mean(dtype=np.float64)


def engine(dropout=0.0):
    return loop.Replica(tiny_model(dropout), settings(), device=CPU, dtype=torch.float32)


@pytest.mark.parametrize("rows_per_pass", [1, 3, 100])
def test_the_loss_is_the_mean_that_the_evaluation_scores(rows_per_pass):
    trained = engine(dropout=0.5)

    found = held_out(rows_per_pass=rows_per_pass).losses(trained)

    expected = {"one": scored(trained.model, TinyParts()), "two": scored(trained.model, FewParts())}
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_training_that_is_measured_learns_the_same_bits():
    plain, measured = engine(dropout=0.5), engine(dropout=0.5)
    expected = list(loop.steps(plain, plan_of(settings())))

    reports = []
    for report in loop.steps(measured, plan_of(settings())):
        reports.append(report)
        assert held_out().losses(measured) is not None

    assert reports == expected
    for one, other in zip(plain.model.parameters(), measured.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_measurement_that_is_stopped_has_no_result_and_leaves_training_on():
    trained, answers = engine(), iter([False, False, True])

    assert held_out().losses(trained, must_stop=lambda: next(answers)) is None
    assert trained.model.training and torch.is_grad_enabled()


def test_losses_are_due_at_the_multiples_and_after_the_last_step():
    rows = held_out(every=4)

    assert [step for step in range(1, 11) if rows.is_due(step, 10)] == [4, 8, 10]


def test_a_loss_that_is_not_finite_names_its_set():
    broken = engine()
    with torch.no_grad():
        broken.model.get_output_embeddings().weight.fill_(torch.nan)

    with pytest.raises(ModelError, match=r"set one is nan.*target\.evaluate_every is left out"):
        held_out().losses(broken)


class LongParts(TinyParts):
    """Parts whose longest row needs one position more than the model has."""

    num_tokens_of_longest = 514


def test_held_out_rows_that_do_not_fit_name_their_set_and_the_way_out():
    rows = HeldOut({"long": LongParts()}, every=2, rows_per_pass=3)

    message = r"^held-out set long: the longest row has 514 .* leave out target\.evaluate_every"
    with pytest.raises(ModelError, match=message):
        rows.check_fits(tiny.model("gpt2"))
    rows.check_fits(tiny.model("gpt_neox"))


class StopsOnce(ray_train.Worker):
    """Is stopped in its first measurement."""

    stops = True

    def must_stop(self):
        stops, self.stops = self.stops, False
        return stops


def test_a_step_is_measured_once_and_one_that_was_stopped_when_the_training_goes_on(tmp_path):
    trained, history = engine(), loop.History([3.0, 2.0], 9)
    measure = partial(ray_train._measure, engine=trained, held_out=held_out(), total_steps=9)
    stopped = StopsOnce(0, 1, CPU, None)

    measure(stopped, history=history)
    assert history.held_out == []
    history.write(tmp_path)
    resumed = loop.History.read(tmp_path)
    for _ in range(2):
        measure(ray_train.Worker(0, 1, CPU, None), history=resumed)

    ((step, found),) = resumed.held_out
    assert step == 2 and found == held_out().losses(trained)
    resumed.add(loop.StepReport(3, 1.0, 0.1, 1.0, 7, 70))
    measure(stopped, history=resumed)
    assert len(resumed.held_out) == 1


class StopsInLastMeasurement(ray_train.Worker):
    """Is interrupted while it measures after the last step."""

    step, stops = 0, False

    def begin(self, start):
        self.step = start

    def show(self, report):
        self.step = report.step

    def measuring(self):
        self.stops = self.step == STEPS

    def must_stop(self):
        return self.stops


def test_the_last_measurement_is_made_however_often_it_was_interrupted(tmp_path, monkeypatch):
    saved: list[ray.train.Checkpoint] = []
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: saved[-1] if saved else None)
    monkeypatch.setattr(ray.train, "report", lambda _, checkpoint, **_how: saved.append(checkpoint))
    trained = engine()
    nothing = ray_train.State(lambda _folder: None, lambda _folder: None, on_every_rank=False)
    train = partial(
        ray_train.train,
        engine=trained,
        plan=plan_of(settings(resume_every=100)),
        state=nothing,
        held_out=held_out(every=100),
    )
    for _ in range(2):
        with pytest.raises(ray_train.Stopped) as stopped:
            train(StopsInLastMeasurement(0, 1, CPU, None))
        assert stopped.value.step == STEPS

    history = train(ray_train.Worker(0, 1, CPU, None))

    assert len(saved) == 2
    assert history.held_out == [(STEPS, held_out().losses(trained))]


def test_a_history_knows_the_steps_that_are_measured(tmp_path):
    history = loop.History([3.0, 2.0], 9)
    assert not history.is_measured
    history.held_out.append((2, {"one": 2.5}))
    history.write(tmp_path)

    again = loop.History.read(tmp_path)
    assert again.is_measured and again.held_out[-1][1] == {"one": 2.5}
    again.add(loop.StepReport(3, 1.0, 0.1, 1.0, 7, 70))
    assert not again.is_measured


def test_a_state_of_an_older_version_has_no_measurements(tmp_path):
    (tmp_path / loop.STATE).write_text('{"loss_nats": [1.0], "num_tokens": 3, "workers": []}')

    assert loop.History.read(tmp_path).held_out == []
