"""Run every shape of tests/data_shapes.py to its subset, and write the table of the documentation.

    .venv/bin/python benchmarks/run_data_shapes.py          # some minutes on two cores
    .venv/bin/python benchmarks/run_data_shapes.py --check  # compare with the table instead

Each shape is previewed, and then run `--until selection` with two checkpoints of a model of two
layers, in one Ray that is started for all of them. The table says how many rows are usable, what
carries loss in the first of them, and what is rejected or refused. A shape is right if that is what
was written down by hand for it, and if the subset holds the usable rows.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray

import s2l_ray as s2l
from s2l_ray.config.load import from_tree
from s2l_ray.errors import UserError
from s2l_ray.preview import PreviewedRow, Previewer

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests import tiny
from tests.data_shapes import SHAPES, Shape

PAGE = Path(__file__).parent.parent / "docs" / "data-shapes.md"
BEGIN, END = "<!-- begin: benchmarks/run_data_shapes.py -->\n", "<!-- end -->\n"


def tree_of(shape: Shape, folder: Path) -> dict[str, Any]:
    for step in (1, 2):
        tiny.save(folder / "checkpoints" / f"step-{step}", seed=step)
    return {
        "run_dir": str(folder / "run"),
        "data": shape.write(folder),
        "reference": {"path": str(folder / "checkpoints")},
        "trajectories": {"precision": "fp32"},
        "clusters": {},
        "selection": {"budget": 1.0},
    }


def row_of_table(shape: Shape) -> tuple[str, bool]:
    """Return the line of the table, and whether all is as it should be."""
    with tempfile.TemporaryDirectory() as folder:
        config = from_tree(tree_of(shape, Path(folder)), shape.name)
        try:
            previewer = Previewer(config)
            rows = list(previewer.rows())
            learned = [_learned(row, previewer) for row in rows if row.tokens is not None]
            run = s2l.run(config, until="selection")
        except UserError as error:
            refusal = " ".join(str(error).replace(folder, "").split())
            right = bool(shape.refused) and shape.refused in refusal
            return f"| {shape.name} | refused | {_code(refusal[:160])} |", right
        subset = {row["example_id"] for row in run.select(1.0).rows()}
        right = learned == shape.learned and not shape.refused
        right &= subset == {row.example_id for row in rows if row.tokens is not None}
    rejected = [row.rejected for row in rows if row.tokens is None]
    counts = f"{len(learned)} usable" + (f", {len(rejected)} rejected" if rejected else "")
    happens = f"learned: {', '.join(map(_code, learned[0]))}"
    if rejected:
        happens += f"; rejected: {_code(rejected[0][:90])}"
    return f"| {shape.name} | {counts} | {happens} |", right


def _learned(row: PreviewedRow, previewer: Previewer) -> list[str]:
    assert row.tokens is not None
    return [text for text, loss in previewer.segments(row.tokens) if loss]


def _code(text: str) -> str:
    shown = text.replace("\n", "\\n").replace("|", "\\|")
    return f"`{shown}`"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    lines, wrong = ["| shape | rows | what happens |", "|---|---|---|"], []
    for shape in SHAPES:
        line, right = row_of_table(shape)
        print(line if right else f"WRONG {line}", flush=True)
        lines.append(line)
        wrong += [] if right else [shape.name]
    text = PAGE.read_text()
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    table = "\n".join(lines) + "\n"
    if arguments.check:
        wrong += [] if text[begin:end] == table else ["the table of the documentation"]
    else:
        PAGE.write_text(text[:begin] + table + text[end:])
    print(f"{len(SHAPES)} shapes, {len(wrong)} wrong: {wrong}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
