"""The commands that take a subset of a finished run: `select` and `export`."""

import textwrap
import time
from typing import Annotated

import typer

from s2l_ray.display import at_work
from s2l_ray.errors import first
from s2l_ray.export import names as trainers
from s2l_ray.options import (
    Method,
    RunDir,
    Seed,
    WithoutExtensions,
    one_of,
    shortest,
    working_directory,
)
from s2l_ray.progress import duration
from s2l_ray.selection.added_columns import TYPES
from s2l_ray.selection.methods import METHODS, WITHIN


def methods_help() -> str:
    """Return every method with its description, in lines of less than 80 characters."""
    lines = ["\b", "methods (docs/methods.md):"]
    for name, method in METHODS.items():
        lines.append(f"  {name}")
        lines += textwrap.wrap(
            method.description, 72, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
    return "\n".join(lines)


def _ordering() -> str:
    """Return the methods whose clusters `--within` orders."""
    return first([name for name, method in METHODS.items() if method.orders_within])


SELECT_EXAMPLES = (
    methods_help()
    + """

\b
example: s2l select runs/demo --budget 0.05
example: s2l select runs/demo --budget "20K tokens" --within nearest
example: s2l select runs/demo --budget 500 --columns rank,cluster
example: s2l select runs/demo --budget 500 --where "tokens < 200"
"""
)


def select(
    run_dir: RunDir,
    budget: Annotated[
        str,
        typer.Option(
            metavar="B",
            help='Examples (50000), a fraction (0.11), or tokens ("20M tokens"; K, M, B or none).',
        ),
    ],
    method: Method = None,
    within: Annotated[
        str | None,
        typer.Option(
            metavar="W",
            callback=one_of(WITHIN),
            help=f"Which examples of a cluster {_ordering()} takes first: {', '.join(WITHIN)}. "
            "Default: the run's.",
        ),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="For --method score and --within score: a field of the rows, or FILE#COLUMN "
            "(parquet with example_id and numbers).",
        ),
    ] = None,
    score_order: Annotated[
        str | None,
        typer.Option(
            metavar="O", callback=one_of(("highest", "lowest")), help="highest or lowest first."
        ),
    ] = None,
    quantile: Annotated[
        float | None,
        typer.Option(metavar="Q", help="For --method quantile-perplexity: from 0 to 1."),
    ] = None,
    unlearned: Annotated[
        str | None,
        typer.Option(
            metavar="U",
            callback=one_of(("keep", "last")),
            help="Examples whose loss does not fall: keep or last.",
        ),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="COND", help='Select only from rows such as "quality >= 3 and tokens < 2000".'
        ),
    ] = None,
    seed: Seed = None,
    out: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="A .jsonl or .parquet file, or a folder that then opens as one data set. Default: "
            "the folder RUN_DIR/subsets/M-B-S.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the file of --out, whatever it holds.")
    ] = False,
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="C,...",
            help=f"Columns to add to the rows, of {', '.join(TYPES)}. Default: the run's.",
        ),
    ] = None,
    without_extensions: WithoutExtensions = False,
) -> None:
    """Write the subset for another budget, method or seed, spread over strata as the run's own
    (selection.stratify, weights, minimum, maximum). Subsets of one method, order and seed are
    nested: a larger one contains a smaller one. Rows come in the input's order.
    """
    started, here = time.monotonic(), working_directory()
    with at_work("select"):
        from s2l_ray.config.load import parse_budget
        from s2l_ray.pipeline.subset import check_out
        from s2l_ray.runs import load

        wanted = parse_budget(budget, "--budget")
        opened = load(run_dir, with_extensions=not without_extensions)
        if out is not None:
            check_out(opened.location, opened.config, out)
        added = None if columns is None else [name.strip() for name in columns.split(",") if name]
        selection = opened.select(
            wanted,
            method,
            seed,
            within,
            added,
            score=score,
            score_order=score_order,
            quantile=quantile,
            unlearned=unlearned,
            where=where,
        )
        lines = selection.summary()
        file = selection.write(out, replace=force)
    lines |= {"selected": shortest(file, here), "took": duration(time.monotonic() - started)}
    for name, text in lines.items():
        print(f"{name:<10}{text}")


EXPORT_EXAMPLES = """\b
example: s2l export runs/demo --to trl for-trl
example: s2l export runs/demo --budget 0.05 --to llamafactory for-lf
"""


def export(
    run_dir: RunDir,
    out: Annotated[
        str, typer.Argument(metavar="DIR", help="A folder or URI that is new or empty.")
    ],
    trainer: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="T",
            callback=one_of(trainers.NAMES),
            help=f"{', '.join(trainers.NAMES)}.",
        ),
    ],
    budget: Annotated[
        str | None,
        typer.Option(metavar="B", help="As for `s2l select`. Default: the run's own."),
    ] = None,
    method: Method = None,
    seed: Seed = None,
    without_extensions: WithoutExtensions = False,
) -> None:
    """Write a subset of a finished run as rows that a trainer reads, with the few lines of its
    configuration and the command that trains. Prompts, answers, roles, tools, reasoning, and
    which answers are learned are those of the run. Notes say, with numbers of rows, what the
    trainer reads otherwise, and which rows its format cannot hold.

    TRL and axolotl get the texts that the run has scored if `data.template` is one of text, and
    messages in a chat. The other trainers write the text around rows by their own template.
    docs/export.md shows every trainer, from subset to training.
    """
    here = working_directory()
    with at_work("export"):
        from s2l_ray.config.load import parse_budget
        from s2l_ray.runs import load

        wanted = None if budget is None else parse_budget(budget, "--budget")
        opened = load(run_dir, with_extensions=not without_extensions)
        done = opened.export(trainer, out, budget=wanted, method=method, seed=seed)
    print("\n".join(done.lines(shortest(done.path, here))))
