"""Exact ranks of a total order without sorting it: radix histograms of partitions that never come together.

A key is (stratum, image, tie): image, an unsigned integer in the order of the values; tie, a hash of (seed, sample_id)
that no two ids share. To find the key of rank r, count the keys of a stratum by their leading bits, keep the bin that
holds rank r, count that bin by the next bits, and so on until what is left can be sorted in memory. Counts add up alike
for any partitions, so the keys that are found, and what is kept, never depend on them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import counter
from pipeline.pool import Pool, Rows

DIGIT = 16
"""Bits that a pass tells apart, fewer where there are many strata."""

BINS = 1 << 20
"""Counters that a pass has at most, over all strata."""

SORTED = 1 << 22
"""Keys that may be gathered and sorted once a pass has narrowed the search to them."""

SMALL = 1 << 16
"""Keys that may be gathered without any pass before."""

Words = NDArray[Any]
"""Unsigned integers: u32 or u64 images, u64 ties."""

Stratum = NDArray[np.int64] | int
"""Of n rows, [n]; 0 where there is but one."""

LOW, HIGH = 0, 1


@dataclass(frozen=True)
class Rule:
    """What is kept: of each stratum s the ranks intervals[s][0] .. intervals[s][1] - 1 of an order.

    order: numbers [n], what is smaller comes first, of equals the smaller hash; stratum: int64[n], 0 .. S - 1, where S
    is the number of intervals; None if there is one.
    """

    order: Callable[[Rows], NDArray[Any]]
    intervals: Sequence[tuple[int, int]]
    stratum: Callable[[Rows], NDArray[np.int64]] | None = None

    def keys(self, rows: Rows) -> tuple[Stratum, Words]:
        """Strata and images of some rows."""
        return (0 if self.stratum is None else self.stratum(rows)), image(self.order(rows))


@dataclass(frozen=True)
class Cut:
    """A rule with the keys that bound what it keeps: images and ties [2, S] of the first kept and the first beyond.

    everything: bool[2, S], where a bound lies after the stratum's last key.
    """

    rule: Rule
    seed: int
    images: Words
    ties: Words
    everything: NDArray[np.bool_]

    def kept(self, rows: Rows) -> tuple[NDArray[np.int64], Stratum, Words, Words]:
        """Which of some rows are kept, as positions; stratum, image and tie of each, by which it is preferred."""
        stratum, images = self.rule.keys(rows)
        keeps = self._before(HIGH, stratum, images, rows)
        if self.images[LOW].any() or self.ties[LOW].any() or self.everything[LOW].any():
            keeps &= ~self._before(LOW, stratum, images, rows)
        found = np.flatnonzero(keeps)
        return found, at(stratum, found), images[found], ties(self.seed, rows.sample_ids[found])

    def _before(self, bound: int, stratum: Stratum, images: Words, rows: Rows) -> NDArray[np.bool_]:
        """Which rows come before a bound."""
        edge = self.images[bound].astype(images.dtype)[stratum]
        before: NDArray[np.bool_] = (images < edge) | self.everything[bound][stratum]
        equal = np.flatnonzero(images == edge)
        before[equal] |= ties(self.seed, rows.sample_ids[equal]) < self.ties[bound][at(stratum, equal)]
        return before


def image(values: NDArray[Any]) -> Words:
    """Unsigned integers in the order of some numbers: u32 of f32, u64 of all else. -0.0 is 0.0; no NaN."""
    if values.dtype.kind == "u":
        return values.astype(np.uint64, copy=False)
    if values.dtype.kind == "i":
        return values.astype(np.int64).view(np.uint64) ^ np.uint64(1 << 63)
    bits = 32 if values.dtype == np.float32 else 64
    positive = values.astype(f"f{bits // 8}", copy=False) + 0  # -0.0 + 0 is 0.0
    word = positive.view(f"i{bits // 8}")
    sign = word >> (bits - 1)  # -1, all ones, of a negative number, else 0
    image: Words = (word ^ (sign | word.dtype.type(np.iinfo(word.dtype).min))).view(f"u{bits // 8}")
    return image


def ties(seed: int, sample_ids: NDArray[np.int64]) -> Words:
    """u64[n]: of equal values, the smaller of these comes first."""
    return counter.hash64(seed, "select-tie", 0, sample_ids)


def at(stratum: Stratum, rows: Any) -> Stratum:
    """The strata of some of the rows."""
    return stratum if isinstance(stratum, int) else stratum[rows]


def cut(pool: Pool, rules: Iterable[Rule], seed: int) -> list[Cut]:
    """Find the bounds of every rule, of all rules in the same passes over the pool."""
    searches = [_Search(rule, seed) for rule in rules]
    limit = SMALL
    while sum(search.candidates(pool.num_samples) for search in searches) > limit:
        for counts in pool.map(partial(_count, searches)):
            for search, count in zip(searches, counts, strict=True):
                search.add(*count)
        for search in searches:
            search.narrow()
        limit = SORTED
    gathered = list(pool.map(partial(_gather, searches)))
    return [search.finish([part[i] for part in gathered]) for i, search in enumerate(searches)]


def _count(searches: "Sequence[_Search]", rows: Rows) -> "list[tuple[int, dict[int, NDArray[np.int64]]]]":
    return [search.count(rows) for search in searches]


def _gather(searches: "Sequence[_Search]", rows: Rows) -> "list[list[tuple[Stratum, Words, Words]]]":
    return [search.gather(rows) for search in searches]


class _Search:
    """The bounds of a rule as far as they are known.

    images, ties: u64[2, S], the leading `depth` bits of each bound's key; wanted: int64[2, S], how many of the keys
    that agree with them come before the bound; sizes: how many agree, once they were counted.
    """

    def __init__(self, rule: Rule, seed: int) -> None:
        self.rule = rule
        self.seed = seed
        self.wanted = np.array(rule.intervals, dtype=np.int64).T.copy()
        self.images, self.ties = np.zeros((2, *self.wanted.shape), dtype=np.uint64)
        self.sizes: NDArray[np.int64] | None = None
        self.depth = 0
        self.bits = 0
        self._counts: dict[int, NDArray[np.int64]] = {}

    @property
    def open(self) -> NDArray[np.bool_]:
        """bool[2, S]: bounds with keys on both sides of them, as far as is known."""
        after = True if self.sizes is None else self.wanted < self.sizes
        return (self.wanted > 0) & after

    def candidates(self, num_samples: int) -> int:
        """How many keys could have to be sorted."""
        if self.sizes is None:
            return num_samples if self.open.any() else 0
        return int(self.sizes[self.open].sum())

    def count(self, rows: Rows) -> tuple[int, dict[int, NDArray[np.int64]]]:
        """One partition: bits of an image, and of every bound that is open, int64[S, 2^digit] keys by next digit."""
        stratum, images = self.rule.keys(rows)
        bits = images.dtype.itemsize * 8
        size = min(DIGIT, (BINS // self.wanted.shape[1]).bit_length() - 1)
        in_image = self.depth < bits
        size = max(1, min(size, bits - self.depth if in_image else bits + 64 - self.depth))
        counts: dict[int, NDArray[np.int64]] = {}
        for bound in (LOW, HIGH):
            if not self.open[bound].any():
                continue
            if self.depth == 0 and counts:
                counts[bound] = counts[LOW]  # no bit of a bound is known: both are among all keys
                continue
            found = self._agreeing(bound, stratum, images, rows)
            words = images[found] if in_image else ties(self.seed, rows.sample_ids[found])
            shift = words.dtype.type((bits if in_image else bits + 64) - self.depth - size)
            digits = ((words >> shift) & words.dtype.type((1 << size) - 1)).astype(np.int64)
            index = digits + (at(stratum, found) << size)
            counts[bound] = np.bincount(index, minlength=self.wanted.shape[1] << size)
        return bits, counts

    def add(self, bits: int, counts: dict[int, NDArray[np.int64]]) -> None:
        """Take in what `count` found in one partition."""
        self.bits = bits
        for bound, count in counts.items():
            self._counts[bound] = self._counts[bound] + count if bound in self._counts else count

    def narrow(self) -> None:
        """Fix the next digit of every bound from the counts of all partitions."""
        if not self._counts:
            return  # every bound is known, and other rules are not
        sizes = np.zeros_like(self.wanted) if self.sizes is None else self.sizes.copy()
        words = self.images if self.depth < self.bits else self.ties
        size = next(iter(self._counts.values())).size // self.wanted.shape[1]
        words *= np.uint64(size)  # also of a bound that is closed: its key goes on with zeros
        for bound, flat in self._counts.items():
            counts = flat.reshape(-1, size)
            until = counts.cumsum(axis=1)
            if self.sizes is None:
                sizes[bound] = until[:, -1]
            here = np.flatnonzero((self.wanted[bound] > 0) & (self.wanted[bound] < sizes[bound]))
            digit = (until[here] <= self.wanted[bound, here][:, None]).sum(axis=1)
            self.wanted[bound, here] -= until[here, digit] - counts[here, digit]
            sizes[bound, here] = counts[here, digit]
            words[bound, here] += digit.astype(np.uint64)
        self.sizes = sizes
        self.depth += size.bit_length() - 1
        self._counts = {}

    def gather(self, rows: Rows) -> list[tuple[Stratum, Words, Words]]:
        """One partition: strata, images and ties of the keys that agree with each bound that is open."""
        stratum, images = self.rule.keys(rows)
        none = np.empty(0, dtype=np.int64)  # not a slice: a view would keep the partition in memory
        found = [
            self._agreeing(bound, stratum, images, rows) if self.open[bound].any() else none for bound in (LOW, HIGH)
        ]
        return [(at(stratum, some), images[some], ties(self.seed, rows.sample_ids[some])) for some in found]

    def finish(self, gathered: Sequence[Sequence[tuple[Stratum, Words, Words]]]) -> Cut:
        """Sort what is left; the bounds are found."""
        num_strata = self.wanted.shape[1]
        images = self.images << np.uint64(max(0, self.bits - self.depth))  # where the bound is the first key of its bin
        ties = (
            self.ties << np.uint64(max(0, self.bits - self.depth + 64)) if self.depth > self.bits else self.ties.copy()
        )
        everything = self.wanted > 0
        for bound in (LOW, HIGH):
            image = np.concatenate([part[bound][1] for part in gathered])
            tie = np.concatenate([part[bound][2] for part in gathered])
            stratum = np.concatenate([np.broadcast_to(part[bound][0], part[bound][1].shape) for part in gathered])
            order = np.lexsort((tie, image, stratum) if num_strata > 1 else (tie, image))
            counts = np.bincount(stratum, minlength=num_strata)
            here = np.flatnonzero(self.open[bound] & (self.wanted[bound] < counts))
            place = order[(counts.cumsum() - counts + self.wanted[bound])[here]]
            images[bound, here], ties[bound, here] = image[place], tie[place]
            everything[bound, here] = False
        return Cut(self.rule, self.seed, images, ties, everything)

    def _agreeing(self, bound: int, stratum: Stratum, images: Words, rows: Rows) -> Any:
        """Which rows agree with what is known of a bound, in strata where it is open."""
        if self.depth == 0:
            return slice(None)
        bits = images.dtype.itemsize * 8
        known = min(self.depth, bits)
        prefix = self.images[bound].astype(images.dtype)[stratum]
        agrees = ((images >> images.dtype.type(bits - known)) == prefix) & self.open[bound][stratum]
        found = np.flatnonzero(agrees)
        if self.depth > bits:
            shift = np.uint64(64 + bits - self.depth)
            tie = ties(self.seed, rows.sample_ids[found]) >> shift
            found = found[tie == self.ties[bound][at(stratum, found)]]
        return found
