"""Stage `trust` where every labelled row was held out in turn: what the folds say together.

The coreset comes from a run that knows all labels. Beside it every fold has a semi-supervised model, pseudo-labels, a
proxy and scores of its own, which know the labels of the other folds, and its rows judge them as a hold-out does: each
row judges once, and no label is kept from the run that counts. What is judged had fewer labels, (k - 1) / k of them, so
rather more of the pool's pseudo-labels are right than it says. On the digits, 60 labels and 8 seeds, the accuracy from
five folds was off by 5 points (standard deviation; 1 too low in the mean), that from a fifth held out by 12.

One proxy for all folds would cost less, and be wrong: it would learn a labelled row with the pseudo-label of a model
that did not know its label, among images with those of one that did, and a wrong one stands out there as no wrong
pseudo-label of an unlabelled image does. In the same runs 93% of such rows were among the hardest 5% of the pool by
AUM; of the wrong pseudo-labels of unlabelled images 35% were, and 41% of those of rows that are held out.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.pseudo_label import Holdout
from pipeline.resources import Resources
from pipeline.second_round import described, together
from pipeline.stage import Artifact, Output, Progress
from pipeline.trust import TrustConfig, expected_wrong, judged, unjudged, unlabelled_alone
from pipeline.verdict import verdict


def run(
    inputs: Mapping[str, Artifact], config: TrustConfig, out: Output, *, resources: Resources, progress: Progress
) -> dict[str, Any]:
    """Put the folds' rows together; part and metrics as those of `pipeline.trust`, with `folds`, how many there were.

    inputs: split, score; after a second round its ssl; and of every fold k `trust:k` and `pseudo_label:k`. more_labels
    is None: a probe that learns features has to have those of one network. A row's harder_share is its place in the
    pool of its own fold.
    """
    names = [name for name in inputs if name.startswith("trust:")]
    table = pa.concat_tables([inputs[name].table() for name in names])
    held = [Holdout.load(inputs[name.replace("trust", "pseudo_label")]) for name in names]
    logits = np.concatenate([holdout.logits for holdout in held])
    order = np.argsort(np.concatenate([holdout.sample_ids for holdout in held]))
    table = table.take(pa.array(order)).combine_chunks()
    out.write_table(table)
    progress(len(names), len(names), "folds")

    split = inputs["split"]
    num_samples, num_train = inputs["score"].metrics["num_samples"], split.metrics["num_train"]
    found = judged(table, logits[order], inputs["score"].metrics["harder"], config.seed)
    right, total = found["num_holdout"] - found["num_wrong"], found["num_holdout"]
    pool = expected_wrong(found["num_wrong"], total, num_samples - num_train)
    second_round = None
    if "ssl" in inputs:
        parts = [inputs[name].metrics["second_round"]["held_out"] for name in names]
        second_round = described(inputs["ssl"], together(parts))
    return {
        "num_samples": num_samples,
        "num_train": num_train,
        "folds": len(names),
        **found,
        "pool": unlabelled_alone(pool),
        "more_labels": None,
        **({"second_round": second_round} if second_round else {}),
        "verdict": verdict(
            right,
            total,
            split.manifest["config"]["settings"]["draw"],
            split.metrics.get("num_annotated", 0),
            second_round["held_out"]["rounds"][0]["correct"] if second_round else None,
            unjudged(split.metrics, found),
        ),
    }
