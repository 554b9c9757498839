"""What cannot be used is counted, listed with shard, key and reason, and limited; never skipped in silence."""

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage, tar
from pipeline.errors import DataError, SemiPruneError
from pipeline.stage import Output, write_table_part

SCHEMA = pa.schema(
    [("uri", pa.string()), ("row", pa.int32()), ("key", pa.string()), ("reason", pa.string()), ("detail", pa.string())]
)
"""row: position in the shard, tar.WHOLE for a whole shard; reason: one of few, to count; detail: what was found."""

_NAMED = 3


class DefectError(SemiPruneError):
    """Why one sample cannot be used: a reason to count by and what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def entry(uri: str, row: int, key: str, reason: str, detail: str) -> dict[str, Any]:
    """One row of the table."""
    return {"uri": uri, "row": row, "key": key, "reason": reason, "detail": detail}


def count_reasons(table: pa.Table) -> dict[str, int]:
    """How many rows each reason has, by name of the reason."""
    return dict(sorted(Counter(table["reason"].to_pylist()).items()))


def admit(table: pa.Table, num_samples: int, num_shards: int, limit: float, out: Output) -> None:
    """Write the table; DataError, which names it, if more than the fraction `limit` is in it or nothing is left.

    The fraction is of samples, or of shards where some cannot be read to their end: how much was in them is not known.
    """
    part = write_table_part(out.uri, "quarantine", table)
    out.add(part)
    of_shards = table.filter(pc.or_(pc.equal(table["row"], tar.WHOLE), pc.equal(table["reason"], tar.TRUNCATED)))
    samples = table.num_rows - of_shards.num_rows
    shards = pc.sum(pc.not_equal(of_shards["reason"], "empty shard")).as_py() or 0
    fraction, of = max((samples / max(num_samples + samples, 1), "samples"), (shards / num_shards, "shards"))
    if fraction <= limit and num_samples:
        return
    reasons = ", ".join(f"{count} {reason}" for reason, count in count_reasons(table).items())
    first = "; ".join(
        f"{row['key'] or 'the whole shard'} in {row['uri']}: {row['reason']}"
        + (f" ({row['detail']})" if row["detail"] else "")
        for row in table.slice(0, _NAMED).to_pylist()
    )
    place = storage.join(out.uri, part.name)
    if num_samples:
        advice = f"over data.quarantine_limit={limit:g}: mend the shards or raise the limit"
    else:
        advice = "and nothing is left: mend the shards"
    raise DataError(f"{fraction:.2%} of the {of} cannot be used ({reasons}), {advice}; first {first}; all in {place}")
