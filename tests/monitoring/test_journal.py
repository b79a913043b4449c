"""The logs of a run: what is in them, and what they may never do."""

import json
from pathlib import Path

import pytest

from s2l_ray import events
from s2l_ray.monitoring import journal
from s2l_ray.progress import Progress
from s2l_ray.storage import small_files
from s2l_ray.storage.location import Location


def log(run: Path, name: str = journal.EVENTS) -> list[dict]:
    return [json.loads(line) for line in (run / "logs" / name).read_text().splitlines()]


def test_events_metrics_and_lines_are_in_logs_of_their_own(tmp_path):
    with journal.kept(Location.of(tmp_path)), Progress("reference"):
        events.tell("line", text="hello")
        events.tell("metrics", stage="reference", step=1, loss_nats=2.5)

    kinds = [event["event"] for event in log(tmp_path)]
    assert kinds == ["process", "begin", "end", "ended"]
    (metrics,) = log(tmp_path, journal.METRICS)
    assert metrics.pop("time") and metrics == {"stage": "reference", "step": 1, "loss_nats": 2.5}
    (line,) = (tmp_path / "logs" / journal.LINES).read_text().splitlines()
    assert line.endswith(" hello")


def test_a_second_process_goes_on_where_the_first_one_ended(tmp_path):
    for stage in ("prepare", "reference"):
        with journal.kept(Location.of(tmp_path)), Progress(stage):
            pass

    assert [e["stage"] for e in log(tmp_path) if e["event"] == "begin"] == ["prepare", "reference"]


def test_without_work_nothing_is_written(tmp_path):
    with journal.kept(Location.of(tmp_path)):
        events.tell("line", text="nothing to do")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "how"),
    [(None, "done"), (ValueError("bad row"), "failed"), (KeyboardInterrupt(), "interrupted")],
)
def test_the_last_sign_of_life_says_how_the_process_ended(tmp_path, error, how):
    try:
        with journal.kept(Location.of(tmp_path)), Progress("prepare"):
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt):
        pass

    now = journal.read_now(Location.of(tmp_path))
    assert now is not None and now["ended"] == how
    texts = [event["text"] for event in log(tmp_path) if event["event"] == "error"]
    assert texts == (["bad row"] if how == "failed" else [])


def test_a_beat_after_the_end_still_says_how_it_ended(tmp_path):
    kept = journal._Journal(Location.of(tmp_path / "logs"), [])
    with events.heard_by(kept.hear), Progress("prepare"):
        kept.close("done")
        kept._write()

    now = journal.read_now(Location.of(tmp_path))
    assert now is not None and now["ended"] == "done"


def test_a_sign_of_life_is_the_last_one_also_where_manifests_are_read_once(tmp_path):
    run = Location.of(tmp_path)
    with small_files.read_once(run):
        assert journal.read_now(run) is None
        for time in (1, 2):
            (run / journal.FOLDER / journal.NOW).write_json({"time": time})
            assert journal.read_now(run) == {"time": time}


def test_a_name_that_is_no_unicode_is_written_escaped(tmp_path):
    name = "caf\udce9.yaml"
    with journal.kept(Location.of(tmp_path)), Progress("prepare"):
        events.tell("line", text=name)
        events.tell("retried", error=name)

    assert "caf\\udce9.yaml" in (tmp_path / "logs" / journal.LINES).read_text()
    assert name in [event.get("error") for event in log(tmp_path)]


@pytest.mark.parametrize("secret", ["hf_abcdefghijk", 'pass"word\\1', "two\nlines"])
def test_secrets_are_never_written(tmp_path, secret):
    with journal.kept(Location.of(tmp_path), [secret]), Progress(f"stage {secret}"):
        events.tell("line", text=f"downloading with {secret}")
        events.tell("metrics", stage=secret)

    written = [path.read_text() for path in (tmp_path / "logs").iterdir()]
    assert len(written) == 4
    forms = (secret, json.dumps(secret)[1:-1])
    assert not any(form in text for text in written for form in forms)
    assert any("downloading with [secret]" in text for text in written)


def test_logs_that_cannot_be_written_are_said_once_and_stop_nothing(tmp_path):
    (tmp_path / "logs").write_text("a file where the folder should be")
    told: list[events.Event] = []
    kept = journal._Journal(Location.of(tmp_path / "logs"), [])
    with events.heard_by(told.append), events.heard_by(kept.hear), Progress("prepare"):
        for _ in range(3):
            events.tell("line", text="hello")
            kept.close("done")

    (notice,) = [event["text"] for event in told if event["event"] == "notice"]
    assert "the logs cannot be written; no result depends on them" in notice and "logs" in notice
    assert "run_dir" not in notice  # the remedy of a run that has ended


def test_on_a_store_a_log_is_numbered_objects_that_go_on_in_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "MAX_BYTES_OF_OBJECT", 10)
    run = Location.of(tmp_path)
    for texts in (['{"n": 1}\n', '{"n": 2}\n', '{"n": 3}\n'], ['{"n": 4}\n']):
        objects = journal._Objects(run / "logs", journal.EVENTS)
        for text in texts:
            objects.append(text)

    names = (run / "logs").names()
    assert names == ["events-000000.jsonl", "events-000001.jsonl", "events-000002.jsonl"]
    assert [record["n"] for record in journal.read(run)] == [1, 2, 3, 4]


def test_a_line_that_a_killed_process_left_is_passed_over(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / journal.EVENTS).write_text('{"event": "begin"}\n{"event": "en')

    assert journal.read(Location.of(tmp_path)) == [{"event": "begin"}]
