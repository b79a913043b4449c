"""Whether two processes that score parts of a pool in another order get the same bits.

    python benchmarks/check_same_bits.py [--device cuda] [--precision bf16] [--models ...]

Each process compiles the model's layers for itself, and meets other shapes first: parts are the two
shortest rows, the longest, every second of the others, and the rest. Needs torch, transformers and
numpy; no Ray.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from bench_scoring import SHAPES, pool
from transformers import AutoConfig, AutoModelForCausalLM

from s2l_ray.models.scoring import Scorer, after_prompts

SHAPES = SHAPES | {
    # Sizes of heads that lengths of rows may equal.
    "heads-of-32": SHAPES["smollm2-135m"]
    | {"hidden_size": 512, "num_attention_heads": 16, "num_key_value_heads": 4}
}


def scored(given: argparse.Namespace) -> None:
    """Score the parts, the last first if asked, and write their losses."""
    (name,) = given.models
    shape = dict(SHAPES[name])
    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    torch.manual_seed(0)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[given.precision]
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    rows, num_prompt_N = pool(config.vocab_size, given.rows)
    learned = after_prompts(rows, num_prompt_N)
    by_length = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    others = by_length[2:-1]
    parts = list(enumerate([by_length[:2], by_length[-1:], others[::2], others[1::2]]))
    scorer = Scorer(
        model,
        dtype=dtype,
        device=torch.device(given.device),
        tokens_per_batch=given.tokens_per_batch,
        compiled=given.device == "cuda",
    )
    losses = {}
    for number, part in reversed(parts) if given.last_first else parts:
        scores = scorer.score([rows[row] for row in part], [learned[row] for row in part])
        losses[str(number)] = scores.loss_N
        for note in scores.notes:
            print(note)
    np.savez(given.out, **losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--models", nargs="+", default=["smollm2-135m", "heads-of-32"])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--tokens-per-batch", type=int, default=16_384)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--last-first", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.out is not None:
        scored(given)
        return
    total = 0
    for name in given.models:
        with tempfile.TemporaryDirectory() as folder:
            outs = [Path(folder) / "first.npz", Path(folder) / "last.npz"]
            for out, order in zip(outs, ([], ["--last-first"]), strict=True):
                command = [sys.executable, __file__, *sys.argv[1:], "--models", name]
                subprocess.run([*command, "--out", str(out), *order], check=True)
            one, other = (np.load(out) for out in outs)
            differing = sum(int((one[part] != other[part]).sum()) for part in one.files)
        print(f"{name}: {differing:,} of {given.rows:,} losses differ")
        total += differing
    sys.exit(total > 0)


if __name__ == "__main__":
    main()
