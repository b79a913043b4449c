"""The folders of a finished run open as they are in the programs that people read Parquet with."""

import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests.small_run import NUM_ROWS, SHAPE

pytestmark = pytest.mark.ray

FOLDERS = {
    "trajectories": {"example_id", "stratum", "loss_nats"},
    "clusters": {"example_id", "stratum", "cluster", "sqdist"},
    "selection": {"example_id", "stratum", "cluster", "rank"},
    "embeddings": {"example_id", "embedding"},
    "error_norms": {"example_id", "error_norm"},
}


def read_by_pandas(folder):
    return pd.read_parquet(folder)


def read_by_pyarrow(folder):
    return pq.read_table(folder).to_pandas()


def read_by_ray(folder):
    import ray.data

    return ray.data.read_parquet(str(folder)).to_pandas()


@pytest.mark.parametrize("read", [read_by_pandas, read_by_pyarrow, read_by_ray])
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_is_a_data_set_of_all_examples(finished, folder, read):
    table = read(finished / folder)

    assert set(table.columns) == FOLDERS[folder]
    assert table["example_id"].nunique() == len(table) == sum(NUM_ROWS.values())
    assert not table.isna().to_numpy().any()


@pytest.mark.parametrize("read", [read_by_pandas, read_by_pyarrow, read_by_ray])
def test_queries_have_data_sets_of_their_own(finished, read):
    losses = read(finished / "queries" / "trajectories")
    vectors = read(finished / "queries" / "embeddings")

    assert sorted(losses["example_id"]) == sorted(vectors["example_id"])
    assert {len(vector) for vector in vectors["embedding"]} == {SHAPE["hidden_size"]}
