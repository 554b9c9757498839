"""Examines a machine: whether a run would work here and, for each thing that is wrong, how to mend it.

Nothing here needs a connection to Ray, and no finding holds credentials: what a location carries besides its place is
masked, and so is every secret of the environment that an error might repeat.
"""

import importlib
import os
import re
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from pipeline import storage
from pipeline.errors import SemiPruneError

GIB = 2**30
PYTHON_FLOOR, PYTHON_CEILING = (3, 11), (3, 13)
RAY_FLOOR = (2, 56)
TORCHVISION_LEAD = 15
"""torchvision 0.(m + 15) is built against torch 2.m; any other pair fails in its compiled operators."""
OBJECT_STORE_SHARE = 0.3
"""Ray's object store takes this share of the free memory, in /dev/shm if it fits there."""

CGROUPS = Path("/sys/fs/cgroup")

Verdict = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One thing that was examined. fail: a run cannot work; warn: it works worse; fix: what to do, empty if ok."""

    name: str
    verdict: Verdict
    detail: str
    fix: str = ""


def examine(storage_uris: Sequence[str]) -> list[Finding]:
    """Findings about Python, Ray, torch, CPU, GPU, memory, shared memory, disk and each storage location.

    Writes, reads, lists and deletes a small object under every location; nothing remains of it.
    """
    places = [tempfile.gettempdir(), *(storage.resolve(uri)[1] for uri in storage_uris if _is_local(uri))]
    return [
        _python(),
        _ray(),
        *_torch(),
        _cpu(),
        _memory(),
        _shared_memory(),
        *(_disk(Path(place)) for place in dict.fromkeys(places)),
        *(_storage(uri) for uri in dict.fromkeys(storage_uris)),
    ]


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    if PYTHON_FLOOR <= sys.version_info[:2] <= PYTHON_CEILING:
        return Finding("Python", "ok", found)
    return Finding(
        "Python", "fail", f"{found} is not 3.11, 3.12 or 3.13", "make the virtual environment with one of them"
    )


def _ray() -> Finding:
    try:
        importlib.import_module("ray")
        found = version("ray")
    except (ImportError, OSError) as error:
        return Finding("Ray", "fail", f"cannot be imported: {_masked(error)}", "install this project's lock: make test")
    if _numbers(found) < RAY_FLOOR:
        fix = "install ray 2.56 or later: older ones execute what they find in tar files (CVE-2026-57516)"
        return Finding("Ray", "fail", found, fix)
    return Finding("Ray", "ok", found)


def _torch() -> Iterator[Finding]:
    fix = "install the pair of this project's lock, both from the same index"
    try:
        torch_version, vision_version = version("torch"), version("torchvision")
    except PackageNotFoundError as error:
        yield Finding("torch", "fail", f"{error.name} is not installed", fix)
        return
    pair = f"{torch_version}, torchvision {vision_version}"
    if _numbers(vision_version)[1] != _numbers(torch_version)[1] + TORCHVISION_LEAD:
        yield Finding("torch", "fail", f"{pair} were not built for each other", fix)
        return
    try:
        torch = importlib.import_module("torch")
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as error:
        yield Finding("torch", "fail", f"{pair} cannot be imported together: {_masked(error)}", fix)
        return
    yield Finding("torch", "ok", pair)
    if not torch.cuda.is_available():
        yield Finding("GPU", "ok", "none, training on CPU")
        return
    for number in range(torch.cuda.device_count()):
        device = torch.device("cuda", number)
        memory = torch.cuda.get_device_properties(device).total_memory
        yield Finding(
            f"GPU {number}", "ok", f"{torch.cuda.get_device_name(device)}, {_gib(memory)}, {_precision(device)}"
        )


def _cpu() -> Finding:
    cores = _cores()
    count = f"{cores:g} core" + ("" if cores == 1 else "s")
    try:
        torch = importlib.import_module("torch")
    except (ImportError, RuntimeError, OSError):
        return Finding("CPU", "warn", f"{count}, precision unknown without torch", "mend torch first")
    detail = f"{count}, {_precision(torch.device('cpu'))}"
    if cores < 2:
        return Finding("CPU", "warn", detail, "give it 2 cores or more: two training workers share what there is")
    return Finding("CPU", "ok", detail)


def _precision(device: object) -> str:
    from models.precision import resolve

    return "bf16" if resolve("auto", device) == "bf16" else "fp32 (bf16 would not be faster)"


def _memory() -> Finding:
    total, free = _memory_bytes()
    detail = f"{_gib(free)} free of {_gib(total)}"
    if free < 2 * GIB:
        return Finding("memory", "fail", detail, "free 2 GiB or more: Ray kills workers when memory runs out")
    if free < 4 * GIB:
        return Finding("memory", "warn", detail, "free 4 GiB or use fewer workers: resources.num_workers=1")
    return Finding("memory", "ok", detail)


def _shared_memory() -> Finding:
    place = Path("/dev/shm")
    if not place.is_dir():
        return Finding("shared memory", "ok", "this system has no /dev/shm")
    free, wanted = shutil.disk_usage(place).free, int(_memory_bytes()[1] * OBJECT_STORE_SHARE)
    if free >= wanted:
        return Finding("shared memory", "ok", f"{_gib(free)} free in {place}")
    detail = f"{_gib(free)} free in {place}, Ray's object store wants {_gib(wanted)} and would lie on disk"
    return Finding(
        "shared memory", "warn", detail, f"docker run --shm-size={wanted // GIB + 1}g, or delete files there"
    )


def _disk(place: Path) -> Finding:
    usage = shutil.disk_usage(_first_existing(place))
    name, detail = f"disk {place}", f"{_gib(usage.free)} free of {_gib(usage.total)}"
    if usage.free < GIB:
        return Finding(name, "fail", detail, "free 1 GiB or more, or name another place (TMPDIR, or the run's root)")
    if usage.free < 0.05 * usage.total:
        return Finding(name, "warn", detail, "free 5% or more: Ray stops writing to a disk that is 95% full")
    return Finding(name, "ok", detail)


def _storage(uri: str) -> Finding:
    name, probe = f"storage {_masked(uri)}", f"semiprune-doctor-{uuid.uuid4().hex}"
    try:
        missing = _missing_folders(uri)
        try:
            trouble, fix = _try_storage(uri, probe)
        finally:
            for folder in missing:
                if folder.is_dir():
                    folder.rmdir()
    except SemiPruneError as error:
        said = _masked(str(error).replace(f"/{probe}", ""))
        [(detail, fix)] = re.findall(r"^(.*)[:;] (.*)$", said) or [(said, "name another location")]
        return Finding(name, "fail", detail, fix)
    except OSError as error:
        return Finding(name, "fail", _masked(error), "name a location that this user may write")
    if trouble:
        return Finding(name, "warn", trouble, fix)
    means = "" if _is_local(uri) else " by conditional writes"
    new = "does not exist yet and will be made; " if missing else ""
    return Finding(name, "ok", f"{new}create, replace, read, list, delete; a second create is refused{means}")


def _try_storage(uri: str, name: str) -> tuple[str, str]:
    """What is wrong with a location that lets itself be used, and the fix; two empty strings if nothing is."""
    probe = storage.join(uri, name)
    created = storage.create(probe, b"first")
    try:
        refused = created and not storage.create(probe, b"second") and storage.read(probe) == b"first"
        storage.write(probe, b"third")
        fresh = storage.read(probe) == b"third" and name in storage.names(uri)
    finally:
        storage.delete(probe)
    if not refused or not storage.is_exclusive(probe):
        trouble = "no conditional writes (it ignores If-None-Match): of two runs that start at once, both may work"
        return trouble, "let one run at a time write there, or use a store that honours it"
    if not fresh or storage.exists(probe):
        return "what was just written or deleted is not seen at once", "use a store with read-after-write consistency"
    return "", ""


def _is_local(uri: str) -> bool:
    try:
        return storage.is_local(uri)
    except SemiPruneError:
        return False


def _missing_folders(uri: str) -> list[Path]:
    """Folders that writing under a local `uri` would make, deepest first."""
    if not _is_local(uri):
        return []
    place = Path(storage.resolve(uri)[1])
    return [folder for folder in (place, *place.parents) if not folder.exists()]


def _first_existing(place: Path) -> Path:
    return next(folder for folder in (place, *place.parents) if folder.exists())


def _cores() -> float:
    """Cores that this process may use: its affinity, and the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    old = CGROUPS / "cpu"
    for quota in (_words(CGROUPS / "cpu.max"), _words(old / "cpu.cfs_quota_us") + _words(old / "cpu.cfs_period_us")):
        if quota and quota[0] not in ("max", "-1"):
            return min(cores, int(quota[0]) / int(quota[1]))
    return cores


def _memory_bytes() -> tuple[int, int]:
    """Total and free bytes that this process may use: the machine's, and the limit of its container."""
    total = free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if meminfo := _words(Path("/proc/meminfo")):
        free = 1024 * _after("MemAvailable:", meminfo)
    old = CGROUPS / "memory"
    for limit, used, cache in (
        (_words(CGROUPS / "memory.max"), _words(CGROUPS / "memory.current"), _words(CGROUPS / "memory.stat")),
        (_words(old / "memory.limit_in_bytes"), _words(old / "memory.usage_in_bytes"), _words(old / "memory.stat")),
    ):
        if limit and limit[0] != "max" and int(limit[0]) < total:
            total = int(limit[0])
            free = min(free, total - int(used[0]) + _after("inactive_file", cache))
    return total, free


def _after(label: str, words: list[str]) -> int:
    return int(words[words.index(label) + 1])


def _words(file: Path) -> list[str]:
    """The words of a file of the system; none if this system has no such file."""
    return file.read_text().split() if file.is_file() else []


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def _masked(text: object) -> str:
    """`text` in one line, without user:password@, signed queries and the secrets of the environment."""
    line = re.sub(r"://[^/@\s]+@", "://***@", " ".join(str(text).split()))
    line = re.sub(r"\?\S+", "?***", line)
    secrets = (value for key, value in os.environ.items() if re.search(r"SECRET|TOKEN|PASSWORD|ACCESS_KEY", key))
    for secret in secrets:
        if len(secret) >= 8:
            line = line.replace(secret, "***")
    return line
