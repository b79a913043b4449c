"""What embeddings and error norms add to the scoring of a checkpoint, as ratios in one process.

    python benchmarks/bench_embeddings.py [--device cpu] [--models pythia-70m] [--repeats 7]
    python benchmarks/bench_embeddings.py --device cuda --precision bf16 --tokens-per-batch 65536 \
        --rows 4072 --models smollm2-135m

Rows and shapes are those of bench_scoring.py, weights random; on a GPU layers are compiled, as the
stage does. Without and with alternate; the ratio of each pair counts, and the median of these. One
checkpoint of a run has embeddings, and one has norms.
"""

import argparse
import statistics
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from bench_scoring import SHAPES, pool, record, seconds
from transformers import AutoConfig, AutoModelForCausalLM

from s2l_ray.artifacts.manifest import EMBEDDINGS, NORMS
from s2l_ray.models import embeddings
from s2l_ray.models.checkpoints import DTYPES
from s2l_ray.models.scoring import Scorer, after_prompts


def measured(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    device, shape = torch.device(arguments.device), dict(SHAPES[name])
    dtype = DTYPES[arguments.precision]
    torch.manual_seed(0)
    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():  # not the buffers: rotary frequencies stay exact
        parameter.data = parameter.data.to(dtype)
    rows, num_prompt_N = pool(config.vocab_size, arguments.rows)
    learned = after_prompts(rows, num_prompt_N)
    scorer = Scorer(
        model,
        dtype=dtype,
        device=device,
        tokens_per_batch=arguments.tokens_per_batch,
        compiled=device.type == "cuda",
    )
    measuring = {
        EMBEDDINGS: replace(scorer, embed=embeddings.unit),
        NORMS: replace(scorer, error_norms=True),
    }
    without = partial(scorer.score, rows, learned)
    result: dict[str, Any] = {"model": name}
    for what, measuring_scorer in measuring.items():
        with_it = partial(measuring_scorer.score, rows, learned)
        for warming in (without, with_it):  # each compiles its own
            warming()
        times = [
            (seconds(without, device), seconds(with_it, device)) for _ in range(arguments.repeats)
        ]
        ratios = [after / before for before, after in times]
        result |= {
            f"{what}_ratio": statistics.median(ratios),
            f"{what}_ratios": [min(ratios), max(ratios)],
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--models", nargs="+", default=["pythia-70m"], choices=SHAPES)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens-per-batch", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    name = f"embeddings-{arguments.device}-{arguments.precision}.json"
    record(arguments, name, measured, arguments.models)


if __name__ == "__main__":
    main()
