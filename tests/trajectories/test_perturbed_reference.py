"""Trajectories without a training: losses at a pretrained model and at perturbed copies of it."""

import numpy as np
import pyarrow as pa
import pytest

from s2l_ray.artifacts.amounts import Amount, Pool, Quantities
from s2l_ray.artifacts.manifest import StageDir, section_inputs
from s2l_ray.artifacts.tables import Parts, part_name
from s2l_ray.config import without_effect
from s2l_ray.config.load import from_tree
from s2l_ray.config.training import ReferenceConfig
from s2l_ray.errors import ConfigError
from s2l_ray.models.checkpoints import load_model
from s2l_ray.models.flops import Shape
from s2l_ray.models.perturbation import Noise, perturb
from s2l_ray.progress import Progress
from s2l_ray.storage.location import Location
from s2l_ray.training import reference
from s2l_ray.training.declaration import REFERENCE
from s2l_ray.training.perturbed import Copier
from s2l_ray.trajectories import declaration
from tests import handmade, tiny
from tests.handmade import changed
from tests.trajectories.scored import STEPS, score_all

NOISE = {"scale": 0.2, "seed": 5}
NUMBERS = (1, 2, None)
"""Of the perturbed copies; the last checkpoint is the model itself."""


def tree_of(tmp_path, **keys):
    tree = handmade.inputs(tmp_path)
    tiny.save(tmp_path / "model")
    return changed(tree, "reference", {"model": str(tmp_path / "model"), **keys})


def losses(folder):
    table = pa.concat_tables(Parts(Location.of(folder)).tables())
    return np.array(table["loss_nats"].to_pylist())


def test_rows_are_scored_as_with_copies_that_were_perturbed_by_hand(prepared, tmp_path):
    tiny.save(tmp_path / "reference" / "step-000003", seed=4)
    summary = {"path": None, "names": ["step-000003"] * 3, "steps": [1, 2, 3], "noise": NOISE}
    by_noise = declaration._checkpoints(Location.of(tmp_path), summary, None)
    tokenizer, by_hand = tiny.tokenizer(), []
    for step, number in zip(STEPS, NUMBERS, strict=True):
        model = load_model(str(tmp_path / "reference" / "step-000003"))
        if number is not None:
            perturb(model, Noise(**NOISE, number=number))
        folder = tmp_path / "by hand" / f"step-{step:06d}"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        by_hand.append(
            declaration._checkpoints(
                Location.of(tmp_path),
                {"names": [folder.name], "steps": [step]},
                str(tmp_path / "by hand"),
            )[0]
        )

    score_all(prepared, by_noise, tmp_path / "noise")
    score_all(prepared, by_hand, tmp_path / "hand")

    loss_NT = losses(tmp_path / "noise")
    np.testing.assert_array_equal(loss_NT, losses(tmp_path / "hand"))
    assert len(np.unique(loss_NT, axis=1).T) == 3
    assert [checkpoint.step for checkpoint in by_noise] == [1, 2, 3]


def test_the_model_is_written_once_and_as_it_is(tmp_path):
    tiny.save(tmp_path / "model")
    folder = Location.of(tmp_path / "reference" / "step-000007")
    copy = Copier(str(tmp_path / "model"), str(tmp_path / "model"), 30, folder)
    copy({})
    weights = [load_model(name).state_dict() for name in (str(tmp_path / "model"), folder.uri)]
    assert weights[0].keys() == weights[1].keys()
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("key", ["epochs", "max_steps", "learning_rate", "workers", "checkpoints"])
def test_no_key_of_a_training_goes_with_perturbations(tmp_path, key):
    config = from_tree(tree_of(tmp_path, perturbations=6, **{key: 1}), "test")
    with pytest.raises(ConfigError, match=rf"reference\.{key}: nothing is trained beside `refe"):
        without_effect.check(config)
    without_effect.check(from_tree(tree_of(tmp_path, perturbations=6, scale=0.1), "test"))


def test_a_scale_of_no_noise_is_refused(tmp_path):
    config = from_tree(tree_of(tmp_path, scale=0.1), "test")
    with pytest.raises(ConfigError, match=r"reference\.scale: it is that of the noise of"):
        without_effect.check(config)


def test_a_model_of_random_weights_is_not_perturbed(tmp_path):
    with pytest.raises(ConfigError, match="made of a pretrained model: name one in `model`"):
        from_tree(changed(handmade.inputs(tmp_path), "reference.perturbations", 6), "test")


def test_a_plan_counts_checkpoints_and_no_training(tmp_path):
    config = from_tree(tree_of(tmp_path, perturbations=6), "test")
    pool = Pool(Amount(rows=3, tokens=90, responses=30), 1, 1, True)
    assert REFERENCE.sizes(config, Quantities(pool)) == {
        "reference": "the model and 6 perturbed copies of it"
    }
    shape = Shape(body=1000, output=100, attention=0, width=10)
    assert REFERENCE.estimate.work(config, Quantities(pool), shape).flops == 0
    assert not declaration._can_begin_early(config)


def test_without_the_key_fingerprints_are_as_they_were():
    inputs = section_inputs("reference", ReferenceConfig(model="m"))
    assert not {"reference.perturbations", "reference.scale"} & inputs.keys()
    noisy = section_inputs("reference", ReferenceConfig(model="m", perturbations=6, scale=0.2))
    assert (noisy["reference.perturbations"], noisy["reference.scale"]) == (6, 0.2)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_stage_leaves_one_model_and_a_checkpoint_for_each_copy(tmp_path):
    prepared = Parts(Location.of(tmp_path / "prepared"))
    (prepared.folder / part_name(0)).write_table(pa.table({"num_tokens": [30, 40]}))
    tiny.save(tmp_path / "model")
    config = ReferenceConfig(model=str(tmp_path / "model"), perturbations=2, scale=0.2)
    out = StageDir(Location.of(tmp_path / "reference"), "reference", {})
    summary = reference.run(config, prepared, out, seed=5, progress=Progress("reference"))
    assert summary == {
        "path": None,
        "names": ["step-000003"] * 3,
        "steps": [1, 2, 3],
        "noise": NOISE,
    }
    out.finish(summary, 1.0)
    assert sorted(out.location.names()) == ["_manifest.json", "step-000003"]
