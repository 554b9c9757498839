"""What an object store says, in our words, and what of it may pass. Whole runs are in tests/test_object_store.py."""

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, HTTPClientError

from pipeline import object_store


def raised(status: int, code: str) -> OSError:
    """The error that s3fs makes of an answer."""
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error = OSError(code)
    error.__cause__ = ClientError(answer, "GetObject")
    return error


def test_an_answer_is_its_status_and_its_code() -> None:
    assert object_store.answer(raised(403, "ExpiredToken")) == (403, "ExpiredToken")
    assert object_store.answer(OSError("disk")) == (None, "")


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("InvalidAccessKeyId", "does not know this access key"),
        ("SignatureDoesNotMatch", "secret key is not that of the access key"),
        ("ExpiredToken", "session token has expired"),
        ("NoSuchBucket", "bucket does not exist"),
    ],
)
def test_a_refusal_is_said_with_what_to_do(code: str, why: str) -> None:
    refusal = object_store.refusal(raised(403, code))
    assert refusal is not None and why in refusal[0] and refusal[1]
    assert object_store.refusal(raised(500, "InternalError")) is None


@pytest.mark.parametrize(
    ("error", "may_pass"),
    [
        (raised(503, "SlowDown"), True),
        (raised(500, "InternalError"), True),
        (raised(429, "TooManyRequests"), True),
        (raised(403, "AccessDenied"), False),
        (raised(404, "NoSuchKey"), False),
        (HTTPClientError(error="reset"), True),
        (object_store.ShortBodyError("short"), True),
        (EndpointConnectionError(endpoint_url="http://nowhere"), False),
        (OSError("disk"), False),
    ],
)
def test_which_troubles_may_pass(error: Exception, may_pass: bool) -> None:
    if isinstance(error, EndpointConnectionError):
        assert not isinstance(error, OSError)
    assert object_store.may_pass(error) is may_pass


def test_an_object_that_is_there_is_not_created_again(s3_root: str) -> None:
    from pipeline import storage

    fs, path = storage.resolve(f"{s3_root}/object")
    assert object_store.is_conditional(fs, path)  # this server honours If-None-Match
    assert object_store.create(fs, path, b"first") and not object_store.create(fs, path, b"second")
    assert object_store.read(fs, path) == b"first"
    assert object_store.read_range(fs, path, 1, 3) == b"irs"
    assert object_store.read_range(fs, path, 3, 30) == b"st"
