import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import shards, storage, tar
from pipeline.errors import DataError, SemiPruneError, UserError
from tests.pipeline.making import image, write_shard


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
        ("b-{0..1.tar", r"b-\{0.* has unbalanced braces"),
        ("{b,b}-0.tar", "b-0.tar' is named twice"),
    ],
)
def test_mistakes_are_one_sentence_that_names_the_pattern(tmp_path, pattern, message):
    make(tmp_path, "b-0.tar", "b-2.tar", "sub/c.tar")
    with pytest.raises(UserError, match=message):
        shards.find([f"{tmp_path}/{pattern}"])


def test_a_name_that_exists_is_no_pattern(tmp_path):
    make(tmp_path, "[x]/a-0.tar", "[x]/a-1.tar", "[x]/*.tar", "b?.tar", "bc.tar", "{1}.tar")
    assert names(shards.find([f"{tmp_path}/[x]/a-{{0..1}}.tar"])) == ["a-0.tar", "a-1.tar"]
    for name in ("[x]/*.tar", "b?.tar", "{1}.tar"):
        assert [source.uri for source in shards.find([f"{tmp_path}/{name}"])] == [f"{tmp_path}/{name}"]


@pytest.mark.parametrize(
    ("pattern", "place"),
    [
        ("a-{0..3}.tar", "/here/a-{0..3}.tar"),
        ("../{a,b}/[0-9]*?.tar", "/here/../{a,b}/[0-9]*?.tar"),
        ("./a.tar", "/here/a.tar"),
        ("~/a.tar", "/home/me/a.tar"),
        ("/d/*.tar", "/d/*.tar"),
        ("{/a,/b}/0.tar", "{/a,/b}/0.tar"),
        ("s3://bucket/{0..3}.tar", "s3://bucket/{0..3}.tar"),
        ("{s3://a,s3://b}/0.tar", "{s3://a,s3://b}/0.tar"),
    ],
)
def test_places_in_settings_are_absolute(monkeypatch, pattern, place):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setattr(os, "getcwd", lambda: "/here")
    assert shards.absolute(pattern) == place
    assert shards.absolute(place) == place


@pytest.mark.parametrize("place", ["/runs/exp::1", "exp::1", "{/a,/b}/c::d.tar", "s3://bucket/a::b", "zip::s3://b/a"])
def test_a_chain_of_filesystems_is_no_place_in_settings(place):
    with pytest.raises(UserError, match=r"has '::' in it"):
        shards.absolute(place)


def test_a_working_folder_that_looks_like_a_chain_is_told(monkeypatch):
    monkeypatch.setattr(os, "getcwd", lambda: "/exp::1")
    with pytest.raises(UserError, match=r"'/exp::1/a\.tar' has '::' in it"):
        shards.absolute("a.tar")


def test_an_unknown_scheme_is_a_user_error():
    with pytest.raises(UserError, match="nosuch"):
        shards.find(["nosuch://bucket/a.tar"])


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path):
    make(tmp_path, "a.tar")
    (tmp_path / "a.tar").chmod(0)
    with pytest.raises(UserError, match="no permission for"):
        shards.find([f"{tmp_path}/a.tar"])


def test_permission_and_strange_errors_of_a_store(tmp_path, monkeypatch):
    make(tmp_path, "a.tar")

    def fail(error):
        def read_range(*_):
            raise error

        monkeypatch.setattr(storage, "read_range", read_range)

    fail(UserError("no permission for 'a.tar': ..."))
    with pytest.raises(UserError, match=r"^no permission for 'a\.tar': \.\.\.$"):
        shards.find([f"{tmp_path}/a.tar"])
    fail(RuntimeError("Unable to locate\ncredentials"))
    with pytest.raises(UserError, match=r"cannot read '.*a\.tar': Unable to locate credentials; check the address"):
        shards.find([f"{tmp_path}/a.tar"])


class Unreadable:
    """A filesystem whose every answer is the same error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def fail(self, *_: object, **__: object) -> None:
        raise self.error

    cat_file = info = fail


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        TimeoutError(),
        IsADirectoryError(errno.EISDIR, "Is a directory"),
        RuntimeError("payload is not\ncompleted"),
    ],
    ids=repr,
)
def test_what_stops_a_task_from_reading_is_one_sentence(tmp_path, monkeypatch, error):
    make(tmp_path, "a.tar")
    shard = replace(indexed(tmp_path / "a.tar"), uri="s3://bucket/a.tar")
    monkeypatch.setattr(storage, "resolve", lambda uri: (Unreadable(error), uri))
    reads = (shards.check, shards.read_unchanged, lambda shard: shards.read_range(shard, 0, 3))
    for read in reads:
        with pytest.raises(SemiPruneError, match=r"a\.tar'.*: \S") as caught:
            read(shard)
        assert "\n" not in str(caught.value)


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
    assert shards.read_range(shard, 2, 3) == b"tar"
    with pytest.raises(DataError, match="changed"):
        shards.read_range(shard, 2, 4)
    path.write_bytes(b"longer")
    for check in (shards.check, shards.read_unchanged):
        with pytest.raises(DataError, match="changed"):
            check(shard)
    path.unlink()
    for check in (shards.check, shards.read_unchanged, lambda shard: shards.read_range(shard, 0, 1)):
        with pytest.raises(DataError, match="gone"):
            check(shard)


def test_braces_and_wildcards_of_a_bucket(s3_root: str) -> None:
    for name in ("b-1.tar", "b-0.tar", "v1.0/a.tar", "b-0.idx"):
        storage.write(f"{s3_root}/{name}", name.encode())
    both = [f"{s3_root}/b-0.tar", f"{s3_root}/b-1.tar"]
    for pattern in (f"{s3_root}/b-{{0..1}}.tar", f"{s3_root}/*.tar", f"{s3_root}/b-[01].t?r"):
        assert [source.uri for source in shards.find([pattern])] == both
    assert names(shards.find([f"{s3_root}/v*/*.tar"])) == ["a.tar"]
    assert all(source.stamp for source in shards.find(both))


def test_names_count_only_where_they_may_become_more(tmp_path: Path) -> None:
    make(tmp_path, "a-0.tar")
    assert shards.checksum([f"{tmp_path}/none-{{0..9}}.tar", f"{tmp_path}/a-0.tar"]) is None
    before = shards.checksum([f"{tmp_path}/*.tar"])
    assert before is not None
    assert before == shards.checksum([f"{tmp_path}/a-?.tar"])
    make(tmp_path, "a-1.tar")
    assert shards.checksum([f"{tmp_path}/*.tar"]) != before
    with pytest.raises(UserError, match="unbalanced braces"):
        shards.checksum([f"{tmp_path}/{{0..1.tar"])


def test_a_list_of_shards_names_them(root: str) -> None:
    for name in ("a.tar", "sub/b.tar"):
        storage.write(f"{root}/{name}", name.encode())
    listed = [{"url": "sub/b.tar", "filesize": 9, "nsamples": 1, "md5sum": "?"}, {"url": f"{root}/a.tar"}]
    place = f"{root}/index.json"
    storage.write(place, json.dumps({"wids_version": 1, "shardlist": listed}).encode())
    assert names(shards.find([place])) == ["b.tar", "a.tar"]
    before = shards.checksum([place])
    storage.write(place, json.dumps({"shardlist": listed[:1], "base": f"{root}/"}).encode())
    assert names(shards.find([place])) == ["b.tar"]
    assert shards.checksum([place]) not in (before, None)
    listed[0]["filesize"] = 8
    storage.write(place, json.dumps({"shardlist": listed}).encode())
    with pytest.raises(DataError, match=r"says 8 bytes for '.*sub/b\.tar', which has 9: make the list again"):
        shards.find([place])


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"shardlist": [{"uri": "a"}]}', '{"shardlist": "a.tar"}'])
def test_what_is_no_list_of_shards_is_a_mistake_of_the_user(tmp_path: Path, content: str) -> None:
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(UserError, match=r"index\.json' is no list of shards: it needs"):
        shards.find([f"{tmp_path}/index.json"])
    with pytest.raises(UserError, match=r"no list of shards at '.*none\.json'"):
        shards.find([f"{tmp_path}/none.json"])


def test_new_shards_are_runs_of_the_rows_with_the_bytes_of_the_old_ones(tmp_path: Path) -> None:
    sources, rows, blocks = [], [], []
    for number in range(3):
        path = write_shard(tmp_path / f"{number}.tar", [(f"{number}{n}", {"png": image(n)}) for n in range(4)])
        (source,) = shards.find([str(path)])
        data = path.read_bytes()
        sources.append(shards.Shard(number, str(path), len(data), storage.sha256(data), source.stamp, 4, 4 * number))
        for sample in tar.scan(data):
            rows.append({"shard": number, "offset": sample.offset, "length": sample.length})
            blocks.append(data[sample.offset : sample.offset + sample.length])
    some = [0, 2, 3, 5, 8, 10, 11]
    planned = shards.plan(pa.Table.from_pylist([rows[n] for n in some]), sources, 3)
    assert [number for number, _ in planned] == [0, 1, 2]
    assert [[(piece.source.shard, len(piece.offsets)) for piece in pieces] for _, pieces in planned] == [
        [(0, 3)], [(1, 1), (2, 2)], [(2, 1)],
    ]  # fmt: skip
    made = [shards.gather(pieces) for _, pieces in planned]
    assert made == [b"".join([*(blocks[n] for n in some[at : at + 3]), tar.END]) for at in (0, 3, 6)]
    path.write_bytes(path.read_bytes() + bytes(512))
    with pytest.raises(DataError, match=r"2\.tar' has changed"):
        shards.gather(planned[1][1])
