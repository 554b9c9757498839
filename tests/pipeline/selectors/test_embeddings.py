"""The selectors of embeddings, each against a slow plain re-implementation."""

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline import counter, kmeans
from pipeline.pool import Rows
from pipeline.ranks import ties
from pipeline.selectors import Listed, build, select
from pipeline.selectors.zcore import triangular
from tests.pipeline.selectors.pools import scored, vectors

TABLES = st.tuples(st.integers(1, 60), st.integers(0, 99), st.booleans())


def run(name: str, rows: Rows, budget: int, seed: int = 0, **options: Any) -> list[int]:
    selector = build(name, budget / len(rows), options)
    assert isinstance(selector, Listed)
    chosen: list[int] = selector.choose(rows, budget, seed).tolist()
    return chosen


def rows_of(shape: tuple[int, int, bool]) -> Rows:
    return Rows.of(scored(*shape), ["embedding", "train_label", "aum", "el2n"])


def squared(x: NDArray[Any], y: NDArray[Any]) -> float:
    return float(np.square(x.astype(np.float64) - y).sum())


def distance(x: NDArray[Any], y: NDArray[Any]) -> float:
    return float(np.sqrt(squared(x, y)))


@given(TABLES, st.integers(0, 3))
@settings(max_examples=40)
def test_moderate(shape: tuple[int, int, bool], seed: int) -> None:
    rows = rows_of(shape)
    points, labels = rows["embedding"].astype(np.float64), rows["train_label"].tolist()
    away = []
    for point, label in zip(points, labels, strict=True):
        members = [points[i] for i in range(len(rows)) if labels[i] == label]
        centre = np.array([np.median([member[axis] for member in members]) for axis in range(3)])
        away.append(distance(point, centre))
    tie = ties(seed, rows.sample_ids)
    off = [abs(x - float(np.median(away))) for x in away]
    expected = sorted(range(len(rows)), key=lambda i: (off[i], tie[i]))
    assert run("moderate", rows, len(rows), seed) == expected


def test_moderate_keeps_what_is_neither_near_nor_far() -> None:
    points = np.zeros((11, 2), dtype=np.float32)
    points[:, 0] = np.arange(-5, 6)
    columns = {"sample_id": np.arange(11), "train_label": np.zeros(11, dtype=np.int64), "embedding": vectors(points)}
    assert select(pa.table(columns), "moderate", keep_fraction=0.1).tolist() in ([2], [8])  # at the median distance, 3
    assert set(select(pa.table(columns), "moderate", keep_fraction=0.55).tolist()) == {1, 2, 3, 7, 8, 9}


@given(TABLES, st.integers(1, 8), st.sampled_from([0.0, 0.1, 1.0]), st.sampled_from(["aum", "el2n"]))
@settings(max_examples=60)
def test_d2(shape: tuple[int, int, bool], k: int, gamma: float, column: str) -> None:
    rows = rows_of(shape)
    points, n = rows["embedding"], len(rows)
    score = rows[column].astype(np.float64)
    if column == "aum":  # low is hard
        score = score.max() - score
    near = []
    for i in range(n):
        others = sorted((distance(points[i], points[j]), j) for j in range(n) if j != i)[:k]
        near.append(others)
    wanted = [score[i] + np.sum([np.exp(-d) * score[j] for d, j in near[i]]) for i in range(n)]
    tie = ties(1, rows.sample_ids)
    left, expected = set(range(n)), []
    while left:
        i = max(left, key=lambda i: (wanted[i], -int(tie[i])))
        expected.append(i)
        left.remove(i)
        for d, j in near[i]:
            wanted[j] -= np.exp(-gamma * d) * wanted[i]
    assert run("d2", rows, n, 1, score=column, neighbours=k, gamma=gamma) == expected


def test_d2_of_copies_takes_one_before_the_other() -> None:
    points = np.array([[0, 0], [0, 0], [9, 9], [9.5, 9]], dtype=np.float32)
    rows = Rows(np.arange(4), {"el2n": np.array([3, 3, 2.9, 1.0]), "embedding": points})
    first = run("d2", rows, 2, score="el2n", neighbours=1, gamma=1.0)
    assert len({0, 1} & set(first)) == 1 and 2 in first


@given(TABLES, st.integers(0, 3))
@settings(max_examples=60)
def test_k_center(shape: tuple[int, int, bool], seed: int) -> None:
    rows = rows_of(shape)
    points, n = rows["embedding"], len(rows)
    tie = ties(seed, rows.sample_ids)
    mean = points.mean(axis=0, dtype=np.float64)
    expected = [min(range(n), key=lambda i: (squared(points[i], mean), tie[i]))]
    while len(expected) < n:
        away = {i: min(squared(points[i], points[j]) for j in expected) for i in range(n) if i not in expected}
        expected.append(min(away, key=lambda i: (-away[i], tie[i])))
    assert run("k_center", rows, n, seed) == expected
    assert run("k_center", rows, (n + 1) // 2, seed) == expected[: (n + 1) // 2]


@given(TABLES, st.integers(1, 60), st.integers(1, 6), st.integers(1, 30))
@settings(max_examples=60)
def test_typiclust(shape: tuple[int, int, bool], budget: int, clusters: int, k: int) -> None:
    rows = rows_of(shape)
    points, n = rows["embedding"], len(rows)
    budget = min(budget, n)
    tie = ties(2, rows.sample_ids)
    centroids = kmeans.fit(points, min(budget, clusters), 2)
    members: dict[int, list[int]] = {}
    for i in range(n):
        own = min(range(len(centroids)), key=lambda c: distance(points[i], centroids[c]))
        members.setdefault(own, []).append(i)
    turns = {}
    for cluster, mine in members.items():
        typical = {}
        for i in mine:
            others = sorted(distance(points[i], points[j]) for j in mine if j != i)
            typical[i] = np.sum(others[: min(k, len(mine) // 2)])
        turns[cluster] = sorted(mine, key=lambda i: (typical[i], tie[i]))
    expected: list[int] = []
    for small in (False, True):
        group = [cluster for cluster in members if (len(members[cluster]) <= 5) == small]
        group.sort(key=lambda cluster: (-len(members[cluster]), cluster))
        for turn in range(n):
            expected += [turns[cluster][turn] for cluster in group if turn < len(turns[cluster])]
    assert run("typiclust", rows, budget, 2, clusters=clusters, neighbours=k) == expected[:budget]


def test_typiclust_takes_the_middle_of_every_cluster() -> None:
    angles = np.arange(5) * 2 * np.pi / 5
    star = np.column_stack([np.cos(angles), np.sin(angles)]) * (1 + angles[:, None] / 10)
    points = np.concatenate([[[0, 0]], star, star + 100, [[100, 100]], [[300, 0]] * 3]).astype(np.float32)
    rows = Rows(np.arange(15), {"embedding": points})
    assert set(run("typiclust", rows, 3, clusters=3)[:2]) == {0, 11}


@given(TABLES, st.integers(1, 3), st.integers(1, 70), st.sampled_from([0.0, 1.0, 4.0]), st.integers(0, 3))
@settings(max_examples=40)
def test_zcore(shape: tuple[int, int, bool], dimensions: int, k: int, exponent: float, seed: int) -> None:
    rows, draws = rows_of(shape), 12
    points, n = rows["embedding"], len(rows)
    tie = ties(seed, rows.sample_ids)
    score = counter.uniform(seed, "select-zcore-start", 0, rows.sample_ids)
    in_order = sorted(range(n), key=lambda i: tie[i])
    ends = [(column.min(), np.median(column), column.max()) for column in points.T]
    for number in range(draws):
        chance = [counter.uniform(seed, "select-zcore", 0, np.array([number]), c)[0] for c in range(2 * dimensions)]
        left, where = list(range(3)), []
        for c in range(dimensions):
            where.append(left.pop(int(chance[c] * len(left))))
        target = []
        for c, axis in enumerate(where):
            low, middle, high = (np.array([float(end)]) for end in ends[axis])
            target.append(np.float32(triangular(low, middle, high, np.array([chance[dimensions + c]]))[0]))

        def away(i: int, to: list[np.float32], where: list[int] = where) -> np.float32:
            total = np.float32(0)
            for axis, value in zip(where, to, strict=True):
                total += abs(points[i, axis] - value)
            return total

        nearest = min(in_order, key=lambda i: away(i, target))
        score[nearest] += 1
        others = sorted((i for i in in_order if i != nearest), key=lambda i: away(i, list(points[nearest, where])))
        apart = {i: float(away(i, list(points[nearest, where]))) for i in others[:k]}
        zeros = [i for i in apart if apart[i] == 0]
        weights = {i: 1.0 for i in zeros} if zeros else {i: (min(apart.values()) / apart[i]) ** exponent for i in apart}
        for i, weight in weights.items():
            score[i] -= weight / sum(weights.values())
    options = {"draws": draws, "dimensions": dimensions, "neighbours": k, "exponent": exponent}
    found = run("zcore", rows, n, seed, **options)
    assert sorted(found) == list(range(n))
    assert (np.diff(score[found]) < 1e-9).all()  # sums in another order may change places of what is all but equal


def test_the_triangle_is_that_of_numpy() -> None:
    chance = (np.arange(20_000) + 0.5) / 20_000
    for low, middle, high in ((0.0, 1.0, 4.0), (-2.0, -2.0, 1.0), (0.0, 3.0, 3.0)):
        mine = triangular(np.array(low), np.array(middle), np.array(high), chance)
        theirs = np.sort(np.random.default_rng(0).triangular(low, middle, high, 20_000))
        assert (np.diff(mine) >= 0).all() and np.abs(mine - theirs).max() < 0.12
    assert triangular(np.array(2.0), np.array(2.0), np.array(2.0), chance).tolist() == [2.0] * 20_000


def test_zcore_prefers_what_covers_to_copies() -> None:
    rng = np.random.default_rng(0)
    points = np.concatenate([np.zeros((80, 4)), rng.uniform(-3, 3, (20, 4))]).astype(np.float32)
    rows = Rows(np.arange(100), {"embedding": points})
    assert len(set(run("zcore", rows, 20, draws=2000)) & set(range(80, 100))) >= 18
