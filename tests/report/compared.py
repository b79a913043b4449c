"""A comparison made by hand: the files that `s2l compare` leaves in a run."""

import csv
import io

import pyarrow as pa

from s2l_ray.storage.location import Location

ARMS = {  # label: (method, settings, mean at the small budget, mean at the large one)
    "s2l": ("s2l", "{}", 0.536, 0.501),
    "s2l, 50 clusters": ("s2l", '{"clusters": {"num_clusters": 50}}', 0.506, 0.489),
    "balanced-random (told the source)": ("balanced-random", "{}", 0.462, 0.455),
    "random": ("random", "{}", 0.685, 0.577),
}
WHOLE = {"all-data": 0.431, "no-training": 7.1}
SETS = ("tasks", "other tasks")
METRICS = {"macro-loss": 1.0, "loss": 0.93, "macro-exact-match": 0.6}


def rows(budgets: tuple[str, str] = ("384", "1000")) -> list[dict]:
    """Lines of table.csv; intervals are 0.03 to either side, p is 0.01 or 1."""
    lines = []
    for name in SETS:
        for metric, factor in METRICS.items():
            for column, budget in enumerate(budgets):
                for label, (_, _, *means) in ARMS.items():
                    mean = factor * means[column]
                    minus = mean - factor * ARMS["random"][2 + column]
                    lines.append(line(name, metric, budget, label, mean, minus))
            for label, mean in WHOLE.items():
                lines.append(line(name, metric, "", label, factor * mean, None))
    return lines


def line(name, metric, budget, label, mean, minus) -> dict:
    examples = {"all-data": 3498, "no-training": 0}.get(label) or (int(budget) if budget else 0)
    difference = {} if minus is None or label == "random" else {
        "difference": minus, "difference_low": minus - 0.04, "difference_high": minus + 0.04,
        "p": 0.01 if abs(minus) > 0.04 else 1.0,
    }  # fmt: skip
    return {
        "set": name, "metric": metric, "budget": budget, "label": label, "seeds": 3,
        "examples": examples, "training_tokens": 46 * examples, "mean": mean,
        "low": mean - 0.03, "high": mean + 0.03, "difference": "", "difference_low": "",
        "difference_high": "", "p": "", **difference, "seconds_selecting": 187.2,
        "seconds_training": 12.5, "flops": 3.2e12,
    }  # fmt: skip


def write(run: Location, lines: list[dict]) -> None:
    """Write comparison/table.csv, and results.parquet as far as the report reads it."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]))
    writer.writeheader()
    writer.writerows(lines)
    folder = run / "comparison"
    (folder / "table.csv").write_bytes(text.getvalue().encode())
    labels = list(dict.fromkeys(each["label"] for each in lines))
    methods = [ARMS.get(label, (label, "{}"))[:2] for label in labels]
    columns = {
        "method": [method for method, _ in methods],
        "settings": [settings for _, settings in methods],
        "label": labels,
    }
    (folder / "results.parquet").write_table(pa.table(columns))
