"""A run is recognised by the contents of its files, from any directory and after a move."""

import json
import os
import shutil
from pathlib import Path

import pytest

import s2l_ray as s2l
from s2l_ray.artifacts.extensions import BaseRun
from s2l_ray.artifacts.inputs import Contents
from s2l_ray.artifacts.manifest import open_run
from s2l_ray.artifacts.stage import RunPlan
from s2l_ray.config.load import from_tree
from s2l_ray.data import kept_templates
from s2l_ray.errors import ConfigError, DataError, ModelError
from s2l_ray.extend.base_run import check_unchanged, load_base_run
from s2l_ray.pipeline import steps
from s2l_ray.pipeline.staleness import stale
from s2l_ray.pipeline.subset import config_of
from s2l_ray.stages import NAMES, STAGES
from s2l_ray.storage.location import Location
from s2l_ray.training.declaration import adapted_model_of
from s2l_ray.trajectories.declaration import checkpoints_of
from tests import extended_by_hand, handmade
from tests.handmade import changed, finish, planned

CHAT = "{% for message in messages %}{{ message['content'] }}{{ eos_token }}{% endfor %}"
CHANGES = {
    "template.txt": "data.template contents",
    "tokenizer/tokenizer.json": "data.tokenizer contents",
    "pool.jsonl": "data.train",
}


@pytest.fixture
def project(tmp_path) -> Path:
    (tmp_path / "project").mkdir()
    return tmp_path / "project"


def relative(tree: dict, folder: Path) -> dict:
    """The same configuration with paths that start at `folder`."""

    def shortened(node):
        if isinstance(node, dict):
            return {key: shortened(value) for key, value in node.items()}
        if isinstance(node, list):
            return [shortened(item) for item in node]
        return os.path.relpath(node, folder) if str(node).startswith("/") else node

    return shortened(tree)


def todo(tree: dict) -> list[str]:
    return [step.label for step in stale(planned(tree), None)]


def finish_as_before(tree: dict) -> None:
    """Finish all stages as version 0.1 did: spellings of paths are among their inputs."""
    config = from_tree(tree, "test")
    run = Location.of(config.run_dir)
    open_run(run)
    plan = RunPlan(config, run, Contents.load(run), STAGES, steps.arms_of(config))
    for stage in STAGES:
        out = stage.directory(run, stage.task(plan, "").inputs)
        out.begin()
        out.finish({"kept": 30, "rows": 30}, 3661.0)
        plan.add(stage)
        assert plan.steps[-1].out.inputs == out.inputs


def test_the_same_run_has_one_identity_from_every_directory(project, tmp_path, monkeypatch):
    tree = handmade.inputs(project)
    finish(tree)

    for place in (project, tmp_path, tmp_path / "elsewhere"):
        place.mkdir(exist_ok=True)
        monkeypatch.chdir(place)
        assert todo(relative(tree, place)) == []


def test_files_of_the_same_content_are_the_same_inputs(project, tmp_path):
    tree = handmade.inputs(project)
    finish(tree)
    shutil.copytree(project, tmp_path / "copy", ignore=shutil.ignore_patterns("run"))

    assert todo(handmade.inputs(tmp_path / "copy") | {"run_dir": tree["run_dir"]}) == []


def test_a_folder_on_a_store_is_the_same_input_as_its_copy_on_a_disk(project):
    """Whole paths, as a store lists them, have "a-b" before "a/x"; components have it after."""
    tree = handmade.inputs(project)
    (project / "tokenizer" / "a").mkdir()
    (project / "tokenizer" / "a" / "x").write_text("1")
    (project / "tokenizer" / "a-b").write_text("2")
    finish(tree)
    model = {**tree["reference"]["model"], "tokenizer": f"file://{project}/tokenizer"}

    assert todo(changed(changed(tree, "reference.model", model), "target.model", model)) == []


@pytest.mark.parametrize(("file", "key"), CHANGES.items())
def test_files_of_another_content_are_others_and_named_by_their_key(project, file, key):
    tree = handmade.inputs(project)
    finish(tree)
    content = (project / file).read_text()
    (project / file).write_text(content.replace('"add 0"', '"add zero"') + "\n")

    assert "prepare" in todo(tree)
    assert planned(tree)[0].out.changed_keys() == [key]


def test_another_shape_of_a_random_model_is_another_model(project):
    tree = handmade.inputs(project)
    finish(tree)
    model = tree["reference"]["model"]
    wider = {**model, "architecture": {**model["architecture"], "hidden_size": 32}}

    assert todo(changed(tree, "reference.model", wider)) == list(NAMES[1:])


@pytest.mark.parametrize("place", [".", "..", "moved"])
def test_a_run_of_an_older_version_stays_finished_wherever_it_is_run(
    project, place, tmp_path, monkeypatch
):
    tree = handmade.inputs(project)
    monkeypatch.chdir(project)
    finish_as_before(relative(tree, project))
    if place == "moved":
        project.rename(tmp_path / "moved")
        project, tree = tmp_path / "moved", handmade.inputs(tmp_path / "moved")
    folder = project if place == "moved" else (project / place).resolve()
    monkeypatch.chdir(folder)

    assert todo(relative(tree, folder)) == []
    (project / "template.txt").write_text("Question: {prompt} Answer: ")
    assert planned(tree)[0].out.changed_keys() == ["data.template contents"]
    assert todo(tree) == list(NAMES)


def test_an_interrupted_training_of_an_older_version_goes_on(project, monkeypatch):
    tree = handmade.inputs(project)
    monkeypatch.chdir(project)
    finish_as_before(relative(tree, project))
    reference = next(step for step in planned(tree) if step.stage == "reference")
    recorded = reference.out.inputs
    (reference.out.location / "_manifest.json").remove()
    (reference.out.location / "unfinished.json").write_json(
        {"fingerprint": reference.out.fingerprint, "inputs": recorded}
    )

    reference = next(step for step in planned(tree) if step.stage == "reference")
    assert not reference.out.is_new()


def test_a_moved_run_is_read_from_its_own_folder(project, tmp_path, monkeypatch):
    tree = handmade.inputs(project)
    finish(tree)
    project.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)

    assert config_of(Location.of("moved/run")).run_dir == str(tmp_path / "moved" / "run")


def test_a_run_that_is_found_finished_is_written_only_where_paths_are_others(project, tmp_path):
    tree = handmade.inputs(project)
    config = finish(tree) / "config.json"
    before = config.read_bytes()

    assert handmade.run(changed(tree, "data.max_rejected", 0.5), until="selection") == []
    assert config.read_bytes() == before
    shutil.copytree(project / "tokenizer", tmp_path / "tokenizer")
    model = {**tree["reference"]["model"], "tokenizer": str(tmp_path / "tokenizer")}
    assert handmade.run(changed(tree, "reference.model", model), until="selection") == []
    assert config.read_json()["reference"]["model"] == model


def test_adapters_of_a_copied_project_are_scored_with_the_base_of_the_copy(
    project, tmp_path, monkeypatch
):
    tree = handmade.inputs(project)
    tree["data"]["tokenizer"] = str(project / "tokenizer")
    tree["reference"] = {"path": str(project / "lora")}
    (project / "base").mkdir()
    (project / "base" / "config.json").write_text("{}")
    (project / "lora" / "checkpoint-4").mkdir(parents=True)
    adapter = json.dumps({"base_model_name_or_path": "base"})
    (project / "lora" / "checkpoint-4" / "adapter_config.json").write_text(adapter)
    monkeypatch.chdir(project)
    finish(tree)
    reference = next(step.out for step in planned(tree) if step.stage == "reference")
    known = {"path": str(project / "lora"), "base": str(project / "base")}
    reference.finish({**known, "names": ["checkpoint-4"], "steps": [4]}, 1.0)
    copy = tmp_path / "copy"
    shutil.copytree(project, copy)
    (project / "base" / "config.json").write_text('{"hidden_size": 99}')
    monkeypatch.chdir(copy)
    tree = json.loads(json.dumps(tree).replace(str(project), str(copy)))

    assert todo(tree) == []
    config = from_tree(tree, "test")
    (checkpoint,) = checkpoints_of(steps.plan(config, Location.of(config.run_dir)))
    assert (checkpoint.folder.uri, checkpoint.base) == (
        str(copy / "lora" / "checkpoint-4"),
        str(copy / "base"),
    )
    run = BaseRun(Location.of(config.run_dir), config, {"reference": reference.manifest()})
    assert adapted_model_of(run) == str(project / "base"), "its contents are checked"
    shutil.rmtree(project)
    assert adapted_model_of(run) == str(copy / "base")


def with_chat_template(project: Path) -> dict:
    (project / "mine.jinja").write_text(CHAT)
    tree = extended_by_hand.inputs(project)
    data = {key: value for key, value in tree["data"].items() if key != "template"}
    return {**tree, "data": {**data, "chat_template": str(project / "mine.jinja")}}


def test_later_commands_need_no_original_of_a_template(project, tmp_path, monkeypatch):
    tree = with_chat_template(project)
    place = extended_by_hand.finished_run(tree, project)
    kept_templates.keep(from_tree(tree, "test").data, place)
    (project / "mine.jinja").unlink()
    monkeypatch.chdir(tmp_path)

    base = load_base_run(place)
    check_unchanged(base, Contents())
    assert Path(base.config.data.chat_template).read_text() == CHAT
    assert s2l.load(place.uri).export("trl", tmp_path / "out").num_rows == 6
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == CHAT


def test_no_other_template_is_exported_for_the_one_that_an_older_run_names(
    project, tmp_path, monkeypatch
):
    """An older run has no copy, and names the file as it was spelled."""
    place = extended_by_hand.finished_run(with_chat_template(project), project)
    config = (place / "config.json").read_json()
    config["data"]["chat_template"] = "mine.jinja"
    (place / "config.json").write_json(config)
    shutil.rmtree(place.uri + "/templates", ignore_errors=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jinja").write_text("{{ messages }} of another project")

    made = s2l.load(place.uri).export("trl", tmp_path / "out")

    assert not (tmp_path / "out" / "chat_template.jinja").exists()
    assert made.num_rows == 6
    (note,) = made.notes
    assert note.endswith("data.chat_template: mine.jinja; give TRL the same")


def test_a_moved_project_can_be_extended_once_it_has_been_run_there(project, tmp_path):
    tree = with_chat_template(project)
    place = extended_by_hand.finished_run(tree, project)
    project.rename(tmp_path / "moved")
    place, tree = Location.of(tmp_path / "moved" / "run"), with_chat_template(tmp_path / "moved")

    assert handmade.run(tree, until="selection") == []
    (tmp_path / "moved" / "mine.jinja").unlink()  # the run has it now, although it was made without
    check_unchanged(load_base_run(place), Contents())


def test_before_that_messages_say_what_tells_a_run_where_its_files_are(project, tmp_path):
    tree = with_chat_template(project)
    tree = changed(
        changed(tree, "data.chat_template", "chatml"), "data.tokenizer", f"{project}/tok"
    )
    shutil.copytree(project / "tokenizer", project / "tok")
    extended_by_hand.finished_run(tree, project)
    project.rename(tmp_path / "moved")
    place = Location.of(tmp_path / "moved" / "run")

    with pytest.raises(
        ModelError, match=r"there is no .*tok\. If the project was moved, `s2l run`"
    ):
        s2l.load(place.uri).export("trl", tmp_path / "out")
    with pytest.raises(DataError, match=r"data\.tokenizer is not .*If the project was moved"):
        check_unchanged(load_base_run(place), Contents())


def test_hidden_files_of_a_tokenizer_may_change_before_an_extension(project):
    tree = with_chat_template(project)
    place = extended_by_hand.finished_run(tree, project)
    (project / "tokenizer" / ".cache").mkdir()
    (project / "tokenizer" / ".cache" / "metadata").write_text("2026-12-01")
    check_unchanged(load_base_run(place), Contents())


def test_a_change_that_would_lose_the_reference_is_refused_before_rows_are_prepared(project):
    tree = handmade.inputs(project)
    run = finish(tree)
    before = (run / "prepared" / "_manifest.json").read_bytes()
    (project / "template.txt").write_text("Question: {prompt} Answer: ")

    with pytest.raises(ConfigError, match=r"reference in .* is finished.*data\.template contents"):
        handmade.run(tree)
    assert (run / "prepared" / "_manifest.json").read_bytes() == before
