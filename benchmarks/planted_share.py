"""Which methods select planted errors? Shares of wrong and of repeated rows in subsets of a run.

    python benchmarks/skewed_pool.py --rows 7000 --wrong 0.1 --repeated 0.1 \\
        --out runs/planted/inputs
    s2l run configs/evidence/planted.yaml --until clusters     # or s2l compare
    python benchmarks/planted_share.py runs/evidence-planted

Nothing is trained: every subset is a beginning of a ranking. Shares are means over five seeds.
"""

import argparse
from collections import Counter

import s2l_ray as s2l

SEEDS = range(5)
ARMS = {
    "random": {"method": "random"},
    "s2l": {"method": "s2l"},
    "s2l, unlearned last": {"method": "s2l", "unlearned": "last"},
    "s2l, nearest first": {"method": "s2l", "within": "nearest"},
    "s2l, steadiest first": {"method": "s2l", "within": "lowest-variation"},
    "least-confidence": {"method": "least-confidence"},
    "middle-perplexity": {"method": "middle-perplexity"},
    "quantile-perplexity": {"method": "quantile-perplexity"},
    "high-learnability": {"method": "high-learnability"},
    "ambiguous": {"method": "ambiguous"},
    "confidence-curriculum": {"method": "confidence-curriculum"},
}


def shares(run: s2l.Run, budget: float, arm: dict[str, str]) -> Counter:
    """Return the mean share of each kind of planted row in subsets of an arm."""
    found: Counter = Counter()
    for seed in SEEDS:
        rows = run.select(budget, seed=seed, **arm).rows()
        kinds = Counter(row["planted"] for row in rows)
        num_rows = sum(kinds.values())
        found.update({kind: n / num_rows / len(SEEDS) for kind, n in kinds.items()})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--budget", type=float, default=0.11)
    arguments = parser.parse_args()
    run = s2l.load(arguments.run)
    print("| method | wrong | repeated |\n|---|---|---|")
    for label, arm in ARMS.items():
        found = shares(run, arguments.budget, arm)
        print(f"| {label} | {found['wrong']:.1%} | {found['repeated']:.1%} |")


if __name__ == "__main__":
    main()
