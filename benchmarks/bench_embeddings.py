"""What embeddings and error norms add to the scoring of a checkpoint, as ratios in one process.

    python benchmarks/bench_embeddings.py [--model pythia-70m] [--device cpu] [--repeats 7]

Rows and shapes are those of bench_scoring.py, weights random. Without and with alternate; the
ratio of each pair counts, and the median of these. One checkpoint of a run has embeddings, and
one has norms.
"""

import argparse
import statistics
from functools import partial

import torch
from bench_scoring import SHAPES, pool, seconds
from transformers import AutoConfig, AutoModelForCausalLM

from s2l_ray.artifacts import EMBEDDINGS, NORMS
from s2l_ray.modelling.scoring import score
from s2l_ray.scored import Kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=SHAPES, default="pythia-70m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens-per-batch", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    device, shape = torch.device(arguments.device), dict(SHAPES[arguments.model])
    torch.manual_seed(0)
    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().to(device)
    rows, num_prompt_N = pool(config.vocab_size, arguments.rows)
    options = {"dtype": torch.float32, "tokens_per_batch": arguments.tokens_per_batch}
    without = partial(score, model, rows, num_prompt_N, device=device, **options)
    without()
    for argument, name in (("on_embeddings", EMBEDDINGS), ("on_norms", NORMS)):
        ratios = []
        for _ in range(arguments.repeats):
            before = seconds(without, device)
            after = seconds(partial(without, **{argument: Kept(name, len(rows))}), device)
            ratios.append(after / before)
        print(
            f"{arguments.model}, {len(rows)} rows: with {name} {statistics.median(ratios):.3f} "
            f"times as long ({min(ratios):.3f} to {max(ratios):.3f})"
        )


if __name__ == "__main__":
    main()
