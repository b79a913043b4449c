"""`s2l status`: where a run is, read from its folder alone, so from any machine that reaches it."""

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from s2l_ray.artifacts.extensions import CLUSTERED, PREPARED, list_prepared
from s2l_ray.artifacts.finished import finished_stages, outdated_stages
from s2l_ray.artifacts.manifest import check_run
from s2l_ray.comparison import records
from s2l_ray.config.load import from_tree
from s2l_ray.errors import StorageError, first
from s2l_ray.monitoring import journal
from s2l_ray.monitoring.births import is_gone
from s2l_ray.pipeline.run import CONFIG
from s2l_ray.progress import State, duration, label_column
from s2l_ray.report.declaration import REPORT
from s2l_ray.stages import STAGES
from s2l_ray.storage.location import Location

SECONDS_WITHOUT_SIGN, SECONDS_TO_GO_ON = 60.0, 5.0
"""Time without a sign of life after which a process counts as dead, and time after the end of its
work in which it may begin further work: a comparison runs stages, and then its trials."""
FAILURES = {"failed", "restarted", "retried", "node lost"}
ENDED = {"done": "done", "failed": "failed", "interrupted": "interrupted"}


@dataclass(frozen=True)
class StageStatus:
    """A stage of a run.

    Attributes:
        name: of the stage, with that of its arm.
        is_finished: whether it has a result that counts.
        seconds: what it has taken so far, with attempts that were interrupted or failed.
        is_begun: whether the last process has begun it, and has not ended it.
        trials: of a comparison, how many are finished, and how many it has asked for.
        other_inputs: earlier stages that have been done again since its result was made of theirs.
    """

    name: str
    is_finished: bool
    seconds: float
    is_begun: bool = False
    trials: tuple[int, int] | None = None
    other_inputs: Sequence[str] = ()


@dataclass(frozen=True)
class Status:
    """A run at one moment.

    Attributes:
        run: its folder.
        phase: `running`, `done`, `failed`, `interrupted`, `dead` (no sign of life, or known to be
            gone), or `idle` (no process has kept logs here).
        process: host, process, command and version of the last process, how many seconds ago it
            gave a sign of life, and whether it is gone, as far as that can be seen from here.
        progress: of the step that it does.
        stages: what is finished and what it cost, and what is to do; a comparison is the last.
        failures: what failed, was tried again or was lost, oldest first. A stage that failed is
            left out once a later process has done it.
        extensions: name, number of new rows, and whether it is finished, of each that has rows
            prepared, in order.
        report: where its page is; None before there is one.
    """

    run: str
    phase: str
    process: Mapping[str, Any]
    progress: Mapping[str, Any]
    stages: Sequence[StageStatus]
    failures: Sequence[Mapping[str, Any]]
    extensions: Sequence[Mapping[str, Any]] = ()
    report: str | None = None

    @property
    def seconds(self) -> float:
        """Return what all stages have taken so far."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def is_over(self) -> bool:
        """Tell whether nothing more is to come."""
        ended = self.phase in ENDED.values()
        return self.phase != "running" and not (
            ended and self.process["seconds_since_sign"] < SECONDS_TO_GO_ON
        )

    def as_json(self) -> dict[str, Any]:
        """Return all of it as values of JSON."""
        return {**asdict(self), "seconds": round(self.seconds, 1)}

    def lines(self) -> Iterator[str]:
        """Yield what a person reads."""
        yield f"{self.run}: {self._phase()}"
        for stage in self.stages:
            is_now = self.progress.get("stage") == stage.name
            text = duration(stage.seconds) if stage.seconds else ""
            what = "done" if stage.is_finished else "begun" if stage.seconds else "to do"
            if stage.is_begun and self.phase == "running":
                what = "running"
            if is_now and self.phase == "running":
                text = f"{text:<11}{_state(self.progress).text()}"
            elif stage.other_inputs and what != "running":
                what, text = (
                    "outdated",
                    f"{text:<11}its result is of another {stage.other_inputs[0]}",
                )
            elif stage.trials is not None:
                text = f"{text:<11}{stage.trials[0]:,} of {stage.trials[1]:,} trials"
            yield f"  {label_column(stage.name)}{what:<9}{text}".rstrip()
        if self.progress and self.progress["stage"] not in {stage.name for stage in self.stages}:
            yield _state(self.progress).line()
        if self.extensions:
            yield self._extensions()
        if self.report:
            yield f"report: {self.report}"
        yield f"time of the stages so far: {duration(self.seconds)}"
        kinds = Counter(str(failure["event"]) for failure in self.failures)
        text = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        yield f"failures so far: {text or 'none'}"
        for failure in self.failures[-3:]:
            yield f"  {failure['time']} {_failure(failure)}"

    def _extensions(self) -> str:
        rows = sum(item["rows"] for item in self.extensions)
        unfinished = [item["name"] for item in self.extensions if not item["is_finished"]]
        left = f"; not finished: {first(unfinished)}" if unfinished else ""
        return f"extensions: {len(self.extensions):,}, new rows in them: {rows:,}{left}"

    def _phase(self) -> str:
        if not self.process:
            return "no process has kept logs here"
        where = f"process {self.process['process']} on {self.process['host']}"
        ago = f"{self.process['seconds_since_sign']:.0f} s ago"
        if self.phase == "dead" and self.process["is_gone"]:
            return f"{where} was killed: its last sign of life came {ago}"
        if self.phase == "dead":
            return f"{where} seems dead: its last sign of life came {ago}"
        return f"{self.phase} ({where}, last sign of life {ago})"


def status(path: str) -> Status:
    """Return where a run is.

    Raises:
        StorageError: there is no run.
    """
    run = Location.of(path)
    if not run.names():
        raise StorageError(f"{run} is empty, or is not there: name the directory of a run.")
    check_run(run)
    events, now = journal.read(run), journal.read_now(run)
    gone = _is_gone(now)
    if gone and "ended" not in (now or {}):  # it may have said so since
        events, now = journal.read(run), journal.read_now(run)
        gone = _is_gone(now)
    process = {} if now is None else {**now, "seconds_since_sign": _age(now), "is_gone": gone}
    process.pop("birth", None)
    progress = process.pop("progress", {})
    return Status(
        str(run),
        _phase(process),
        process,
        progress,
        list(_stages(run, Spent.of(events, now))),
        _failures(events),
        list(_extensions(run)),
        str(run / REPORT.results["report"][0]) if REPORT.directory(run).manifest() else None,
    )


def _is_gone(now: Mapping[str, Any] | None) -> bool:
    return now is not None and is_gone(now["process"], now.get("birth") or "")


def _failures(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return what failed, without stages that a later process has done, in whichever extension."""
    found: list[Mapping[str, Any]] = []
    done: set[str] = set()
    for event in reversed(events):
        name = str(event.get("stage", "")).partition(" (")[0]
        if event["event"] == "end":
            done.add(name)
        elif event["event"] in FAILURES and not (event["event"] == "failed" and name in done):
            found.append(event)
    return found[::-1]


def _age(now: Mapping[str, Any]) -> float:
    return round(max(time.time() - now["time"], 0.0), 1)


def _phase(process: Mapping[str, Any]) -> str:
    if not process:
        return "idle"
    if "ended" in process:
        return ENDED[process["ended"]]
    is_silent = process["seconds_since_sign"] > SECONDS_WITHOUT_SIGN
    return "dead" if is_silent or process["is_gone"] else "running"


def _stages(run: Location, spent: "Spent") -> Iterator[StageStatus]:
    """Yield the stages that are finished or begun, and those that the configuration asks for."""
    finished = finished_stages(run, STAGES)
    outdated = outdated_stages(run, STAGES, finished)
    names = dict.fromkeys([*_asked_for(run), *finished, *outdated])
    for name in names:
        done = finished.get(name)
        # Logs may be missing: then what the manifest says is all that is known.
        seconds = max(spent.seconds.get(name, 0.0), done.manifest.seconds if done else 0.0)
        is_begun, others = name in spent.begun, outdated.get(name, ())
        yield StageStatus(name, done is not None, round(seconds, 1), is_begun, other_inputs=others)
    trials = records.counts(run)
    if trials is not None:
        name = records.FOLDER
        seconds = round(spent.seconds.get(name, 0.0), 1)
        yield StageStatus(name, trials[0] == trials[1], seconds, name in spent.begun, trials)


def _extensions(run: Location) -> Iterator[dict[str, Any]]:
    for extension in list_prepared(run):
        rows = (extension.summary(PREPARED) or {"kept": 0})["kept"]
        is_finished = extension.is_empty or extension.manifest(CLUSTERED) is not None
        yield {"name": extension.name, "rows": rows, "is_finished": is_finished}


def _asked_for(run: Location) -> list[str]:
    stored = run / CONFIG
    if not stored.is_file():
        return []
    config = from_tree(stored.read_json(), str(stored))
    return [stage.name for stage in STAGES if stage.section and stage.is_wanted(config)]


@dataclass(frozen=True)
class Spent:
    """The time that the steps of a run have taken.

    Attributes:
        seconds: of each step, over all its attempts.
        begun: the steps that the last process has begun and not ended.
    """

    seconds: Mapping[str, float]
    begun: Collection[str]

    @classmethod
    def of(
        cls, events: Sequence[Mapping[str, Any]], sign: Mapping[str, Any] | None = None
    ) -> "Spent":
        """Return the time by the events of a run, and by the last sign of life of its process.

        Both are times of the clock of the machine that wrote them, so that the clock of the reader
        matters to none of them. An attempt of a process that was killed lasted, as far as is known,
        to its last event or sign of life.
        """
        spent: Counter[str] = Counter()
        begun: dict[str, datetime] = {}
        last: datetime | None = None
        for event in events:
            if event["event"] == "process" and last is not None:
                spent.update(_until(last, begun))
                begun = {}
            last = datetime.fromisoformat(event["time"])
            if event["event"] == "begin":
                begun[event["stage"]] = last
            elif event["event"] in ("end", "failed", "interrupted") and "stage" in event:
                begun.pop(event["stage"], None)
                spent[event["stage"]] += event["seconds"]
        if last is not None:
            if sign is not None:
                last = max(last, datetime.fromtimestamp(sign["time"], UTC))
            spent.update(_until(last, begun))
        return cls(dict(spent), set(begun))


def _until(end: datetime, begun: Mapping[str, datetime]) -> dict[str, float]:
    return {name: (end - start).total_seconds() for name, start in begun.items()}


def _state(progress: Mapping[str, Any]) -> State:
    known = {field.name for field in fields(State)}  # a newer version may write more
    values = {key: value for key, value in progress.items() if key in known}
    workers = values.pop("workers", None)
    return State(**values, workers=None if workers is None else (workers[0], workers[1]))


def _failure(failure: Mapping[str, Any]) -> str:
    known = [str(failure[key]) for key in ("stage", "unit", "node", "step") if key in failure]
    cause = failure.get("error", failure.get("text", ""))
    return " ".join([str(failure["event"]), *known, f"({cause[:200]})" if cause else ""]).rstrip()
