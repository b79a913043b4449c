"""Where the hub is not to be asked, as in all tests."""

import pytest
from huggingface_hub import constants

from s2l_ray.data import sources
from s2l_ray.errors import DataError, ModelError
from s2l_ray.models import checkpoints
from s2l_ray.storage.input_files import InputFile

REASON = "HF_HUB_OFFLINE is set, so the hub was not asked"


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.mark.parametrize("load", [checkpoints.load_model, checkpoints.load_tokenizer])
@pytest.mark.parametrize("name", ["org/other", "org/other@main", f"org/other@{'a' * 40}"])
def test_a_model_that_is_not_in_the_cache_is_refused_with_the_ways_on(load, name, tmp_path):
    with pytest.raises(ModelError) as refused:
        load(name)

    message = str(refused.value)
    assert message.startswith(f"model {name}: there is no such directory here, nothing of that")
    assert str(tmp_path) in message and REASON in message
    assert "`hf download org/other`" in message


def test_a_data_set_is_refused_before_its_library_is_loaded():
    with pytest.raises(DataError, match=f"^data: hf://org/sums: {REASON}. Download its files"):
        next(sources.read_rows(InputFile("hf://org/sums", 0, "")))
