import os

import pytest

from pipeline import shards, storage
from pipeline.errors import DataError, UserError


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def names(found):
    return [source.uri.rsplit("/", 1)[-1] for source in found]


def test_braces_keep_their_order_and_wildcards_are_sorted(tmp_path):
    make(tmp_path, "b-1.tar", "b-0.tar", "a-0.tar", "note.txt", "sub/c.tar")
    assert names(shards.find([f"{tmp_path}/b-{{1,0}}.tar", f"{tmp_path}/a-*.tar"])) == ["b-1.tar", "b-0.tar", "a-0.tar"]
    assert names(shards.find([f"{tmp_path}/*.tar"])) == ["a-0.tar", "b-0.tar", "b-1.tar"]
    assert names(shards.find([f"{tmp_path}/**/c.tar"])) == ["c.tar"]
    assert names(shards.find([f"{tmp_path}/{{a,b}}-?.tar"])) == ["a-0.tar", "b-0.tar", "b-1.tar"]


def test_local_paths_become_absolute(tmp_path, monkeypatch):
    make(tmp_path, "a.tar")
    monkeypatch.chdir(tmp_path)
    assert shards.find(["a.tar"])[0].uri == shards.find(["*.tar"])[0].uri == str(tmp_path / "a.tar")


def test_stores_keep_their_scheme():
    storage.write("memory://set/a-0.tar", b"123")
    (source,) = shards.find(["memory://set/a-{0..0}.tar"])
    assert (source.uri, source.size) == ("memory:///set/a-0.tar", 3)
    assert shards.find(["memory://set/*.tar"]) == [source]
    assert storage.read(source.uri) == b"123"


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("b-{0..2}.tar", r"there is no file '.*b-1\.tar'"),
        ("x*.tar", r"no file matches '.*x\*\.tar'"),
        ("sub", "is a folder: name the shards in it"),
        ("b-{0..1.tar", "b-{0"),
        ("{b,b}-0.tar", "twice"),
    ],
)
def test_mistakes_are_one_sentence_that_names_the_pattern(tmp_path, pattern, message):
    make(tmp_path, "b-0.tar", "b-2.tar", "sub/c.tar")
    with pytest.raises(UserError, match=message) as caught:
        shards.find([f"{tmp_path}/{pattern}"])
    assert "data.shards" in str(caught.value)


def test_an_unknown_scheme_is_a_user_error():
    with pytest.raises(UserError, match="nosuch"):
        shards.find(["nosuch://bucket/a.tar"])


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path):
    make(tmp_path, "a.tar")
    (tmp_path / "a.tar").chmod(0)
    with pytest.raises(UserError, match="no permission to read"):
        shards.find([f"{tmp_path}/a.tar"])


def test_permission_and_strange_errors_of_a_store(tmp_path, monkeypatch):
    make(tmp_path, "a.tar")

    def fail(error):
        def read_range(*_):
            raise error

        monkeypatch.setattr(storage, "read_range", read_range)

    fail(PermissionError("403"))
    with pytest.raises(UserError, match="no permission to read"):
        shards.find([f"{tmp_path}/a.tar"])
    fail(RuntimeError("Unable to locate credentials"))
    with pytest.raises(UserError, match="Unable to locate credentials; check the address"):
        shards.find([f"{tmp_path}/a.tar"])


def indexed(path) -> shards.Shard:
    (source,) = shards.find([str(path)])
    return shards.Shard(0, source.uri, source.size, storage.sha256(path.read_bytes()), source.stamp, 1, 0)


def test_a_changed_shard_is_seen(tmp_path):
    make(tmp_path, "a.tar")
    path = tmp_path / "a.tar"
    shard = indexed(path)
    shards.check(shard)
    assert shards.read_unchanged(shard) == b"a.tar"
    os.utime(path, (1, 1))
    shards.check(shard)  # a copy: other time, same bytes
    path.write_bytes(b"b.tar")
    os.utime(path, (2, 2))
    for check in (shards.check, shards.read_unchanged):
        with pytest.raises(DataError, match=r"a\.tar' has changed since indexing"):
            check(shard)
    path.write_bytes(b"longer")
    for check in (shards.check, shards.read_unchanged):
        with pytest.raises(DataError, match="changed"):
            check(shard)
    path.unlink()
    for check in (shards.check, shards.read_unchanged):
        with pytest.raises(DataError, match="gone"):
            check(shard)
