"""The commands of `s2l`: their options and help, what they call, and what they print."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from s2l_ray import config_commands, status_command, subset_commands
from s2l_ray.artifacts.finished import outdated_note
from s2l_ray.display import Say, at_work, for_commands
from s2l_ray.options import (
    Address,
    Config,
    FromStage,
    LogFormat,
    Overrides,
    RunDir,
    one_of,
    shortest,
    working_directory,
)
from s2l_ray.progress import Progress, duration
from s2l_ray.stages import NAMES, STAGES
from s2l_ray.version import __version__

if TYPE_CHECKING:
    from s2l_ray.config.sections import RunConfig


app = typer.Typer(
    name="s2l",
    help="Select the examples of a fine-tuning pool that a large model should see: S2L "
    "(SmallToLarge, NeurIPS 2024) on Ray.",
    epilog="""\b
examples:
  s2l demo                                the whole pipeline on generated data
  s2l init pool.jsonl > mine.yaml         a configuration that reads your rows
  s2l keys clusters                       what may stand in that section
  s2l plan configs/demo.yaml              check it; tokens, FLOPs, hours
  s2l run configs/demo.yaml --set seed=7  run it; again: go on, or do nothing
  s2l compare configs/demo.yaml           does it help? against random subsets
  s2l select runs/demo --budget 0.05      another subset, in seconds
  s2l export runs/demo --to trl for-trl   rows and configuration of a trainer
  s2l extend runs/demo new.jsonl          add new data without retraining
  s2l status runs/demo --watch            where is it? from any machine

\b
on a cluster:
  ray job submit --working-dir . -- \\
    python -m s2l_ray run CONFIG --set run_dir=s3://bucket/run

exit codes: 0 done, 1 a fault of the program, 2 the message says what to change, 130 interrupted,
143 ended by SIGTERM, 129 by SIGHUP
""",
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"s2l_ray {__version__}")
        raise typer.Exit


@app.callback()
def _s2l(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version."),
    ] = False,
) -> None:
    pass


@app.command(
    short_help="Run everything on generated data: no network, four minutes on two cores.",
    epilog="example: s2l demo --out runs/demo",
)
def demo(
    out: Annotated[str, typer.Option(metavar="DIR", help="Where the run is.")] = "runs/demo",
    address: Address = None,
    log_format: LogFormat = "text",
) -> None:
    """Run everything on generated data: train a reference, record losses, cluster, select, and
    compare S2L with random subsets over three seeds. The same command again goes on, or does
    nothing."""
    from s2l_ray import demo as generated
    from s2l_ray.config.load import load

    folder = Path(out)
    with for_commands(log_format).open() as say:
        with Progress("generating the pool"):
            inputs = generated.write_inputs(folder)
        _compare(load(inputs, generated.overrides(folder)), address=address, say=say)
        say("\n" + generated.explanation())


app.command(
    short_help="Look at your rows; print a configuration that reads them.",
    epilog=config_commands.INIT_EXAMPLES,
)(config_commands.init)
app.command(
    short_help="List the keys of a configuration, and what they mean.",
    epilog=config_commands.KEYS_EXAMPLES,
)(config_commands.keys)


@app.command(
    short_help="Check a configuration; show its stages, tokens, FLOPs and hours.",
    epilog="""\b
example: s2l plan configs/demo.yaml --set selection.budget=0.2
example: s2l plan configs/mimic-pythia-1b.yaml --tflops 300
""",
)
def plan(
    config: Config,
    overrides: Overrides = None,
    tflops: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Speed of one worker in products of matrices, in 10^12 operations per second, to "
            "plan for another machine. For a GPU: that of its data sheet for dense matrices in "
            "the precision used.",
        ),
    ] = None,
    dollars_per_cpu_hour: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Price of one CPU of the cluster for an hour, to show what clustering and ranking "
            "brought losses (trajectories.path) costs.",
        ),
    ] = None,
    from_stage: FromStage = None,
) -> None:
    """Check a configuration and run nothing. Show which stages are to do, how much each of them
    has to do, and what those that compute with a model cost: tokens, floating-point operations
    (FLOPs) and time.

    Until the pool is prepared, its tokens are counted in the first rows of every file. FLOPs
    follow from the sizes of the models; no weights are read and nothing is downloaded. Speed is
    measured on this machine in up to a minute, in passes through small random models of the same
    widths, or given. Start-up and the share of the speed that is reached come from runs on two
    CPU cores: expect a quarter more or less there, and more where the machine is another or has
    other work to do.
    """
    with at_work("plan"):
        from s2l_ray.config.load import load
        from s2l_ray.estimate import plan as planning

        loaded = load(config, overrides or [])
        shown = planning.lines(
            loaded, tflops, from_stage=from_stage, dollars_per_cpu_hour=dollars_per_cpu_hour
        )
    print("\n".join(shown))


app.command(
    short_help="Show the first rows as a model reads them; mark what carries loss.",
    epilog=config_commands.PREVIEW_EXAMPLES,
)(config_commands.preview)


@app.command(
    short_help="Run what is not yet done of a configuration.",
    help=f"Run what is not yet done of a configuration. Stages, in order: {', '.join(NAMES)}. A "
    "finished stage whose inputs are unchanged is skipped; an interrupted one goes on where it "
    "stopped.",
    epilog="example: s2l run configs/demo.yaml --set seed=7 --until selection",
)
def run(
    config: Config,
    overrides: Overrides = None,
    from_stage: FromStage = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="STAGE", callback=one_of(NAMES), help="Stop after STAGE."),
    ] = None,
    address: Address = None,
    log_format: LogFormat = "text",
) -> None:
    from s2l_ray.config.load import load

    with for_commands(log_format).open() as say:
        _run(load(config, overrides or []), from_stage, until, address=address, say=say)


@app.command(
    short_help="Compare methods, budgets and seeds: does it help?",
    epilog="""\b
example: s2l compare configs/demo.yaml
then:    s2l compare configs/demo.yaml --set 'comparison.budgets=[200, 384]'
""",
)
def compare(
    config: Config,
    overrides: Overrides = None,
    address: Address = None,
    log_format: LogFormat = "text",
) -> None:
    """Train the target on the subset of every method, budget and seed of the section `comparison`,
    on all data, and not at all; evaluate each on the held-out sets; and print means with 95%
    intervals over seeds and items, differences to random, and what selecting and training cost.

    Subsets and trainings that are there already are not made again: a further method, budget or
    seed trains only what is new, and an interrupted comparison goes on. Results are in
    RUN_DIR/comparison/: results.parquet, items.parquet and table.csv.
    """
    from s2l_ray.config.load import load

    with for_commands(log_format).open() as say:
        _compare(load(config, overrides or []), address=address, say=say)


app.command(
    short_help="Write another subset of a finished run, in seconds.",
    epilog=subset_commands.SELECT_EXAMPLES,
)(subset_commands.select)
app.command(
    short_help="Write a subset for a trainer, with its configuration.",
    epilog=subset_commands.EXPORT_EXAMPLES,
)(subset_commands.export)


@app.command(
    short_help="Add new data to a finished run without retraining.",
    epilog="""\b
example: s2l extend runs/demo new.jsonl
example: s2l extend s3://bucket/runs/phi2 's3://bucket/may/*.parquet' \\
           --address auto
then:    s2l select runs/demo --budget 0.05       from old and new rows
""",
)
def extend(
    run_dir: Annotated[
        str, typer.Argument(metavar="RUN_DIR", help="A run with finished clusters.")
    ],
    data: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DATA",
            help="Files, globs, directories, URIs, or hf://org/name[:split], with the fields of "
            "the run's own data. None: earlier extensions are put into clusters and ranked again, "
            "after the run's clusters or its selection have changed.",
        ),
    ] = None,
    update_centroids: Annotated[
        bool,
        typer.Option(
            "--update-centroids",
            help="Move the centroids by further mini-batches until they fit old and new rows, and "
            "label all of these anew. Default: they stay.",
        ),
    ] = False,
    address: Address = None,
    log_format: LogFormat = "text",
) -> None:
    """Add new data to a run without retraining. Rows that the run does not have yet are tokenised
    as its own were, scored at its checkpoints, put into the nearest of its clusters, and ranked
    together with the old ones, so that the run's budget gives a new subset. A stratum that the run
    has never seen is clustered by itself. Nothing of the run is changed: results are in
    RUN_DIR/extensions/, under a name that comes from the content of the data, so that the same
    command again goes on, or does nothing. Later extensions know the rows of earlier ones.

    Rows that are there already, by id or, without one, by content, are left out and counted. At
    the end the program says whether the new rows still fit the clusters: the reference was not
    trained on them, so their losses are somewhat higher than if it had been.
    """
    from s2l_ray.config.paths import check_absolute
    from s2l_ray.distributed import session
    from s2l_ray.runs import load

    if session.joins_cluster(address):
        check_absolute({"RUN_DIR": [run_dir], "DATA": data or []})
    started, here = time.monotonic(), working_directory()
    with for_commands(log_format).open() as say:
        extended = load(run_dir).extend(
            data or [], update_centroids=update_centroids, address=address, say=say
        )
        lines = [*extended.summary.items()]
        lines += [("selected", shortest(file, here)) for file in extended.selected]
        _say_results(dict(lines), started, say)


app.command(
    short_help="Show where a run is, from any machine, without Ray.",
    epilog=status_command.EXAMPLES,
)(status_command.status)


@app.command(
    short_help="Build the report of a run, again.",
    epilog="example: s2l report runs/demo",
)
def report(run_dir: RunDir) -> None:
    """Write RUN_DIR/report/index.html from what the run has finished."""
    here = working_directory()
    with at_work("report"):
        from s2l_ray.runs import load

        page = load(run_dir).report()
    print(shortest(page, here))


def _run(
    config: "RunConfig",
    from_stage: str | None = None,
    until: str | None = None,
    *,
    address: str | None,
    say: Say,
) -> None:
    from s2l_ray import runs

    started, here = time.monotonic(), working_directory()
    done = runs.run(config, from_stage=from_stage, until=until, address=address, say=say)
    if lines := done.comparison(until=until):
        say("\n" + "\n".join(lines))
    files = done.results(until=until)
    results = {name: shortest(file, here) for name, file in files.items()}
    if note := outdated_note(done.location, STAGES):
        results["note"] = note
    _say_results(results, started, say)


def _compare(config: "RunConfig", *, address: str | None, say: Say) -> None:
    from s2l_ray import runs
    from s2l_ray.compared import compare
    from s2l_ray.storage.location import Location

    started, here = time.monotonic(), working_directory()
    compared = compare(config, address=address, say=say)
    made = runs.Run(Location.of(config.run_dir), config).results()
    results = {name: made[name] for name in ("selected",) if name in made}
    results |= {"compared": f"{compared.path}/table.csv", "report": made["report"]}
    say("\n" + "\n".join(compared.lines()))
    _say_results({name: shortest(file, here) for name, file in results.items()}, started, say)


def _say_results(results: Mapping[str, str], started: float, say: Say) -> None:
    """Say what the command leaves, and how long it took."""
    took = {"took": duration(time.monotonic() - started)}
    lines = [f"{name:<10}{text}" for name, text in {**results, **took}.items()]
    say("\n".join(["", *lines]))
