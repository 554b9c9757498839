import io
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from jobs.cli import app
from pipeline import fsck, images, prepare, resize, shards, sidecar, storage, tar
from pipeline.errors import DataError, UserError
from pipeline.index import load_index
from pipeline.prepare import LIST, QUARANTINE, WORK, PrepareConfig, Prepared
from pipeline.resize import ImageConfig
from pipeline.resources import Resources
from pipeline.stage import MANIFEST
from tests.pipeline.making import image, run_index, silent, write_dataset, write_shard


def config(samples_per_shard: int = 4, **settings: Any) -> PrepareConfig:
    return PrepareConfig(image=ImageConfig(**{"size": 16, **settings}), samples_per_shard=samples_per_shard)


def run(shards: Any, out: Any, limit: float = 0.0, tasks: int | None = None, **settings: Any) -> Prepared:
    return prepare.prepare(
        [str(shards)],
        str(out),
        config(**settings),
        limit,
        resources=Resources(num_workers=1, tasks=tasks),
        progress=silent,
    )


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, ray_local: None) -> None:
    """Tasks in this process: quick, and open to the test."""

    def map_here(items: list[Any], function: Callable[[Any], Any], **_: Any) -> list[Any]:
        return [function(item) for item in items]

    monkeypatch.setattr(prepare, "map_items", map_here)


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Three shards with 5, 1 and 5 samples."""
    folder = tmp_path / "source"
    folder.mkdir()
    for shard, count in enumerate((5, 1, 5)):
        samples = [
            (
                f"v1.{shard}/s{n}",
                {
                    "txt": f"{shard}{n}".encode() * n,
                    "JPEG" if n % 2 else "png": image(n, (40 + n, 20 + 7 * n), "JPEG" if n % 2 else "PNG"),
                    "Cls": str(n % 2).encode(),
                },
            )
            for n in range(count)
        ]
        write_shard(folder / f"t-{shard}.tar", samples)
    return f"{folder}/t-{{0..2}}.tar"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def members(paths: list[str]) -> list[tuple[str, bytes]]:
    found = []
    for path in paths:
        data = storage.read(path)
        for sample in tar.scan(data):
            assert not sample.defect
            found += [(member.name, data[member.offset : member.offset + member.size]) for member in sample.members]
    return found


def test_keys_labels_and_other_members_stay_and_images_have_the_size(
    ray_local: None, source: str, tmp_path: Path
) -> None:
    made = run(source, tmp_path / "out", tasks=1)
    assert [Path(path).name for path in made.shards] == [f"shard-{n:06d}.tar" for n in range(3)]
    assert (made.num_samples, made.reasons) == (11, {})
    before = members([one.uri for one in shards.find([source])])
    after = members(list(made.shards))
    assert len(before) == len(after)
    for (old_name, old), (name, new) in zip(before, after, strict=True):
        if old_name.endswith((".JPEG", ".png")):
            assert name == f"{old_name.rpartition('.')[0]}.jpg"
            width, height = Image.open(io.BytesIO(old)).size
            size = Image.open(io.BytesIO(new)).size
            assert min(size) == 16
            assert size == (round(width * 16 / min(width, height)), round(height * 16 / min(width, height)))
        else:
            assert (name, new) == (old_name, old)
    columns = ["key", "label"]
    here = load_index(run_index(tmp_path / "run", f"{tmp_path}/out/{LIST}"), columns)
    assert here == load_index(run_index(tmp_path / "run", source), columns)
    assert here["label"].null_count == 0
    for path in made.shards:
        samples = tar.scan(Path(path).read_bytes())
        assert sidecar.check(path, samples) == path.replace(".tar", ".idx")
    listed = json.loads((tmp_path / "out" / LIST).read_text())["shardlist"]
    assert [(one["url"], one["nsamples"]) for one in listed] == [
        ("shard-000000.tar", 4),
        ("shard-000001.tar", 4),
        ("shard-000002.tar", 3),
    ]
    report = fsck.check(str(tmp_path / "out"), silent)
    assert (report.findings, report.files) == ([], 8)

    other = run(source, tmp_path / "other" / "out", tasks=2)
    assert other.num_samples == 11
    assert files(tmp_path / "other" / "out") == files(tmp_path / "out")


def test_a_store_works_like_a_disk(here: None, source: str, s3_root: str, tmp_path: Path) -> None:
    for one in shards.find([source]):
        storage.write(f"{s3_root}/in/{one.uri.rpartition('/')[2]}", storage.read(one.uri))
    made = run(f"{s3_root}/in/*.tar", f"{s3_root}/new/out")
    run(source, tmp_path / "out")
    assert storage.names(f"{s3_root}/new/out") == sorted(files(tmp_path / "out"))
    assert [storage.read(path) for path in made.shards] == [
        path.read_bytes() for path in sorted((tmp_path / "out").glob("*.tar"))
    ]
    assert run(f"{s3_root}/in/*.tar", f"{s3_root}/new/out") == made


@pytest.mark.parametrize("stop", ["resize", "cut"])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_what_was_finished_before_a_kill_is_not_done_again(
    here: None, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str, after: int
) -> None:
    calls: dict[str, int] = {"resize": 0, "cut": 0}
    limit = {stop: after}

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if calls[name] == limit.get(name):
                raise KeyboardInterrupt
            calls[name] += 1
            return function(*arguments, **named)

        return call

    monkeypatch.setattr(resize, "_run", counting("resize", resize._run))
    monkeypatch.setattr(prepare, "_cut", counting("cut", prepare._cut))
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out" / MANIFEST).exists()
    assert calls == {"resize": after if stop == "resize" else 3, "cut": after if stop == "cut" else 0}
    with pytest.raises(UserError, match="was begun with other settings or shards"):
        run(source, tmp_path / "out", size=17)
    limit.clear()
    run(source, tmp_path / "out")
    assert calls == {"resize": 3, "cut": 3}
    run(source, tmp_path / "out")
    assert calls == {"resize": 3, "cut": 3}
    assert not (tmp_path / "out" / WORK).exists()
    monkeypatch.undo()
    monkeypatch.setattr(prepare, "map_items", lambda items, function, **_: [function(item) for item in items])
    run(source, tmp_path / "fresh" / "out")
    assert files(tmp_path / "fresh" / "out") == files(tmp_path / "out")


def test_a_finished_shard_that_is_gone_is_written_again(
    here: None, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sidecar, "dump_list", fail)
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out")
    before = files(tmp_path / "out")
    (tmp_path / "out/shard-000001.tar").unlink()
    (tmp_path / "out/shard-000002.idx").write_bytes(b"")
    monkeypatch.undo()
    monkeypatch.setattr(prepare, "map_items", lambda items, function, **_: [function(item) for item in items])
    run(source, tmp_path / "out")
    for name in ("shard-000001.tar", "shard-000002.idx"):
        assert (tmp_path / "out" / name).read_bytes() == before[name]


def test_a_folder_that_holds_something_else_is_left_alone(here: None, source: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"mine' is not empty: name a new folder"):
        run(source, tmp_path / "mine")
    assert files(tmp_path / "mine") == {"notes.txt": b"x"}
    run(source, tmp_path / "out")
    before = files(tmp_path / "out")
    for other in ({"size": 17}, {"quality": 91}, {"form": "png"}, {"samples_per_shard": 5}):
        with pytest.raises(UserError, match="was made with other settings or shards"):
            run(source, tmp_path / "out", **other)
    with pytest.raises(UserError, match="was made with other settings or shards"):
        run(source.replace("..2}", "..1}"), tmp_path / "out")
    with pytest.raises(UserError, match="no file matches"):
        run(f"{tmp_path}/none*.tar", tmp_path / "out")
    assert files(tmp_path / "out") == before


def test_what_cannot_be_used_is_listed_and_limited(here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = [(f"g{n}", {"png": image(n, (20, 20))}) for n in range(3)]
    broken = image(9, (30, 30), "JPEG")[:-9]
    write_shard(tmp_path / "a.tar", [good[0], ("broken", {"jpg": broken}), ("note", {"txt": b"x"}), good[1], good[0]])
    (tmp_path / "b.tar").write_bytes(b"no tar" * 500)
    write_shard(tmp_path / "c.tar", [good[2]])
    with pytest.raises(DataError, match=r"1 no image, 1 not a tar, 1 undecodable image\), over data\.quarantine_limit"):
        run(tmp_path / "*.tar", tmp_path / "out", limit=0.1)
    monkeypatch.setattr(resize, "_run", None)  # nothing is resized again
    made = run(tmp_path / "*.tar", tmp_path / "out", limit=0.6)
    assert made.reasons == {"duplicate key": 1, "no image": 1, "not a tar": 1, "undecodable image": 1}
    assert [name for name, _ in members(list(made.shards))] == ["g0.jpg", "g1.jpg", "g2.jpg"]
    rows = pq.read_table(tmp_path / "out" / QUARANTINE).to_pylist()
    assert [(row["uri"].rpartition("/")[2], row["row"], row["key"], row["reason"]) for row in rows] == [
        ("a.tar", 1, "broken", "undecodable image"),
        ("a.tar", 2, "note", "no image"),
        ("a.tar", 4, "g0", "duplicate key"),
        ("b.tar", -1, "", "not a tar"),
    ]


def test_neighbours_with_one_key_never_become_one_sample(here: None, tmp_path: Path) -> None:
    def shard(name: str, *samples: tuple[str, bytes]) -> None:
        write_shard(tmp_path / name, [(key, {"cls": label, "png": image(3, (20, 20))}) for key, label in samples])

    write_shard(tmp_path / "a.tar", [("x", {"png": image(1, (20, 20))})])
    shard("b.tar", ("x", b"1"))
    shard("c.tar", ("x", b"1"), ("y", b"0"))
    shard("d.tar", ("z", b"1"), ("y", b"1"))
    made = run(tmp_path / "?.tar", tmp_path / "out", limit=0.9)
    assert [name for name, _ in members(list(made.shards))] == [
        "x.jpg",
        "y.cls",
        "y.jpg",
        "z.cls",
        "z.jpg",
        "y.cls",
        "y.jpg",
    ]
    assert made.reasons == {"duplicate key": 2}
    columns = ["key", "label"]
    after = run_index(tmp_path / "run", f"{tmp_path}/out/*.tar")
    assert load_index(after, columns) == load_index(run_index(tmp_path / "run", f"{tmp_path}/?.tar"), columns)


def test_a_sidecar_of_other_bytes_stops_it(here: None, source: str, tmp_path: Path) -> None:
    (tmp_path / "source/t-1.idx").write_text("v1.2 0\n")
    with pytest.raises(DataError, match=r"t-1\.idx' does not describe"):
        run(source, tmp_path / "out")


KINDS = {
    "grey": {"form": "JPEG", "mode": "L"},
    "cmyk": {"form": "JPEG", "mode": "CMYK"},
    "alpha": {"form": "PNG", "mode": "RGBA"},
    "grey and alpha": {"form": "PNG", "mode": "LA"},
    "palette": {"form": "PNG", "mode": "P"},
    "bits": {"form": "PNG", "mode": "1"},
    "webp": {"form": "WEBP", "mode": "RGB"},
    "turned": {"form": "JPEG", "mode": "RGB", "turn": True},
}


def picture(kind: str, size: tuple[int, int], orientation: int = 6) -> bytes:
    made = dict(KINDS[kind])
    if made.pop("turn", False):
        exif = Image.Exif()
        exif[0x0112] = orientation
        made["exif"] = exif
    return image(5, size, **made)


@settings(max_examples=80)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    width=st.integers(9, 90),
    height=st.integers(9, 90),
    orientation=st.integers(0, 9),
    form=st.sampled_from(["png", "jpg"]),
)
def test_the_square_that_is_cut_out_later_shows_the_same(
    kind: str, width: int, height: int, orientation: int, form: str
) -> None:
    data = picture(kind, (width, height), orientation)
    smaller = resize.resize(data, ImageConfig(size=16, form=form, quality=95))
    assert (smaller is None) == (min(width, height) <= 16)
    if smaller is None:
        return
    with Image.open(io.BytesIO(smaller)) as made:
        assert (made.mode, min(made.size)) == ("L" if "grey" in kind else "RGB", 16)
        assert 0x0112 not in made.getexif()
        upright = orientation if kind == "turned" else 1
        long, short = sorted(made.size, reverse=True)
        assert abs(long - 16 * max(width, height) / min(width, height)) <= 0.5
        assert (made.size[0] > made.size[1]) == ((width > height) != (upright in (5, 6, 7, 8))) or long == short
    before, after = (images.decode(one, 16, 10**6).astype(int) for one in (data, smaller))
    if kind in ("bits", "palette"):  # dithered: dots, which no two ways of resizing treat alike
        before, after = before.mean((0, 1)), after.mean((0, 1))
    assert np.abs(before - after).mean() < 12


def test_16_bits_keep_their_range() -> None:
    sink = io.BytesIO()
    Image.fromarray(np.linspace(0, 65535, 40 * 40).astype(np.uint16).reshape(40, 40)).save(sink, "PNG")
    smaller = resize.resize(sink.getvalue(), ImageConfig(size=16, form="png"))
    assert smaller is not None
    pixels = np.asarray(Image.open(io.BytesIO(smaller)))
    assert (pixels.shape, pixels.min() < 10, pixels.max() > 245) == ((16, 16), True, True)


def test_quality_and_form_are_as_asked() -> None:
    data = image(2, (64, 48), "PNG")
    sizes = [len(resize.resize(data, ImageConfig(size=32, quality=quality)) or b"") for quality in (10, 95)]
    assert 0 < sizes[0] < sizes[1]
    assert (resize.resize(data, ImageConfig(size=32, form="png")) or b"")[:4] == b"\x89PNG"
    assert resize.resize(data, ImageConfig(size=32)) == resize.resize(data, ImageConfig(size=32))


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"hello", "not a JPEG"), (image(1, (40, 40), "JPEG")[:-9], "truncated"), (image(1, (80, 80)), "max_pixels=5000")],
)
@pytest.mark.parametrize("size", [16, 64])
def test_what_decode_refuses_is_refused(data: bytes, message: str, size: int) -> None:
    with pytest.raises(images.UndecodableImageError, match=message):
        resize.resize(data, ImageConfig(size=size, max_pixels=5000))


def test_small_images_keep_every_byte(here: None, tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", num_shards=2)
    pattern = f"{tmp_path}/data/*.tar"
    before = members([one.uri for one in shards.find([pattern])])
    assert members(list(run(pattern, tmp_path / "out", samples_per_shard=100).shards)) == before


def test_the_command_says_what_it_made(ray_local: None, source: str, tmp_path: Path) -> None:
    out = tmp_path / uuid.uuid4().hex
    result = CliRunner().invoke(app, ["prepare", source, str(out), "--size", "16", "--samples-per-shard", "6", "--png"])
    assert result.exit_code == 0, result.output
    assert "Prepared" in result.output
    assert sorted(path.name for path in out.glob("*.tar")) == ["shard-000000.tar", "shard-000001.tar"]
    assert CliRunner().invoke(app, ["prepare", source, str(out), "--size", "7"]).exit_code == 2
