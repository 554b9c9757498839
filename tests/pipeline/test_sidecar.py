import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext

from pipeline import sidecar, storage, tar
from pipeline.errors import DataError, UserError
from tests.pipeline.making import foreign_tar

MEMBERS = [
    ("a.jpg", b"1" * 700),
    ("a.cls", b"0"),
    ("x.y/b.seg.PNG", b"22"),
    ("x.y/b.json", b"{}" * 400),
    ("c.jpg", b""),
]
TEXT = (
    "v1.2 3\n"
    "jpg 512 700 a.jpg cls 2048 1 a.cls\n"
    "seg.PNG 3072 2 x.y/b.seg.PNG json 4096 800 x.y/b.json\n"
    "jpg 5632 0 c.jpg\n"
)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "train-0.tar"
    path.write_bytes(tar.pack(MEMBERS) + tar.END)
    return path


def check(shard: Path) -> str | None:
    return sidecar.check(str(shard), tar.scan(shard.read_bytes()))


def test_the_text_is_that_of_wds2idx(shard: Path) -> None:
    assert sidecar.dump(tar.scan(shard.read_bytes())).decode() == TEXT


NAMES = st.lists(st.from_regex(r"\A([a-z.]{1,2}/)?[a-zü]{1,120}(\.[a-zA-Z]{1,3}){1,2}\Z"), min_size=1, max_size=8)


@settings(max_examples=100)
@given(names=NAMES, sizes=st.data(), form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_every_member_is_where_the_sidecar_says(names: list[str], sizes: st.DataObject, form: int) -> None:
    sink, payloads = io.BytesIO(), []
    with tarfile.open(fileobj=sink, mode="w", format=form) as archive:
        for name in names:
            payloads.append(sizes.draw(st.binary(max_size=600)))
            info = tarfile.TarInfo(name)
            info.size = len(payloads[-1])
            archive.addfile(info, io.BytesIO(payloads[-1]))
    data = sink.getvalue()
    first, *lines = sidecar.dump(tar.scan(data)).decode().splitlines()
    fields = [field for line in lines for field in line.split(" ")]
    assert first == f"v1.2 {len(lines)}"
    assert fields[3::4] == names
    spans = [(int(at), int(size)) for at, size in zip(fields[1::4], fields[2::4], strict=True)]
    assert [data[at : at + size] for at, size in spans] == payloads
    keys = [{base_plus_ext(name)[0] for name in line.split(" ")[3::4]} for line in lines]
    assert all(len(key) == 1 for key in keys)
    assert all(before != after for before, after in pairwise(keys))


def test_gnu_tar_agrees_about_names_and_sizes(shard: Path) -> None:
    listing = subprocess.run(["tar", "--list", "--block-number", "--file", shard], capture_output=True, check=True)
    blocks = [line.split(": ") for line in listing.stdout.decode().splitlines() if "NUL" not in line]
    headers = {name: int(block.removeprefix("block ")) * 512 for block, name in blocks}
    fields = [field for line in TEXT.splitlines()[1:] for field in line.split(" ")]
    assert {name: int(at) - 512 for at, name in zip(fields[1::4], fields[3::4], strict=True)} == headers


@pytest.mark.parametrize("name", ["train-0.idx", "train-0.tar.idx"])
@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        lambda text: text.replace("\n", " \r\n"),
        lambda text: text.replace("v1.2", "v1.1")
        .replace(" a.jpg", "").replace(" a.cls", "").replace(" x.y/b.seg.PNG", "").replace(" x.y/b.json", "")
        .replace(" c.jpg", ""),
    ],
    ids=["as it is", "other line ends", "v1.1"],
)  # fmt: skip
def test_a_sidecar_of_the_shard_is_accepted(shard: Path, name: str, change: Callable[[str], str]) -> None:
    shard.with_name(name).write_bytes(change(TEXT).encode())
    assert check(shard) == str(shard.with_name(name))


def test_no_sidecar_is_none(shard: Path) -> None:
    assert check(shard) is None
    shard.with_suffix(".index").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")  # a pickle, as wids has it
    assert check(shard) is None


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        (lambda text: "", "it begins with '' instead of v1.2"),
        (lambda text: "\x80\x04" + text, "it begins with .* instead of v1.2"),
        (lambda text: text.replace("v1.2 3", "v1.2 4"), "it counts '4' samples in 3 lines, and the shard has 3"),
        (lambda text: text.replace("v1.2 3", "v1.2"), "it counts '' samples"),
        (lambda text: text[: text.rindex("jpg 5632")], "it counts '3' samples in 2 lines, and the shard has 3"),
        (lambda text: text.replace("cls 2048", "cls 2560"), "its line 2 says '.*2560.*' of '.*2048.*'"),
        (lambda text: text.replace("4096 800", "4096 801"), "its line 3 says"),
        (lambda text: text.replace(" c.jpg", " d.jpg"), "its line 4 says 'jpg 5632 0 d.jpg' of 'jpg 5632 0 c.jpg'"),
        (lambda text: text.replace("jpg 5632", "png 5632"), "its line 4 says"),
        (lambda text: text.replace(" c.jpg", ""), "its line 4 says"),
    ],
)
def test_a_sidecar_of_other_bytes_is_an_error_by_name(shard: Path, change: Callable[[str], str], detail: str) -> None:
    shard.with_suffix(".idx").write_text(change(TEXT))
    with pytest.raises(DataError, match=rf"sidecar '.*train-0\.idx' does not describe '.*train-0\.tar': {detail}"):
        check(shard)


@settings(max_examples=200)
@given(position=st.integers(0, len(TEXT) - 1), letter=st.sampled_from("0123456789abcABC. /\n\\"))
def test_no_other_text_is_accepted(position: int, letter: str) -> None:
    place = "memory://sidecar/a.idx"
    samples = tar.scan(tar.pack(MEMBERS) + tar.END)
    text = TEXT[:position] + letter + TEXT[position + 1 :]
    storage.write(place, text.encode())
    if [line.strip() for line in text.splitlines()] == TEXT.splitlines():
        assert sidecar.check("memory://sidecar/a.tar", samples) == place
    else:
        with pytest.raises(DataError, match="does not describe"):
            sidecar.check("memory://sidecar/a.tar", samples)


def test_names_beyond_ascii_may_be_written_as_tar_escapes_them(tmp_path: Path) -> None:
    path = foreign_tar(tmp_path / "a.tar", [("Übung 写.jpg", b"1")], tarfile.GNU_FORMAT)
    escaped = r"\303\234bung \345\206\231.jpg"
    for name in ("Übung 写.jpg", escaped):
        path.with_suffix(".idx").write_text(f"v1.2 1\njpg 512 1 {name}\n")
        assert check(path)
    path.with_suffix(".idx").write_text("v1.2 1\njpg 512 1 Ubung.jpg\n")
    with pytest.raises(DataError, match="its line 2"):
        check(path)


def test_an_extension_that_comes_twice_stays_with_its_key_as_in_dali(shard: Path) -> None:
    shard.write_bytes(tar.pack([("a.jpg", b"1"), ("a.jpg", b"2"), ("b.jpg", b"3")]) + tar.END)
    assert sidecar.dump(tar.scan(shard.read_bytes())).decode().splitlines()[:2] == [
        "v1.2 2",
        "jpg 512 1 a.jpg jpg 1536 1 a.jpg",
    ]


def test_a_shard_with_defects_is_not_compared(shard: Path) -> None:
    shard.with_suffix(".idx").write_text(TEXT)
    shard.write_bytes(shard.read_bytes()[:4500])
    assert check(shard) == str(shard.with_suffix(".idx"))


def test_a_place_that_may_not_be_looked_at_holds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: Exception) -> Callable[[str], bytes]:
        def read(uri: str) -> bytes:
            raise UserError("no") from error

        return read

    monkeypatch.setattr(storage, "read", fail(PermissionError("Forbidden")))
    assert sidecar.check("s3://bucket/a.tar", []) is None
    monkeypatch.setattr(storage, "read", fail(ValueError("Bad endpoint")))
    with pytest.raises(UserError):
        sidecar.check("s3://bucket/a.tar", [])


def test_a_list_of_shards_comes_back_with_whole_places() -> None:
    listed = [sidecar.Listed("a.tar", 5, 2), sidecar.Listed("s3://other/b.tar", 7, 1)]
    content = sidecar.dump_list(listed, "set")
    assert json.loads(content)["shardlist"][0] == {"url": "a.tar", "filesize": 5, "nsamples": 2}
    storage.write("memory://lists/set/index.json", content)
    assert sidecar.load_list("memory://lists/set/index.json") == [
        sidecar.Listed("memory://lists/set/a.tar", 5, 2),
        listed[1],
    ]
