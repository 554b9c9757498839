"""Labels that annotators gave back: a table key,label beside the shards, which are not read again for it."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import DataError, UserError
from pipeline.index import load_config, load_index
from pipeline.labels import checksum, load_label_table
from pipeline.stage import Artifact

FIELD = "split.labels"
"""Where a recipe names the table."""

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Annotations:
    """What annotators gave back. sample_ids, ascending, and labels: int64[a]; num_unmatched: keys of no sample."""

    sample_ids: Ids
    labels: Ids
    num_unmatched: int

    @classmethod
    def load(cls, index: Artifact, uri: str | None, sha256: str | None) -> Self:
        """The table at `uri`, none if that is None; sha256: what it was when the run was planned.

        UserError for a table of which no key is in the shards, DataError if it has changed.
        """
        if uri is None:
            return cls(np.empty(0, np.int64), np.empty(0, np.int64), 0)
        if checksum(uri, FIELD) != sha256:
            raise DataError(f"the table of labels {uri!r} changed as the run began: run the same command again")
        data = load_config(index).data
        table = load_label_table(uri, data.num_classes, data.classes)
        labels = table["label"].to_numpy()
        keys = load_index(index, ["key"])["key"].combine_chunks()
        found = pc.index_in(table["key"], value_set=keys).fill_null(-1).to_numpy().astype(np.int64)
        known = found >= 0
        if len(found) and not known.any():
            raise UserError(
                f"{FIELD}: none of the {len(found)} keys in {uri!r} is in the shards, whose keys look like "
                f"{str(keys[0])!r} and not like {str(table['key'][0])!r}: correct the table"
            )
        order = np.argsort(found[known])
        return cls(found[known][order], labels[known][order], int((~known).sum()))

    def without(self, ids: Ids) -> Self:
        """Those of other rows."""
        others = ~np.isin(self.sample_ids, ids)
        return replace(self, sample_ids=self.sample_ids[others], labels=self.labels[others])

    def added_to(self, ids: Ids, labels: Ids) -> tuple[Ids, Ids]:
        """These rows and the annotated ones, ascending, whose labels overrule."""
        others = ~np.isin(ids, self.sample_ids)
        ids = np.concatenate([ids[others], self.sample_ids])
        labels = np.concatenate([labels[others], self.labels])
        order = np.argsort(ids)
        return ids[order], labels[order]
