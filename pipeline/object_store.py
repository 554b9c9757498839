"""What object stores need besides fsspec: their refusals in words, bytes that are all there, writes only if absent.

botocore and s3fs try again when the network breaks or the store answers 500 or 503, with growing pauses. What they let
through is tried again here a few times: a body that ends early though its length was as announced.
"""

import time
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

import fsspec
from botocore.exceptions import (
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    ResponseStreamingError,
)

Result = TypeVar("Result")


class ShortBodyError(ConnectionError):
    """Fewer bytes came than the object has, and the store said that these were all."""


PAUSES = (0.1, 0.2, 0.4, 0.8)
"""Seconds before each further try."""

_REFUSALS = {
    "InvalidAccessKeyId": ("the store does not know this access key", "check the credentials"),
    "SignatureDoesNotMatch": ("the secret key is not that of the access key", "check the credentials"),
    "InvalidToken": ("the session token is not valid", "get new credentials"),
    "ExpiredToken": ("the session token has expired", "get new credentials, then run the same command again"),
    "TokenRefreshRequired": ("the session token has expired", "get new credentials, then run the same command again"),
    "RequestTimeTooSkewed": ("this machine's clock is not the store's", "set the clock"),
    "NoSuchBucket": ("its bucket does not exist", "create it first, or check its name"),
    "AuthorizationHeaderMalformed": ("the store is in another region", "set AWS_DEFAULT_REGION to the bucket's"),
    "PermanentRedirect": ("the store is in another region", "set AWS_DEFAULT_REGION to the bucket's"),
}
"""What a store says, in our words, and what to do."""

_WRONG_CHECKSUM = (
    "the checksum that the store sends is not that of the bytes",
    "run the same command again, and if that does not help, set AWS_RESPONSE_CHECKSUM_VALIDATION=when_required",
)
"""Stores other than AWS may send the whole object's with a part of it."""

_BROKEN = (HTTPClientError, IncompleteReadError, ResponseStreamingError, ShortBodyError)

_conditional: dict[tuple[str, str], bool] = {}
"""By endpoint and bucket, for this process: whether the store refuses the second of two conditional writes."""


def answer(error: BaseException) -> tuple[int | None, str]:
    """Status and code of the answer that s3fs made this error of; None and "" if it was no answer."""
    response: dict[str, Any] = getattr(error.__cause__, "response", None) or {}
    return response.get("ResponseMetadata", {}).get("HTTPStatusCode"), str(response.get("Error", {}).get("Code", ""))


def refusal(error: BaseException) -> tuple[str, str] | None:
    """Why the store will not, and what to do; None where the error's own words are as good."""
    if isinstance(error, FlexibleChecksumError):
        return _WRONG_CHECKSUM
    return _REFUSALS.get(answer(error)[1])


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later: a broken connection, or a store that is busy or ill.

    Not if there was no connection at all: that is an address to mend, more often than not.
    """
    if isinstance(error, _BROKEN) or type(error).__module__.startswith("aiohttp."):
        return True
    status = answer(error)[0]
    return status is not None and (status == 429 or status >= 500)


def asked_twice(fs: fsspec.AbstractFileSystem, path: str, ask: Callable[[str], Result]) -> Result:
    """`ask(path)`, which sends a HEAD; a refusal of a HEAD has no words, so a GET asks for them."""
    try:
        return ask(path)
    except OSError as error:
        if answer(error)[0] in (400, 403):
            fs.cat_file(path, start=0, end=1)
        raise


def fetch(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
    """All bytes that the store sends, in one request: s3fs reads large objects in pieces, and fills up a short one."""
    data: bytes = fs.cat_file(path, **({"max_concurrency": 1} if "s3" in fs.protocol else {}))
    return data


def read(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
    """All bytes of the object, as many as a second request says it has; ShortBodyError if they stay away."""
    return _patiently(lambda: fetch(fs, path), lambda data: len(data) == _size(fs, path))


def read_range(fs: fsspec.AbstractFileSystem, path: str, start: int, length: int) -> bytes:
    """Bytes `start` to `start + length`, or to the end of the object, which is looked up if the store sends fewer.

    ShortBodyError if they stay away; ValueError if the store ignores ranges.
    """

    def fetch_range() -> bytes:
        try:
            data: bytes = fs.cat_file(path, start=start, end=start + length)
        except OSError as error:
            if answer(error)[0] == 416:
                return b""
            raise
        if len(data) > length:
            raise ValueError("the store ignores ranges and sends the whole object")
        return data

    def is_whole(data: bytes) -> bool:
        return len(data) == length or start + len(data) >= _size(fs, path)

    return _patiently(fetch_range, is_whole)


def _size(fs: fsspec.AbstractFileSystem, path: str) -> int:
    return int(asked_twice(fs, path, fs.info)["size"])


def _patiently(ask: Callable[[], bytes], is_whole: Callable[[bytes], bool]) -> bytes:
    for pause in (*PAUSES, None):
        data = ask()
        if is_whole(data):
            return data
        if pause is not None:
            time.sleep(pause)
    raise ShortBodyError(f"{len(data)} bytes came, and those are not all")


def create(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> bool:
    """Write the object only if there is none; False if there was one.

    Of several callers at once, one gets True, where the store honours If-None-Match. Where it does not, whoever finds
    nothing there writes, and reads back: True if those are its bytes. There, two callers at the very same moment may
    both get True, and the object is the later one's; one of two that are further apart than a round trip gets False.
    """
    if is_conditional(fs, path):
        return _put_if_absent(fs, path, data)
    if asked_twice(fs, path, fs.exists):
        return False
    fs.pipe_file(path, data)
    try:
        return fetch(fs, path) == data
    except FileNotFoundError:  # another caller wrote over it, and has deleted its own since
        return False


def is_conditional(fs: fsspec.AbstractFileSystem, path: str) -> bool:
    """Whether the store of `path` refuses to write over an object when it is told not to.

    Found out once for each bucket, by writing twice, beside `path`, to a name that no reader of a folder is shown.
    """
    bucket = str(fs._strip_protocol(path)).split("/", 1)[0]
    store = (str(fs.s3.meta.endpoint_url) if "s3" in fs.protocol else str(fs.protocol), bucket)
    if store not in _conditional:
        scratch = f"{path.rpartition('/')[0]}/.semiprune-{uuid.uuid4().hex}.tmp"
        try:
            _conditional[store] = not (_put_if_absent(fs, scratch, b"1") and _put_if_absent(fs, scratch, b"2"))
        except OSError as error:
            if answer(error)[0] != 501:
                raise
            _conditional[store] = False
        else:
            _forget(fs, scratch)
    return _conditional[store]


def _forget(fs: fsspec.AbstractFileSystem, path: str) -> None:
    """Delete the scratch object; who may write but not delete keeps it."""
    try:
        fs.rm_file(path)
    except (FileNotFoundError, PermissionError):
        return


def _put_if_absent(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> bool:
    for pause in (*PAUSES, None):
        try:
            fs.pipe_file(path, data, mode="create")
            return True
        except FileExistsError:
            return False
        except OSError as error:
            # s3fs knows 412 only in the words of AWS; 409 is two conditional PUTs at once, decided on the next try.
            status = answer(error)[0]
            if status == 412:
                return False
            if status != 409 or pause is None:
                raise
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")
