"""A real object store on loopback, and a proxy before it that makes chosen requests go wrong.

The store is `rclone serve s3`: it checks credentials and keeps each object as a file in a folder, a bucket each. It
ignores If-None-Match.
"""

import contextlib
import http.client
import re
import socket
import struct
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
import s3fs

ACCESS_KEY, SECRET_KEY = "AKIASEMIPRUNETEST", "ZsT9sQ7vM2kLw4xNcRb8yJd3fGh6pAe1"


def environment(endpoint: str) -> dict[str, str]:
    """What finds the store at `endpoint`, and is let in. The checksums are what this store gets wrong for ranges."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }


def start(folder: Path, port: int = 0) -> tuple[subprocess.Popen, str]:
    """The folders in `folder` as buckets: the process, and the endpoint's URL. port: any that is free when 0."""
    keys = f"{ACCESS_KEY},{SECRET_KEY}"
    return launch(
        "rclone", "serve", "s3", "--config", "", "--addr", f"127.0.0.1:{port}", "--auth-key", keys, str(folder)
    )


def launch(program: str, *arguments: str) -> tuple[subprocess.Popen, str]:
    """An installed server: the process, and the URL that it says it can be reached at."""
    command = [Path(sysconfig.get_path("scripts")) / program, *arguments]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    told = ""
    while (found := re.search(r"http://127\.0\.0\.1:\d+", told)) is None:
        line = server.stderr.readline()
        assert line, f"{program} ended: {told}"
        told += line
    threading.Thread(target=server.stderr.read, daemon=True).start()  # or it would wait for a reader
    return server, found[0]


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The same for the length of the block; the endpoint's URL."""
    server, endpoint = start(folder)
    with server:
        try:
            yield endpoint
        finally:
            server.terminate()


@contextlib.contextmanager
def reached(endpoint: str) -> Iterator[pytest.MonkeyPatch]:
    """This process finds the store there, and its credentials, by the environment, until the block ends."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in environment(endpoint).items():
            patched.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield patched
    s3fs.S3FileSystem.clear_instance_cache()


@dataclass(frozen=True)
class Request:
    """What a client asks for: method, /bucket/key, query, and headers by their names in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Fault:
    """What happens to one request instead of its answer.

    status, code: an error of S3's. Else cut: so many bytes of the answer's body come, then the connection closes, or
    breaks (reset), or the answer says that this was all (shortened); lost: the answer does not come, though what was
    asked is done; delay: seconds before anything comes.
    """

    status: int = 0
    code: str = ""
    cut: int | None = None
    reset: bool = False
    shortened: bool = False
    lost: bool = False
    delay: float = 0.0


Plan = Callable[[Request], Fault | None]


class Proxy(ThreadingHTTPServer):
    """Hands requests on to `target`; `plan` says which go wrong, and how. requests: all that came."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = target.removeprefix("http://")
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.plan: Plan = lambda request: None
        self.requests: list[Request] = []
        self._lock = threading.Lock()

    def fault(self, request: Request) -> Fault | None:
        """What the plan has for this request; asked once for each, never twice at the same time."""
        with self._lock:
            self.requests.append(request)
            return self.plan(request)

    def answered(self, request: Request, received: int, sent: int) -> None:
        """Bytes of a request's body, and of the body of its answer; told of each before the answer is sent."""

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is nothing to tell."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def proxied(target: str) -> Iterator[Proxy]:
    """A proxy before `target` for the length of the block."""
    with Proxy(target) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def _answer(self) -> None:
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        asked = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, unquote(path), unquote(query), asked)
        fault = self.server.fault(request) or Fault()
        time.sleep(fault.delay)
        if fault.status:
            text = f"<Error><Code>{fault.code}</Code><Message>{fault.code}</Message></Error>".encode()
            self._send(fault.status, [("Content-Type", "application/xml")], text, len(text))
            return
        status, headers, content = self._forward(body)
        self.server.answered(request, len(body), len(content))
        length = int(dict(headers).get("Content-Length", len(content)))  # to a HEAD, what a GET would bring
        if fault.lost:
            self._break()
        elif fault.cut is None:
            self._send(status, headers, content, length)
        else:
            short = content[: fault.cut]
            self._send(status, headers, short, len(short) if fault.shortened else length)
            if fault.reset:
                self._break()
            self.close_connection = not fault.shortened

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.server.target, timeout=30)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _send(self, status: int, headers: list[tuple[str, str]], body: bytes, length: int) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "content-length", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.wfile.flush()

    def _break(self) -> None:
        """Close so that the client sees a reset, not an end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
