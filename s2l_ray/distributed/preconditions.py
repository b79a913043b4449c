"""What Ray needs before it starts or is joined, checked in seconds.

Where one of these is missing, Ray tries again for a minute, prints what its parts say, and then
names another cause.
"""

import errno
import shutil
import socket
import tempfile
from pathlib import Path

from s2l_ray.errors import ConfigError

CONNECT_SECONDS = 10.0
"""Longest wait for an answer from the address of a cluster."""
PROBE_BYTES = 16 << 20
"""What Ray's logs and the sockets of its parts need at the least, in its temporary folder."""


def check_folder(folder: Path) -> None:
    """Refuse a temporary folder in which Ray cannot write its logs and sockets.

    Raises:
        ConfigError: it cannot be written, or is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(PROBE_BYTES))
            probe.flush()
    except OSError as error:
        cause = "is full" if error.errno == errno.ENOSPC else f"cannot be written ({error})"
        raise ConfigError(
            f"Ray's temporary folder {folder} {cause}. Free some space there, or set RAY_TMPDIR to "
            "a folder with some gigabytes, on a local disk and with a short path."
        ) from None


def check_space(folder: Path) -> None:
    """Refuse a temporary folder of a Ray that runs already, perhaps of another user, if it is full.

    Raises:
        ConfigError: there is no space; no worker of that node can start.
    """
    if folder.exists() and shutil.disk_usage(folder).free < PROBE_BYTES:
        raise ConfigError(
            f"Ray's temporary folder {folder} is full: no worker can start on this machine. Free "
            "some space there, or start its Ray with another folder (`ray start --temp-dir`)."
        )


def check_loopback() -> None:
    """Refuse a machine on which processes cannot talk to one another.

    Raises:
        ConfigError: there is no loopback interface.
    """
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ConfigError(
            f"Ray's processes cannot reach one another on this machine, at 127.0.0.1 ({error}). "
            "Switch the loopback interface on (`ip link set lo up`), or leave the sandbox."
        ) from None


def check_listens(address: str) -> None:
    """Refuse a HOST:PORT where nothing listens.

    Raises:
        ConfigError: it does not take a connection.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    host = host.strip("[]")  # of IPv6
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ConfigError(
            f"no Ray cluster answers at {address}: {error}. Check --address or RAY_ADDRESS, or "
            "leave both out to start Ray here."
        ) from None


def check_token(address: str, source: str) -> None:
    """Refuse a cluster at HOST:PORT that does not know the token of this process.

    Args:
        source: where this process has its token from, as a phrase.

    Raises:
        ConfigError: the token is another one, or missing; or it is no cluster that answers.
    """
    import grpc
    from ray._private.authentication.authentication_token_setup import (
        maybe_enable_token_auth_if_token_available,
    )
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
    from ray.exceptions import AuthenticationError

    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # as ray.init will
    try:
        with init_grpc_channel(address) as channel:
            NodeInfoGcsServiceStub(channel).GetClusterId(
                GetClusterIdRequest(), timeout=CONNECT_SECONDS
            )
    except (grpc.RpcError, AuthenticationError) as error:
        code = error.code() if isinstance(error, grpc.RpcError) else None
        if code not in (None, grpc.StatusCode.UNAUTHENTICATED):
            raise ConfigError(
                f"what listens at {address} does not answer as a Ray cluster does ({code.name}). "
                "Check --address or RAY_ADDRESS: it is HOST:PORT of `ray start`, not of the "
                "dashboard."
            ) from None
        raise ConfigError(
            f"the Ray cluster at {address} does not accept this program's token ({source}). Run "
            "`ray get-auth-token` on its head node, and set RAY_AUTH_TOKEN to what it prints, or "
            "write that into ~/.ray/auth_token."
        ) from None
