"""The commands, up to where Ray would start: what is refused, how it is said, what is left."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest

from s2l_ray import cli
from s2l_ray.artifacts.manifest import RUN_MARK
from s2l_ray.stages import NAMES
from tests.command_line import refused, tree_of, working_directory

ROOT = Path(__file__).parents[1]
DATA = "data={train: [train.jsonl], eval: {held: held.jsonl},"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    return working_directory(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("selection.bugdet=5", "selection.bugdet: unknown key; did you mean 'budget'?"),
        ("evalution.sets=[held]", "evalution: unknown key; did you mean 'evaluation'?"),
        ("reference.epochs=three", "reference.epochs: "),
        ("reference.epochs=.inf", "reference.epochs: "),
        ("seed=1.5", "seed: "),
        ("seed=18446744073709551616", "seed: "),
        ("selection.budget=0", "selection: a budget must be above zero, not 0"),
        ("selection.budget=-3", "selection: a budget must be above zero, not -3"),
        ("selection.budget=1.5", "fraction of the pool up to 1.0, not 1.5"),
        ("selection.budget=.nan", "selection.budget: "),
        ("evaluation.sets=[gsm8k]", "evaluation.sets: 'gsm8k' is not a set of `data.eval`"),
        ("data.train=[gone.jsonl]", "data.train: "),
        (
            "data.train=['gone-*.jsonl']",
            "gone-*.jsonl matches no file. Relative paths start at the current directory.",
        ),
        ("data.train=[empty]", "empty matches no file"),
        ("data.train=[notes.txt]", "a suffix that cannot be read"),
        ("data.train=[train.jsonl, '*.jsonl']", "1 of 3 files are named more than once"),
        ("data.eval.held=gone.jsonl", "data.eval.held: "),
        ("data.template=alpacca", "'alpacca' is neither a template nor a file"),
        ("data.template=notes.txt", "notes.txt does not contain {prompt}"),
        (f"{DATA} template: alpaca, fields: {{messages: m}}}}", "data.template: chat"),
        (f"{DATA} template: alpaca, chat_template: chatml}}", "chat_template has no effect"),
        (f"{DATA} chat_template: gone}}", "'gone' is neither chatml nor a file"),
        (f"{DATA} chat_template: notes.txt}}", "does not contain `messages`"),
        ("trajectories.path=gone/*.parquet", "reference: nothing is trained or scored beside"),
        ("reference={path: empty}", "reference.path: no step-* or checkpoint-* directories"),
        ("reference={path: gone}", "reference.path: no step-* or checkpoint-* directories"),
        ("reference.path=empty", "reference: give either `model`"),
        ("selection.budget", "expected KEY=VALUE"),
        ("=5", "expected KEY=VALUE"),
        ("selection.budget.x=5", "budget is not a section"),
        ("seed=[1", "--set seed is not YAML"),
        ("tracking.to=[wandb]", 'Run `pip install "s2l-ray[wandb]"`, or leave it out'),
    ],
)
def test_a_wrong_value_is_named_and_leaves_nothing(folder, capsys, override, message):
    before = tree_of(folder)

    assert message in refused(capsys, "run", "run.yaml", "--set", override)

    assert tree_of(folder) == before


def test_existing_checkpoints_are_looked_for_whatever_the_tokenizer(folder, capsys):
    overrides = ("--set", "reference={path: empty}", "--set", "data.tokenizer=gpt2")
    assert "reference.path: no step-*" in refused(capsys, "run", "run.yaml", *overrides)
    assert not (folder / "out").exists()


def test_all_wrong_keys_are_listed_in_one_message(capsys):
    overrides = ("--set", "sed=1", "--set", "clusters.num_cluster=5")
    message = refused(capsys, "plan", "run.yaml", *overrides)
    assert "did you mean 'seed'?" in message and "did you mean 'num_clusters'?" in message


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the configuration"),
        (b"run_dir: [", "is not YAML"),
        (b"- a list", "holds no configuration"),
        (b"", "holds no configuration"),
        (b"\xff\xfe\x00", "cannot read the configuration"),
        (b"run_dir: !!python/object/apply:os.getcwd []", "is not YAML"),
        (b"seed: 1", "run_dir: "),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(folder, capsys, command, content, message):
    if content is not None:
        Path("broken.yaml").write_bytes(content)
    assert message in refused(capsys, command, "broken.yaml")


def test_a_directory_of_something_else_is_left_as_it_is(folder, capsys):
    thesis = folder / "thesis"
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("mine")

    message = refused(capsys, "run", "run.yaml", "--set", f"run_dir={thesis}")

    assert f"{thesis} is not a run of s2l_ray" in message and "chapter.txt" in message
    assert tree_of(thesis) == ["chapter.txt"]


@pytest.mark.parametrize("run_dir", ["/proc/s2l-run", "notes.txt", "notes.txt/run"])
def test_a_run_dir_that_cannot_be_written_is_refused(capsys, run_dir):
    message = refused(capsys, "run", "run.yaml", "--set", f"run_dir={run_dir}")
    assert "cannot" in message and run_dir in message
    assert Path("notes.txt").read_text() == "no rows"


def test_a_run_dir_in_use_is_left_to_its_run(folder, capsys):
    (folder / "out").mkdir()
    (folder / "out" / RUN_MARK).write_text("{}")
    before = tree_of(folder)
    with (folder / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        message = refused(capsys, "run", "run.yaml")
    assert "out is in use by another run" in message and "another run_dir" in message
    assert set(tree_of(folder)) - set(before) == {"out/.lock"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no config.json"),
        ({"config.json": "{}"}, "has no model.safetensors"),
        ({"config.json": "{}", "pytorch_model.bin": "x"}, "pickled weights only"),
        ({"config.json": "{}", "model.safetensors": "x"}, "model.safetensors is cut short"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("section", ["reference", "target"])
def test_a_model_directory_is_looked_into_before_any_work(folder, capsys, files, message, section):
    (folder / "model").mkdir()
    for name, content in files.items():
        (folder / "model" / name).write_text(content)
    before = tree_of(folder)

    said = refused(capsys, "run", "run.yaml", "--set", f"{section}.model=model")

    assert message in said and "model" in said
    assert tree_of(folder) == before


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("run_dir=runs/x", "run_dir: 'runs/x' is relative"),
        ("data.train=[train.jsonl]", "data.train: 'train.jsonl' is relative"),
        ("data.eval.held=held.jsonl", "data.eval: 'held.jsonl' is relative"),
        ("reference={path: checkpoints}", "reference.path: 'checkpoints' is relative"),
        (
            "reference=null, trajectories.path=t/*.parquet",
            "trajectories.path: 't/*.parquet' is relative",
        ),
        (
            "trajectories={embeddings: true, queries: q.jsonl}",
            "trajectories.queries: 'q.jsonl' is relative",
        ),
    ],
)
@pytest.mark.parametrize("by_environment", [False, True])
def test_a_joined_cluster_gets_no_relative_path(
    folder, capsys, monkeypatch, override, key, by_environment
):
    before = tree_of(folder)
    first, _, second = override.rpartition("null, ")
    overrides = [f"{first}null", second] if first else [override]
    arguments = ["run", "run.yaml", *(word for item in overrides for word in ("--set", item))]
    if by_environment:
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    else:
        arguments += ["--address", "127.0.0.1:1"]

    message = refused(capsys, *arguments)

    assert key in message and "absolute path on shared storage" in message
    assert tree_of(folder) == before


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (("out", "s3://bucket/new.jsonl"), "RUN_DIR: 'out' is relative"),
        (("s3://bucket/run", "/new.jsonl", "new.jsonl"), "DATA: 'new.jsonl' is relative"),
    ],
)
def test_a_joined_cluster_gets_no_relative_path_to_extend_either(folder, capsys, arguments, key):
    before = tree_of(folder)
    assert key in refused(capsys, "extend", *arguments, "--address", "127.0.0.1:1")
    assert tree_of(folder) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "run.yaml", "--from", "scoring"),
        ("run", "run.yaml", "--until", "scoring"),
        ("select", "out", "--budget", "1", "--method", "best"),
        ("select", "out", "--budget", "1", "--within", "best"),
        ("select", "out"),
        ("select", "out", "--budget", "1", "--seed", "x"),
        ("run",),
        ("train", "run.yaml"),
        (),
    ],
)
def test_a_command_line_that_is_not_understood_is_refused(folder, capsys, arguments):
    before = tree_of(folder)
    assert "error: " in refused(capsys, *arguments)
    assert tree_of(folder) == before


def test_an_unknown_stage_is_answered_with_the_stages(capsys):
    message = refused(capsys, "run", "run.yaml", "--from", "scoring")
    assert all(stage in message for stage in NAMES)


def test_plan_shows_what_would_be_done_and_leaves_nothing(folder, capsys):
    before = tree_of(folder)
    assert cli.main(["plan", "run.yaml"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n{stage} " in shown for stage in NAMES)
    assert shown.count("to do") == len(NAMES) and "3 rows" in shown
    assert "FLOPs unknown: not on this machine" in shown and "small and large" in shown
    assert tree_of(folder) == before


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("-3", "--tflops -3: give the speed of one worker"),
        ("0", "--tflops 0: give the speed"),
        ("inf", "--tflops inf: give the speed"),
        ("fast", "Invalid value for '--tflops': Input should be a valid number"),
    ],
)
def test_a_speed_that_means_nothing_is_refused_by_plan(capsys, value, message):
    assert message in refused(capsys, "plan", "run.yaml", f"--tflops={value}")


def test_the_module_is_the_same_program():
    done = subprocess.run(
        [sys.executable, "-m", "s2l_ray", "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert done.stdout == f"s2l_ray {project['version']}\n"


def test_a_reader_that_has_seen_enough_gets_no_traceback(folder):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "s2l_ray", "plan", str(folder / "run.yaml")],
        cwd=ROOT,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert done.returncode == 1 and "Traceback" not in done.stderr


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(capsys):
    os.mkfifo("endless.yaml")  # reading it waits for whoever writes it

    def interrupt():
        with open("endless.yaml", "wb"):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    # A process that a shell started in the background ignores the signal from its birth.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    code = cli.main(["plan", "endless.yaml"])
    thread.join()
    signal.signal(signal.SIGINT, before)

    assert code == 130
    assert (
        capsys.readouterr().err
        == "\ns2l: interrupted; the same command goes on from what is saved\n"
    )
