"""Stage `select`: the coreset, exact to the sample, and what annotating it will cost."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from pydantic import Field, ValidationInfo, field_validator

from pipeline.config import Config
from pipeline.resources import Resources
from pipeline.selectors import SELECTORS, Pool, Selector, build, choose
from pipeline.stage import Artifact, Output, Progress


class SelectConfig(Config):
    """name: what people call this coreset; selector: file of pipeline/selectors; keep_fraction: share of the pool.

    seed: of random selectors, None for the recipe's, which a plan puts in; options: settings of the selector.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    selector: str
    keep_fraction: Annotated[float, Field(gt=0, le=1)]
    seed: int | None = None
    options: Annotated[dict[str, Any], Field(default_factory=dict, validate_default=True)]

    @field_validator("selector")
    @classmethod
    def _exists(cls, selector: str) -> str:
        SELECTORS.get(selector)
        return selector

    @field_validator("options")
    @classmethod
    def _complete(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """With every default written out, so that equal settings have equal keys."""
        if not {"selector", "keep_fraction"} <= info.data.keys():
            return options  # those have their own errors
        return asdict(build(info.data["selector"], info.data["keep_fraction"], options).options)

    def build(self) -> Selector:
        """The selector with its options."""
        return build(self.selector, self.keep_fraction, self.options)


def run(
    inputs: Mapping[str, Artifact], config: SelectConfig, out: Output, *, resources: Resources, progress: Progress
) -> dict[str, Any]:
    """Select; part: sample_id ascending, rank (0 is the one to annotate first).

    inputs: score, split. Metrics: cuts are the least and the largest kept value of the selector's first column;
    annotation_bill counts every label paid for, those of the split that are not in the coreset too.
    """
    assert config.seed is not None, "a plan resolves the seed"
    selector = config.build()
    pool = Pool.of(inputs["score"].table(), selector.columns)
    rows = choose(selector, pool, config.keep_fraction, config.seed)
    ids = pool.sample_ids[rows]
    ascending = np.argsort(ids)
    out.write_table(pa.table({"sample_id": ids[ascending], "rank": ascending}))
    progress(len(pool), len(pool), "samples")
    labelled = inputs["split"].table()["sample_id"].to_numpy()
    both = len(np.intersect1d(ids, labelled))
    column = selector.columns[0] if selector.columns else None
    kept = pool.columns[column][rows] if column else None
    return {
        "name": config.name,
        "selector": config.selector,
        "method": selector.source,
        "score": column,
        "keep_fraction": config.keep_fraction,
        "budget": len(rows),
        "num_samples": len(pool),
        "cuts": None if kept is None else {"column": column, "low": float(kept.min()), "high": float(kept.max())},
        "labelled_in_coreset": both,
        "annotation_bill": len(rows) - both + len(labelled),
    }
