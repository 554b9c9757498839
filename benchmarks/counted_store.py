"""An object store on loopback that counts what is asked of it: requests by kind, and bytes each way.

`rclone serve s3` behind a proxy. rclone ignores If-None-Match; the proxy refuses the second of two conditional writes
itself, as the stores do that have them, so that requests are those of such a store. Both take time of the same cores:
what was counted holds elsewhere, how long it took does not.
"""

import multiprocessing
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.object_store import Fault, Proxy, Request, environment, serve

KINDS = ("GET", "LIST", "HEAD", "PUT", "DELETE", "POST")
COUNTED = (*KINDS, "read", "written")


class Counting(Proxy):
    """counts: shared between processes, one number for each of COUNTED."""

    def __init__(self, target: str, counts: Any) -> None:
        super().__init__(target)
        self.counts = counts
        self.plan = self._count
        self._there: set[str] = set()

    def _count(self, request: Request) -> Fault | None:
        self.requests.clear()
        listing = request.method == "GET" and re.search(r"(^|&)(list-type|prefix|location)", request.query) is not None
        self.counts[KINDS.index("LIST" if listing else request.method)] += 1
        if request.method == "DELETE":
            self._there.discard(request.path)
        if request.method == "PUT":
            if "if-none-match" in request.headers and request.path in self._there:
                return Fault(412, "PreconditionFailed")
            self._there.add(request.path)
        return None

    def answered(self, request: Request, received: int, sent: int) -> None:
        with self.counts.get_lock():
            self.counts[-2] += sent if request.method == "GET" else 0
            self.counts[-1] += received


@contextmanager
def counted(folder: Path) -> Iterator[tuple[dict[str, str], Any]]:
    """The folders in `folder` as buckets: the environment that finds them, and the counts, which grow."""
    counts = multiprocessing.get_context("spawn").Array("q", len(COUNTED))
    with serve(folder) as endpoint, Counting(endpoint, counts) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield environment(proxy.endpoint), counts
        finally:
            proxy.shutdown()
            thread.join()
