"""Extensions that are refused before anything of them is computed, and the messages."""

import pytest

from s2l_ray.artifacts import extensions
from s2l_ray.config.load import from_tree
from s2l_ray.errors import DataError, ModelError, StorageError
from s2l_ray.extend import plan as extending
from s2l_ray.extend.base_run import load_base_run
from s2l_ray.pipeline import run as pipeline
from s2l_ray.storage.location import Location
from s2l_ray.storage.lock import exclusive
from tests.extended_by_hand import data, extend, finished_run, given, inputs
from tests.handmade import changed, finish, write_subset


@pytest.fixture
def tree(tmp_path):
    return inputs(tmp_path)


@pytest.fixture
def run(tree, tmp_path) -> Location:
    return finished_run(tree, tmp_path)


def test_a_run_in_use_is_refused(run, tmp_path):
    with exclusive(run):
        # Whoever uses it may be redoing its stages: nothing is said of them.
        (run / "clusters" / "_manifest.json").remove()
        with pytest.raises(StorageError, match="is in use by another run"):
            extend(run, data(tmp_path))


def test_data_that_is_not_there_is_refused(run, tmp_path):
    with pytest.raises(DataError, match=r"DATA: .*nothing\.jsonl matches no file"):
        extend(run, str(tmp_path / "nothing.jsonl"))


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="nowhere is no run of s2l_ray"):
        extend(Location.of(tmp_path / "nowhere"), data(tmp_path))
    assert not (tmp_path / "nowhere").exists()


def test_imported_trajectories_have_no_checkpoints(tree, tmp_path):
    (tmp_path / "losses.parquet").write_bytes(b"1")
    imported = {key: tree[key] for key in ("run_dir", "clusters", "selection")}
    imported["trajectories"] = {"path": str(tmp_path / "losses.parquet")}
    run = finish(imported, until="clusters")
    with pytest.raises(DataError, match=r"no checkpoints.*trajectories were computed elsewhere"):
        extend(run, data(tmp_path))


def test_a_run_without_clusters_is_refused(tree, tmp_path):
    run = finish(changed(changed(tree, "selection", None), "clusters", None), until="trajectories")
    with pytest.raises(DataError, match="has no clusters to assign new rows to"):
        extend(run, data(tmp_path))


@pytest.mark.parametrize("until", ["prepare", "reference", "trajectories"])
def test_a_run_that_is_not_finished_is_refused(tree, tmp_path, until):
    run = finish(tree, until=until)
    with pytest.raises(DataError, match="are not finished"):
        extend(run, data(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [("tokenizer/tokenizer.json", "data.tokenizer is not what"), ("template.txt", "data.template")],
)
def test_rows_that_would_be_read_in_another_way_are_refused(run, tmp_path, name, message):
    (tmp_path / name).write_text("{prompt} of another kind")
    with pytest.raises(DataError, match=message):
        extend(run, data(tmp_path))


def test_a_checkpoint_that_is_gone_is_named(run, tmp_path):
    (run / "reference" / "step-000002").remove()
    with pytest.raises(ModelError, match=r"1 of 1 checkpoints .* are gone .*step-000002"):
        extend(run, data(tmp_path))


def prepare_alone(run: Location, path: str, strata: dict[str, int]) -> extensions.Extension:
    """Return the extension of a file whose rows are prepared and not scored."""
    base, files = load_base_run(run), extending.input_files.expand([path])
    extension = extending.extension_of(run, (extending.cached_contents(run).file_hash(files[0]),))
    (prepare, *_) = extending.plan(base, extension, files)
    prepare.out.begin()
    summary = {
        "rows": 6,
        "kept": sum(strata.values()),
        "known": 0,
        "rejected": {},
        "strata": strata,
    }
    prepare.out.finish(summary, 1.0)
    return extension


def reselect(tree: dict, run: Location, **selection: object) -> dict:
    """Another selection of the run, in its own pool."""
    tree = {**tree, "selection": {**tree["selection"], **selection}}
    pipeline.run(from_tree(tree, "test"), until="selection", say=lambda line: None)
    return tree


def test_minima_that_new_strata_make_too_many_are_refused_before_any_scoring(run, tree, tmp_path):
    reselect(tree, run, minimum=3)
    extension = prepare_alone(run, data(tmp_path), {"art": 6})
    with pytest.raises(DataError, match=r"budget of 6 .*minimum alone asks for 9 over 3 strata"):
        extend(run, data(tmp_path))
    assert not extension.folder("trajectories").names()


def test_minima_are_looked_at_once_more_when_new_rows_are_prepared(run, tree, tmp_path):
    reselect(tree, run, minimum=3)
    extension = prepare_alone(run, data(tmp_path), {"art": 6})
    base = load_base_run(run)
    scoring = [step for step in extending.plan(base, extension) if step.stage == "trajectories"]
    with pytest.raises(DataError, match="minimum alone asks for 9 over 3 strata"):
        extending.carry_out(base, scoring, extension, lambda line: None)


def test_a_stratum_that_only_an_extension_has_can_be_named(run, tree, tmp_path):
    weighed = {"weights": {"art": 5.0}, "minimum": {"art": 4}}
    with pytest.raises(DataError, match=r"selection\.weights: 1 of 1 names are no strata"):
        reselect(tree, run, **weighed)
    extension = given(run, data(tmp_path), stratum="art")
    extend(run, data(tmp_path))
    reselect(tree, run, **weighed)
    extend(run)
    ranking = (extension.folder("selection") / "ranking.parquet").read_table()
    assert ranking["stratum"].to_pylist()[:4] == ["art"] * 4
    _, count = write_subset(run, 5, "s2l", None, None, extended=False)
    assert count == 5
    with pytest.raises(DataError, match=r"selection\.weights: 1 of 1 names are no strata"):
        reselect(tree, run, weights={"arts": 5.0})


def test_an_extension_with_a_stratum_that_is_named_can_be_made_again(run, tree, tmp_path):
    extension = given(run, data(tmp_path), stratum="art")
    extend(run, data(tmp_path))
    reselect(tree, run, weights={"art": 5.0})
    (run / "extensions").remove()
    # Nothing is prepared yet, so no one knows of the stratum.
    extending.check_strata(load_base_run(run))
    assert extension.summary("prepared") is None
