"""Places to store things: a local folder, a bucket behind HTTP, a disk that is nearly full."""

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import s3fs

from tests.object_store import Proxy, launch, proxied, reached, serve

BUCKET = "semiprune-test"


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[str]:
    """A bucket on a server of its own; s3fs and boto3 find it by the environment, as they would find AWS.

    In a process of its own too: moto's mocks in this one would empty it.
    """
    server, endpoint = launch("moto_server", "--host", "127.0.0.1", "--port", "0")
    with server, pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", endpoint)
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        try:
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            yield BUCKET
        finally:
            s3fs.S3FileSystem.clear_instance_cache()
            server.terminate()


@pytest.fixture
def s3_root(s3_bucket: str) -> str:
    """A prefix that no other test has."""
    return f"s3://{s3_bucket}/{uuid.uuid4().hex}"


@pytest.fixture
def faulty(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy before the server of `s3_bucket`, which goes wrong by plan."""
    with proxied(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        s3fs.S3FileSystem.clear_instance_cache()
        yield proxy
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a store that checks credentials and has no conditional writes; its bucket is `BUCKET`."""
    folder = tmp_path_factory.mktemp("rclone")
    (folder / BUCKET).mkdir()
    with serve(folder) as endpoint:
        yield endpoint


@pytest.fixture
def rclone_root(rclone: str) -> Iterator[str]:
    """A prefix there that no other test has."""
    with reached(rclone):
        yield f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "root") if request.param == "local" else str(request.getfixturevalue("s3_root"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of one megabyte, where the tests may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a task that was not waited for may hold a file
