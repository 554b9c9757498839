"""What `semiprune refresh`, `history` and `gc` print."""

from collections.abc import Sequence

import typer

from jobs.display import table
from pipeline import storage, versions
from pipeline.errors import UserError
from pipeline.gc import Waste
from pipeline.units import counted
from pipeline.versions import Version


def show_version(root: str, version: Version, is_new: bool) -> None:
    """The coresets of a version against the one before, and where the lists of changes are."""
    if not is_new:
        typer.echo(f"Nothing is new since version {version.number} of {version.made}")
    rows = [
        (each.name, f"{each.size:,}", f"{each.added:,}", f"{each.dropped:,}", f"{each.to_annotate:,}")
        for each in version.coresets
    ]
    columns = ("selection", "images", "added", "dropped", "still to annotate")
    table(
        f"Version {version.number}: {counted(version.num_samples, 'images')}, {counted(version.num_labels, 'labels')}",
        columns,
        rows,
    )
    if is_new:
        for part in version.parts:
            what = part.name.rpartition("-")[0].replace("_", " ").capitalize()
            typer.echo(f"{what}: {storage.join(versions.folder(root, version.number), part.name)}")


def show_history(root: str, known: Sequence[Version]) -> None:
    """One line per version and selection; UserError if there is none."""
    if not known:
        raise UserError(f"{root!r} has no versions of a coreset: `semiprune refresh RECIPE` makes one")
    rows = [
        (
            str(version.number),
            version.made,
            f"{version.num_shards:,}",
            f"{version.num_samples:,}",
            f"{version.num_labels:,}",
            each.name,
            f"{each.size:,}",
            f"{each.added:,}",
            f"{each.dropped:,}",
            f"{each.to_annotate:,}",
            "scratch" if version.started_from is None else f"version {version.started_from}",
        )
        for version in known
        for each in version.coresets
    ]
    columns = ("version", "made", "shards", "images", "labels", "selection", "size", "added", "dropped", "to annotate")
    table(f"Versions in {root}", (*columns, "trained from"), rows)


def show_waste(root: str, waste: Sequence[Waste], deleted: bool) -> None:
    """What can go or went, and how much that is."""
    if waste:
        rows = [(each.where, each.kind, f"{len(each.files):,}", f"{each.bytes:,}") for each in waste]
        table(f"{'Deleted from' if deleted else 'To delete from'} {root}", ("where", "what", "files", "bytes"), rows)
    files, num_bytes = sum(len(each.files) for each in waste), sum(each.bytes for each in waste)
    hint = "" if deleted or not waste else "; nothing was deleted: --delete does it"
    total = f"{counted(files, 'files')}, {counted(num_bytes, 'bytes')}"
    typer.echo(f"{total} {'deleted' if deleted else 'that nothing needs'}{hint}")
