"""The doctor on this machine, on broken ones, and on locations of every kind."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import boto3
import pytest

from pipeline import doctor, storage
from pipeline.doctor import Finding, examine
from tests.pipeline.test_storage import everything_in


def found(findings: list[Finding], name: str) -> Finding:
    [finding] = [finding for finding in findings if finding.name == name]
    return finding


def versions(monkeypatch: pytest.MonkeyPatch, **pinned: str) -> None:
    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: pinned.get(name) or real(name))


def test_this_machine(tmp_path: Path) -> None:
    findings = examine([str(tmp_path)])
    assert [finding.name for finding in findings][:3] == ["Python", "Ray", "torch"]
    assert {finding.verdict for finding in findings} <= {"ok", "warn", "fail"}
    for finding in findings:
        assert finding.detail
        assert "\n" not in finding.detail + finding.fix
        assert (finding.verdict == "ok") == (finding.fix == ""), finding
    for name in ("Python", "Ray", "torch", f"storage {tmp_path}"):
        assert found(findings, name).verdict == "ok", findings
    assert {"CPU", "memory", "shared memory", f"disk {tmp_path}"} <= {finding.name for finding in findings}
    assert everything_in(tmp_path) == []


def test_importing_it_does_not_import_torch() -> None:
    program = "import sys, pipeline.doctor; assert not {'torch', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


def test_a_location_that_works_is_left_as_it_was(root: str) -> None:
    storage.write(storage.join(root, "mine"), b"1")
    for uri in (root, root + "/", storage.join(root, "not", "there")):
        assert doctor._storage(uri).verdict == "ok"
    assert storage.names(root) == ["mine"]


def test_a_folder_that_does_not_exist_yet_is_said_to_be_made(tmp_path: Path) -> None:
    new = "does not exist yet and will be made; create, replace"
    assert doctor._storage(str(tmp_path / "not" / "there")).detail.startswith(new)
    assert doctor._storage(str(tmp_path)).detail.startswith("create, replace")
    assert everything_in(tmp_path) == []


def test_python(monkeypatch: pytest.MonkeyPatch) -> None:
    for too, number in (("old", (3, 10, 9)), ("new", (3, 14, 0))):
        monkeypatch.setattr(sys, "version_info", number)
        assert doctor._python().verdict == "fail", too


@pytest.mark.parametrize(
    ("number", "verdict"), [("2.55.9", "fail"), ("2.56.0", "ok"), ("3.0.0rc1", "ok"), ("1.99", "fail")]
)
def test_ray(monkeypatch: pytest.MonkeyPatch, number: str, verdict: str) -> None:
    versions(monkeypatch, ray=number)
    finding = doctor._ray()
    assert finding.verdict == verdict
    assert ("CVE-2026-57516" in finding.fix) == (verdict == "fail")


def test_ray_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert doctor._ray().verdict == "fail"


def test_torch_and_torchvision_of_different_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, torch="2.12.1+cpu", torchvision="0.28.0")
    [finding] = doctor._torch()
    assert finding.verdict == "fail"
    assert "2.12.1+cpu, torchvision 0.28.0" in finding.detail


def test_torch_that_is_missing_or_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    with monkeypatch.context() as patched:
        patched.setattr(doctor, "version", absent)
        assert [finding.verdict for finding in doctor._torch()] == ["fail"]
    monkeypatch.setitem(sys.modules, "torchvision", None)
    [finding] = doctor._torch()
    assert (finding.verdict, "cannot be imported together" in finding.detail) == ("fail", True)


@pytest.mark.parametrize(("free", "verdict"), [(doctor.GIB, "fail"), (3 * doctor.GIB, "warn"), (8 * doctor.GIB, "ok")])
def test_memory(monkeypatch: pytest.MonkeyPatch, free: int, verdict: str) -> None:
    monkeypatch.setattr(doctor, "_memory_bytes", lambda: (16 * doctor.GIB, free))
    assert doctor._memory().verdict == verdict


def test_containers_are_believed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "CGROUPS", tmp_path)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    unlimited_cores, unlimited_memory = doctor._cores(), doctor._memory_bytes()[0]
    assert unlimited_cores == len(os.sched_getaffinity(0))
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 200000\n")
    assert doctor._cores() == 0.5 < unlimited_cores
    assert doctor._memory_bytes() == (1_000_000, 300_000)
    assert unlimited_memory > 1_000_000
    assert doctor._cpu().verdict == "warn"


def test_containers_of_the_old_kind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "CGROUPS", tmp_path)
    for file, text in {
        "cpu/cpu.cfs_quota_us": "150000",
        "cpu/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": "1000000",
        "memory/memory.usage_in_bytes": "900000",
        "memory/memory.stat": "cache 1\ninactive_file 0",
    }.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    assert doctor._cores() == min(1.5, len(os.sched_getaffinity(0)))
    assert doctor._memory_bytes() == (1_000_000, 100_000)


def test_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_memory_bytes", lambda: (10**15, 10**15))
    finding = doctor._shared_memory()
    assert finding.verdict == "warn"
    assert "--shm-size=" in finding.fix


@pytest.mark.parametrize(("free", "verdict"), [(0.5, "fail"), (4, "warn"), (6, "ok")])
def test_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: float, verdict: str) -> None:
    usage = SimpleNamespace(free=int(free * doctor.GIB), total=100 * doctor.GIB)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    finding = doctor._disk(tmp_path / "not" / "there")
    assert finding.verdict == verdict
    assert finding.detail.endswith("free of 100.0 GiB")


def test_small_disk(small_disk: Path) -> None:
    assert doctor._disk(small_disk).verdict == "fail"


def test_locations_that_do_not_work(s3_bucket: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    for uri, detail, fix in (
        ("s3://no-such-bucket/runs", "does not exist", "create it first"),
        ("nope://x", "Protocol not known", "use a local path or s3://bucket/prefix"),
        ("gs://bucket/x", "cannot open 'gs://", "pip install gcsfs, or use s3://bucket/prefix or a local path"),
        ("s3:/bucket/x", "one slash", "write s3://bucket/x, or ./s3:/bucket/x for a folder here"),
        ("s3://", "'s3://' names no bucket", "write it like s3://bucket/prefix"),
        (str(tmp_path / "file" / "runs"), "is a file", "choose another place"),
        ("/proc/semiprune", "no file can be made there", "choose another place"),
    ):
        finding = found(examine([uri]), f"storage {uri}")
        assert finding.verdict == "fail"
        assert detail in finding.detail
        assert finding.fix == fix
        assert "semiprune-doctor" not in finding.detail
    assert everything_in(tmp_path) == ["file"]


def test_a_store_with_conditional_writes(s3_root: str) -> None:
    finding = doctor._storage(s3_root)
    assert finding.verdict == "ok"
    assert "by conditional writes" in finding.detail


def test_a_store_without_conditional_writes(rclone_root: str) -> None:
    finding = doctor._storage(rclone_root)
    assert finding.verdict == "warn"
    assert "no conditional writes" in finding.detail
    assert finding.fix.startswith("let one run at a time write there")
    assert storage.resolve(rclone_root)[0].find(rclone_root) == []


def test_no_credentials_are_told(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-long-secret-key")
    for text in ("s3://user:password@bucket/x", "https://host/x?X-Amz-Signature=abc", "bad key a-long-secret-key here"):
        masked = doctor._masked(text)
        assert "***" in masked
        assert not any(secret in masked for secret in ("password", "abc", "a-long-secret-key"))
    names = [finding.name for finding in examine(["nope://user:password@host/x"])]
    assert names[-1] == "storage nope://***@host/x"


def test_what_cannot_be_deleted_is_told(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(uri: str) -> None:
        raise doctor.SemiPruneError(f"no permission for {uri!r}: allow it to this role")

    monkeypatch.setattr(storage, "delete", refuse)
    finding = doctor._storage(s3_root)
    assert (finding.verdict, finding.detail) == ("fail", f"no permission for {s3_root!r}")
    assert finding.fix == "allow it to this role"
    bucket, prefix = s3_root.removeprefix("s3://").split("/", 1)
    assert boto3.client("s3").list_objects_v2(Bucket=bucket, Prefix=prefix)["KeyCount"] == 1
