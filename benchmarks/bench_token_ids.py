"""Token ids by a tokenizer of transformers, and by its backend alone, as `prepare` has them.

    python benchmarks/bench_token_ids.py POOL.jsonl --tokenizer configs/tokenizers/math-4k

Both sides tokenise the same prompts in turns, on one thread, and find the same ids. The least CPU
seconds of all turns: what other programs do to the machine only adds to them.
"""

import argparse
import json
import os
import time
from itertools import islice
from pathlib import Path

ROWS = 1_024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pool", type=Path)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--repeats", type=int, default=30)
    given = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    from s2l_ray.models import tokenizers

    with given.pool.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["instruction"] for line in islice(lines, ROWS)]
    tokenizer = tokenizers.load_tokenizer(given.tokenizer)
    sides = {
        "tokenizer": lambda: tokenizer(texts, return_attention_mask=False)["input_ids"],
        "backend": lambda: tokenizers.token_ids(tokenizer, texts, special=True),
    }
    expected, least = next(iter(sides.values()))(), dict.fromkeys(sides, float("inf"))
    for _ in range(given.repeats):
        for name, ids in sides.items():
            started = time.process_time()
            found = ids()
            least[name] = min(least[name], time.process_time() - started)
            assert found == expected, "other tokens"
    for name, seconds in least.items():
        print(f"{name:<12}{seconds:8.3f} s")


if __name__ == "__main__":
    main()
