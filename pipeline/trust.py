"""Stage `trust`: how far the pseudo-labels can be trusted, from the held-out labels, before anything is annotated."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import counter, ranks
from pipeline.calibration import by_confidence, calibrate
from pipeline.config import Config
from pipeline.dynamics_store import DynamicsStore
from pipeline.error_curve import tenths
from pipeline.intervals import predicted, spearman, wilson
from pipeline.learning_curve import learning_curve
from pipeline.pseudo_label import Holdout
from pipeline.reduce import Reduction
from pipeline.resources import Resources
from pipeline.score import ScoreConfig, store_of
from pipeline.second_round import compare, described
from pipeline.stage import Artifact, Output, Progress
from pipeline.true_dynamics import store_uri
from pipeline.verdict import verdict

HARDER_SHARE = "harder_share:"
"""Prefix of the columns that hold, of a held-out row, the share of the pool that a score takes for harder."""

GIVEN = "given:"
"""Prefix of the columns that hold a score of a held-out row by the label that the proxy was given."""


class TrustConfig(Config):
    """No settings of its own. seed: of halves, folds and resamples."""

    seed: int


def run(
    inputs: Mapping[str, Artifact], config: TrustConfig, out: Output, *, resources: Resources, progress: Progress
) -> dict[str, Any]:
    """Compare with the held-out labels; part: a row each, with sample_id, label, pseudo_label, confidence, wrong, and
    for every score column c `harder_share:c`, `given:c`, and where the true labels were recorded `true:c`.

    inputs: split, pseudo_label, proxy, score; after a second round its ssl and `first_round`, the pseudo-labels of the
    first. Metrics: accuracy in all, per_class and by confidence; calibration; pool, what is expected to be wrong in it;
    along, wrong rows along every score; rank_correlation of every score with the one by true labels; more_labels, what
    they would bring; second_round, if there was one: the threshold, how many rows joined, by class, and how held_out
    compares; verdict. All numbers are fractions. What cannot be known is None: without held-out rows, all of it.
    """
    holdout = Holdout.load(inputs["pseudo_label"])
    num_samples, harder = inputs["score"].metrics["num_samples"], inputs["score"].metrics["harder"]
    table = _predictions(holdout, inputs["pseudo_label"])
    progress(1, 3, "steps")
    shares = _pool_scores(inputs["score"], holdout.sample_ids, harder, config.seed)
    progress(2, 3, "steps")
    truth = _true_scores(inputs, len(holdout.labels))
    for name, values in {**shares, **truth}.items():
        table = table.append_column(name, pa.array(values))
    out.write_table(table)
    progress(3, 3, "steps")

    found = judged(table, holdout.logits, harder, config.seed)
    total, num_wrong = found["num_holdout"], found["num_wrong"]
    known, draw = inputs["split"].metrics, inputs["split"].manifest["config"]["settings"]["draw"]
    num_train, num_annotated = known["num_train"], known.get("num_annotated", 0)
    second_round = _second_round(inputs, holdout, table["wrong"].to_numpy()) if "first_round" in inputs else None
    first_round = second_round["held_out"]["rounds"][0]["correct"] if second_round and total else None
    return {
        "num_samples": num_samples,
        "num_train": num_train,
        **found,
        "pool": expected_wrong(num_wrong, total, num_samples - num_train - total),
        "more_labels": _more_labels(holdout, num_wrong, config.seed),
        **({"second_round": second_round} if second_round else {}),
        "verdict": verdict(total - num_wrong, total, draw, num_annotated, first_round, unjudged(known, found)),
    }


def judged(table: pa.Table, logits: NDArray[np.float32], harder: Mapping[str, str], seed: int) -> dict[str, Any]:
    """What held-out rows, in a table as that of the stage, say of the pseudo-labels: a part of the stage's metrics.

    logits: float32 [h, C] of the same rows; harder: the direction of every score column.
    """
    ids, labels, wrong = (table[name].to_numpy() for name in ("sample_id", "label", "wrong"))
    total, num_wrong = len(wrong), int(wrong.sum())
    half = counter.uniform(seed, "trust-half", 0, ids) < 0.5
    shares = {column: table[HARDER_SHARE + column].to_numpy() for column in harder}
    recorded = [column for column in harder if f"true:{column}" in table.column_names]
    return {
        "num_holdout": total,
        "num_wrong": num_wrong,
        "accuracy": 1 - num_wrong / total if total else None,
        "interval": list(wilson(total - num_wrong, total)) if total else None,
        "per_class": _per_class(labels, ~wrong),
        "by_confidence": by_confidence(table["confidence"].to_numpy(), ~wrong),
        "calibration": calibrate(logits, labels, half) if total else None,
        "along": {column: tenths(shares[column], wrong) for column in harder} if total else {},
        "rank_correlation": {
            column: _correlation(*(table[f"{kind}:{column}"].to_numpy() for kind in ("given", "true")))
            for column in recorded
        },
    }


def unjudged(split: Mapping[str, Any], judged: Mapping[str, Any]) -> int:
    """How many classes have one label, which trains the model; split: that stage's metrics; judged: of `judged`."""
    seen = {row["label"] for row in judged["per_class"]}
    return sum(count == 1 and int(label) not in seen for label, count in split["class_counts"].items())


def expected_wrong(wrong: int, seen: int, unknown: int) -> dict[str, Any] | None:
    """How many pseudo-labels are wrong among `seen` held-out rows, of which `wrong` are, and `unknown` unlabelled ones.

    The held-out rows of a set, of the pool or of a coreset, are a random sample of what is not labelled in it: neither
    the models nor a selector can tell them from the others. So their rate is the others', for any selector, as long as
    they had no part in choosing its options. None where no row of the set is held out.
    """
    if not seen:
        return None
    low, high = predicted(wrong, seen, unknown)
    return {
        "wrong": wrong,
        "seen": seen,
        "unknown": unknown,
        "expected": wrong + wrong / seen * unknown,
        "interval": [wrong + low, wrong + high],
    }


def unlabelled_alone(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """What is expected of the unlabelled rows alone, of what is expected of them and the held-out ones."""
    if found is None:
        return None
    low, high = (end - found["wrong"] for end in found["interval"])
    return {**found, "expected": found["expected"] - found["wrong"], "interval": [low, high]}


@dataclass(frozen=True)
class HeldOut:
    """What other stages ask of the held-out rows.

    sample_ids: int64[h], ascending; wrong: bool[h]; in_pool: whether the pool has them as it has unlabelled rows, with
    their pseudo-labels, or knows their labels, and each was held out from trainings of its fold alone.
    """

    sample_ids: NDArray[np.int64]
    wrong: NDArray[np.bool_]
    table: pa.Table
    in_pool: bool

    @staticmethod
    def load(trust: Artifact) -> "HeldOut":
        """Of the stage; h may be 0."""
        table = trust.table()
        in_pool = "folds" not in trust.manifest["metrics"]
        return HeldOut(table["sample_id"].to_numpy(), table["wrong"].to_numpy(), table, in_pool)

    def harder_share(self, column: str) -> NDArray[np.float64]:
        """Of each row the share of the pool that this score takes for harder, 0..1: [h]."""
        share: NDArray[np.float64] = self.table[HARDER_SHARE + column].to_numpy()
        return share

    def scores(self, column: str) -> NDArray[np.float32]:
        """Of each row this score, by the label that the proxy was given: [h]."""
        found: NDArray[np.float32] = self.table[GIVEN + column].to_numpy()
        return found


def _predictions(holdout: Holdout, pseudo_label: Artifact) -> pa.Table:
    """sample_id, label, pseudo_label, confidence and wrong of the held-out rows, in order of their ids."""
    ids = pa.array(holdout.sample_ids)
    columns = ["sample_id", "pseudo_label", "confidence"]
    found = [part.filter(pc.is_in(part["sample_id"], ids)) for part in pseudo_label.tables(columns=columns)]
    table = pa.concat_tables(found).sort_by("sample_id").combine_chunks()
    assert table["sample_id"].to_pylist() == holdout.sample_ids.tolist()
    guess = table["pseudo_label"].to_numpy()
    return pa.table(
        {
            "sample_id": holdout.sample_ids,
            "label": holdout.labels,
            "pseudo_label": guess,
            "confidence": table["confidence"].to_numpy(),
            "wrong": guess != holdout.labels,
        }
    )


def _pool_scores(
    score: Artifact, ids: NDArray[np.int64], harder: Mapping[str, str], seed: int
) -> dict[str, NDArray[Any]]:
    """Of the held-out ids the scores by the labels that the proxy was given, under `given:c`, and the share of the pool
    that is harder, under `harder_share:c`.

    Of its equals a row has as many before it as by the hash that selectors of this seed go by, as if that were uniform:
    a cut that parts them, for which thousands of a score like forgetting may be equal, parts the held-out ones too.
    """
    held: dict[str, NDArray[Any]] = {}
    for table in score.tables(columns=["sample_id", *harder]):
        place = np.searchsorted(ids, table["sample_id"].to_numpy())
        here = np.flatnonzero(np.isin(table["sample_id"].to_numpy(), ids))
        for column in harder:
            values = table[column].to_numpy()
            held.setdefault(column, np.empty(len(ids), values.dtype))[place[here]] = values[here]
    before = {column: np.zeros(len(ids)) for column in harder}
    tie = ranks.ties(seed, ids) / 2.0**64
    num_samples = 0
    for table in score.tables(columns=list(harder)):
        num_samples += table.num_rows
        for column in harder:
            values = np.sort(table[column].to_numpy())
            low, high = (np.searchsorted(values, held[column], side) for side in ("left", "right"))
            before[column] += (len(values) - high if harder[column] == "high" else low) + tie * (high - low)
    return {GIVEN + column: values for column, values in held.items()} | {
        HARDER_SHARE + column: places / num_samples for column, places in before.items()
    }


def _true_scores(inputs: Mapping[str, Artifact], num_holdout: int) -> dict[str, NDArray[np.float32]]:
    """The scores of the held-out rows by their true labels, under `true:c`; those of embeddings are not among them."""
    config = ScoreConfig.model_validate_json(json.dumps(inputs["score"].manifest["config"]))
    requests = [request for request in config.requests() if store_of(request) == "proxy"]
    if not num_holdout or not requests:
        return {}
    store = DynamicsStore(store_uri(f"{inputs['proxy'].uri}/dynamics"))
    table = Reduction.of(store, requests).range(0, num_holdout)
    return {f"true:{name}": table[name].to_numpy() for name in table.column_names if name != "sample_id"}


def _correlation(scores: NDArray[np.float32], truth: NDArray[np.float32]) -> dict[str, Any] | None:
    found = spearman(scores, truth)
    return {"rho": found[0], "interval": list(found[1])} if found else None


def _more_labels(holdout: Holdout, num_wrong: int, seed: int) -> dict[str, Any] | None:
    """The probe's learning curve, and the accuracy with twice the labels if the model's errors fell as the probe's."""
    if not len(holdout.labels):
        return None
    curve = learning_curve(holdout.features, holdout.labels, holdout.logits.shape[1], seed)
    if curve is None:
        return None
    error = num_wrong / len(holdout.labels)
    best, worst = (1 - error * left for left in curve["interval"])
    return {**curve, "doubled": {"accuracy": 1 - error * curve["left"], "interval": [worst, best]}}


def _second_round(inputs: Mapping[str, Artifact], holdout: Holdout, wrong: NDArray[np.bool_]) -> dict[str, Any]:
    """The two rounds side by side; wrong: of the last one."""
    if not len(wrong):
        return described(inputs["ssl"], None)
    before = _predictions(holdout, inputs["first_round"])
    wrong_before, confidence = (before[name].to_numpy() for name in ("wrong", "confidence"))
    confident = inputs["ssl"].manifest["config"]["confident"]
    return described(inputs["ssl"], compare(confident, confidence, (wrong_before, wrong)))


def _per_class(labels: NDArray[np.int64], right: NDArray[np.bool_]) -> list[dict[str, Any]]:
    classes, place = np.unique(labels, return_inverse=True)
    totals, corrects = np.bincount(place), np.bincount(place, weights=right).astype(np.int64)
    return [
        {"label": int(label), "correct": int(correct), "total": int(total), "interval": list(wilson(correct, total))}
        for label, correct, total in zip(classes, corrects, totals, strict=True)
    ]
