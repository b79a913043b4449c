"""A process that is connected to Ray already keeps its connection, as a notebook needs it."""

import json
import socket
import subprocess
import sys

import pytest
import ray
from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
from ray._private.ray_constants import KV_NAMESPACE_CLUSTER

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


def test_a_unit_of_work_may_take_as_long_as_it_does(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    context = ray.data.DataContext.get_current()
    monkeypatch.setattr(context, "execution_no_progress_timeout_s", 1e-3)  # Ray's is half an hour
    with session.cluster(None):
        assert ray.data.from_items([1, 2]).map(lambda row: row).count() == 2


def test_another_cluster_than_the_connected_one_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        message = f"is connected .*, not to {address}"
        with pytest.raises(ConfigError, match=message), session.cluster(address):
            pass
    assert ray.is_initialized()


JOIN = """
import sys
from s2l_ray.distributed import session
from s2l_ray.errors import ConfigError
try:
    with session.cluster(sys.argv[1]):
        pass
except ConfigError as error:
    print(error)
"""


@pytest.mark.parametrize("kind", ["ray", "python"])
def test_a_cluster_of_another_version_is_refused_with_both_versions(kind):
    """The tests' Ray says of itself, for as long as this test takes, that it is another one."""
    gcs = ray._private.worker.global_worker.gcs_client
    place = {"key": CLUSTER_METADATA_KEY, "namespace": KV_NAMESPACE_CLUSTER}
    before = gcs.internal_kv_get(**place)
    ours = {name: json.loads(before)[f"{name}_version"] for name in ("ray", "python")}
    theirs = {**ours, kind: "1.2.3"}
    other = json.dumps({**json.loads(before), f"{kind}_version": "1.2.3"}).encode()
    address = ray.get_runtime_context().gcs_address
    gcs.internal_kv_put(value=other, overwrite=True, **place)
    try:
        done = subprocess.run(
            [sys.executable, "-c", JOIN, address], capture_output=True, text=True, check=True
        )
    finally:
        gcs.internal_kv_put(value=before, overwrite=True, **place)

    assert done.stderr == ""
    assert done.stdout.startswith(
        f"the Ray cluster at {address} cannot be joined: it runs Ray {theirs['ray']} and Python "
        f"{theirs['python']}, and this program Ray {ours['ray']} and Python {ours['python']}. "
    )
