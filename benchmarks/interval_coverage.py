"""How often do 95% intervals over seeds and items hold the truth? Simulated, by three methods.

    python benchmarks/interval_coverage.py

Values have an effect of the seed, one of the item, and noise of 0.5; items differ by 1. The columns
are: the interval of `s2l compare`; the percentiles of a bootstrap of seeds and items; and the
interval over items alone, of the first seed.

Shapes: S seeds, I items, D draws.
"""

import numpy as np

from s2l_ray.comparison.statistics import crossed_mean
from s2l_ray.intervals import mean_interval

REPEATS, DRAWS, NUM_ITEMS, NOISE = 500, 400, 50, 0.5
SPREADS = (0.0, 0.1, 0.2, 0.3, 0.5)
"""Standard deviations of the effect of a seed."""


def bootstrap(value_SI: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Return the 2.5th and 97.5th percentile of means of drawn seeds and items."""
    num_seeds, num_items = value_SI.shape
    weight_DS = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), DRAWS) / num_seeds
    weight_DI = rng.multinomial(num_items, np.full(num_items, 1 / num_items), DRAWS) / num_items
    low, high = np.percentile(np.einsum("ds,si,di->d", weight_DS, value_SI, weight_DI), [2.5, 97.5])
    return float(low), float(high)


def main() -> None:
    rng = np.random.default_rng(0)
    print(f"{'seeds':>5} {'spread':>7} {'compare':>9} {'bootstrap':>10} {'items alone':>12}")
    for num_seeds in (2, 3, 5):
        for spread in SPREADS:
            held = np.zeros(3, int)
            for _ in range(REPEATS):
                value_SI = (
                    rng.normal(0, spread, (num_seeds, 1))
                    + rng.normal(0, 1, (1, NUM_ITEMS))
                    + rng.normal(0, NOISE, (num_seeds, NUM_ITEMS))
                )
                crossed, first = crossed_mean(value_SI), mean_interval(value_SI[0])
                ends = [
                    (crossed.low, crossed.high),
                    bootstrap(value_SI, rng),
                    (first.low, first.high),
                ]
                held += [low <= 0 <= high for low, high in ends]
            ours, drawn, items = held / REPEATS
            line = f"{num_seeds:>5} {spread:>7} {ours:>9.3f} {drawn:>10.3f} {items:>12.3f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
