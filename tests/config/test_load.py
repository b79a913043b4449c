"""Run files and overrides as they are read, and texts that are no configuration."""

from pathlib import Path

import pytest

from s2l_ray.config.load import load
from s2l_ray.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_loads(path):
    assert load(path).run_dir


def test_there_are_configurations_to_load():
    assert {"demo", "math-mix-cpu"} <= {path.stem for path in CONFIGS}


def test_a_budget_of_tokens_is_a_text_in_yaml_and_after_set(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "{run_dir: x, trajectories: {path: t}, clusters: {}, selection: {budget: 2M tokens}}"
    )
    assert load(path).selection.budget == "2M tokens"
    assert load(path, ["selection.budget=5K tokens"]).selection.budget == "5K tokens"


@pytest.mark.parametrize("text", ["2e-5", "2.0e-5", "2E-5", "+2e-5", "0.00002"])
def test_a_learning_rate_may_be_written_as_yaml_1_2_reads_it(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(
        f"run_dir: x\ndata: {{train: [a]}}\nreference: {{model: m, learning_rate: {text}}}"
    )
    assert load(path).reference.learning_rate == 2e-5
    overridden = load(path, [f"reference.learning_rate={text}"])
    assert overridden.reference.learning_rate == 2e-5


def test_set_overrides_one_key_and_makes_sections(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("run_dir: x\ndata: {train: [a]}\n")
    loaded = load(path, ["data.fields.prompt=question", "seed=7"])
    assert (loaded.data.fields.prompt, loaded.seed) == ("question", 7)


@pytest.mark.parametrize(
    ("override", "message"),
    [("seed", "expected KEY=VALUE"), ("run_dir.x=1", "run_dir is not a section")],
)
def test_a_malformed_override_is_refused(tmp_path, override, message):
    path = tmp_path / "run.yaml"
    path.write_text("run_dir: x\n")
    with pytest.raises(ConfigError, match=message):
        load(path, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is not YAML"),
        ("run_dir: -_", "is not YAML: invalid literal"),
        ("run_dir: !!int abc", "is not YAML: invalid literal"),
        ("- 1", "holds no configuration"),
        ("run_dir: !!python/object/apply:os.getcwd []", "is not YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "run_dir: x\nseed: 1\nseed: 2",
            r"is not YAML: line 3, column 1: .*duplicate key .seed.",
        ),
        ("run_dir: x\n\tseed: 1", r"is not YAML: line 2, column 1: .*cannot start any token"),
        ("run_dir: x\n---\nseed: 1", r"is not YAML: line 2, column 1: .*another document"),
    ],
)
def test_what_is_wrong_with_yaml_comes_with_its_line(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as refused:
        load(path)
    assert "\n" not in str(refused.value)


def test_names_and_numbers_are_what_yaml_1_2_takes_them_for(tmp_path):
    """In YAML 1.1 a stratum `no` is false, and 010 is eight."""
    path = tmp_path / "run.yaml"
    path.write_text(
        "{run_dir: x, seed: 010, trajectories: {path: t}, clusters: {}, "
        "selection: {budget: 5, weights: {no: 2, on: 3}}}"
    )
    loaded = load(path)
    assert loaded.seed == 10 and loaded.selection.weights == {"no": 2, "on": 3}
    with pytest.raises(ConfigError, match=r"stratify: .*valid boolean, not 'yes'"):
        load(path, ["selection.stratify=yes"])


def test_a_directory_is_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match="is a directory: give a YAML file, or a run's"):
        load(tmp_path)
