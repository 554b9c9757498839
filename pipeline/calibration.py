"""Calibration: does a confidence of 90% mean that 90% are right? Pure numpy.

source: arXiv 1706.04599, On Calibration of Modern Neural Networks (Guo et al.).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.intervals import wilson

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]

NUM_BINS = 15
"""Of the expected calibration error, as in the paper."""

COLDEST, HOTTEST = 0.05, 20.0
"""Temperatures are sought between these: rows that are all right have no best one, the colder the better."""


def ece(confidence: Floats, right: Bools, num_bins: int = NUM_BINS) -> float:
    """Expected calibration error: sum over bins B_m of |B_m| / n * |accuracy(B_m) - mean confidence(B_m)|, 0..1.

    confidence: [n], 0..1; right: bool[n]; n > 0. Bins of equal width, ((m - 1) / M, m / M] as in arXiv 1706.04599. On
    few rows it is too large: chance alone moves a bin's accuracy away from its confidence.
    """
    assert len(confidence) == len(right) > 0
    confidence = confidence.astype(np.float64)
    place = np.clip(np.ceil(confidence * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    gap = np.bincount(place, weights=right - confidence, minlength=num_bins)
    return float(np.abs(gap).sum() / len(right))


def log_probabilities(logits: Floats, temperature: float = 1.0) -> NDArray[np.float64]:
    """Log softmax of logits [n, C] / temperature, float64."""
    from scipy.special import log_softmax

    found: NDArray[np.float64] = log_softmax(logits.astype(np.float64) / temperature, axis=1)
    return found


def fit_temperature(logits: Floats, labels: NDArray[np.int64]) -> float:
    """The temperature T of softmax(logits / T) that gives the labels the least negative log likelihood.

    logits: [n, C]; labels: int64[n], 0..C-1; n > 0. Between COLDEST and HOTTEST. The likelihood is convex in 1 / T
    (arXiv 1706.04599, section 4.2), so there is one minimum.
    """
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return float(-log_probabilities(logits, float(np.exp(log_temperature)))[rows, labels].mean())

    found = minimize_scalar(loss, bounds=np.log([COLDEST, HOTTEST]), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))


def calibrate(logits: Floats, labels: NDArray[np.int64], half: Bools) -> dict[str, Any] | None:
    """ECE before and after temperature scaling, each row measured with the temperature of the other half.

    logits: [n, C]; labels: int64[n]; half: bool[n], a random half of the rows. `before` and `after` are means of the
    two halves' ECE, weighted by their rows; `temperatures` are those fitted on each half. None if a half is empty.
    """
    parts = [~half, half]
    if not all(part.any() for part in parts):
        return None
    temperatures = [fit_temperature(logits[part], labels[part]) for part in parts]
    before, after = (
        sum(
            part.mean() * _ece_at(logits[part], labels[part], temperature)
            for part, temperature in zip(parts, used, strict=True)
        )
        for used in ([1.0, 1.0], temperatures[::-1])
    )
    return {"before": float(before), "after": float(after), "temperatures": temperatures}


def _ece_at(logits: Floats, labels: NDArray[np.int64], temperature: float) -> float:
    probabilities = np.exp(log_probabilities(logits, temperature))
    return ece(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)


def by_confidence(confidence: Floats, right: Bools, num_bins: int = 10) -> list[dict[str, Any]]:
    """Accuracy in bins of equally many rows, the least confident first; at least 10 rows in each, if there are so many.

    Each: `low`, `high` and `mean` of its confidences, `correct` of `total`, and the Wilson interval of that share.
    """
    order = np.argsort(confidence, kind="stable")
    bins = np.array_split(order, max(1, min(num_bins, len(order) // 10)))
    return [
        {
            "low": float(confidence[rows[0]]),
            "high": float(confidence[rows[-1]]),
            "mean": float(confidence[rows].astype(np.float64).mean()),
            "correct": int(right[rows].sum()),
            "total": len(rows),
            "interval": list(wilson(int(right[rows].sum()), len(rows))),
        }
        for rows in bins
        if len(rows)
    ]
