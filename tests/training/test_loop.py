"""Fine-tuning arithmetic.

Oracle: the same steps in plain torch, one whole batch with all its logits at once.
"""

import itertools
import json

import numpy as np
import pytest
import torch
import torch.multiprocessing
import torch.nn.functional as F
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from s2l_ray.config.training import Training
from s2l_ray.errors import ModelError
from s2l_ray.models.scoring import after_prompts
from s2l_ray.training import loop as training
from s2l_ray.training import schedule
from s2l_ray.training.batches import TokenRows, TrainingPlan, global_batches

CPU = torch.device("cpu")
SEED, STEPS = 3, 4


def tiny_model(dropout=0.0):
    torch.manual_seed(SEED)
    shape = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
    config = GPTNeoXConfig(num_attention_heads=2, hidden_dropout=dropout, **shape)
    return GPTNeoXForCausalLM(config)


class TinyParts:
    num_rows = (8, 6, 5)

    def read(self, part):
        rng = np.random.default_rng(part)
        lengths = rng.integers(3, 14, self.num_rows[part])
        ids = [rng.integers(0, 50, length).astype(np.int32) for length in lengths]
        return TokenRows.of(ids, after_prompts(ids, rng.integers(1, lengths)))


def settings(**changes):
    usual = {"batch_size": 7, "micro_batch_size": 3, "learning_rate": 1e-2, "warmup": 0.3}
    return Training(**{**usual, "weight_decay": 0.1, "max_grad_norm": 0.5, **changes})


def plan_of(config):
    return TrainingPlan(TinyParts(), config, SEED, STEPS)


def trained(
    config, *, rank=0, num_ranks=1, dropout=0.0, dtype=torch.float32, before=lambda _model: None
):
    model = tiny_model(dropout)
    before(model)
    engine = training.Replica(model, config, device=CPU, dtype=dtype, num_ranks=num_ranks)
    loop = training.steps(engine, plan_of(config), rank=rank, num_ranks=num_ranks)
    return engine, list(loop)


def weights(engine):
    return {name: weight.detach() for name, weight in engine.model.named_parameters()}


def oracle(config):
    """Weights and losses of the plain loop."""
    model = tiny_model().train()
    vectors = [w for w in model.parameters() if w.ndim < 2]
    matrices = [w for w in model.parameters() if w.ndim >= 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), eps=1e-8)
    stream = global_batches(TinyParts(), batch_size=config.batch_size, seed=SEED)
    losses = []
    for step, rows in zip(range(STEPS), stream, strict=False):
        total, count = torch.zeros(()), 0
        for i in range(len(rows)):
            ids = torch.tensor(rows.row(i).astype(np.int64))
            start = int(rows.learned[rows.offset[i] : rows.offset[i + 1]].argmax())
            logits = model(input_ids=ids[None]).logits[0, start - 1 : -1]
            total = total + F.cross_entropy(logits, ids[start:], reduction="sum")
            count += len(ids) - start
        optimizer.zero_grad()
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate(step, STEPS, config)
        optimizer.step()
        losses.append(total.item() / count)
    return dict(model.named_parameters()), losses


def assert_close(actual, expected):
    for name, weight in expected.items():
        torch.testing.assert_close(actual[name], weight, rtol=1e-4, atol=2e-5, msg=name)


@pytest.mark.parametrize("micro_batch_size", [1, 3, 8])
def test_training_equals_a_plain_loop_for_any_micro_batch(micro_batch_size):
    config = settings(micro_batch_size=micro_batch_size)
    expected, expected_losses = oracle(config)

    engine, reports = trained(config)

    assert_close(weights(engine), expected)
    losses = [report.loss_nats for report in reports]
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)


def _train_on_rank(rank, num_ranks, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=num_ranks
    )
    engine, reports = trained(settings(micro_batch_size=2), rank=rank, num_ranks=num_ranks)
    losses = [report.loss_nats for report in reports]
    (folder / f"losses-{rank}.json").write_text(json.dumps(losses))
    if rank == 0:
        engine.save(folder)
    # Its reducer would else be the group's last owner, and joins the group's threads with the
    # interpreter's lock held, which they may be waiting for.
    del engine
    torch.distributed.destroy_process_group()


@pytest.mark.ray
def test_two_ranks_learn_what_one_learns(tmp_path):
    torch.multiprocessing.spawn(_train_on_rank, (2, tmp_path), nprocs=2, daemon=True)
    expected, expected_losses = oracle(settings())

    engine = training.Replica(tiny_model(), settings(), device=CPU, dtype=torch.float32)
    engine.load(tmp_path)
    assert_close(weights(engine), expected)
    for rank in (0, 1):
        losses = json.loads((tmp_path / f"losses-{rank}.json").read_text())
        np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, stop, dtype):
    config = settings()
    whole, reports = trained(config, dropout=0.2, dtype=dtype)

    first = training.Replica(tiny_model(0.2), config, device=CPU, dtype=dtype)
    loop = training.steps(first, plan_of(config))
    history = training.History()
    for report in itertools.islice(loop, stop):
        history.add(report)
    first.save(tmp_path)
    history.write(tmp_path)

    second = training.Replica(tiny_model(0.2), config, device=CPU, dtype=dtype)
    second.load(tmp_path)
    history = training.History.read(tmp_path)
    assert history.step == stop
    for report in training.steps(second, plan_of(config), start=stop):
        history.add(report)

    assert history.loss_nats == [report.loss_nats for report in reports]
    assert all(torch.equal(weights(second)[name], w) for name, w in weights(whole).items())


def test_bf16_keeps_float32_weights_and_stays_near_fp32():
    _, exact = trained(settings())
    engine, rounded = trained(settings(), dtype=torch.bfloat16)

    assert {weight.dtype for weight in weights(engine).values()} == {torch.float32}
    difference = [a.loss_nats - b.loss_nats for a, b in zip(exact, rounded, strict=True)]
    assert 0 < np.abs(difference).max() < 0.05


def test_a_loss_that_is_not_finite_stops_training():
    with pytest.raises(ModelError, match=r"the loss is nan .* of 4\. Lower learning_rate"):
        trained(settings(learning_rate=1e30))


def test_a_curve_is_means_between_its_points():
    history = training.History([float(i) for i in range(1, 11)])
    assert history.curve(points=2) == [(5, 3.0), (10, 8.0)]
    assert training.History([4.0]).curve() == [(1, 4.0)]
    assert training.History().curve() == []
