"""A process that is connected to Ray already keeps its connection, as a notebook needs it."""

import socket

import pytest
import ray

from s2l_ray.distributed import session
from s2l_ray.errors import ConfigError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.mark.parametrize("named", [False, True])
def test_a_connection_is_used_and_left_as_it_is(named, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    address = ray.get_runtime_context().gcs_address
    with session.cluster(address if named else None):
        assert ray.get_runtime_context().gcs_address == address
    assert ray.is_initialized()


def test_localhost_is_the_address_of_a_cluster_here():
    address = ray.get_runtime_context().gcs_address
    with session.cluster(f"127.0.0.1:{address.rpartition(':')[2]}"):
        assert ray.get_runtime_context().gcs_address == address


def test_another_cluster_than_the_connected_one_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        message = f"is connected .*, not to {address}"
        with pytest.raises(ConfigError, match=message), session.cluster(address):
            pass
    assert ray.is_initialized()
