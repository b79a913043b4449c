"""Fine-tuning with ZeRO.

Oracle: `training.Replica`, which has its own plain oracle, on one rank.
"""

import itertools
import json
import os
import sys

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from s2l_ray.config.training import LoraConfig, TargetConfig
from s2l_ray.errors import ConfigError
from s2l_ray.models.causality import check_causal
from s2l_ray.training import loop as training
from tests.training.test_held_out import FewParts, TinyParts, held_out, scored
from tests.training.test_loop import CPU, SEED, STEPS, plan_of, settings, tiny_model


def target(**changes):
    usual = settings(micro_batch_size=2).model_dump()
    return TargetConfig(**{**usual, "model": "tiny", "workers": 2, **changes})


def _on_rank(rank, num_ranks, folder, cases):
    """Train every case, with a stop in the middle, and leave its model and losses."""
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), RANK=str(rank), WORLD_SIZE=str(num_ranks))
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=num_ranks
    )
    from s2l_ray.training import lora, zero

    ranks = {"rank": rank, "num_ranks": num_ranks}
    for name, config, dtype in cases:
        place = folder / name

        def engine(config=config, dtype=dtype):
            model = tiny_model().to(dtype)
            if config.lora is not None:
                lora.add_adapters(model, config.lora, seed=SEED)
            return zero.ZeroEngine(model, config, device=CPU, dtype=dtype, num_ranks=num_ranks)

        def train(engine, *, start=0, stop=STEPS, config=config, measured=None):
            losses = []
            loop = training.steps(engine, plan_of(config), start=start, **ranks)
            for report in itertools.islice(loop, stop - start):
                losses.append(report.loss_nats)
                if measured is not None:
                    measured.append(held_out().losses(engine, **ranks))
            return losses

        whole = engine()
        check_causal(whole.model)  # as the worker of a target does; it changes nothing
        losses = train(whole)
        weights = whole.gather_weights(rank)

        interrupted = engine()
        train(interrupted, stop=2)
        interrupted.save_shard(place / f"shard-{rank}.safetensors")
        resumed = engine()
        resumed.load_shard(place / f"shard-{rank}.safetensors")
        # Measured after every step, it learns what the other, which is not measured, has learned.
        measured = []
        assert train(resumed, start=2, measured=measured) == losses[2:]
        again = resumed.gather_weights(rank)

        if rank == 0:
            assert all(torch.equal(again[key], weight) for key, weight in weights.items())
            whole.model.save_pretrained(place, state_dict=weights)
            (place / "losses.json").write_text(json.dumps(losses))
            (place / "held-out.json").write_text(json.dumps(measured[-1]))
    torch.distributed.destroy_process_group()


CASES = [
    ("one", target(zero_stage=1), torch.float32),
    ("two", target(zero_stage=2, activation_checkpointing=True), torch.float32),
    ("three", target(zero_stage=3), torch.float32),
    ("one-bf16", target(zero_stage=1), torch.bfloat16),
    ("three-bf16", target(zero_stage=3), torch.bfloat16),
    ("adapters", target(zero_stage=2, lora=LoraConfig(rank=2)), torch.float32),
    ("adapters-three", target(zero_stage=3, lora=LoraConfig(rank=2)), torch.float32),
]
OFFLOADED_CASES = [
    ("one-offloaded", target(zero_stage=1, cpu_offload=True), torch.float32),
    ("two-offloaded", target(zero_stage=2, cpu_offload=True), torch.float32),
    ("three-offloaded", target(zero_stage=3, cpu_offload=True), torch.float32),
    ("two-bf16-offloaded", target(zero_stage=2, cpu_offload=True), torch.bfloat16),
]
"""DeepSpeed compiles the optimizer for them."""


def on_two_ranks(folder, cases):
    for name, *_ in cases:
        (folder / name).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # as workers have it; two would wait for each other
        torch.multiprocessing.spawn(_on_rank, (2, folder, cases), nprocs=2, daemon=True)
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return on_two_ranks(tmp_path_factory.mktemp("zero"), CASES)


@pytest.fixture(scope="module")
def offloaded(tmp_path_factory):
    return on_two_ranks(tmp_path_factory.mktemp("offloaded"), OFFLOADED_CASES)


def check_learns_what_one_replica_learns(results, case):
    config = settings()
    replica = training.Replica(tiny_model(), config, device=CPU, dtype=torch.float32)
    expected = [r.loss_nats for r in training.steps(replica, plan_of(config))]

    losses = json.loads((results / case / "losses.json").read_text())
    assert losses == pytest.approx(expected, rel=1e-5)
    model = AutoModelForCausalLM.from_pretrained(results / case, dtype=torch.float32)
    for name, weight in replica.model.named_parameters():
        learned = model.get_parameter(name)
        torch.testing.assert_close(learned, weight.detach(), rtol=1e-4, atol=2e-5, msg=name)


@pytest.mark.ray
@pytest.mark.parametrize("case", ["one", "two", "three"])
def test_every_stage_on_two_ranks_learns_what_one_replica_learns(results, case):
    check_learns_what_one_replica_learns(results, case)


@pytest.mark.ray
@pytest.mark.parametrize("case", ["one", "two", "three", "adapters", "adapters-three"])
def test_two_ranks_measure_together_what_the_evaluation_scores(results, case):
    model = AutoModelForCausalLM.from_pretrained(results / case)
    found = json.loads((results / case / "held-out.json").read_text())
    assert found == pytest.approx(
        {"one": scored(model, TinyParts()), "two": scored(model, FewParts())}, rel=1e-5
    )


@pytest.mark.ray
@pytest.mark.cluster
@pytest.mark.parametrize("case", ["one-offloaded", "two-offloaded", "three-offloaded"])
def test_every_stage_learns_the_same_with_its_optimizer_in_main_memory(offloaded, case):
    check_learns_what_one_replica_learns(offloaded, case)


def check_bf16(results, case):
    config = settings()
    replica = training.Replica(tiny_model(), config, device=CPU, dtype=torch.float32)
    exact = [r.loss_nats for r in training.steps(replica, plan_of(config))]
    losses = json.loads((results / case / "losses.json").read_text())
    assert losses == pytest.approx(exact, abs=0.05)
    stored = load_file(results / case / "model.safetensors")
    assert {weight.dtype for weight in stored.values()} == {torch.bfloat16}


@pytest.mark.ray
@pytest.mark.parametrize("case", ["one-bf16", "three-bf16"])
def test_bf16_learns_and_leaves_bf16_weights(results, case):
    check_bf16(results, case)


@pytest.mark.ray
@pytest.mark.cluster
def test_bf16_learns_with_its_optimizer_in_main_memory(offloaded):
    check_bf16(offloaded, "two-bf16-offloaded")


@pytest.mark.ray
def test_merged_adapters_leave_a_plain_model_that_has_learned(results):
    before = dict(tiny_model().named_parameters())
    stored, sharded = (
        dict(AutoModelForCausalLM.from_pretrained(results / case).named_parameters())
        for case in ("adapters", "adapters-three")
    )
    changed = {name for name, weight in before.items() if not torch.equal(stored[name], weight)}
    assert changed == {name for name in before if "layers" in name and before[name].ndim == 2}
    for name, weight in stored.items():
        torch.testing.assert_close(sharded[name], weight, rtol=1e-4, atol=2e-5, msg=name)


@pytest.mark.ray
def test_without_the_package_peft_the_message_names_the_extra(monkeypatch):
    from s2l_ray.training import lora

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 's2l-ray\[lora\]'"):
        lora.add_adapters(tiny_model(), LoraConfig(), seed=SEED)


@pytest.mark.ray
def test_an_offloaded_optimizer_that_cannot_be_compiled_is_a_configuration_error(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    from s2l_ray.training import zero

    with pytest.raises(ConfigError, match=r"cpu_offload.*g\+\+"):
        zero.compile_adamw()
