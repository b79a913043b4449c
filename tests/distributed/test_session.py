"""The session: when a cluster is joined, and the environment of a worker."""

import os

import pytest

from s2l_ray.distributed import session


@pytest.mark.parametrize(
    ("address", "variable", "joins"),
    [
        (None, None, False),
        (None, "", False),
        (None, "10.0.0.1:6379", True),
        ("10.0.0.1:6379", None, True),
        ("auto", None, True),
    ],
)
def test_a_cluster_is_joined_when_an_address_says_so(monkeypatch, address, variable, joins):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)

    assert session.joins_cluster(address) is joins


def test_values_that_look_like_secrets_are_known(monkeypatch):
    hidden = {
        "HF_TOKEN": "hf_abcdefgh",
        "AZURE_STORAGE_KEY": "azure-key-1",
        "AZURE_STORAGE_CONNECTION_STRING": "AccountKey=azure-key-2",
    }
    shown = {"HOME": "/home/somebody", "MY_TOKEN": "short", "PROXY": "http://proxy.local:3128"}
    for name, value in {**hidden, **shown, "MLFLOW_TRACKING_URI": "https://me:passw0rd@h"}.items():
        monkeypatch.setenv(name, value)

    found = session.secrets()
    assert {*hidden.values(), "passw0rd"} <= set(found)
    assert not {*shown.values()} & set(found)


def test_a_worker_computes_on_as_many_threads_as_configured(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")

    variables = session.worker_environment(cpus=2, gpus=0)["env_vars"]
    assert {variables[name] for name in session.THREAD_VARIABLES} == {"2"}


def test_a_worker_without_a_gpu_sees_none():
    assert session.worker_environment(cpus=1, gpus=0)["env_vars"]["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in session.worker_environment(cpus=1, gpus=0.5)["env_vars"]


@pytest.mark.parametrize(
    ("joined", "users", "expected"), [(False, None, "0"), (False, "15", "15"), (True, None, None)]
)
def test_a_ray_that_is_started_here_gives_way_to_no_other_program(
    monkeypatch, joined, users, expected
):
    monkeypatch.setenv("RAY_worker_niceness", users or "")
    if users is None:
        monkeypatch.delenv("RAY_worker_niceness")
    session.set_defaults(joined=joined)
    assert dict(os.environ).get("RAY_worker_niceness") == expected


@pytest.mark.parametrize(
    ("joined", "users", "inside"), [(False, None, "0"), (False, "1", "1"), (True, None, None)]
)
def test_only_nodes_of_a_cluster_that_was_joined_are_watched_for_their_end(
    monkeypatch, joined, users, inside
):
    name = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
    monkeypatch.setenv(name, users or "")
    if users is None:
        monkeypatch.delenv(name)
    with session._without_preemption(joined=joined):
        assert os.environ.get(name) == inside
    assert os.environ.get(name) == users
