"""The work of stages and the time that it takes; expected values are worked out by hand."""

import pytest

from s2l_ray.artifacts.amounts import Amount, Pool, Work
from s2l_ray.config.sections import EvaluationConfig, TrajectoriesConfig
from s2l_ray.config.training import LoraConfig, TargetConfig, Training, WorkerRange
from s2l_ray.estimate import costs
from s2l_ray.estimate.costs import Cost, Hardware
from s2l_ray.evaluation.work import evaluation_work
from s2l_ray.models.flops import Shape
from s2l_ray.training.work import training_work
from s2l_ray.trajectories.work import scoring_work
from tests import tiny

SHAPE = Shape(body=1_000, output=200, attention=10, width=8)
ROWS = Amount(rows=10, tokens=100, responses=40)
# 2 x 1,000 x 100, 2 x 200 x 40 and 4 x 10 x 10 x 100.
ONE_PASS = 256_000


def test_training_passes_over_its_rows_three_times_in_every_epoch():
    work = training_work(Training(batch_size=5, epochs=2, micro_batch_size=2), ROWS, SHAPE)

    assert work == Work(tokens=200, flops=3 * 2 * ONE_PASS, batch=Amount(2, 20, 8), units=None)


@pytest.mark.parametrize(
    ("changes", "passes"),
    [({}, 3), ({"activation_checkpointing": True}, 4), ({"lora": LoraConfig()}, 2)],
)
def test_what_the_target_recomputes_or_freezes_is_counted(changes, passes):
    config = TargetConfig(model="large", batch_size=5, epochs=1, **changes)

    assert training_work(config, ROWS, SHAPE).flops == passes * ONE_PASS


def test_scoring_is_one_pass_at_every_checkpoint():
    pool = Pool(ROWS, strata=1, parts=2, counted=True)
    work = scoring_work(TrajectoriesConfig(tokens_per_batch=64), pool, 3, SHAPE)

    # One worker takes two parts at two groups of checkpoints.
    assert work == Work(tokens=300, flops=3 * ONE_PASS, batch=Amount(6, 60, 24), units=4)


def test_evaluation_scores_rows_and_answers_each_at_full_length():
    config = EvaluationConfig(sets=["held", "more"], max_new_tokens=6, rows_per_batch=2)
    work = evaluation_work(config, {"held": ROWS, "more": ROWS}, SHAPE)

    # 60 tokens of prompts, ten logits, rows of six.
    prompts = 2 * 1_000 * 60 + 2 * 200 * 10 + 4 * 10 * 6 * 60
    # Six new tokens of ten rows, which meet the prompt and half of the answer.
    answers = 2 * 1_000 * 60 + 2 * 200 * 60 + 4 * 10 * 9 * 60
    assert work.flops == 2 * (ONE_PASS + prompts + answers)
    assert work.tokens == 2 * (100 + 60 + 60)
    # Ten rows are two pieces of four batches of two.
    assert (work.batch, work.units) == (Amount(2, 20, 8), 4)


def test_a_set_whose_metrics_need_no_answers_is_only_scored():
    config = EvaluationConfig(sets=["held"], metrics=["multiple-choice"])
    work = evaluation_work(config, {"held": ROWS}, SHAPE)

    assert (work.tokens, work.flops) == (100, ONE_PASS)


def test_without_a_model_there_are_tokens_and_nothing_else():
    config = Training(batch_size=5, epochs=2)
    work = training_work(config, ROWS, None)

    assert (work.tokens, work.flops) == (200, None)
    assert costs.seconds("reference", work, Hardware(2, 1e9)) is None


@pytest.mark.parametrize(("is_measured", "share"), [(False, "of_product"), (True, "of_trial")])
@pytest.mark.parametrize(
    ("stage", "units", "workers", "busy"),
    [
        ("reference", None, 4, 4.0),
        ("trajectories", 8, 4, 4.0),
        # Three rounds of pieces, in the last of which three workers of four have none.
        ("trajectories", 9, 4, 3.0),
        ("evaluation", 3, 2, 1.5),
        ("evaluation", 1, 2, 1.0),
    ],
)
def test_time_is_a_start_and_operations_shared_by_the_workers_that_have_work(
    stage, units, workers, busy, is_measured, share
):
    work = Work(tokens=1, flops=6e12, batch=ROWS, units=units)
    found = costs.seconds(stage, work, Hardware(workers, 1e9, is_measured))

    speed = costs.SPEEDS[stage]
    expected = speed.start_seconds + 6e12 / (busy * 1e9 * getattr(speed, share))
    assert found == pytest.approx(expected)


def test_a_worker_on_a_gpu_starts_later():
    work = Work(tokens=1, flops=0.0, batch=ROWS, units=None)
    for gpus, seconds in ((1, "start_seconds_on_gpu"), (0, "start_seconds")):
        hardware = costs.given(TrajectoriesConfig(gpus_per_worker=gpus), 1e12)
        assert costs.seconds("trajectories", work, hardware) == (
            getattr(costs.SPEEDS["trajectories"], seconds)
        )


@pytest.mark.parametrize("workers", [3, WorkerRange(min=1, max=3)])
def test_given_hardware_has_the_most_workers_that_the_section_allows(workers):
    section = TrajectoriesConfig(workers=workers, gpus_per_worker=0)
    assert costs.given(section, 2e12) == Hardware(3, 2e12)


def test_this_machine_has_no_more_workers_than_cpus(monkeypatch):
    monkeypatch.setattr(costs.os, "cpu_count", lambda: 4)
    section = TrajectoriesConfig(workers=64, cpus_per_worker=2, gpus_per_worker=0, precision="fp32")
    work = Work(tokens=1, flops=1.0, batch=ROWS, units=9)
    found = costs.measured("trajectories", section, work, lambda: tiny.model("llama"))

    assert found.workers == 2 and found.flops_per_second > 0


def test_a_speed_that_cannot_be_measured_is_unknown_and_says_why(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    work = Work(tokens=1, flops=1.0, batch=ROWS, units=9)

    def found(sample, **changes) -> Hardware:
        section = TrajectoriesConfig(workers=3, **{"gpus_per_worker": 0} | changes)
        return costs.measured("trajectories", section, work, sample)

    def broken():
        raise IndexError("of a model's own")

    assert found(tiny.model, gpus_per_worker=1) == Hardware(3, None, unknown="there is no GPU here")
    assert "too large" in found(lambda: None).unknown
    assert found(broken).unknown == "a trial failed with IndexError: of a model's own"
    assert "tf32" in found(tiny.model, precision="tf32").unknown
    assert found(None) == Hardware(3, None)


def test_the_table_is_aligned_and_sums_what_is_known():
    known = Work(tokens=1_000, flops=6e12, batch=ROWS, units=None)
    unknown = Work(tokens=2_000, flops=None, batch=ROWS, units=None)
    fast = Hardware(2, 8e10)
    shown = costs.table(
        [
            Cost("reference", known, fast, 3_600.0),
            Cost("trajectories", known, fast, 90.0),
            Cost("target", unknown, Hardware(1, None), None),
        ]
    )

    words = [line.split() for line in shown]
    assert words[1] == ["reference", "1,000", "6", "TFLOP", "1:00:00", "2", "x", "80", "GFLOP/s"]
    assert words[3] == ["target", "2,000", "unknown", "unknown", "1"]
    sums = ["2,000", "12", "TFLOP", "1:01:30", "1.02", "hours"]
    assert words[4] == ["all", "of", "known", "time", *sums]
    assert len({line.index("  ", line.index("FLOP")) for line in shown[1:3]}) == 1


def test_what_the_times_are_made_of_is_said_for_the_stages_that_are_shown():
    on_cpus, on_gpus = Hardware(1, 1e9), Hardware(1, 1e9, is_measured=True, on_gpu=True)
    shown = " ".join(costs.remarks({"target": on_cpus, "evaluation": on_cpus}))

    target = costs.SPEEDS["target"]
    assert f"target {target.start_seconds:g} s, {target.of_product:.0%}" in shown
    assert "reference" not in shown and "speeds are given" in shown
    assert "at most" in shown and "H200" not in shown
    shown = " ".join(costs.remarks({"target": on_gpus}))
    assert f"target {target.start_seconds_on_gpu:g} s, {target.of_trial:.0%}" in shown
    assert "at most" not in shown and "H200" in shown
