import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import tar

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def archive(entries, form=tarfile.PAX_FORMAT) -> bytes:
    """entries: (name, payload) or a ready TarInfo."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=form) as file:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                file.addfile(entry)
            else:
                info = tarfile.TarInfo(entry[0])
                info.size = len(entry[1])
                file.addfile(info, io.BytesIO(entry[1]))
    return sink.getvalue()


def special(name, kind) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "a.jpg"
    return info


def contents(data, sample) -> dict[str, bytes]:
    return {member.extension: data[member.offset : member.offset + member.size] for member in sample.members}


def sound(samples) -> list[str]:
    return [sample.key for sample in samples if not sample.defect]


@pytest.mark.parametrize("form", FORMATS)
def test_samples_are_runs_of_members_with_one_key(form):
    data = archive([("a.jpg", b"1" * 700), ("a.cls", b"0"), ("b.cls", b"1"), ("b.jpg", b"")], form)
    first, second = tar.scan(data)
    assert (first.key, first.row, contents(data, first)) == ("a", 0, {"jpg": b"1" * 700, "cls": b"0"})
    assert (second.key, second.row, contents(data, second)) == ("b", 1, {"cls": b"1", "jpg": b""})
    assert (first.offset, first.length) == (0, 512 + 1024 + 512 + 512)
    assert second.offset == first.length


@pytest.mark.parametrize(
    ("name", "key", "extension"),
    [
        ("a.jpg", "a", "jpg"),
        ("a.seg.PNG", "a", "seg.png"),
        ("x/y/a.v2.JPG", "x/y/a", "v2.jpg"),
        ("v1.0/a.jpg", "v1.0/a", "jpg"),
        ("./a.jpg", "./a", "jpg"),
        ("Übung 写真.jpg", "Übung 写真", "jpg"),
        ("k" * 300 + ".jpg", "k" * 300, "jpg"),
        ("d" * 200 + "/" + "ü" * 120 + ".jpg", "d" * 200 + "/" + "ü" * 120, "jpg"),
    ],
)
@pytest.mark.parametrize("form", FORMATS[1:])
def test_keys_and_long_names(form, name, key, extension):
    data = archive([("before.jpg", b"x"), (name, b"payload"), ("zz.jpg", b"y")], form)
    _, sample, after = tar.scan(data)
    assert (sample.key, contents(data, sample), sample.defect) == (key, {extension: b"payload"}, "")
    assert sample.offset + sample.length == after.offset
    # The span with its long-name records is an archive of its own.
    with tarfile.open(fileobj=io.BytesIO(data[sample.offset : sample.offset + sample.length] + tar.END)) as copy:
        assert copy.getnames() == [name]


def test_keys_agree_with_webdataset():
    from webdataset.tariterators import base_plus_ext

    for name in ("a.jpg", "a.b.c", "x.y/z.w", "plain", "./q.cls", "a//b.c", "x./y"):
        theirs = base_plus_ext(name)
        (sample,) = tar.scan(archive([(name, b"")]))
        if theirs[0] is None:
            assert sample.defect == "unusable name"
        else:
            assert (sample.key, sample.members[0].extension) == theirs


@pytest.mark.parametrize("name", ["plain", ".hidden", "x/.jpg", "new\nline.jpg", "nul\x01.jpg", "line\u2028end.jpg"])
def test_names_that_are_no_key_are_marked(name):
    data = archive([("a.jpg", b"1"), (name, b"2"), ("b.jpg", b"3")])
    samples = tar.scan(data)
    assert sound(samples) == ["a", "b"]
    assert samples[1].defect == "unusable name"
    assert samples[1].key.isprintable()


def test_a_name_that_is_not_utf8_is_marked():
    data = archive([("a\udcff.jpg", b"1"), ("b.jpg", b"2")], tarfile.GNU_FORMAT)
    samples = tar.scan(data)
    assert samples[0].defect == "unusable name"
    samples[0].key.encode()
    assert sound(samples) == ["b"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_marked_with_their_sample(kind):
    data = archive([("a.jpg", b"1"), special("a.cls", kind), special("b.jpg", kind), ("c.jpg", b"2")])
    samples = tar.scan(data)
    assert [(sample.key, sample.defect) for sample in samples] == [
        ("a", "not a regular file"),
        ("b", "not a regular file"),
        ("c", ""),
    ]


def test_folders_are_no_samples():
    data = archive([special("x", tarfile.DIRTYPE), ("x/a.jpg", b"1"), special("y", tarfile.DIRTYPE), ("y/b.jpg", b"2")])
    assert sound(tar.scan(data)) == ["x/a", "y/b"]


def test_a_member_keeps_the_name_it_has_in_the_archive() -> None:
    (sample,) = tar.scan(archive([("./v1.0/A.b.JPG", b"1"), ("./v1.0/A.Cls", b"0")]))
    assert [member.name for member in sample.members] == ["./v1.0/A.b.JPG", "./v1.0/A.Cls"]
    assert [member.extension for member in sample.members] == ["b.jpg", "cls"]


def test_a_repeated_member_begins_a_sample_of_the_same_key():
    assert [s.key for s in tar.scan(archive([("a.jpg", b"1"), ("a.jpg", b"2"), ("a.cls", b"0")]))] == ["a", "a"]


def test_an_empty_archive_has_no_samples():
    assert tar.scan(tar.END) == tar.scan(bytes(10240)) == []


def test_no_bytes_are_no_archive():
    with pytest.raises(tar.NotATarError, match="did a copy fail"):
        tar.scan(b"")


@pytest.mark.parametrize("data", [b"hello", b"\xff\xd8\xff" * 500, b"PK\x03\x04" + bytes(600), b"x" * 5000, bytes(100)])
def test_what_is_no_tar_is_refused(data):
    with pytest.raises(tar.NotATarError):
        tar.scan(data)


def test_a_compressed_tar_is_named():
    with pytest.raises(tar.NotATarError, match="gzip"):
        tar.scan(b"\x1f\x8b" + bytes(600))


def test_a_global_header_that_renames_is_refused_and_a_comment_is_not():
    member = archive([("a.jpg", b"1")])
    comment = tarfile.TarInfo.create_pax_global_header({"comment": "made by git"})
    assert sound(tar.scan(comment + member)) == ["a"]
    with pytest.raises(tar.NotATarError, match="global"):
        tar.scan(tarfile.TarInfo.create_pax_global_header({"path": "evil.jpg"}) + member)


MEMBERS = [(f"{key}.{extension}", f"{key}{extension}".encode() * 99) for key in "abc" for extension in ("jpg", "cls")]
WHOLE = archive([*MEMBERS, ("long" * 60 + ".jpg", b"z")])
LAST = WHOLE.rstrip(b"\0")


@pytest.mark.parametrize("cut", sorted({*range(0, len(LAST) + 600, 129), *range(0, len(LAST) + 512, 512)}))
def test_truncation_anywhere_is_seen_and_complete_samples_are_kept(cut):
    data = WHOLE[:cut]
    whole = tar.scan(WHOLE)
    if cut < 512:
        with pytest.raises(tar.NotATarError):
            tar.scan(data)
        return
    end = whole[-1].offset + whole[-1].length
    samples = tar.scan(data)
    if cut >= end + 512:
        assert samples == whole
        return
    assert samples[-1].defect == "truncated shard"
    assert samples[:-1] == whole[: len(samples) - 1]
    # Every sample that ends before the one in which the cut lies is kept.
    assert len(samples) >= sum(sample.offset + sample.length <= cut for sample in whole)


@pytest.mark.parametrize("first", [WHOLE, LAST + bytes(-len(LAST) % 512 + 1024), tar.END, bytes(10240)])
@pytest.mark.parametrize("second", [WHOLE, b"?", bytes(512) + b"?", bytes(30_000) + WHOLE])
def test_what_follows_the_end_marker_is_told_and_the_samples_before_are_kept(first, second):
    *samples, more = tar.scan(first + second)
    assert samples == tar.scan(first)
    assert (more.row, more.key, more.members, more.defect) == (tar.WHOLE, "", (), "data after the end marker")
    place = len(first) + len(second) - len(second.lstrip(b"\0"))
    assert more.detail.startswith(f"at byte {place} of {len(first + second)}")


def test_zeros_of_any_length_may_follow():
    assert tar.scan(WHOLE + bytes(10_000_001)) == tar.scan(WHOLE)


def test_folders_alone_without_an_end_are_no_tar():
    data = archive([special("x", tarfile.DIRTYPE)])
    assert tar.scan(data) == []
    with pytest.raises(tar.NotATarError, match="no end marker"):
        tar.scan(data[:512])


@pytest.mark.parametrize("sample", [1, 2, 3])
def test_a_damaged_header_is_seen(sample):
    data = bytearray(WHOLE)
    data[tar.scan(WHOLE)[sample].offset + 3] ^= 1
    samples = tar.scan(bytes(data))
    assert [s.key for s in samples] == ["a", "b", "c"][:sample]
    assert samples[-1].defect == "truncated shard"


@settings(max_examples=300)
@given(st.data())
def test_hostile_bytes_never_escape(data):
    damaged = bytearray(WHOLE[: data.draw(st.integers(0, len(WHOLE)))])
    for _ in range(data.draw(st.integers(1, 8))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        samples = tar.scan(bytes(damaged))
    except tar.NotATarError:
        return
    for sample in samples:
        assert sample.length >= 0
        if not sample.defect:
            assert all(member.offset + member.size <= len(damaged) for member in sample.members)


@settings(max_examples=200)
@given(size=st.binary(min_size=12, max_size=12), kind=st.sampled_from([b"0", b"x", b"L", b"g", b"S"]))
def test_hostile_sizes_never_escape(size, kind):
    block = bytearray(tarfile.TarInfo("a.jpg").tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157] = size, kind
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 256)
    try:
        samples = tar.scan(archive([("b.jpg", b"1")])[:1024] + bytes(block) + b"12 path=a.b\n" + bytes(2000))
    except tar.NotATarError:
        return
    assert samples[0].key == "b"


def test_packed_members_are_deterministic_and_readable():
    members = [("a.jpg", b"1" * 600), ("x/ü.cls", b"2"), ("n" * 200 + ".jpg", b"")]
    data = tar.pack(members) + tar.END
    assert data == tar.pack(list(members)) + tar.END
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        infos = file.getmembers()
        assert [(info.name, file.extractfile(info).read()) for info in infos] == members
        assert {(info.mtime, info.uid, info.gid, info.mode) for info in infos} == {(0, 0, 0, 0o644)}
    assert len(tar.pack(members[:1])) == 512 + 1024
