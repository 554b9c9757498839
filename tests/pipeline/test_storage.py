"""Every promise of pipeline.storage, on a local disk and on an object store over HTTP."""

import errno
import os
import re
import subprocess
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
from fsspec.exceptions import FSTimeoutError

from pipeline import storage
from pipeline.errors import CorruptArtifactError, StorageError, UserError
from pipeline.shards import absolute
from pipeline.stage import Part
from tests.object_store import Fault, Proxy, Request, proxied, reached


@pytest.fixture(params=["local", "s3", "rclone"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place on each kind: a disk, a store with conditional writes, and one without."""
    if request.param == "local":
        return str(tmp_path / "root")
    return str(request.getfixturevalue(f"{request.param}_root"))


def everything_in(folder: Path) -> list[str]:
    """Sorted names, hidden and temporary ones too."""
    return sorted(path.name for path in folder.iterdir())


def other_process(uri: str, data: bytes) -> None:
    """Write an object through a client that shares no cache with the one under test."""
    bucket, key = uri.removeprefix("s3://").split("/", 1)
    boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=data)


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 4096, memoryview(b"view")])
def test_write_read(root: str, data: bytes) -> None:
    uri = storage.join(root, "a", "b.bin")
    storage.write(uri, b"before")
    storage.write(uri, data)
    assert storage.read(uri) == bytes(data)
    assert storage.read_verified(uri, storage.sha256(data)) == bytes(data)
    assert storage.info(uri)["size"] == len(data)
    assert storage.names(storage.join(root, "a")) == ["b.bin"]


def test_join() -> None:
    assert storage.join("s3://bucket/prefix/", "a", "b") == "s3://bucket/prefix/a/b"
    assert storage.join("/", "a") == "/a"


@pytest.mark.parametrize("name", ["a b", "a*b?[1]", "100%#", "ümlaut", "quote'\"", "k" * 200])
def test_awkward_names(root: str, name: str) -> None:
    uri = storage.join(root, name)
    assert storage.create(uri, b"1")
    storage.write(uri, b"22")
    assert storage.read(uri) == b"22"
    assert storage.names(root) == [name]
    storage.delete(uri)
    assert not storage.exists(uri)


def test_what_is_not_there(root: str) -> None:
    uri = storage.join(root, "none")
    for ask in (storage.read, storage.info, lambda uri: storage.read_range(uri, 0, 1)):
        with pytest.raises(FileNotFoundError):
            ask(uri)
    assert not storage.exists(uri)
    assert storage.names(uri) == []
    storage.delete(uri)


@pytest.mark.parametrize(
    ("start", "length"), [(0, 10), (0, 1), (3, 4), (9, 1), (0, 0), (4, 0), (8, 5), (10, 1), (50, 2)]
)
def test_read_range(root: str, start: int, length: int) -> None:
    uri = storage.join(root, "range")
    storage.write(uri, b"0123456789")
    assert storage.read_range(uri, start, length) == b"0123456789"[start : start + length]


def test_create_keeps_the_first(root: str) -> None:
    uri = storage.join(root, "once")
    assert storage.create(uri, b"first")
    assert not storage.create(uri, b"second")
    assert storage.read(uri) == b"first"
    storage.delete(uri)
    assert storage.create(uri, b"third")


@pytest.mark.parametrize("root", ["local", "s3"], indirect=True)
def test_one_of_many_creators_wins(root: str) -> None:
    barrier = threading.Barrier(16)

    def attempt(number: int) -> bool:
        barrier.wait()
        return storage.create(storage.join(root, "folder", "race"), b"%d" % number * 1000)

    for _ in range(3):
        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(attempt, range(16)))
        assert sum(won) == 1
        assert storage.read(storage.join(root, "folder", "race")) == b"%d" % won.index(True) * 1000
        assert storage.names(storage.join(root, "folder")) == ["race"]
        storage.delete(storage.join(root, "folder", "race"))


def test_a_reader_never_sees_half_an_object(root: str) -> None:
    uri = storage.join(root, "whole")
    storage.write(uri, b"0" * 300_000)
    done = threading.Event()

    def watch() -> int:
        seen = 0
        while not done.is_set():
            data = storage.read(uri)
            assert len(data) == 300_000
            assert len(set(data)) == 1
            seen += 1
        return seen

    with ThreadPoolExecutor(1) as pool:
        watcher = pool.submit(watch)
        for digit in range(1, 40):
            storage.write(uri, b"%d" % (digit % 10) * 300_000)
        done.set()
        assert watcher.result() > 0


def test_what_another_process_wrote_is_seen_at_once(s3_root: str) -> None:
    storage.write(storage.join(s3_root, "mine"), b"1")
    for number, ask in enumerate(
        [storage.exists, storage.info, storage.read, lambda uri: storage.read_range(uri, 0, 1)]
    ):
        storage.names(s3_root)
        uri = storage.join(s3_root, f"theirs-{number}")
        other_process(uri, b"2")
        assert ask(uri)
    assert len(storage.names(s3_root)) == 5


def test_what_another_process_replaced_is_read_whole(s3_root: str) -> None:
    uri = storage.join(s3_root, "grows")
    storage.write(uri, b"1")
    storage.names(s3_root)
    other_process(uri, b"22")
    assert storage.info(uri)["size"] == 2
    assert storage.read(uri) == b"22"


def test_damage_and_loss_are_named(root: str) -> None:
    uri = storage.join(root, "part")
    with pytest.raises(CorruptArtifactError, match=r"part.*missing"):
        storage.read_verified(uri, storage.sha256(b"good"))
    storage.write(uri, b"bad")
    with pytest.raises(CorruptArtifactError, match=r"part.*damaged"):
        storage.read_verified(uri, storage.sha256(b"good"))


@pytest.mark.parametrize("operation", [storage.write, storage.create])
def test_full_disk(small_disk: Path, operation: Callable[[str, bytes], object]) -> None:
    storage.write(str(small_disk / "old"), b"kept")
    with pytest.raises(UserError, match=r"no space left to write '.*/new'"):
        operation(str(small_disk / "new"), b"x" * 4_000_000)
    with pytest.raises(UserError, match="no space left"):
        storage.write(str(small_disk / "old"), b"x" * 4_000_000)
    assert everything_in(small_disk) == ["old"]
    assert storage.read(str(small_disk / "old")) == b"kept"
    storage.write(str(small_disk / "new"), b"x" * 100_000)


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        (errno.ENOSPC, UserError, "no space left"),
        (errno.EDQUOT, UserError, "no space left"),
        (errno.EROFS, UserError, "read-only"),
        (errno.EACCES, UserError, "no permission for .* choose another place"),
        (errno.ELOOP, UserError, "cannot use .*: Too many levels of symbolic links; choose another place"),
        (errno.EIO, StorageError, "failed: Input/output error; run the same command again"),
    ],
)
def test_what_the_disk_refuses_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception], message: str
) -> None:
    def refuse(_descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    storage.write(str(tmp_path / "old"), b"kept")
    monkeypatch.setattr(os, "fsync", refuse)
    for name, operation in (("x", storage.write), ("x", storage.create), ("old", storage.write)):
        with pytest.raises(kind, match=message) as caught:
            operation(str(tmp_path / name), b"1")
        assert repr(str(tmp_path / name)) in str(caught.value)
    assert everything_in(tmp_path) == ["old"]
    assert storage.read(str(tmp_path / "old")) == b"kept"


@pytest.mark.parametrize("operation", [storage.write, storage.create])
def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: Callable[[str, bytes], object]
) -> None:
    def interrupt(_descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        operation(str(tmp_path / "x"), b"1")
    assert everything_in(tmp_path) == []


def test_a_killed_write_leaves_nothing_that_a_reader_finds(tmp_path: Path) -> None:
    (tmp_path / f".part.{uuid.uuid4().hex}.tmp").write_bytes(b"ha")
    storage.write(str(tmp_path / "part"), b"whole")
    assert storage.names(str(tmp_path)) == ["part"]


@pytest.mark.skipif(os.geteuid() != 0, reason="chattr needs root")
def test_folder_without_permission(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir()
    if subprocess.run(["chattr", "+i", str(locked)], capture_output=True, check=False).returncode:
        pytest.skip("this filesystem has no immutable folders")
    try:
        for operation in (storage.write, storage.create):
            with pytest.raises(UserError, match=r"no permission for '.*locked/x'"):
                operation(str(locked / "x"), b"1")
    finally:
        subprocess.run(["chattr", "-i", str(locked)], check=True)


def test_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_source: Path, _target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(UserError, match="without hard links"):
        storage.create(str(tmp_path / "x"), b"1")
    assert everything_in(tmp_path) == []


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    (tmp_path / "folder").mkdir()
    inside = str(tmp_path / "file" / "x")
    for operation in (storage.write, storage.create):
        with pytest.raises(UserError, match="choose another place"):
            operation(inside, b"2")
    for ask in (storage.read, storage.names, storage.info):
        with pytest.raises(UserError, match=rf"^'{tmp_path}/file' is a file: check the path$"):
            ask(inside)
    with pytest.raises(UserError, match="in the way"):
        storage.write(str(tmp_path / "folder"), b"2")
    assert everything_in(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("special", ["/dev/null", "/dev/full", "fifo", "link to a device"])
@pytest.mark.parametrize("operation", [storage.write, storage.create])
def test_a_special_file_is_not_replaced(
    tmp_path: Path, special: str, operation: Callable[[str, bytes], object]
) -> None:
    place = tmp_path / special
    if special == "fifo":
        os.mkfifo(place)
    elif special == "link to a device":
        place.symlink_to("/dev/null")
    before = place.lstat().st_ino
    if operation is storage.create:
        assert operation(str(place), b"1") is False
    else:
        with pytest.raises(UserError, match="is a device, a pipe or a socket: name a file"):
            operation(str(place), b"1")
    assert place.lstat().st_ino == before


@pytest.mark.parametrize(
    ("name", "message"),
    [("k" * 300, "File name too long"), ("loop", "Too many levels"), ("null\0", "null byte")],
)
def test_a_path_that_cannot_be_is_one_sentence(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match=rf"^cannot use .*{message}.*; check the path$"):
        storage.read(str(tmp_path / name))
    with pytest.raises(UserError, match=r"^cannot .*; choose another place$"):
        storage.write(str(tmp_path / name / "x"), b"1")


def test_a_store_that_does_not_answer_is_one_sentence(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fs, _ = storage.resolve(s3_root)

    async def late(*_: object, **__: object) -> None:
        raise FSTimeoutError

    monkeypatch.setattr(fs, "_call_s3", late)
    for ask in (storage.read, storage.names, storage.exists):
        with pytest.raises(StorageError, match=r"^'s3://.* failed: FSTimeoutError; run the same command again"):
            ask(s3_root)


def test_json_is_read_as_what_it_should_be(root: str) -> None:
    uri = storage.join(root, "x.json")
    with pytest.raises(FileNotFoundError):
        storage.read_json(uri)
    storage.write(uri, b'{"name": "part", "rows": 1, "bytes": 2, "sha256": "0", "more": 3}')
    assert storage.read_json(uri)["more"] == 3
    assert storage.read_json(uri, Part) == Part("part", 1, 2, "0")
    with pytest.raises(CorruptArtifactError, match="write it again"):
        storage.read_json(uri, list[int], mend="write it again")


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[]", b"null", b'{"name": "part"}', b"[" * 10_000])
def test_damaged_json_is_named(root: str, data: bytes) -> None:
    uri = storage.join(root, "x.json")
    storage.write(uri, data)
    with pytest.raises(CorruptArtifactError, match=r"x\.json' is damaged: delete the folder of that stage and run"):
        storage.read_json(uri, Part)


@pytest.mark.parametrize("uri", ["nope://bucket/x", "gs://bucket/x"])
def test_unknown_scheme(uri: str) -> None:
    with pytest.raises(UserError, match=r"s3://bucket/prefix"):
        storage.read(uri)


@pytest.mark.parametrize("operation", [storage.write, storage.create])
def test_missing_bucket(s3_bucket: str, operation: Callable[[str, bytes], object]) -> None:
    with pytest.raises(UserError, match=r"s3://no-such-bucket/x.*bucket"):
        operation("s3://no-such-bucket/x", b"1")


def refuse(faulty: Proxy, status: int, code: str, method: str = "", times: int = 10**9) -> None:
    """Let the store answer the next `times` requests of a method, or of any, with an error."""
    left = [times]

    def plan(request: Request) -> Fault | None:
        if not request.method.startswith(method) or left[0] == 0:
            return None
        left[0] -= 1
        return Fault(status=status, code=code)

    faulty.plan = plan


OPERATIONS = (
    storage.read,
    storage.exists,
    storage.info,
    storage.names,
    lambda uri: storage.read_range(uri, 0, 1),
    lambda uri: storage.write(uri, b"1"),
    lambda uri: storage.create(uri, b"1"),
)


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "AccessDenied", r"^no permission for 's3://.*: allow it to this user or role, or (check|choose)"),
        (403, "InvalidAccessKeyId", r"^cannot use 's3://.*: the store does not know this access key; check the cred"),
        (403, "SignatureDoesNotMatch", r"^cannot use 's3://.*: the secret key is not that of the access key; check"),
        (403, "RequestTimeTooSkewed", r"^cannot use 's3://.*: this machine's clock is not the store's; set the clock$"),
        (400, "ExpiredToken", r"^cannot use 's3://.*: the session token has expired; get new credentials, then run"),
        (400, "InvalidToken", r"^cannot use 's3://.*: the session token is not valid; get new credentials$"),
        (404, "NoSuchBucket", r"^cannot .*'s3://.* bucket does not exist; create it first"),
    ],
)
def test_what_a_store_refuses_is_one_sentence(
    s3_root: str, faulty: Proxy, status: int, code: str, message: str
) -> None:
    refuse(faulty, status, code)
    for operation in OPERATIONS:
        if code == "NoSuchBucket" and operation in (storage.exists, storage.names):
            assert not operation(s3_root)  # as in any folder that is not there
            continue
        with pytest.raises(UserError, match=message):
            operation(storage.join(s3_root, "x"))


@pytest.mark.parametrize(("status", "code"), [(500, "InternalError"), (503, "ServiceUnavailable"), (429, "Busy")])
def test_a_store_that_stays_ill_may_recover(
    s3_root: str, faulty: Proxy, monkeypatch: pytest.MonkeyPatch, status: int, code: str
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # botocore's five take seconds
    refuse(faulty, status, code)

    def ask(operation: Callable[[str], object]) -> None:
        with pytest.raises(StorageError, match=r"^'s3://.* failed: .*; run the same command again"):
            operation(storage.join(s3_root, "x"))

    with ThreadPoolExecutor(len(OPERATIONS)) as pool:
        list(pool.map(ask, OPERATIONS))


def test_no_credentials(s3_root: str, faulty: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for operation in OPERATIONS:
        with pytest.raises(UserError, match=r"cannot reach 's3://.*credentials"):
            operation(storage.join(s3_root, "x"))
    assert faulty.requests == []


def test_a_store_with_wrong_checksums_is_told_how_to_be_read(rclone_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """This one sends the whole object's checksum with a range of it."""
    monkeypatch.delenv("AWS_RESPONSE_CHECKSUM_VALIDATION")
    monkeypatch.delenv("AWS_REQUEST_CHECKSUM_CALCULATION")
    storage.write(storage.join(rclone_root, "x"), b"123")
    with pytest.raises(UserError, match=r"checksum .*; run .*set AWS_RESPONSE_CHECKSUM_VALIDATION=when_required$"):
        storage.read_range(storage.join(rclone_root, "x"), 0, 1)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIA:a-secret@bucket/x",
        "s3://:a-secret@bucket/x",
        "s3://a-secret@bucket/x",
        "S3://AKIA:a-secret@bucket/x",
        "s3://AKIA:a/secret@bucket/x",
        "s3://AKIA:/a//secret/@bucket/x",
        "s3://AKIA:a:secret@bucket/x",
        "s3://AKIA:a@secret@bucket/x",
        "s3://AKIA:a@se/cret@bucket/x",
        "{s3://public,s3://AKIA:a/secret@bucket}/x",
    ],
)
def test_credentials_have_no_place_in_a_uri(uri: str) -> None:
    for ask in (storage.refuse_credentials, storage.read):
        with pytest.raises(UserError, match=r"(?i)s3://bucket}?/x' must not carry credentials") as caught:
            ask(uri)
        assert not re.search(r"AKIA|cret", str(caught.value))


@pytest.mark.parametrize("name", ["a@b", "a:b", "12:30/a@b", "@", ":"])
def test_a_name_is_no_credential(root: str, name: str) -> None:
    storage.write(storage.join(root, name), b"1")
    assert storage.read(storage.join(root, name)) == b"1"


@pytest.mark.parametrize("uri", ["http://head:8265/a", "{s3://a,s3://b}/x:y@z", "s3://b/k:1@2", "arn:a:b@c", "/x:y@z"])
def test_a_port_a_list_or_a_path_is_no_credential(uri: str) -> None:
    storage.refuse_credentials(uri)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3:/bucket/x", "'s3:/bucket/x' has one slash after s3: write s3://bucket/x, or ./s3:/bucket/x for a folder"),
        ("GS:/b", "'GS:/b' has one slash after GS: write GS://b, or ./GS:/b for a folder here"),
        ("s3://", "'s3://' names no bucket: write it like s3://bucket/prefix"),
        ("s3:///bucket/x", "'s3:///bucket/x' names no bucket: write it like s3://bucket/prefix"),
        ("gs:///x", "'gs:///x' names no bucket: write it like gs://bucket/prefix"),
    ],
)
def test_a_misspelt_store_is_no_local_folder(uri: str, message: str) -> None:
    for ask in (storage.read, storage.names, storage.is_local, absolute, lambda uri: storage.write(uri, b"1")):
        with pytest.raises(UserError, match=f"^{re.escape(message)}"):
            ask(uri)
    with pytest.raises(UserError, match="'s3:///part' names no bucket"):
        storage.read(storage.join("s3://", "part"))


@pytest.mark.parametrize("uri", ["./s3:/x", "file:/x", "file:///x", "memory:///x", "s3://b", "12:30/x", "/s3:/x"])
def test_what_looks_like_a_misspelt_store_and_is_none(uri: str) -> None:
    storage.resolve(uri)
    absolute(uri)


@pytest.mark.parametrize(("uri", "need"), [("gs://b/x", "pip install gcsfs"), ("smb://h/x", "SMB requires ")])
def test_a_store_whose_package_is_missing_is_one_instruction(uri: str, need: str) -> None:
    with pytest.raises(UserError, match=rf"^cannot open '{uri}': {need}.*, or use s3://bucket/prefix or a local path$"):
        storage.read(uri)


@pytest.mark.parametrize("name", ["exp::1/part", "a::b", "::", "simplecache::s3://bucket/x"])
def test_what_fsspec_takes_for_a_chain_is_refused(root: str, name: str) -> None:
    for ask in (storage.read, storage.names, storage.exists, storage.is_local, lambda uri: storage.write(uri, b"1")):
        for uri in (storage.join(root, name), name):
            with pytest.raises(UserError, match=r"has '::' in it, .*: name a place without it$"):
                ask(uri)


def test_a_refusal_in_other_words(s3_root: str, faulty: Proxy) -> None:
    """Stores other than AWS answer 412 without naming the condition."""
    assert storage.is_exclusive(s3_root)
    refuse(faulty, 412, "PreconditionFailed", "PUT")
    assert not storage.create(storage.join(s3_root, "x"), b"1")


def test_two_conditional_puts_at_once_are_tried_again(s3_root: str, faulty: Proxy) -> None:
    uri = storage.join(s3_root, "x")
    assert storage.is_exclusive(uri)
    refuse(faulty, 409, "ConditionalRequestConflict", "PUT", times=2)
    assert storage.create(uri, b"1")
    refuse(faulty, 409, "ConditionalRequestConflict", "PUT", times=2)
    assert not storage.create(uri, b"2")
    assert storage.read(uri) == b"1"


def test_whether_a_store_has_conditional_writes_is_asked_once(s3_root: str, faulty: Proxy) -> None:
    """Even if the answer to the first question is lost, which makes botocore repeat it."""
    lost = [Fault(lost=True)]
    faulty.plan = lambda request: lost.pop() if request.method == "PUT" and lost else None
    assert storage.create(storage.join(s3_root, "x"), b"1")
    asked = len(faulty.requests)
    assert not storage.create(storage.join(s3_root, "x"), b"2")
    assert len(faulty.requests) == asked + 1
    assert storage.is_exclusive(storage.join(s3_root, "y"))
    assert storage.resolve(s3_root)[0].find(s3_root) == [storage.join(s3_root, "x").removeprefix("s3://")]


def test_a_store_that_knows_no_conditional_writes(s3_root: str, faulty: Proxy) -> None:
    refuse(faulty, 501, "NotImplemented", "PUT", times=1)
    assert not storage.is_exclusive(s3_root + "/x")
    assert storage.create(s3_root + "/x", b"1")
    assert not storage.create(s3_root + "/x", b"2")
    assert storage.read(s3_root + "/x") == b"1"


def test_without_conditional_writes_the_first_is_kept_and_the_last_of_a_race_knows(rclone_root: str) -> None:
    uri = storage.join(rclone_root, "x")
    assert not storage.is_exclusive(uri)
    assert storage.create(uri, b"1")
    with ThreadPoolExecutor(8) as pool:
        assert not any(pool.map(lambda number: storage.create(uri, b"%d" % number), range(8)))
    assert storage.read(uri) == b"1"
    assert storage.resolve(uri)[0].find(rclone_root) == [uri.removeprefix("s3://")]


@pytest.mark.parametrize("theirs", [b"theirs", None])
def test_who_is_overwritten_before_reading_back_has_lost(rclone: str, rclone_root: str, theirs: bytes | None) -> None:
    uri = storage.join(rclone_root, "x")
    assert not storage.is_exclusive(uri)
    with proxied(rclone) as proxy, reached(proxy.endpoint):
        assert not storage.is_exclusive(uri)
        names: list[str] = []

        def plan(request: Request) -> None:
            """Another attempt writes, and may delete again, between this one's write and its reading."""
            if request.method == "GET" and request.path.endswith("/x") and "PUT" in names:
                client = boto3.session.Session().client("s3", endpoint_url=rclone)
                _, bucket, key = request.path.split("/", 2)
                if theirs is None:
                    client.delete_object(Bucket=bucket, Key=key)
                else:
                    client.put_object(Bucket=bucket, Key=key, Body=theirs)
            names.append(request.method)

        proxy.plan = plan
        assert not storage.create(uri, b"mine")
    assert (storage.read(uri) if storage.exists(uri) else None) == theirs
