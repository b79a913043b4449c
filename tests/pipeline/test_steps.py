"""The fingerprint of a step changes with its inputs, and with nothing else."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from s2l_ray.errors import DataError, UserError
from s2l_ray.stages import NAMES as STAGES
from s2l_ray.storage.location import Location
from tests import handmade
from tests.handmade import changed, planned

AFTER = {stage: list(STAGES[place:]) for place, stage in enumerate(STAGES)}


@pytest.fixture
def tree(tmp_path):
    return handmade.inputs(tmp_path)


def fingerprints(tree) -> dict[str, str]:
    return {step.label: step.out.fingerprint for step in planned(tree)}


def different(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return [label for label in after if before.get(label) != after[label]]


@pytest.mark.parametrize(
    ("key", "value", "stages"),
    [
        ("data.max_tokens", 64, AFTER["prepare"]),
        ("data.rows_per_part", 7, AFTER["prepare"]),
        ("data.fields", {"prompt": "output"}, AFTER["prepare"]),
        ("data.fields", {"answer": "final"}, AFTER["evaluation"]),
        ("reference.learning_rate", 0.1, AFTER["reference"]),
        ("reference.workers", 2, AFTER["reference"]),
        ("seed", 7, AFTER["reference"]),
        ("trajectories.precision", "bf16", AFTER["trajectories"]),
        ("trajectories.cpus_per_worker", 2, AFTER["trajectories"]),
        ("trajectories.embeddings", True, AFTER["trajectories"]),
        ("trajectories.embeddings", False, []),
        ("trajectories.error_norms", True, AFTER["trajectories"]),
        ("trajectories.error_norms", False, []),
        ("trajectories.queries", [], []),
        ("clusters.num_clusters", 4, AFTER["clusters"]),
        ("selection.budget", 7, AFTER["selection"]),
        ("selection.format", "parquet", AFTER["selection"]),
        ("selection.budget", "90 tokens", AFTER["selection"]),
        ("selection.method", "least-confidence", AFTER["selection"]),
        ("selection.within", "nearest", AFTER["selection"]),
        ("selection.weights", {"math": 2.0}, AFTER["selection"]),
        ("selection.minimum", 1, AFTER["selection"]),
        ("selection.maximum", {"math": 3}, AFTER["selection"]),
        ("selection.within", "random", []),
        ("selection.weights", {}, []),
        ("selection.minimum", 0, []),
        ("target.zero_stage", 3, AFTER["target"]),
        ("evaluation.max_items", 1, AFTER["evaluation"]),
        ("run_dir", "/elsewhere", []),
        ("data.max_rejected", 0.5, []),
        ("data.decontaminate", "off", ["report"]),
        ("data.decontaminate", "drop", AFTER["prepare"]),
        ("data.near_duplicates", "report", ["report"]),
        ("data.near_duplicates", "drop", AFTER["prepare"]),
        ("trajectories.workers", {"min": 1, "max": 9}, []),
        ("trajectories.gpus_per_worker", 1.0, []),
        ("clusters.workers", 8, []),
        ("reference.gpus_per_worker", 1, []),
        ("reference.resume_every", 3, []),
        ("target.resume_every", 3, []),
        ("evaluation.workers", 8, []),
    ],
)
def test_a_key_changes_its_stage_and_those_after_it_or_none_at_all(tree, key, value, stages):
    assert different(fingerprints(tree), fingerprints(changed(tree, key, value))) == stages


def test_keys_that_came_later_are_no_input_at_their_defaults(tree):
    inputs = {step.label: step.out.inputs for step in planned(tree)}["selection"]
    own = {key for key in inputs if key.startswith("selection.")}
    assert own == {f"selection.{key}" for key in ("method", "budget", "stratify", "format")}


def test_another_spelling_of_tokens_is_the_same_budget(tree):
    one, other = (changed(tree, "selection.budget", f"{n} tokens") for n in ("20K", "20_000"))
    assert different(fingerprints(one), fingerprints(other)) == []


def test_a_baseline_does_not_depend_on_what_its_method_ignores(tree):
    tree = changed(tree, "selection.baselines", ["random", "balanced-random"])
    before = fingerprints(tree)

    nearest = different(before, fingerprints(changed(tree, "selection.within", "nearest")))
    assert nearest == AFTER["selection"]
    weighted = different(before, fingerprints(changed(tree, "selection.weights", {"math": 2.0})))
    assert {label.partition(" (")[2] for label in weighted} == {"", "balanced-random-6-42)"}


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("pool.jsonl", AFTER["prepare"]),
        ("held.jsonl", AFTER["evaluation"]),
        ("template.txt", AFTER["prepare"]),
        ("tokenizer/tokenizer.json", AFTER["prepare"]),
    ],
)
def test_the_content_of_a_file_counts_and_its_date_does_not(tree, tmp_path, file, stages):
    before = fingerprints(tree)

    os.utime(tmp_path / file, (1, 1))
    assert different(before, fingerprints(tree)) == []
    with (tmp_path / file).open("a") as appended:
        appended.write(" {prompt}")
    assert different(before, fingerprints(tree)) == stages


def test_queries_count_by_their_contents(tree, tmp_path):
    asked = tmp_path / "asked.jsonl"
    asked.write_text("1\n")
    tree = changed(tree, "trajectories", {"embeddings": True, "queries": [str(asked)]})
    before = fingerprints(tree)
    moved = shutil.copy(asked, tmp_path / "moved.jsonl")
    assert not different(before, fingerprints(changed(tree, "trajectories.queries", [str(moved)])))
    asked.write_text("2\n")
    assert different(before, fingerprints(tree)) == AFTER["trajectories"]
    with pytest.raises(DataError, match=r"trajectories\.queries: .*nowhere"):
        planned(changed(tree, "trajectories.queries", [str(tmp_path / "nowhere.jsonl")]))


def test_the_evaluation_depends_on_the_template_of_its_prompts(tree, tmp_path):
    before = {step.stage: step.out.inputs for step in planned(tree)}
    (tmp_path / "template.txt").write_text("{prompt}?")
    after = {step.stage: step.out.inputs for step in planned(tree)}

    for stage in ("prepare", "target", "evaluation"):
        key = "data.template contents"
        assert before[stage][key] != after[stage][key]


@pytest.mark.parametrize(
    ("messages", "template"), [(None, "alpaca"), ("messages", "chat"), (None, "chat")]
)
def test_auto_is_the_template_that_the_fields_stand_for(tree, messages, template):
    tree = changed(tree, "data.fields", {"messages": messages} if messages else {})
    found = different(
        fingerprints(changed(tree, "data.template", template)),
        fingerprints(changed(tree, "data.template", "auto")),
    )
    assert found == ([] if (messages, template) != (None, "chat") else AFTER["prepare"])


def test_the_chat_template_counts_by_its_content(tree, tmp_path):
    chat = changed(tree, "data.template", "chat")
    (tmp_path / "mine.jinja").write_text("{{ messages }}")
    mine = changed(chat, "data.chat_template", str(tmp_path / "mine.jinja"))
    before = fingerprints(mine)
    named = changed(chat, "data.chat_template", "chatml")

    assert different(fingerprints(chat), before) == AFTER["prepare"]
    assert different(fingerprints(chat), fingerprints(named)) == AFTER["prepare"]
    (tmp_path / "mine.jinja").write_text("{{ messages[0] }}")
    assert different(before, fingerprints(mine)) == AFTER["prepare"]
    inputs = {step.stage: step.out.inputs for step in planned(mine)}
    for stage in ("prepare", "target", "evaluation"):
        assert "data.chat_template contents" in inputs[stage]


def test_field_names_that_came_later_are_no_input_at_their_defaults(tree):
    """Runs from before there were these names stay finished."""
    for step in planned(tree):
        fields = step.out.inputs.get("data.fields", {})
        assert not {"system", "history", "tools"} & set(fields)
    tools = changed(tree, "data.fields", {"tools": "functions"})
    assert different(fingerprints(tree), fingerprints(tools)) == AFTER["prepare"]


def test_another_local_tokenizer_file_is_another_tokenizer(tree, tmp_path):
    before = fingerprints(tree)
    (tmp_path / "tokenizer" / "added_tokens.json").write_text("{}")

    assert different(before, fingerprints(tree)) == AFTER["prepare"]


def test_data_that_moved_is_the_same_data(tree, tmp_path):
    (tmp_path / "moved").mkdir()
    shutil.move(tree["data"]["train"][0], tmp_path / "moved" / "other-name.jsonl")
    moved = changed(tree, "data.train", [str(tmp_path / "moved")])

    assert different(fingerprints_before_move(tree, tmp_path), fingerprints(moved)) == []


def fingerprints_before_move(tree, tmp_path: Path) -> dict[str, str]:
    shutil.copy(tmp_path / "moved" / "other-name.jsonl", tree["data"]["train"][0])
    return fingerprints(tree)


def test_a_relative_path_is_the_same_data(tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = changed(changed(tree, "data.train", ["pool.jsonl"]), "run_dir", "run")

    assert different(fingerprints(tree), fingerprints(relative)) == []
    assert planned(relative)[0].out.location == Location.of(tmp_path / "run" / "prepared")


def test_every_stage_lies_in_its_folder_and_every_baseline_under_arms(tree):
    steps = planned(changed(tree, "selection.baselines", ["random"]))

    assert [step.label for step in steps] == [
        "prepare",
        "reference",
        "trajectories",
        "clusters",
        "selection",
        "selection (random-6-42)",
        "target",
        "target (random-6-42)",
        "evaluation",
        "evaluation (random-6-42)",
        "report",
    ]
    folders = [step.out.location.uri.removeprefix(tree["run_dir"] + "/") for step in steps]
    assert folders[0] == "prepared" and folders[3] == "clusters"
    assert folders[5] == "arms/random-6-42/selection" and folders[7] == "arms/random-6-42/target"


def test_a_baseline_changes_no_finished_stage_but_the_report(tree):
    arms = fingerprints(changed(tree, "selection.baselines", ["random"]))

    assert different(fingerprints(tree), arms) == [
        "selection (random-6-42)",
        "target (random-6-42)",
        "evaluation (random-6-42)",
        "report",
    ]


def test_the_order_of_files_counts(tree, tmp_path):
    shutil.copy(tmp_path / "held.jsonl", tmp_path / "other.jsonl")
    files = [str(tmp_path / name) for name in ("pool.jsonl", "other.jsonl")]
    forward = fingerprints(changed(tree, "data.train", files))
    backward = fingerprints(changed(tree, "data.train", files[::-1]))

    assert different(forward, backward) == AFTER["prepare"]


def test_with_trajectories_of_ones_own_nothing_is_trained_or_tokenised(tree, tmp_path):
    (tmp_path / "losses.parquet").write_bytes(b"1")
    tree = changed(tree, "trajectories.path", str(tmp_path / "*.parquet"))
    tree = changed(changed(tree, "target", None), "evaluation", None)
    steps = planned(tree)

    labels = ["prepare", "trajectories", "clusters", "selection", "report"]
    assert [step.label for step in steps] == labels
    assert not [key for key in steps[0].out.inputs if key.startswith("data.tokenizer")]
    before = fingerprints(tree)
    os.utime(tmp_path / "losses.parquet", (1, 1))
    assert different(before, fingerprints(tree)) == []
    (tmp_path / "losses.parquet").write_bytes(b"2")
    assert different(before, fingerprints(tree)) == labels[1:]


def test_a_change_of_the_reference_leaves_trajectories_of_ones_own_alone(tree, tmp_path):
    (tmp_path / "losses.parquet").write_bytes(b"1")
    tree = changed(tree, "trajectories.path", str(tmp_path / "losses.parquet"))

    assert different(fingerprints(tree), fingerprints(changed(tree, "reference", None))) == []


@pytest.mark.parametrize("below", ["", "~"], ids=["absolute", "home"])
def test_checkpoints_of_ones_own_count_by_content(tree, tmp_path, monkeypatch, below):
    monkeypatch.setenv("HOME", str(tmp_path))
    for step in (2, 10):
        folder = tmp_path / "checkpoints" / f"step-{step}"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"1")
    place = f"{below or tmp_path}/checkpoints"
    tree = changed(tree, "reference", {"path": place})
    before = fingerprints(tree)
    prepare = planned(tree)[0]

    of_tokenizer = f"model.safetensors {hashlib.sha256(b'1').hexdigest()}"
    assert prepare.out.inputs["data.tokenizer contents"] == [of_tokenizer]
    (tmp_path / "checkpoints" / "step-10" / "model.safetensors").write_bytes(b"2")
    assert different(before, fingerprints(tree)) == AFTER["reference"]


def test_checkpoints_that_are_links_to_folders_count_by_content(tree, tmp_path):
    for step in (2, 10):
        folder = tmp_path / "elsewhere" / f"{step}"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"1")
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / "checkpoints" / f"step-{step}").symlink_to(folder)
    tree = changed(tree, "reference", {"path": str(tmp_path / "checkpoints")})
    before = fingerprints(tree)

    (tmp_path / "elsewhere" / "10" / "model.safetensors").write_bytes(b"2")
    assert different(before, fingerprints(tree)) == AFTER["reference"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("data.train", ["nowhere/pool.jsonl"], r"nowhere/pool\.jsonl"),
        ("data.train", ["nowhere/*.jsonl"], r"nowhere/\*\.jsonl"),
        ("data.eval", {"held": "nowhere/held.jsonl"}, r"nowhere/held\.jsonl"),
        ("trajectories.path", "nowhere/*.parquet", r"nowhere/\*\.parquet"),
        ("reference", {"path": "/nowhere"}, "no step-.* directories in /nowhere"),
        ("reference", {"path": "hollow"}, r"hollow/step-1 has no config\.json .*no files"),
        ("data.tokenizer", "hollow", r"data\.tokenizer: hollow has .*no files"),
    ],
)
def test_an_input_that_is_not_there_is_refused_and_named(
    tree, tmp_path, monkeypatch, key, value, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hollow" / "step-1").mkdir(parents=True)
    with pytest.raises(UserError, match=message):
        planned(changed(tree, key, value))


def test_planning_writes_nothing(tree, tmp_path):
    planned(tree)

    assert not (tmp_path / "run").exists()


@pytest.mark.ray
def test_checkpoints_on_an_object_store_are_known_by_their_contents(tree, s3_bucket):
    place = Location.of(f"{s3_bucket}/checkpoints")
    for step in (5, 10):
        (place / f"step-{step:06d}" / "model.safetensors").write_bytes(bytes(step))
    stored = changed(tree, "reference", {"path": place.uri})
    before = fingerprints(stored)

    assert fingerprints(stored) == before
    (place / "step-000010" / "model.safetensors").write_bytes(bytes(range(10)))
    assert different(before, fingerprints(stored)) == AFTER["reference"]
    # The rows are made with the first checkpoint's tokenizer.
    (place / "step-000005" / "model.safetensors").write_bytes(bytes(range(5)))
    assert different(before, fingerprints(stored)) == AFTER["prepare"]


@pytest.mark.parametrize(
    ("key", "value", "begins"),
    [
        ("seed", 42, True),
        ("reference.workers", {"min": 1, "max": 2}, False),
        ("reference", {"path": "checkpoints"}, False),
        ("trajectories", {"path": "scored/*.parquet"}, False),
    ],
)
def test_scoring_begins_with_a_reference_that_trains_here_on_a_fixed_number_of_workers(
    tree, key, value, begins, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints" / "step-1").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-1" / "config.json").touch()
    (tmp_path / "scored").mkdir()
    (tmp_path / "scored" / "part.parquet").touch()

    steps = {
        step.label: step
        for step in planned({**tree, key: value} if "." not in key else changed(tree, key, value))
    }
    assert [label for label, step in steps.items() if step.early] == ["trajectories"] * begins
