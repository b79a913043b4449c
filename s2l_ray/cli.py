"""Commands: parse, call, print. Exit code 0: done; 2: the user can fix it; 1: our bug."""

import argparse
import os
import select
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from s2l_ray import __version__
from s2l_ray.artifacts import extensions
from s2l_ray.artifacts.finished import finished_stages
from s2l_ray.config import sections
from s2l_ray.config.load import load, parse_budget
from s2l_ray.distributed import session
from s2l_ray.errors import ConfigError, UserError, first
from s2l_ray.pipeline import run as pipeline
from s2l_ray.pipeline import subset
from s2l_ray.progress import duration
from s2l_ray.stages import NAMES, STAGES
from s2l_ray.storage.location import Location, is_uri

INTERRUPTED = 130

EPILOG = """\
examples:
  s2l demo                                     the whole pipeline on generated data, in minutes
  s2l plan configs/demo.yaml                   check it; tokens, FLOPs, hours; runs nothing
  s2l run configs/demo.yaml --set seed=7       run it; again: go on, or do nothing
  s2l select runs/demo --budget 0.05           another subset of a finished run, in seconds
  s2l extend runs/demo new.jsonl               score and place new data without retraining
  ray job submit --working-dir . -- python -m s2l_ray run CONFIG --set run_dir=s3://bucket/run
"""
PLAN = """\
Check a configuration and run nothing. Shows which stages are to do, how much each of them
has to do, and what those that compute with a model cost: tokens, floating-point operations
(FLOPs) and time.

Until the pool is prepared, its tokens are counted in the first rows of every file. FLOPs follow
from the sizes of the models; no weights are read and nothing is downloaded. Speed is measured on
this machine in some seconds, in passes through small random models of the same widths, or given.
Start-up and the share of the speed that is reached come from runs on two CPU cores: expect a
quarter more or less there, and more where the machine is another or has other work to do.
"""
SELECT = """\
Write the subset for another budget, method or seed, spread over strata as the run's own
(selection.stratify, weights, minimum, maximum). Subsets of one method, order and seed are nested:
a larger one contains a smaller one. Rows come in the input's order.
"""

EXTEND = """\
Score and place new data without retraining. Rows that the run does not have yet are tokenised as
its own were, scored at its checkpoints, placed in the nearest of its clusters, and ranked
together with the old ones, so that the run's budget gives a new subset. A stratum that the run
has never seen is clustered by itself. Nothing of the run is changed: results lie in
RUN_DIR/extensions/, under a name that comes from the content of the data, so that the same command
again goes on, or does nothing. Later extensions know the rows of earlier ones.

Rows that are there already, by id or, without one, by content, are left out and counted. At the
end the program says whether the new rows still fit the clusters: the reference was not trained on
them, so their losses are somewhat higher than if it had been.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], None] = arguments.command
    try:
        command(arguments)
        sys.stdout.flush()
    except UserError as error:
        print(f"s2l: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = "the same command"
        if getattr(arguments, "from_stage", None):
            again += " without --from"
        print(f"\ns2l: interrupted; {again} goes on from what is saved", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        if _is_read(sys.stdout):
            raise
        # Whoever read our output has seen enough, as `head` has; nor would a last flush succeed.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _is_read(stream: TextIO) -> bool:
    poll = select.poll()
    poll.register(stream, 0)
    return not poll.poll(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="s2l",
        description="Select the examples of a fine-tuning pool that a large model should see: "
        "S2L (SmallToLarge, NeurIPS 2024) on Ray.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"s2l_ray {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_plan(commands)
    _add_run(commands)
    _add_select(commands)
    _add_extend(commands)
    _add_report(commands)
    return parser


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="run everything on generated data: no network, minutes on two cores",
        description="Run the whole pipeline on generated data, S2L beside its baselines; again: go "
        "on, or do nothing.",
        epilog="example: s2l demo --out runs/demo",
    )
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help="default: %(default)s")
    _add_address(parser)
    parser.set_defaults(command=_demo)


def _add_plan(commands: Any) -> None:
    parser = commands.add_parser(
        "plan",
        help="check a configuration; show its stages, tokens, FLOPs and hours; run nothing",
        description=PLAN,
        epilog="example: s2l plan configs/demo.yaml --set selection.budget=0.2\n"
        "example: s2l plan configs/mimic-pythia-1b.yaml --tflops 300",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_config(parser)
    parser.add_argument(
        "--tflops",
        type=float,
        metavar="X",
        help="speed of one worker in products of matrices, in 10^12 operations per second, to "
        "plan for another machine; for a GPU, that of its data sheet for dense matrices in the "
        "precision used",
    )
    parser.set_defaults(command=_plan)


def _add_run(commands: Any) -> None:
    stages = ", ".join(NAMES)
    parser = commands.add_parser(
        "run",
        help="run what is not yet done of a configuration",
        description=f"Stages, in order: {stages}. A finished stage whose inputs are unchanged is "
        "skipped; an interrupted one goes on where it stopped.",
        epilog="example: s2l run configs/demo.yaml --set seed=7 --until selection",
    )
    _add_config(parser)
    choices = {"choices": NAMES, "metavar": "STAGE"}
    parser.add_argument("--from", dest="from_stage", help="redo STAGE and all after it", **choices)
    parser.add_argument("--until", help="stop after STAGE", **choices)
    _add_address(parser)
    parser.set_defaults(command=_run)


def _add_select(commands: Any) -> None:
    from s2l_ray.selection.methods import METHODS, WITHIN

    ordered = [name for name, method in METHODS.items() if method.orders_within]
    listed = "\n".join(f"  {name:<23}{method.description}" for name, method in METHODS.items())
    parser = commands.add_parser(
        "select",
        help="another subset of a finished run, in seconds",
        description=SELECT,
        epilog=f"methods (docs/methods.md):\n{listed}\n\n"
        "example: s2l select runs/demo --budget 0.05\n"
        'example: s2l select runs/demo --budget "20K tokens" --within nearest',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parser.add_argument(
        "--budget",
        required=True,
        metavar="B",
        help='examples (50000), a fraction (0.11), or tokens ("20M tokens"; K, M, B or none)',
    )
    parser.add_argument("--method", choices=sorted(METHODS), metavar="M", help="default: the run's")
    parser.add_argument(
        "--within",
        choices=list(WITHIN),
        metavar="W",
        help=f"which examples of a cluster {first(ordered)} takes first: {', '.join(WITHIN)}; "
        "default: the run's own",
    )
    parser.add_argument("--seed", type=int, metavar="S", help="default: the run's own")
    parser.add_argument(
        "--out", metavar="FILE", help=".jsonl or .parquet; default: RUN_DIR/subsets/M-B-S.jsonl"
    )
    parser.add_argument(
        "--without-extensions",
        action="store_true",
        help="rank the run's own rows alone; default: with those that `s2l extend` added",
    )
    parser.set_defaults(command=_select)


def _add_extend(commands: Any) -> None:
    parser = commands.add_parser(
        "extend",
        help="score and place new data without retraining",
        description=EXTEND,
        epilog="example: s2l extend runs/demo new.jsonl\n"
        "example: s2l extend s3://bucket/runs/phi2 's3://bucket/may/*.parquet' --address auto\n"
        "then:    s2l select runs/demo --budget 0.05       from old and new rows",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help="a run with finished clusters")
    parser.add_argument(
        "data",
        nargs="*",
        metavar="DATA",
        help="files, globs, directories, URIs, or hf://org/name[:split], with the fields of the "
        "run's own data; none: place and rank earlier extensions again, after the run's clusters "
        "or its selection have changed",
    )
    parser.add_argument(
        "--update-centroids",
        action="store_true",
        help="move the centroids by further mini-batches until they fit old and new rows, all of "
        "which are placed anew; default: they stay",
    )
    _add_address(parser)
    parser.set_defaults(command=_extend)


def _add_report(commands: Any) -> None:
    parser = commands.add_parser(
        "report",
        help="(re)build the report of a run",
        description="Write RUN_DIR/report/index.html from what the run has finished.",
        epilog="example: s2l report runs/demo",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR")
    parser.set_defaults(command=_report)


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file (see configs/)")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key, such as selection.budget=0.2; may be repeated",
    )


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        metavar="ADDR",
        help="join the Ray cluster there; default: RAY_ADDRESS, else Ray is started here",
    )


def _demo(arguments: argparse.Namespace) -> None:
    from s2l_ray import demo

    path = demo.write_inputs(Path(arguments.out))
    overrides = demo.overrides(Path(arguments.out))
    _run_config(load(path, overrides), address=arguments.address)
    print("\n" + demo.explanation())


def _run(arguments: argparse.Namespace) -> None:
    loaded = load(arguments.config, arguments.overrides)
    _run_config(
        loaded,
        address=arguments.address,
        from_stage=arguments.from_stage,
        until=arguments.until,
    )


def _run_config(
    loaded: sections.RunConfig,
    *,
    address: str | None,
    from_stage: str | None = None,
    until: str | None = None,
) -> None:
    if session.joins_cluster(address):
        _check_absolute(loaded)
    started = time.monotonic()
    print(f"s2l_ray {__version__}: {loaded.run_dir}", flush=True)
    done = pipeline.run(loaded, from_stage=from_stage, until=until, address=address, say=_say)
    if not done:
        print("nothing to do: every stage is finished, and its inputs are unchanged")
    last = NAMES.index(until) if until else len(NAMES)
    _summarise(loaded, NAMES[: last + 1], time.monotonic() - started)


def _say(line: str) -> None:
    print(line, flush=True)


def _summarise(loaded: sections.RunConfig, stages: Sequence[str], seconds: float) -> None:
    """What was asked for; what came of a later stage may be of another subset."""
    run = Location.of(loaded.run_dir)
    if "evaluation" in stages and (run / "evaluation" / "metrics.json").exists():
        from s2l_ray.report.stage import summary_lines

        print("\n" + "\n".join(summary_lines(finished_stages(run, STAGES), loaded)))
    print()
    for stage in STAGES:
        if stage.name in stages and stage.is_wanted(loaded):
            for name, paths in stage.results.items():
                made = [run / path for path in paths if (run / path).exists()]
                if made:
                    print(f"{name:<10}{_shortest(made[0])}")
    print(f"{'took':<10}{duration(seconds)}")


def _shortest(place: Location) -> str:
    path = Path(place.uri)
    if place.is_local and path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return str(place)


def _check_absolute(loaded: sections.RunConfig) -> None:
    """On a joined cluster, refuse paths that would land in a job's temporary directory."""
    data = loaded.data
    paths = {"run_dir": [loaded.run_dir]}
    if data is not None:
        paths |= {"data.train": data.train, "data.eval": list(data.eval.values())}
    for name in ("reference", "trajectories"):
        section = getattr(loaded, name)
        if section is not None and section.path is not None:
            paths[f"{name}.path"] = [section.path]
    if loaded.trajectories is not None:
        paths["trajectories.queries"] = loaded.trajectories.queries
    _check_paths_absolute(paths)


def _check_paths_absolute(paths: Mapping[str, Sequence[str]]) -> None:
    for key, values in paths.items():
        for value in values:
            if not is_uri(value) and not Path(value).expanduser().is_absolute():
                raise ConfigError(
                    f"{key}: {value!r} is relative, and on a joined cluster that means a "
                    "temporary copy of the working directory that vanishes with the job. Give an "
                    "absolute path on shared storage, or a URI such as s3://bucket/..."
                )


def _plan(arguments: argparse.Namespace) -> None:
    from s2l_ray.estimate import plan as planning

    loaded = load(arguments.config, arguments.overrides)
    print("\n".join(planning.lines(loaded, arguments.tflops)))


def _select(arguments: argparse.Namespace) -> None:
    budget = parse_budget(arguments.budget, "--budget")
    if arguments.seed is not None and arguments.seed < 0:
        raise ConfigError(f"--seed {arguments.seed} is below zero")
    out, run = Location.of(arguments.out) if arguments.out else None, Location.of(arguments.run_dir)
    extended = not arguments.without_extensions
    place, count = subset.write_subset(
        run,
        budget,
        arguments.method,
        arguments.seed,
        out,
        within=arguments.within,
        extended=extended,
    )
    used = [item for item in extensions.of_run(run) if not item.is_empty] if extended else []
    if used:
        print(f"from the run with {len(used)} extension(s), the last of them {used[-1].name}")
    print(f"{count:,} examples: {_shortest(place)}")


def _extend(arguments: argparse.Namespace) -> None:
    from s2l_ray.extend import plan as extending
    from s2l_ray.report.extensions import subset_files, summary_lines

    address = arguments.address
    if session.joins_cluster(address):
        _check_paths_absolute({"RUN_DIR": [arguments.run_dir], "DATA": arguments.data})
    started, run = time.monotonic(), Location.of(arguments.run_dir)
    print(f"s2l_ray {__version__}: {arguments.run_dir}", flush=True)
    outcome = extending.extend(
        run, arguments.data, update_centroids=arguments.update_centroids, address=address, say=_say
    )
    if not outcome.done:
        print("nothing to do: these rows are scored, placed and ranked")
    lines = summary_lines(outcome.extension) if outcome.extension else []
    lines += [("selected", _shortest(place)) for place in subset_files(run)]
    print()
    for name, text in [*lines, ("took", duration(time.monotonic() - started))]:
        print(f"{name:<10}{text}")


def _report(arguments: argparse.Namespace) -> None:
    print(_shortest(subset.rebuild_report(Location.of(arguments.run_dir))))
