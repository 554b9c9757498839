"""What `semiprune history` and `semiprune gc` print and do."""

from pathlib import Path

from pipeline import versions
from tests.jobs.test_cli import Semiprune, semiprune
from tests.pipeline.test_gc import commit, is_there, plan
from tests.pipeline.test_versions import make

__all__ = ["semiprune"]


def test_history_has_a_line_for_every_version(semiprune: Semiprune, tmp_path: Path) -> None:
    status, _, err = semiprune("history", str(tmp_path))
    assert status == 2 and "has no versions of a coreset" in err
    for number in (1, 2):
        versions.create(str(tmp_path), make(number))
    status, out, _ = semiprune("history", str(tmp_path))
    assert status == 0
    rows = [line.split() for line in out.splitlines()[2:]]
    made = "2026-01-01T00:00:00+00:00"
    assert rows[0] == ["1", made, "1", "10", "2", "all", "3", "1", "0", "1", "scratch"]
    assert rows[1][-2:] == ["version", "1"]


def test_gc_shows_first_and_deletes_when_told(semiprune: Semiprune, tmp_path: Path) -> None:
    root = str(tmp_path)
    stages = [commit(root, number) for number in range(2)]
    for number, stage in enumerate(stages, 1):
        versions.create(root, make(number, [stage]))
    plan(root, stages[1])
    status, out, _ = semiprune("gc", root, "--keep", "1")
    assert status == 0 and f"{stages[0].stage}/{stages[0].key}  stage" in out
    assert "nothing was deleted: --delete does it" in out and is_there(root, stages[0])
    status, out, _ = semiprune("gc", root, "--keep", "1", "--delete")
    assert status == 0 and "bytes deleted" in out
    assert not is_there(root, stages[0]) and is_there(root, stages[1])
    assert semiprune("gc", root, "--keep", "1")[1] == "0 files, 0 bytes that nothing needs\n"
    assert semiprune("gc", root, "--keep", "0")[0] == 2
