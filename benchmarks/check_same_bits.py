"""Whether two processes that score parts of a pool in another order get the same bits.

    python benchmarks/check_same_bits.py [--device cuda] [--precision bf16] [--parts 4]

Each process compiles the model's layers for itself, and meets other shapes first. Needs torch,
transformers and numpy; no Ray.
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

from s2l_ray.modelling.scoring import score


def scored(given: argparse.Namespace) -> None:
    """Score the parts, the last first if asked, and write their losses."""
    shape = dict(SHAPES[given.model])
    config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    torch.manual_seed(0)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[given.precision]
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    rows, num_prompt_N = pool(config.vocab_size, given.rows)
    found = {}
    numbers = range(given.parts)
    for part in reversed(numbers) if given.last_first else numbers:
        own = slice(part, None, given.parts)
        found[str(part)] = score(
            model,
            rows[own],
            num_prompt_N[own],
            tokens_per_batch=given.tokens_per_batch,
            dtype=dtype,
            device=torch.device(given.device),
            compiled=given.device == "cuda",
            on_slower_way=print,
        )
    np.savez(given.out, **found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16"))
    parser.add_argument("--model", default="smollm2-135m", choices=SHAPES)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--tokens-per-batch", type=int, default=16_384)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--last-first", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.out is not None:
        scored(given)
        return
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder) / "first.npz", Path(folder) / "last.npz"]
        for out, order in zip(outs, ([], ["--last-first"]), strict=True):
            command = [sys.executable, __file__, *sys.argv[1:], "--out", str(out), *order]
            subprocess.run(command, check=True)
        one, other = (np.load(out) for out in outs)
        differing = sum(int((one[part] != other[part]).sum()) for part in one.files)
    print(f"{differing:,} of {given.rows:,} losses differ")
    sys.exit(differing > 0)


if __name__ == "__main__":
    main()
