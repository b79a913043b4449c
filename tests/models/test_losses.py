"""Oracle: torch's own cross-entropy on a float32 or float64 copy of all logits."""

import pytest
import torch
import torch.nn.functional as F

from s2l_ray.models import losses


def logits_and_targets(num_rows=37, vocab_size=11, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    logits_MV = torch.randn(num_rows, vocab_size, generator=generator).mul(4).to(dtype)
    target_M = torch.randint(vocab_size, (num_rows,), generator=generator)
    return logits_MV, target_M


@pytest.fixture(params=[1, 5, 37, 1000], ids="{} rows per chunk".format)
def rows_per_chunk(request, monkeypatch):
    monkeypatch.setattr(losses, "BYTES_PER_CHUNK", 4 * 11 * request.param)
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_losses_equal_torch_on_a_float32_copy(dtype, rows_per_chunk):
    logits_MV, target_M = logits_and_targets(dtype=dtype)
    loss_M = losses.token_losses(logits_MV, target_M)

    assert loss_M.dtype == torch.float32
    expected_M = F.cross_entropy(logits_MV.float(), target_M, reduction="none")
    torch.testing.assert_close(loss_M, expected_M, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_equal_those_of_torch_and_keep_the_type_of_the_logits(dtype, rows_per_chunk):
    logits_MV, target_M = logits_and_targets(dtype=dtype)
    weight_M = torch.linspace(-1, 2, len(target_M))
    ours_MV = logits_MV.clone().requires_grad_()
    theirs_MV = logits_MV.double().requires_grad_()

    (losses.token_losses(ours_MV, target_M) * weight_M).sum().backward()
    (F.cross_entropy(theirs_MV, target_M, reduction="none") * weight_M).sum().backward()

    assert ours_MV.grad.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 4e-3
    torch.testing.assert_close(
        ours_MV.grad.double(), theirs_MV.grad, rtol=tolerance, atol=tolerance
    )


def layer_and_targets(num_rows=37, vocab_size=23, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden_MH = torch.randn(num_rows, 8, generator=generator).mul(2).to(dtype)
    weight_VH = torch.randn(vocab_size, 8, generator=generator).to(dtype)
    bias_V = torch.randn(vocab_size, generator=generator).to(dtype)
    return hidden_MH, weight_VH, bias_V, torch.randint(vocab_size, (num_rows,), generator=generator)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 7), (37, 23), (1000, 1000)])
def test_losses_by_tiles_equal_torch_on_all_logits(
    monkeypatch, dtype, tolerance, with_bias, height, width
):
    monkeypatch.setattr(losses, "ROWS_PER_TILE", height)
    monkeypatch.setattr(losses, "VOCABULARY_PER_TILE", width)
    hidden_MH, weight_VH, bias_V, target_M = layer_and_targets(dtype=dtype)
    given = bias_V if with_bias else None

    (loss_M,) = losses.linear_losses(hidden_MH, weight_VH, given, target_M)

    assert loss_M.dtype == torch.float32
    logits_MV = hidden_MH.double() @ weight_VH.double().T + (bias_V.double() if with_bias else 0)
    expected_M = F.cross_entropy(logits_MV, target_M, reduction="none").float()
    torch.testing.assert_close(loss_M, expected_M, rtol=tolerance, atol=tolerance)


def test_tiles_of_large_logits_lose_no_digits(monkeypatch):
    monkeypatch.setattr(losses, "VOCABULARY_PER_TILE", 4)
    weight_VH = torch.cat([torch.full((23, 1), 1000.0), torch.arange(23.0)[:, None] / 8], dim=1)
    target_M = torch.arange(23)
    (loss_M,) = losses.linear_losses(torch.ones(23, 2), weight_VH, None, target_M)
    expected_M = F.cross_entropy(
        weight_VH.double().sum(1).expand(23, 23), target_M, reduction="none"
    )
    torch.testing.assert_close(loss_M, expected_M.float(), rtol=1e-6, atol=1e-6)


def test_no_rows_have_no_losses_by_tiles():
    _, weight_VH, bias_V, target_M = layer_and_targets()
    assert losses.linear_losses(torch.zeros(0, 8), weight_VH, bias_V, target_M[:0]).shape == (1, 0)


def test_huge_logits_give_finite_losses():
    logits_MV = torch.tensor([[1e4, -1e4, 0.0], [3e38, 3e38, -3e38]])
    loss_M = losses.token_losses(logits_MV, torch.tensor([1, 0]))
    torch.testing.assert_close(loss_M, torch.tensor([2e4, 0.6931472]))


def test_no_rows_give_no_losses_and_no_gradient():
    logits_MV = torch.zeros(0, 5, requires_grad=True)
    loss_M = losses.token_losses(logits_MV, torch.zeros(0, dtype=torch.int64))
    loss_M.sum().backward()
    assert loss_M.shape == (0,) and logits_MV.grad.shape == (0, 5)


def test_inference_mode_is_supported():
    with torch.inference_mode():
        logits_MV, target_M = logits_and_targets()
        assert losses.token_losses(logits_MV, target_M).isfinite().all()


def test_a_target_outside_the_vocabulary_is_refused():
    logits_MV, target_M = logits_and_targets()
    with pytest.raises(IndexError, match="out of bounds"):
        losses.token_losses(logits_MV, target_M + 11)


def test_targets_of_another_length_are_refused():
    logits_MV, target_M = logits_and_targets()
    with pytest.raises(AssertionError, match="one target per row"):
        losses.token_losses(logits_MV, target_M[1:])


def defined_norms(logits_MV, target_M):
    """||softmax - onehot||_2 in float64, row by row."""
    error_MV = torch.softmax(logits_MV.double(), dim=1) - F.one_hot(target_M, logits_MV.shape[1])
    return error_MV.square().sum(dim=1).sqrt().float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_norms_are_those_of_the_definition(dtype, rows_per_chunk):
    logits_MV, target_M = logits_and_targets(dtype=dtype)
    norm_M = losses.error_norms(logits_MV, target_M)
    torch.testing.assert_close(norm_M, defined_norms(logits_MV, target_M), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 7), (37, 23), (1000, 1000)])
def test_norms_by_tiles_are_those_of_the_definition_and_losses_stay(
    monkeypatch, dtype, tolerance, with_bias, height, width
):
    monkeypatch.setattr(losses, "ROWS_PER_TILE", height)
    monkeypatch.setattr(losses, "VOCABULARY_PER_TILE", width)
    hidden_MH, weight_VH, bias_V, target_M = layer_and_targets(dtype=dtype)
    given = bias_V if with_bias else None

    loss_M, norm_M = losses.linear_losses(hidden_MH, weight_VH, given, target_M, norms=True)

    logits_MV = hidden_MH.double() @ weight_VH.double().T + (bias_V.double() if with_bias else 0)
    expected_M = defined_norms(logits_MV, target_M)
    torch.testing.assert_close(norm_M, expected_M, rtol=tolerance, atol=tolerance)
    (plain_M,) = losses.linear_losses(hidden_MH, weight_VH, given, target_M)
    assert torch.equal(loss_M, plain_M)


@pytest.mark.parametrize("width", [1, 2, 5])
def test_norms_near_their_bounds_keep_their_digits(monkeypatch, width):
    monkeypatch.setattr(losses, "VOCABULARY_PER_TILE", width)
    weight_VH = torch.tensor([[0.0], [1.0], [12.0], [2.0], [-3.0]])
    target_M = torch.arange(5)
    _, norm_M = losses.linear_losses(torch.ones(5, 1), weight_VH, None, target_M, norms=True)
    expected_M = defined_norms(weight_VH.T.expand(5, 5), target_M)
    torch.testing.assert_close(norm_M, expected_M, rtol=0, atol=2e-7)
    assert expected_M[2] < 1e-4 and expected_M[4] > 1.414
