"""Keys that several shards share, against the plain way to find them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import shared_keys
from pipeline.errors import StorageError
from pipeline.shared_keys import SharedKeys

HASHES = st.integers(0, 30) | st.integers(2**63, 2**63 + 5) | st.integers(0, 2**64 - 1)


def plain(shards: list[list[int]]) -> dict[int, set[int]]:
    """For every later shard the first shard of each hash that it has too."""
    found: dict[int, set[int]] = {}
    for number, hashes in enumerate(shards):
        for value in hashes:
            first = next(k for k, others in enumerate(shards) if value in others)
            if first != number:
                found.setdefault(number, set()).add(first)
    return found


@given(st.lists(st.lists(HASHES, max_size=12), max_size=8), st.integers(1, 40), st.randoms())
def test_shards_meet_in_the_first_that_has_the_hash(shards: list[list[int]], together: int, random: object) -> None:
    order = list(range(len(shards)))
    random.shuffle(order)  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_keys, "TOGETHER", together)  # so that there are many runs in the file, or one
        keys = SharedKeys()
        for number in order:
            keys.add(number, np.array(shards[number], np.uint64).tobytes())
        assert keys.earlier() == plain(shards)


def test_a_full_disk_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = SharedKeys()
    keys._file = Path("/dev/full").open("w+b")  # noqa: SIM115
    keys.add(0, np.arange(5, dtype=np.uint64).tobytes())
    with pytest.raises(StorageError, match=r"cannot be written .* No space left on device: free some .* TMPDIR"):
        keys.earlier()
