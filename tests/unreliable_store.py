"""A way to an object store on which requests fail, as they do on a busy network."""

import contextlib
import http.client
import itertools
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

BROKEN_OF = 20
"""One request of so many is broken."""
LATE_SECONDS = 4.0
"""How long a late answer takes: longer than clients of S3 wait for one."""
AT_ONCE = ("500", "503", "not sent", "not answered", "cut")
KINDS = (*AT_ONCE * 9, "late")
"""How requests are broken, in turn. The store does not see those of the first three; of those that
it has carried out, the answer is lost, ends in the middle of its body, or comes late."""
WITHOUT_HEADERS = "cut before its headers"
"""A kind that comes only where `breaks` names it: the answer ends after its first line."""
PAGE = "<Error><Code>{}</Code><Message>{:300}</Message></Error>"
"""What a store says of an error, as long as S3 says it."""
ERRORS = {"500": "InternalError", "503": "SlowDown"}


@dataclass
class Way:
    """A proxy before a store.

    Attributes:
        address: where it is.
        requests: how many of each method have come to it.
        broken: how many of them it has broken, of each kind.
        breaks: method -> how it breaks the next requests of that method, and no more after them;
            None for one that it does not break.
    """

    address: str
    requests: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    breaks: dict[str, Iterator[str | None]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _kinds: Iterator[str] = field(default_factory=lambda: itertools.cycle(KINDS))

    def kind(self, method: str) -> str | None:
        """Count a request, and return how it is broken; None if it is not."""
        with self._lock:
            self.requests[method] += 1
            kind = None
            if method in self.breaks:
                kind = next(self.breaks[method], None)
            elif self.requests.total() % BROKEN_OF == 0:
                kind = next(self._kinds)
            if kind is not None:
                self.broken[kind] += 1
            return kind


@contextlib.contextmanager
def unreliable(store: str) -> Iterator[Way]:
    """A proxy before `store`, an http:// address, that breaks one request of BROKEN_OF."""
    way = Way("")

    class Handler(_Proxy):
        def handle_one(self) -> None:
            self.pass_on(urlsplit(store).netloc, way.kind(self.command))

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_one

    with _Server(("127.0.0.1", 0), Handler) as server:
        way.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield way
        server.shutdown()


class _Server(ThreadingHTTPServer):
    request_queue_size = 100
    block_on_close = False  # clients keep their connections open

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        """Close a connection; a regular end would come before its reset."""
        self.close_request(request)


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # an answer is one packet, which no delay of the system's waits for

    def handle_expect_100(self) -> bool:
        """Ask for the body at once."""
        go_on = super().handle_expect_100()
        self.wfile.flush()
        return go_on

    def pass_on(self, store: str, kind: str | None) -> None:
        """Have the request carried out and answer it, or break it."""
        if kind == "not sent":
            self._reset()
            return
        body = self._body()
        if kind in ERRORS:
            self._answer(int(kind), [], PAGE.format(ERRORS[kind], "").encode())
            return
        with contextlib.closing(http.client.HTTPConnection(store)) as connection:
            as_it_is = {"skip_host": True, "skip_accept_encoding": True}
            connection.putrequest(self.command, self.path, **as_it_is)
            for name, value in self.headers.items():
                if name.lower() not in ("transfer-encoding", "content-length", "expect"):
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            content = answer.read()
        if kind == "late":
            threading.Event().wait(LATE_SECONDS)
        if kind == "not answered" or (kind == "cut" and not content):
            self._reset()
            return
        if kind == WITHOUT_HEADERS:
            self.send_response_only(answer.status)
            self.flush_headers()
            self.close_connection = True
            return
        self._answer(answer.status, answer.getheaders(), content, cut=kind == "cut")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(
        self, status: int, headers: list[tuple[str, str]], content: bytes, *, cut: bool = False
    ) -> None:
        """Send an answer; without the second half of its body, if it is cut."""
        self.send_response_only(status)
        of_length = [value for name, value in headers if name.lower() == "content-length"]
        for name, value in headers:
            if name.lower() not in ("connection", "content-length", "transfer-encoding"):
                self.send_header(name, value)
        length = of_length[0] if self.command == "HEAD" and of_length else str(len(content))
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = self.close_connection or cut

    def _reset(self) -> None:
        """End the connection as a broken one does, not by its regular end."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True

    def handle(self) -> None:
        """Serve a connection until its end, whatever that is."""
        with contextlib.suppress(OSError):
            super().handle()

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""
