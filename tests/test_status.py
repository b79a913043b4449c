"""`s2l status`: where a run is, from its folder alone."""

import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from s2l_ray import cli, status
from s2l_ray.artifacts import extensions
from s2l_ray.artifacts.finished import outdated_note
from s2l_ray.artifacts.manifest import open_run
from s2l_ray.comparison import records
from s2l_ray.monitoring import births, journal
from s2l_ray.progress import Progress
from s2l_ray.report.declaration import REPORT
from s2l_ray.storage.location import Location
from tests.clock import Clock

NOW = 1_796_040_000.0


@pytest.fixture(autouse=True)
def clock(monkeypatch) -> None:
    """The clock of whoever asks: it stands still."""
    stopped = Clock()
    stopped.now = NOW
    monkeypatch.setattr(status, "time", stopped)


@pytest.fixture
def run(tmp_path) -> Path:
    """A run that has prepared its rows, and was killed at the 3rd of 80 steps of its reference."""
    folder = Location.of(tmp_path / "run")
    open_run(folder)
    tree = {"run_dir": str(folder), "data": {"train": ["pool.jsonl"]}}
    tree["reference"] = {"model": "small"}
    (folder / "config.json").write_json(tree)
    prepared = status.STAGES[0].directory(folder)
    prepared.finish({"rows": 3}, 12.5)
    step = Progress("reference")
    step.start(80, "steps")
    step.update(3, tokens=30, note="loss 5.1")
    events = [
        happened(7200, "process"),
        happened(7199, "begin", stage="reference"),
        happened(7139, "progress", stage="reference"),
        happened(100, "process"),
        happened(100, "begin", stage="reference"),
        happened(95, "restarted", stage="reference", step=2),
    ]
    (tmp_path / "run" / "logs").mkdir()
    (tmp_path / "run" / "logs" / journal.EVENTS).write_text("\n".join(map(json.dumps, events)))
    sign(tmp_path / "run", 15.0, progress=step.state().as_json())
    return tmp_path / "run"


def happened(seconds_ago: float, event: str, **more: object) -> dict[str, object]:
    time_of_it = datetime.fromtimestamp(NOW - seconds_ago, UTC)
    return {"time": time_of_it.isoformat(), "event": event, **more}


def sign(run: Path, seconds_ago: float, **more: object) -> None:
    now = {"time": NOW - seconds_ago, "process": 17, "host": "node-1", **more}
    (run / "logs" / journal.NOW).write_text(json.dumps(now))


def test_a_running_run_shows_stage_progress_cost_and_failures(run, capsys):
    assert cli.main(["status", str(run)]) == 0

    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith(f"{run}: running (process 17 on node-1, last sign of life ")
    assert lines[1] == "prepare done 0:12"
    assert lines[2].startswith("reference running 2:25 3 of 80 steps")
    assert lines[2].endswith("loss 5.1")
    assert lines[3] == "time of the stages so far: 2:38"
    assert lines[4] == "failures so far: 1 restarted"
    assert lines[5].endswith("restarted reference 2")


def test_extensions_and_the_report_are_named(run, capsys):
    folder = Location.of(run)
    REPORT.directory(folder).finish({}, 1.0)
    for number, kept, stages in ((1, 5, ("prepare", "clusters")), (2, 7, ("prepare",))):
        extension = extensions.Extension(folder, number, (f"{number:016x}",))
        for stage in status.STAGES:
            if stage.name in stages:
                found = stage.directory(extension.location, {"data": [f"{number:016x}"]})
                found.finish({"kept": kept, "strata": {}}, 1.0)

    assert cli.main(["status", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    name = extensions.Extension(folder, 2, (f"{2:016x}",)).name
    assert lines[3] == f"extensions: 2, new rows in them: 12; not finished: {name}"
    assert lines[4] == f"report: {run}/report/index.html"


def test_a_process_of_this_machine_that_was_killed_is_known_at_once(run, capsys):
    script = "import time; print(flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline()
    own = {"process": child.pid, "birth": births.birth(child.pid)}
    try:
        sign(run, 1.0, **own)
        assert status.status(str(run)).phase == "running"
    finally:
        child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert status.status(str(run)).phase == "dead", "its parent has not looked at it yet"
    child.wait()

    assert cli.main(["status", str(run)]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert f"process {child.pid} on node-1 was killed: its last sign of life came 1 s ago" in first


def test_a_process_that_ends_well_while_it_is_asked_about_was_not_killed(run, monkeypatch):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    own = {"process": child.pid, "birth": births.birth(child.pid)}
    sign(run, 1.0, **own)

    class EndsWell(Clock):
        def time(self) -> float:
            if child.poll() is None:
                sign(run, 0.0, **own, ended="done")
                child.communicate(b"\n")
            return NOW

    monkeypatch.setattr(status, "time", EndsWell())
    assert status.status(str(run)).phase == "running", "so it was when it was looked at"
    assert status.status(str(run)).phase == "done"


OF_ROOT = """
import os, sys
from pathlib import Path
from s2l_ray.monitoring import births
births._PROC = Path(sys.argv[1])
if os.getuid() == 0:
    os.setuid(65534)
known = births._place() + " 7"
print(births.is_gone(1, known), births.is_gone(int(sys.argv[2]), known))
"""


@pytest.mark.skipif(
    Path("/proc/1").stat().st_uid != 0, reason="the first process here is not one of root"
)
def test_a_process_of_another_user_that_proc_does_not_show_may_be_there():
    """As /proc is with hidepid=2: the folders of other users' processes are not to be seen."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with tempfile.TemporaryDirectory() as name:  # below `tmp_path` other users may read nothing
        proc = Path(name)
        proc.chmod(0o755)
        (proc / "sys" / "kernel" / "random").mkdir(parents=True)
        (proc / "sys" / "kernel" / "random" / "boot_id").write_text("boot")
        (proc / "self" / "ns").mkdir(parents=True)
        (proc / "self" / "ns" / "pid").symlink_to("pid:[1]")

        command = [sys.executable, "-c", OF_ROOT, name, str(ended.pid)]
        said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert said.stdout == "False True\n"


@pytest.mark.parametrize("change", [lambda own: f"0{own}", lambda own: f"{own}0", lambda own: None])
def test_a_number_that_another_process_has_is_not_the_process(run, change):
    own = births.birth(os.getpid())
    sign(run, 1.0, process=os.getpid(), birth=change(own))

    is_other_process_here = (change(own) or "").startswith(own)
    assert status.status(str(run)).phase == ("dead" if is_other_process_here else "running")


def test_a_result_of_another_subset_is_said_to_be_one(run, capsys):
    folder = Location.of(run)
    target = finish(folder, "target", 65.0, selection="0" * 16)
    finish(folder, "selection", 1.0, budget=7)
    finish(folder, "evaluation", 3.0, target=target)

    lines = [" ".join(line.split()) for line in status.status(str(run)).lines()]

    assert "selection done 0:01" in lines
    assert "target outdated its result is of another selection" in lines
    assert "evaluation outdated its result is of another target" in lines
    assert outdated_note(folder, status.STAGES) == (
        "target is of another selection, evaluation is of another target, and stays until it is "
        "done again"
    )


def finish(run: Location, name: str, seconds: float, **inputs: object) -> str:
    """Finish a stage with these inputs; its fingerprint."""
    (stage,) = (stage for stage in status.STAGES if stage.name == name)
    return stage.directory(run, inputs).finish({}, seconds).fingerprint


def test_a_stage_that_failed_and_was_done_later_is_no_failure(run):
    events = [
        happened(90, "process"),
        happened(80, "failed", stage="prepare (001-0123456789abcdef)", seconds=1.0, error="no"),
        happened(79, "failed", stage="target", seconds=1.0, error="no"),
        happened(70, "process"),
        happened(60, "retried", stage="trajectories", error="no"),
        happened(50, "end", stage="prepare (001-fedcba9876543210)", seconds=1.0),
        happened(40, "failed", stage="clusters", seconds=1.0, error="no"),
    ]
    with (run / "logs" / journal.EVENTS).open("a") as file:
        file.write("".join(f"\n{json.dumps(event)}" for event in events))

    found = status.status(str(run)).failures
    assert [(event["event"], event["stage"]) for event in found] == [
        ("restarted", "reference"),
        ("failed", "target"),
        ("retried", "trajectories"),
        ("failed", "clusters"),
    ]


def test_what_a_newer_version_has_written_is_passed_over(run, capsys):
    progress = {"stage": "reference", "seconds": 3.0, "done": 5, "of_a_newer_version": 1}
    sign(run, 3.0, progress=progress)

    assert cli.main(["status", str(run)]) == 0
    assert "5 rows" in capsys.readouterr().out


def test_json_has_the_same(run, capsys):
    assert cli.main(["status", str(run), "--json"]) == 0

    now = json.loads(capsys.readouterr().out)
    assert now["phase"] == "running" and now["progress"]["done"] == 3
    assert [(stage["name"], stage["is_finished"]) for stage in now["stages"]] == [
        ("prepare", True),
        ("reference", False),
    ]
    assert now["seconds"] == 157.5


def test_attempts_of_killed_processes_count_up_to_their_last_event(run):
    spent = status.Spent.of(journal.read(Location.of(run)))

    assert spent.seconds == {"reference": pytest.approx(65.0, abs=0.01)}


@pytest.mark.parametrize(("seconds_ago", "seconds"), [(15, 145), (5, 155), (80, 80), (7000, 65)])
def test_a_step_lasts_to_the_last_sign_of_life_and_not_to_the_clock_of_the_reader(
    run, seconds_ago, seconds
):
    """The process that is dead gave its last sign 80 seconds ago; a sign may be of another."""
    sign(run, seconds_ago)

    (reference,) = [stage for stage in status.status(str(run)).stages if stage.is_begun]
    assert reference.seconds == pytest.approx(seconds, abs=0.2)


def compared(run: Path, done: int = 2) -> None:
    """Five trials, of which some are finished, and another is begun."""
    names = [f"trial-{number}" for number in range(5)]
    folder = Location.of(run) / "comparison"
    records.ask(folder, [*names, names[0]])
    for name in names[:done]:
        (folder / "trials" / name / "result.json").write_json({})
    (folder / "trials" / "of-an-earlier-comparison" / "result.json").write_json({})
    (folder / "trials" / names[-1] / "resume" / "state").write_bytes(b"")


@pytest.mark.parametrize("how", ["running", "killed", "interrupted"])
def test_trials_of_a_comparison_are_counted(run, capsys, how):
    compared(run)
    log = run / "logs" / journal.EVENTS
    end = [happened(30, "interrupted", stage="comparison", seconds=60.0)]
    events = [happened(90, "begin", stage="comparison"), *(end if how == "interrupted" else [])]
    log.write_text("\n".join(map(json.dumps, [happened(90, "process"), *events])))
    sign(run, 70 if how == "killed" else 30, **({"ended": how} if how == "interrupted" else {}))

    assert cli.main(["status", str(run)]) == 0

    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    (line,) = [line for line in lines if line.startswith("comparison")]
    expected = {"running": "running 1:00", "killed": "begun 0:20", "interrupted": "begun 1:00"}
    assert line == f"comparison {expected[how]} 2 of 5 trials"
    stage = status.status(str(run)).as_json()["stages"][-1]
    assert (stage["trials"], stage["is_finished"]) == ((2, 5), False)


def test_a_comparison_whose_trials_are_all_there_is_done(run, capsys):
    compared(run, done=5)

    assert cli.main(["status", str(run)]) == 0
    assert "comparison done 5 of 5 trials" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("seconds_ago", "more", "phase"),
    [
        (59, {}, "running"),
        (70, {}, "dead"),
        (7000, {"ended": "done"}, "done"),
        (7000, {"ended": "interrupted"}, "interrupted"),
        (1, {"ended": "failed"}, "failed"),
    ],
)
def test_a_process_without_a_sign_of_life_seems_dead_unless_it_has_ended(
    run, seconds_ago, more, phase
):
    sign(run, seconds_ago, **more)

    now = status.status(str(run))
    assert now.phase == phase
    assert ("seems dead" in next(now.lines())) == (phase == "dead")


def test_a_run_without_logs_shows_what_is_finished(run, capsys):
    for file in (run / "logs").iterdir():
        file.unlink()

    assert cli.main(["status", str(run)]) == 0
    out = capsys.readouterr().out
    assert "no process has kept logs here" in out and "0:12" in out and "to do" in out


@pytest.mark.parametrize("content", ["nothing", "other files"])
def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys, content):
    if content == "other files":
        (tmp_path / "notes.txt").write_text("mine")

    assert cli.main(["status", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"s2l: {tmp_path} is ")


def test_watching_ends_with_the_process(run, capsys):
    sign(run, 10.0, ended="done")

    assert cli.main(["status", str(run), "--watch"]) == 0
    assert capsys.readouterr().out.count("prepare") == 1


@pytest.mark.parametrize(("seconds_ago", "is_over"), [(1.0, False), (10.0, True)])
def test_a_process_that_has_just_ended_its_work_may_go_on(run, seconds_ago, is_over):
    sign(run, seconds_ago, ended="done")

    assert status.status(str(run)).is_over == is_over


def test_status_takes_neither_torch_nor_ray(run):
    code = (
        f"import sys; from s2l_ray import cli; code = cli.main(['status', {str(run)!r}])\n"
        "heavy = {'torch', 'ray', 'transformers', 'numba', 'vl_convert', 'datasets', 'pandas'}\n"
        "sys.exit(code or ' '.join(sorted(heavy & sys.modules.keys())) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
