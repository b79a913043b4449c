"""A way to an object store on which requests get lost."""

import contextlib
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

LOST_OF = 20
"""One request of so many is lost, every other time after the store has carried it out."""
METHOD = re.compile(rb"(GET|HEAD|PUT|POST|DELETE) ")


@dataclass
class Way:
    """A proxy before a store.

    Attributes:
        address: where it is.
        requests: how many of each method have come to it.
        lost: how many it has lost.
        is_broken: whether it loses all of them.
    """

    address: str
    requests: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    is_broken: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def loses(self, method: str) -> bool:
        """Count a request, and tell whether it is lost."""
        with self._lock:
            self.requests[method] += 1
            lost = self.is_broken or self.requests.total() % LOST_OF == 0
            self.lost += lost
            return lost


@contextlib.contextmanager
def unreliable(store: str) -> Iterator[Way]:
    """A proxy before `store`, an http:// address, that loses one request of LOST_OF."""
    there = urlsplit(store)
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        way = Way(f"http://127.0.0.1:{server.getsockname()[1]}")
        target = (there.hostname or "", there.port or 80)
        threading.Thread(target=_accept, args=(server, target, way), daemon=True).start()
        yield way


def _accept(server: socket.socket, target: tuple[str, int], way: Way) -> None:
    while True:
        try:
            client, _ = server.accept()
        except OSError:
            return  # closed
        store = socket.create_connection(target)
        answers_lost = threading.Event()
        for pump in (_requests, _answers):
            arguments = (client, store, way, answers_lost)
            threading.Thread(target=pump, args=arguments, daemon=True).start()


def _requests(
    client: socket.socket, store: socket.socket, way: Way, answers_lost: threading.Event
) -> None:
    """Pass requests on; a new one begins where the store has answered the one before."""
    with contextlib.suppress(OSError):
        while received := client.recv(1 << 16):
            if (begun := METHOD.match(received)) and way.loses(begun[1].decode()):
                if way.lost % 2:
                    break
                answers_lost.set()
            store.sendall(received)
    _close(client, store)


def _answers(
    client: socket.socket, store: socket.socket, way: Way, answers_lost: threading.Event
) -> None:
    with contextlib.suppress(OSError):
        while received := store.recv(1 << 16):
            if answers_lost.is_set():
                break
            client.sendall(received)
    _close(client, store)


def _close(*sockets: socket.socket) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
