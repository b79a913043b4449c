"""What brought losses cost from their files to the ranking: time, requests to a store, dollars.

Constants of time are CPU seconds of `benchmarks/bench_clusters.py` at 1, 10 and 100 million rows,
12 checkpoints and 100 clusters; counts of requests are those of `benchmarks/count_requests.py`.
"""

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass

from s2l_ray.artifacts.tables import Parts
from s2l_ray.clusters.declaration import CLUSTERS
from s2l_ray.config.sections import RunConfig
from s2l_ray.errors import ConfigError
from s2l_ray.progress import LABEL_WIDTH, duration
from s2l_ray.selection.declaration import SELECTION
from s2l_ray.storage import input_files
from s2l_ray.storage.location import Location, absolute, is_uri
from s2l_ray.trajectories.declaration import TRAJECTORIES

START_SECONDS = 6.0
"""Start of Ray and of the workers of a stage."""
SECONDS_OF_CHECK, SECONDS_OF_COPY, SECONDS_OF_CLUSTERS, SECONDS_OF_RANKING = 0.39, 0.99, 1.35, 1.06
"""CPU seconds of a million rows."""
FIXED_SECONDS_OF_CLUSTERS = 1.0
"""Starts, silhouette and stability are computed on samples, by one worker for each stratum."""
DOLLARS_PER_1000_READS, DOLLARS_PER_1000_WRITES = 0.0004, 0.005
"""S3 Standard in us-east-1 (aws.amazon.com/s3/pricing, 2026): GET and HEAD; PUT, POST and LIST."""
PIECE_BYTES = 10 << 20
"""What pyarrow uploads of a large object with one request."""
BYTES_OF_RANKED_ROW = 25
READS_PER_GROUP = 1
"""Columns of a row group that lie side by side are one request. Where losses are copied, a group in
which a part begins may be read by two units, which is not counted."""


@dataclass(frozen=True)
class Layout:
    """How losses lie.

    Attributes:
        rows, parts: their numbers.
        checkpoints: losses of a row.
        files: number of brought files.
        units: ranges of rows that workers check one by one.
        groups: row groups of the files.
        pieces: requests that read all bytes of the files once.
        copied: whether losses are copied into the run.
    """

    rows: int
    parts: int
    checkpoints: int
    files: int = 0
    units: int = 0
    groups: int = 0
    pieces: int = 0
    copied: bool = True


@dataclass(frozen=True)
class Requests:
    """Requests to a store: GET and HEAD; PUT, POST and LIST."""

    reads: int = 0
    writes: int = 0

    def __add__(self, other: "Requests") -> "Requests":
        return Requests(self.reads + other.reads, self.writes + other.writes)

    @property
    def dollars(self) -> float:
        reads, writes = self.reads * DOLLARS_PER_1000_READS, self.writes * DOLLARS_PER_1000_WRITES
        return (reads + writes) / 1000


FIXED_REQUESTS = {
    TRAJECTORIES.name: Requests(45, 40),
    CLUSTERS.name: Requests(36, 27),
    SELECTION.name: Requests(39, 30),
}
"""Requests of a stage without any part, most of them for manifests."""


@dataclass(frozen=True)
class StageCost:
    """The cost of one stage: seconds by the clock, and requests to stores."""

    name: str
    seconds: float
    requests: Requests


def check_price(config: RunConfig, dollars_per_cpu_hour: float | None) -> None:
    """Refuse a price that is none, or that nothing of the configuration is counted with.

    Raises:
        ConfigError: saying which.
    """
    if dollars_per_cpu_hour is None:
        return
    if not 0 <= dollars_per_cpu_hour < math.inf:
        raise ConfigError(
            f"--dollars-per-cpu-hour {dollars_per_cpu_hour:g}: give what one CPU of the cluster "
            "costs for an hour, such as 0.05."
        )
    if not config.imports_trajectories:
        raise ConfigError(
            "--dollars-per-cpu-hour is for brought losses (trajectories.path), and this "
            "configuration brings none. Leave it out: hours of workers are in the plan."
        )


def lines(
    config: RunConfig, stale: Set[str], dollars_per_cpu_hour: float | None = None
) -> list[str]:
    """Return what the stages of `stale` cost that brought losses pass through; [] if none is.

    Raises:
        DataError: a file cannot be used.
    """
    from s2l_ray.distributed import resources, session

    if not stale & {TRAJECTORIES.name, CLUSTERS.name, SELECTION.name}:
        return []
    losses = layout(config, finished=TRAJECTORIES.name not in stale)
    fits = resources.fits_here(lambda: 4 * losses.rows * losses.checkpoints)
    here = fits and not session.joins_cluster(None)
    asked = config.clusters.workers if config.clusters is not None else 1
    workers = resources.threads(CLUSTERS.name).max if here else asked
    found = costs(config, losses, stale, workers=workers, here=here)
    return _shown(losses, found, workers=workers, dollars_per_cpu_hour=dollars_per_cpu_hour)


def layout(config: RunConfig, *, finished: bool) -> Layout:
    """Return how the brought losses of a configuration lie: in their files, or in the run.

    Args:
        finished: whether the run has them.
    """
    from s2l_ray.trajectories import footers, import_existing

    assert config.trajectories is not None and config.trajectories.path is not None
    if finished:
        parts = Parts(Location.of(config.run_dir) / TRAJECTORIES.folder)
        stored = footers.read(parts.stored())
        checkpoints = max((footer.checkpoints for footer in stored), default=0)
        rows = sum(footer.rows for footer in stored)
        return Layout(
            rows, len(parts.files()), checkpoints, copied=len(stored) == len(parts.files())
        )
    files = input_files.expand([absolute(config.trajectories.path)], "trajectories.path")
    found = footers.read(files)
    stays = import_existing.stays(found, has_pool=config.data is not None)
    return Layout(
        sum(footer.rows for footer in found),
        sum(import_existing.num_parts(footer, stays=stays) for footer in found),
        max(footer.checkpoints for footer in found),
        len(files),
        sum(1 for f in found for _ in import_existing.row_ranges(f.rows_of_group, stays=stays)),
        sum(len(footer.rows_of_group) for footer in found),
        sum(max(-(-file.size // input_files.REQUEST_BYTES), 1) for file in files),
        copied=not stays,
    )


def costs(
    config: RunConfig, losses: Layout, stale: Set[str], *, workers: int, here: bool
) -> list[StageCost]:
    """Return the cost of each stage of `stale` that brought losses pass through.

    Args:
        workers: CPUs that check and cluster.
        here: whether they are threads of the program, which need no start.
    """
    assert config.trajectories is not None and config.trajectories.path is not None
    start = 0.0 if here else START_SECONDS
    of_losses = losses.checkpoints / 12 * losses.rows / 1e6
    check, fit = SECONDS_OF_COPY if losses.copied else SECONDS_OF_CHECK, SECONDS_OF_CLUSTERS
    by_stage = {
        TRAJECTORIES.name: start + check * of_losses / workers,
        CLUSTERS.name: start + FIXED_SECONDS_OF_CLUSTERS + fit * of_losses / workers,
        SELECTION.name: start + SECONDS_OF_RANKING * losses.rows / 1e6,
    }
    stores = Stores(is_uri(config.trajectories.path), is_uri(config.run_dir))
    return [
        StageCost(name, seconds, requests(name, losses, stores, seconds))
        for name, seconds in by_stage.items()
        if name in stale
    ]


@dataclass(frozen=True)
class Stores:
    """Whether the brought files, and the run, are on an object store."""

    files: bool
    run: bool


def requests(stage: str, losses: Layout, stores: Stores, seconds: float) -> Requests:
    """Return the requests of one stage that takes so many seconds."""
    total = Requests()
    if stores.run:  # manifests; then the lease is renewed every ten seconds, and the log written
        total += FIXED_REQUESTS[stage] + Requests(round(seconds * 0.2), round(seconds * 0.3))
    if stage == TRAJECTORIES.name:
        if stores.files:  # hash, footer; then each unit opens its file, and reads row groups
            opened = (3 if losses.copied else 4) * losses.files + 2 * losses.units
            total += Requests(opened + losses.pieces + losses.groups * READS_PER_GROUP)
        if stores.run:  # two files and, as there are none at first, two lists for attempts
            total += Requests(0, 4 * losses.units + (losses.parts if losses.copied else 0))
        return total
    if stage == CLUSTERS.name:
        if stores.run if losses.copied else stores.files:  # ids, losses, and ids again
            total += Requests(losses.parts * (11 if losses.copied else 12))
        return total + Requests(0, losses.parts if stores.run else 0)
    if stores.run:  # hashes of ids and clusters, then ids; what is ranked goes up in pieces
        total += Requests(6 * losses.parts, losses.rows * BYTES_OF_RANKED_ROW // PIECE_BYTES)
    return total


def _shown(
    losses: Layout, found: Sequence[StageCost], *, workers: int, dollars_per_cpu_hour: float | None
) -> list[str]:
    """Return one line for how the losses lie, and one for the cost of each stage and of all."""
    copied = "copied into the run" if losses.copied else "read where they lie"
    units = f" in {_counted(losses.units, 'unit')}" if losses.units else ""
    shown = ["", f"{'losses':<16}{_counted(losses.parts, 'part')}{units}, {copied}", ""]
    shown.append(_line("losses to ranking", "time", "GET, HEAD", "PUT, LIST"))
    total = sum((cost.requests for cost in found), Requests())
    seconds = sum(cost.seconds for cost in found)
    for cost in (*found, StageCost("all", seconds, total)):
        reads, writes = cost.requests.reads, cost.requests.writes
        shown.append(_line(cost.name, duration(cost.seconds), f"{reads:,}", f"{writes:,}"))
    hours = seconds * workers / 3600
    bill = f"{workers:,} CPUs, held for all of it: {hours:,.2f} CPU hours"
    if dollars_per_cpu_hour is not None:
        bill += f", ${hours * dollars_per_cpu_hour:,.2f} at ${dollars_per_cpu_hour:g} an hour"
    shown += ["", bill]
    if total.reads or total.writes:
        shown.append(
            f"Requests: ${total.dollars:,.2f} at the prices of S3 Standard in us-east-1, "
            f"${DOLLARS_PER_1000_READS:g} for 1,000 GET or HEAD and ${DOLLARS_PER_1000_WRITES:g} "
            "for 1,000 PUT or LIST."
        )
    return [
        *shown,
        "Times are linear in rows and checkpoints: constants from two CPU cores, a local disk and "
        "100 clusters.",
        "Not counted: starting the program, and one pass over the files for their hashes.",
    ]


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _line(label: str, time: str, reads: str, writes: str) -> str:
    return f"{label:<{LABEL_WIDTH - 4}}{time:>11}{reads:>14}{writes:>14}"
