"""Oracle: the definition, and the same model uncompiled. On a CPU, where torch compiles to C++."""

import gc
import shutil
from weakref import ref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters

from s2l_ray.models import losses, scoring, torch_compile
from s2l_ray.models.losses import linear_losses
from s2l_ray.models.torch_compile import are_compiled
from s2l_ray.training import loop
from tests import tiny
from tests.models.test_scoring import defined_loss, examples, score, scores
from tests.training import test_loop

pytestmark = pytest.mark.cluster
needs_a_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch.compiler.reset()
    counters.clear()
    torch_compile.compiled_call.cache_clear()
    losses.compiled_cross_entropy.cache_clear()


@needs_a_compiler
@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_all_code_is_compiled_in_the_trial(architecture):
    # What would be compiled for a worker's own first rows would not be the same for all workers.
    # Heads of 32 are as long as rows may be.
    shape = {"hidden_size": 64} if architecture == "llama" else {"sliding_window": 40}
    model = tiny.model(architecture, **shape)
    score(model, *examples(1), compiled=True)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs >= 4

    input_ids, num_prompt_N = examples(60, longest=70)
    short = [np.array([3, 4], np.int32)] * 5
    for tokens_per_batch in (1, 100, 1_000):
        score(model, input_ids, num_prompt_N, tokens_per_batch, compiled=True)
        score(model, short, np.ones(5, int), tokens_per_batch, compiled=True)

    assert counters["stats"]["unique_graphs"] == graphs


@needs_a_compiler
def test_a_model_that_was_dropped_is_gone_and_another_needs_no_compilation():
    score(tiny.model("llama"), *examples(), compiled=True)
    graphs = counters["stats"]["unique_graphs"]
    model = tiny.model("llama")
    score(model, *examples(), compiled=True)
    weight = ref(model.get_output_embeddings().weight)
    gc.disable()
    try:
        del model
        assert weight() is None
    finally:
        gc.enable()
    assert counters["stats"]["unique_graphs"] == graphs


@needs_a_compiler
def test_compiled_layers_have_the_losses_of_the_definition():
    model = tiny.model("llama")
    input_ids, num_prompt_N = examples()
    expected_N = [
        defined_loss(model, ids.tolist(), num)
        for ids, num in zip(input_ids, num_prompt_N, strict=True)
    ]
    for tokens_per_batch in (1, 100, 10_000):
        found = scores(model, input_ids, num_prompt_N, tokens_per_batch, compiled=True)
        np.testing.assert_allclose(found.loss_N, expected_N, rtol=1e-5, atol=1e-5)
        assert found.notes == ()
    assert are_compiled(model)


def compile_to_train(model):
    # As `test_training.settings` and `TinyParts` have them.
    return loop.compile_to_train(model, largest=(3, 12), device=test_loop.CPU, dtype=torch.float32)


@needs_a_compiler
def test_compiled_layers_learn_as_defined_and_all_code_is_of_the_trial():
    config, graphs = test_loop.settings(), None
    expected, expected_losses = test_loop.oracle(config)

    def compile_first(model):
        nonlocal graphs
        assert compile_to_train(model) is None
        graphs = counters["stats"]["unique_graphs"]
        assert all(weight.grad is None for weight in model.parameters())

    engine, reports = test_loop.trained(config, before=compile_first)

    assert are_compiled(engine.model)
    assert counters["stats"]["unique_graphs"] == graphs > 0
    np.testing.assert_allclose([r.loss_nats for r in reports], expected_losses, rtol=1e-5)
    test_loop.assert_close(test_loop.weights(engine), expected)


def test_a_trial_of_gradients_is_finite_where_the_embedding_of_padding_is_zero():
    # 3.2e2 for every layer, and 3.4e38 is the end of float32.
    model = tiny.model("llama", num_hidden_layers=20, pad_token_id=0)
    assert not model.get_input_embeddings().weight[0].any()

    found = loop.compilation_trial(
        model.train(), largest=(2, 3), device=test_loop.CPU, autocast=False
    )

    assert found.isfinite().all()


class FailsBackwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx, given):
        return given.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("no code for this")


def test_a_backward_pass_that_fails_leaves_nothing_to_learn(monkeypatch):
    def of_a_compiler(call, **_options):
        return lambda *args, **inputs: FailsBackwards.apply(call(*args, **inputs))

    monkeypatch.setattr(torch, "compile", of_a_compiler)
    model = tiny.model("llama")

    assert compile_to_train(model) == "RuntimeError: no code for this"
    assert all(weight.grad is None for weight in model.parameters())


def test_a_model_with_dropout_learns_uncompiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda call, **_options: call)
    model = test_loop.tiny_model(dropout=0.5)
    assert compile_to_train(model) == "its losses would change"
    assert not are_compiled(model)


@pytest.mark.parametrize("compiler", ["missing", "wrong"])
def test_what_cannot_be_compiled_runs_as_it_is_and_is_said(monkeypatch, compiler):
    model = tiny.model("llama")
    input_ids, num_prompt_N = examples()
    expected_N = score(model, input_ids, num_prompt_N)

    def of_a_compiler(call, **_options):
        def with_another_loss(*args, **inputs):
            if compiler == "missing":
                raise RuntimeError("Failed to find C compiler.\nInstall one.")
            return call(*args, **inputs) * 2

        return with_another_loss

    monkeypatch.setattr(torch, "compile", of_a_compiler)
    said = []
    for _ in range(2):
        found = scores(model, input_ids, num_prompt_N, compiled=True)
        np.testing.assert_array_equal(found.loss_N, expected_N)
        said += found.notes
    assert not are_compiled(model)
    reason = {
        "missing": "RuntimeError: Failed to find C compiler.",
        "wrong": "its losses would change",
    }[compiler]
    assert said == [f"{scoring.UNCOMPILED} ({reason})"] * 2


def test_memory_that_does_not_suffice_is_no_failure_of_the_compiler(monkeypatch):
    def of_a_compiler(_call, **_options):
        def without_memory(*_args, **_inputs):
            try:
                raise torch.OutOfMemoryError
            except torch.OutOfMemoryError as error:
                raise RuntimeError("the compiler failed") from error

        return without_memory

    monkeypatch.setattr(torch, "compile", of_a_compiler)
    model = tiny.model("llama")
    with pytest.raises(RuntimeError, match="the compiler failed"):
        score(model, *examples(), compiled=True)


@needs_a_compiler
@pytest.mark.parametrize("with_bias", [False, True])
def test_losses_of_whole_rows_equal_torch_on_all_logits(with_bias):
    generator = torch.Generator().manual_seed(0)
    hidden_MH = torch.randn(37, 8, generator=generator)
    weight_VH = torch.randn(23, 8, generator=generator)
    bias_V = torch.randn(23, generator=generator) if with_bias else None
    target_M = torch.randint(0, 23, (37,), generator=generator)

    (loss_M,) = linear_losses(hidden_MH, weight_VH, bias_V, target_M, compiled=True)
    again_M, norm_M = linear_losses(
        hidden_MH, weight_VH, bias_V, target_M, compiled=True, norms=True
    )

    logits_MV = hidden_MH.double() @ weight_VH.double().T + (0 if bias_V is None else bias_V)
    expected_M = F.cross_entropy(logits_MV, target_M, reduction="none").float()
    torch.testing.assert_close(loss_M, expected_M, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(again_M, expected_M, rtol=1e-5, atol=1e-5)
    error_MV = torch.softmax(logits_MV, dim=1) - F.one_hot(target_M, 23)
    defined_M = error_MV.square().sum(dim=1).sqrt().float()
    torch.testing.assert_close(norm_M, defined_M, rtol=1e-5, atol=1e-5)
