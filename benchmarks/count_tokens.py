"""What the trajectories stage reads of a prepared pool: padding, and what shared prompts save.

    python benchmarks/count_tokens.py runs/math-mix-cpu/prepared [--tokens-per-batch 2048 16384]

Counts, runs no model. Read are all tokens but a row's last; padding is a share of what is computed,
and shared is the share of the tokens that need not be read because prompts begin alike.
"""

import argparse

import numpy as np

from s2l_ray.artifacts.tables import Parts
from s2l_ray.artifacts.token_tables import rows_of_tokens
from s2l_ray.models import shared_prefix
from s2l_ray.models.batch_plan import plan_batches
from s2l_ray.storage.location import Location


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prepared")
    parser.add_argument("--tokens-per-batch", type=int, nargs="+", default=[2048, 16384, 65536])
    given = parser.parse_args()
    print(f"{'tokens per batch':>16} {'batches':>8} {'rows each':>10} {'padding':>8} {'shared':>7}")
    for size in given.tokens_per_batch:
        read = shared = computed = batches = rows = 0
        for table in Parts(Location.of(given.prepared)).tables():
            ids, learned = rows_of_tokens(table)
            num_read_N = np.array([len(row) - 1 for row in ids])
            num_prompt_N = np.array([row.argmax() for row in learned])
            for group in shared_prefix.groups(ids, num_prompt_N, min_saved=size):
                own_G = num_read_N[group.row_G] - group.num_shared
                found = plan_batches(
                    own_G + 1,
                    own_G,
                    tokens_per_batch=size,
                    max_logit_rows=None,
                )
                read += int(own_G.sum())
                shared += group.num_shared * len(own_G)
                computed += sum(int(own_G[rows_B].max()) * len(rows_B) for rows_B in found)
                batches, rows = batches + len(found), rows + len(own_G)
        waste, saved = 1 - read / computed, shared / (shared + read)
        print(f"{size:>16,} {batches:>8,} {rows / batches:>10.1f} {waste:>8.1%} {saved:>7.1%}")


if __name__ == "__main__":
    main()
