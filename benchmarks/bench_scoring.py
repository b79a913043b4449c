"""The scorer against the plain way, and both against the machine's matrix-multiply peak.

    python benchmarks/bench_scoring.py [--device cpu] [--precision fp32] [--repeats 5]
    python benchmarks/bench_scoring.py --device cuda --precision bf16 --tokens-per-batch 65536 \
        --rows 4072 --plain-rows 127 --models smollm2-135m smollm2-360m

Plain is the definition: one example at a time, float32, the model's own logits for every token of
the vocabulary. Rows have the lengths of 509 rows of math-mix under SmolLM2's tokenizer (recorded by
record_lengths.py), again and again where more are asked for. Weights are random: values do not
matter. Plain scores every row, or evenly spaced ones of them; what counts is tokens per second.
They alternate, and medians count. The limit is the time that the necessary operations would take
at the speed of a 4096^3 product: the body for every token read, the output layer for every response
token, attention over the past alone. Needs torch, transformers and numpy; no Ray.
"""

import argparse
import csv
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from s2l_ray.models import flops
from s2l_ray.models.dimensions import shape_of
from s2l_ray.models.scoring import Scorer, after_prompts

HERE = Path(__file__).parent
SHAPES: dict[str, dict[str, Any]] = {
    "pythia-70m": {
        "model_type": "gpt_neox",
        "hidden_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "intermediate_size": 2048,
        "vocab_size": 50304,
    },
    "smollm2-135m": {
        "model_type": "llama",
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
    "smollm2-360m": {
        "model_type": "llama",
        "hidden_size": 960,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        "intermediate_size": 2560,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
}


def pool(vocab_size: int, num_rows: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Random token ids in the recorded lengths, and how many of each row are the prompt's.

    Rows begin alike where the recorded ones did, with their variant of the template.
    """
    with (HERE / "data" / "math-mix-lengths.csv").open() as lines:
        recorded = [tuple(map(int, row)) for row in list(csv.reader(lines))[1:]]
    lengths = list(itertools.islice(itertools.cycle(recorded), num_rows))
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, vocab_size, p + r).astype(np.int32) for p, r, _ in lengths]
    templates = {shared: rng.integers(0, vocab_size, shared) for *_, shared in sorted(lengths)}
    for row, (*_, shared) in zip(rows, lengths, strict=True):
        row[:shared] = templates[shared]
    return rows, np.array([p for p, _, _ in lengths])


def plain(model: PreTrainedModel, rows: list[np.ndarray], num_prompt_N: np.ndarray) -> np.ndarray:
    """The definition: mean cross-entropy of the response tokens, row by row."""
    losses = []
    with torch.inference_mode():
        for ids, num_prompt in zip(rows, num_prompt_N.tolist(), strict=True):
            tokens = torch.from_numpy(ids.astype(np.int64)).to(model.device)
            logits = model(input_ids=tokens[None]).logits[0, :-1].float()
            token_loss = F.cross_entropy(logits, tokens[1:], reduction="none")
            losses.append(token_loss[num_prompt - 1 :].mean().item())
    return np.array(losses)


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_flops(device: torch.device, dtype: torch.dtype, size: int = 4096) -> float:
    left = torch.randn(size, size, device=device, dtype=dtype)
    right = torch.randn(size, size, device=device, dtype=dtype)
    times = [seconds(lambda: left @ right, device) for _ in range(4)]
    return 2 * size**3 / min(times[1:])


def necessary_flops(
    model: PreTrainedModel, num_tokens_N: np.ndarray, num_response_N: np.ndarray
) -> float:
    read_N = (num_tokens_N - 1).astype(float)  # the last token is predicted, never read
    flops_N = flops.forward(
        shape_of(model), tokens=read_N, logits=num_response_N, context=read_N / 2
    )
    return float(flops_N.sum())


def measured(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(arguments.device)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[arguments.precision]
    torch.manual_seed(0)
    arguments_of_shape = dict(SHAPES[name])
    config = AutoConfig.for_model(arguments_of_shape.pop("model_type"), **arguments_of_shape)
    with device:
        exact = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        fast = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    fast.load_state_dict(exact.state_dict())
    rows, num_prompt_N = pool(config.vocab_size, arguments.rows)
    learned = after_prompts(rows, num_prompt_N)
    num_tokens_N = np.array([len(row) for row in rows])
    plain_N = np.linspace(0, len(rows) - 1, arguments.plain_rows or len(rows)).astype(int)
    for parameter in fast.parameters():  # not the buffers: rotary frequencies stay exact
        parameter.data = parameter.data.to(dtype)
    scored: dict[str, Any] = {}

    slower_ways: set[str] = set()

    def run_plain() -> None:
        scored["plain"] = plain(exact, [rows[row] for row in plain_N], num_prompt_N[plain_N])

    scorer = Scorer(
        fast,
        dtype=dtype,
        device=device,
        tokens_per_batch=arguments.tokens_per_batch,
        compiled=device.type == "cuda" if arguments.compiled is None else arguments.compiled,
    )

    def run_ours(num_rows: int | None = None) -> None:
        scores = scorer.score(rows[:num_rows], learned[:num_rows])
        scored["ours"] = scores.loss_N
        slower_ways.update(scores.notes)

    # What comes before the first batch of a worker's first part; on a GPU, compilation.
    start_s = seconds(lambda: run_ours(1), device)
    run_ours(32 if device.type == "cpu" else None)
    plain(exact, rows[:8], num_prompt_N[:8])
    plain_s, ours_s = [], []
    for _ in range(arguments.repeats):
        plain_s.append(seconds(run_plain, device))
        ours_s.append(seconds(run_ours, device))
    peak = peak_flops(device, dtype)
    flops = necessary_flops(exact, num_tokens_N, num_tokens_N - num_prompt_N)
    ours, reference = statistics.median(ours_s), statistics.median(plain_s)
    difference_N = np.abs(scored["ours"][plain_N] - scored["plain"])
    share = num_tokens_N.sum() / num_tokens_N[plain_N].sum()
    return {
        "model": name,
        "start_seconds": start_s,
        "plain_seconds": reference,
        "ours_seconds": ours,
        "ratio": statistics.median(share * p / o for p, o in zip(plain_s, ours_s, strict=True)),
        "tokens_per_second": float(num_tokens_N.sum() / ours),
        "peak_gflops": peak / 1e9,
        "share_of_peak": flops / ours / peak,
        "largest_difference": float(difference_N.max()),
        "mean_difference": float(difference_N.mean()),
        "slower_ways": sorted(slower_ways),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=509)
    parser.add_argument(
        "--compiled", action=argparse.BooleanOptionalAction, help="default: on a GPU"
    )
    parser.add_argument("--plain-rows", type=int, help="default: all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens-per-batch", type=int, default=2048)
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=SHAPES)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for model in arguments.models:
        name = f"scoring-{arguments.device}-{arguments.precision}-{model}.json"
        record(arguments, name, measured, [model])


def machine(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return platform.processor() or platform.machine()


def record(
    arguments: argparse.Namespace,
    name: str,
    measured: Callable[[Any, argparse.Namespace], dict[str, Any]],
    subjects: Sequence[Any],
) -> None:
    """Measure each subject; print what is found, and keep it in results/."""
    found = []
    for subject in subjects:
        found.append(measured(subject, arguments))
        print(json.dumps(found[-1], indent=1), flush=True)
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(getattr(arguments, "device", "cpu")),
        "torch": torch.__version__,
        **vars(arguments),
        "results": found,
    }
    (HERE / "results" / name).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
