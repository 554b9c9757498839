"""A recipe on a pool that grows: what is new since the last version is found, and a new version of the coreset made.

The stages are those of any run, with inputs from the version before: the split, so that a label that was visible stays
so; the semi-supervised model, for a warm start; the selections, where what was selected stays. These inputs enter the
keys, so a result remains a function of its key, and a refresh that was killed goes on when it is started again.

Shards that come while a refresh runs make other keys, so that no lease of a stage keeps a second refresh from training
beside it. A refresh holds that of the folder of versions, for its whole length; one that finds nothing new needs none.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import plan, storage, versions
from pipeline.cluster import connected
from pipeline.errors import DataError, SemiPruneError
from pipeline.export import listed, to_annotate
from pipeline.index import check_unchanged, load_index
from pipeline.lease import Lease, hold
from pipeline.recipe import Recipe
from pipeline.run import Display, execute
from pipeline.stage import Artifact, Part, Progress, Stage, are_done, write_table_part
from pipeline.versions import Coreset, Past, Planned, Since, Version
from pipeline.warm_start import Learned, decide

CHANGES = ("added", "dropped", "to_annotate")
"""The tables of a version: selection, sample_id, key, rank."""

Stages = Sequence[Stage]


@dataclass(frozen=True)
class Refreshed:
    """What a refresh ended with: the last version, whether it is new, and its stages that the recipe names."""

    version: Version
    is_new: bool
    artifacts: list[Artifact]


def refresh(recipe: Recipe, display: Display) -> Refreshed:
    """Bring the coreset up to date; if nothing is new (no shard, no label, the same recipe), nothing is run.

    Raises UserError, which names the other, if something is new or gone and another refresh of the root is alive;
    DataError if images that were indexed before have other sample_ids now; SemiPruneError if another refresh made the
    version meanwhile; and all that a run raises.
    """
    scratch, known = plan.build(recipe), versions.load(recipe.root)
    if _is_last(recipe, scratch, known):
        return Refreshed(known[-1], False, _found(recipe, known))
    place = storage.join(recipe.root, versions.FOLDER)
    with hold(place, "refresh", partial(display.note, "refresh")) as lease:
        made = _make(recipe, _Leased(display, lease))
        lease.verify()
        if made.is_new and not versions.create(recipe.root, made.version):
            raise SemiPruneError(
                f"version {made.version.number} of {recipe.root!r} was made by another refresh while this one ran: "
                "look at it with `semiprune history`; the same command makes the next one if something is still new"
            )
        return made


def is_current(recipe: Recipe, scratch: Stages) -> bool:
    """Whether a refresh would find nothing to do. scratch: the recipe's plan as it is now."""
    return _is_last(recipe, scratch, versions.load(recipe.root))


@dataclass(frozen=True)
class _Leased:
    """A display whose progress raises UserError once the lease is another refresh's."""

    display: Display
    lease: Lease

    @contextmanager
    def stage(self, title: str) -> Iterator[Progress]:
        with self.display.stage(title) as shown:

            def progress(done: int, total: int, unit: str) -> None:
                self.lease.check()
                shown(done, total, unit)

            yield progress

    def skipped(self, title: str, key: str) -> None:
        self.display.skipped(title, key)

    def note(self, title: str, text: str) -> None:
        self.display.note(title, text)


def _make(recipe: Recipe, display: Display) -> Refreshed:
    """The last version, with what is gone of it done once more, or a new one that has still to be created."""
    scratch = plan.build(recipe)  # anew, as the versions: the lease may have been another refresh's until now
    state = _state(scratch, recipe)
    known = versions.load(recipe.root)
    if known and known[-1].state == state:
        return Refreshed(known[-1], False, _run(_stages(recipe, known), recipe, display))
    if not known:
        return _finish(recipe, scratch, None, None, "from scratch: it is the first version", state, display)
    last = known[-1]
    with connected(recipe.resources):
        since = _since(recipe, last, warm=False)
        index, *_, split = _run(plan.needed(plan.build(recipe, since), "split"), recipe, display)
        _check_order(last, last.artifact(recipe.root, "index"), index)
        warm, why = False, "clusters are made anew"
        if recipe.ssl is not None:
            now = _learned(recipe, scratch, last.number + 1, index, split)
            warm, why = decide(recipe.refresh, last.learned, now)
            display.note("ssl", why)
        stages = plan.build(recipe, _since(recipe, last, warm))
        return _finish(recipe, stages, last, last if warm else None, why, state, display)


def _is_last(recipe: Recipe, scratch: Stages, known: Sequence[Version]) -> bool:
    """Whether the last version is of this plan, and all of it is there."""
    if not known or known[-1].state != _state(scratch, recipe):
        return False
    return are_done(_own(_stages(recipe, known)), recipe.root)


def _stages(recipe: Recipe, known: Sequence[Version]) -> Stages:
    """The plan that made the last version."""
    if len(known) == 1:
        return plan.build(recipe)
    return plan.build(recipe, _since(recipe, known[-2], warm=known[-1].started_from is not None))


def _own(stages: Stages) -> Stages:
    """Those that the recipe names, without what was taken from a version before."""
    return [stage for stage in stages if not isinstance(stage, Past)]


def _found(recipe: Recipe, known: Sequence[Version]) -> list[Artifact]:
    """The stages of the last version, which are there."""
    found = [stage.load(recipe.root) for stage in _own(_stages(recipe, known))]
    artifacts = [artifact for artifact in found if artifact is not None]
    for artifact in artifacts:
        if artifact.manifest["stage"] == "index":
            check_unchanged(artifact)
    return artifacts


def _run(stages: Stages, recipe: Recipe, display: Display) -> list[Artifact]:
    """The artifacts of the recipe's own stages, in order."""
    artifacts = execute(stages, recipe.root, recipe.resources, display, recipe.model_dump(mode="json"))
    return [found for stage, found in zip(stages, artifacts, strict=True) if not isinstance(stage, Past)]


def _since(recipe: Recipe, last: Version, warm: bool) -> Since:
    """What the next version takes from the last one."""
    select = {}
    if recipe.refresh.budget == "per_batch":
        titles = {config.name: f"select {config.name}" for config in recipe.select}
        select = {name: {"earlier": last.of(title)} for name, title in titles.items() if last.has(title)}
    return Since(
        split={"earlier": last.of("split"), "earlier_pool": last.of("pseudo_label")},
        ssl={title: {"start": last.of(title)} for title in plan.models(recipe) if warm and last.has(title)},
        select=select,
        steps_fraction=recipe.refresh.warm_steps_fraction,
    )


def _finish(
    recipe: Recipe,
    stages: Stages,
    last: Version | None,
    start: Version | None,
    why: str,
    state: str,
    display: Display,
) -> Refreshed:
    """Run the plan; the version that it makes is whole but for its manifest."""
    artifacts = _run(stages, recipe, display)
    # By the plan's titles: a manifest has that of the run which was first, where the same stage may be a test's.
    found = {stage.title: artifact for stage, artifact in zip(_own(stages), artifacts, strict=True)}
    number = last.number + 1 if last else 1
    index, split = found["index"], found["split"]
    coresets, parts = _compare(recipe.root, number, last, found)
    version = Version(
        number=number,
        key=f"{number:06d}",
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        state=state,
        num_shards=index.metrics["num_shards"],
        num_samples=index.metrics["num_samples"],
        num_labels=split.metrics["num_train"] + split.metrics["num_holdout"],
        learned=last.learned if last and start else _learned(recipe, stages, number, index, split),
        started_from=start.number if start else None,
        why=why,
        coresets=coresets,
        stages=[Planned(stage.name, stage.title, stage.key) for stage in stages],
        parts=parts,
    )
    return Refreshed(version, True, artifacts)


def _state(scratch: Stages, recipe: Recipe) -> str:
    """Hash of all that a version is made of: shards by their names, labels by their bytes, and the recipe."""
    content = {"keys": [stage.key for stage in scratch], "refresh": recipe.refresh.model_dump()}
    return storage.sha256(json.dumps(content, sort_keys=True).encode())[:16]


def _learned(recipe: Recipe, scratch: Stages, number: int, index: Artifact, split: Artifact) -> Learned:
    """A training from scratch now."""
    settings = [stage.settings() for stage in scratch if stage.name == "ssl"]
    content = json.dumps([settings, recipe.data.image_size, recipe.data.classes], sort_keys=True)
    return Learned(
        version=number,
        learner=storage.sha256(content.encode())[:16],
        num_samples=index.metrics["num_samples"],
        num_labels=split.metrics["num_train"] + split.metrics["num_holdout"],
    )


def _check_order(last: Version, before: Artifact, now: Artifact) -> None:
    """DataError if an image has another sample_id than in the version before."""
    if before.uri == now.uri:
        return
    was, are = (load_index(index, ["key"])["key"].combine_chunks() for index in (before, now))
    if len(are) < len(was):
        raise DataError(
            f"the pool has {len(are)} samples, and had {len(was)} in version {last.number}: put back what is gone, or "
            "use another root"
        )
    moved = np.flatnonzero(pc.not_equal(was, are.slice(0, len(was))).to_numpy(zero_copy_only=False))
    if len(moved):
        first = int(moved[0])
        raise DataError(
            f"sample_id {first} was {was[first].as_py()!r} in version {last.number} and would be "
            f"{are[first].as_py()!r}: name new shards so that they come behind the known ones, and correct labels in "
            "shards that are out of range"
        )


def _compare(
    root: str, number: int, last: Version | None, found: Mapping[str, Artifact]
) -> tuple[list[Coreset], list[Part]]:
    """How each coreset differs from the one before, and the tables of the differences, written."""
    coresets: list[Coreset] = []
    changes: dict[str, list[pa.Table]] = {name: [] for name in CHANGES}
    for title in (title for title in found if title.startswith("export ")):
        name = title.removeprefix("export ")
        coreset = _coreset(found[title])
        now = listed(coreset, name)
        before = listed(_coreset(last.artifact(root, title)), name) if last and last.has(title) else now.slice(0, 0)
        tables = {
            "added": now.filter(pc.invert(pc.is_in(now["sample_id"], before["sample_id"]))),
            "dropped": before.filter(pc.invert(pc.is_in(before["sample_id"], now["sample_id"]))),
            "to_annotate": to_annotate(coreset, name),
        }
        for change, table in tables.items():
            changes[change].append(table)
        coresets.append(Coreset(name, now.num_rows, **{change: table.num_rows for change, table in tables.items()}))
    place = versions.folder(root, number)
    return coresets, [write_table_part(place, change, pa.concat_tables(tables)) for change, tables in changes.items()]


def _coreset(export: Artifact) -> pa.Table:
    (part,) = export.parts("coreset.parquet")
    return export.read_table(part)
