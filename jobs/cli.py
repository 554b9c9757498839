"""The `semiprune` command. Each command parses, calls the pipeline and prints; nothing is computed here."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs import job_commands
from jobs.display import Display, error, table
from jobs.kernels import describe_scores, describe_selectors, score_store, select_from_files
from pipeline.errors import SemiPruneError, UserError
from pipeline.units import counted

if TYPE_CHECKING:
    from jobs.importers import Imported

app = typer.Typer(
    help="Choose the images worth labelling: semi-supervised dataset pruning on Ray.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
imports = typer.Typer(help="Make WebDataset shards from images you have.", no_args_is_help=True)
app.add_typer(imports, name="import")
app.add_typer(job_commands.app, name="job")

RecipePath = Annotated[str, typer.Argument(help="Recipe: a YAML file, see jobs/recipes/.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Override one key of the recipe; may be repeated."),
]


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit status 2."""
    try:
        app()
    except UserError as mistake:
        error(str(mistake))
        sys.exit(2)
    except SemiPruneError as failure:
        error(str(failure))
        sys.exit(1)


def _run(recipe: str, overrides: list[str] | None, until: str | None = None) -> None:
    """Run the recipe, or the part of it that the stages named `until` need; then show the results."""
    from pipeline import plan
    from pipeline.recipe import load_recipe
    from pipeline.run import execute

    loaded = load_recipe(recipe, tuple(overrides or ()))
    stages = plan.build(loaded)
    if until is not None:
        stages = plan.needed(stages, until)
    try:
        with Display() as display:
            artifacts = execute(stages, loaded.root, loaded.resources, display, loaded.model_dump(mode="json"))
    except KeyboardInterrupt:
        error("stopped; what was committed is kept, and the same command continues from there")
        raise typer.Exit(130) from None
    from jobs.results import show

    show(artifacts)


@app.command()
def run(recipe: RecipePath, set_: Overrides = None) -> None:
    """Prune a dataset: run every stage of the recipe that is not done yet."""
    _run(recipe, set_)


@app.command()
def submit(
    recipe: RecipePath,
    address: job_commands.Address = job_commands.TUNNEL,
    set_: Overrides = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the job to its end.")] = True,
    refresh: Annotated[bool, typer.Option("--refresh", help="A refresh instead of a run.")] = False,
) -> None:
    """Run the recipe on a Ray cluster, as one job however often it is submitted; the exit status is the job's."""
    job_commands.submit(recipe, tuple(set_ or ()), address, wait, refresh)


@app.command()
def export(recipe: RecipePath, set_: Overrides = None) -> None:
    """Run the recipe as far as the coreset's lists and shards."""
    _run(recipe, set_, until="export")


@app.command()
def evaluate(recipe: RecipePath, set_: Overrides = None) -> None:
    """Run the recipe as far as training on coreset, random and full."""
    _run(recipe, set_, until="evaluate")


@app.command()
def report(recipe: RecipePath, set_: Overrides = None) -> None:
    """Run the recipe as far as its report, which is all of it."""
    _run(recipe, set_, until="report")


@app.command()
def plan(
    recipe: RecipePath,
    set_: Overrides = None,
    cost: Annotated[bool, typer.Option("--cost", help="What each stage will take: images, time, bytes.")] = False,
    speed: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=X", help="images/s for --cost instead of a probe: decode, ssl, proxy, final, predict."
        ),
    ] = None,
) -> None:
    """Show the stages, their keys, and which are done; run nothing."""
    from pipeline import plan as plans
    from pipeline.recipe import load_recipe

    loaded = load_recipe(recipe, tuple(set_ or ()))
    stages = plans.build(loaded)
    if cost:
        from jobs.costs import show_costs

        show_costs(loaded, stages, speed or [])
        return
    rows = [(stage.title, stage.key, "done" if stage.load(loaded.root) else "to run") for stage in stages]
    table(f"Plan of {recipe} in {loaded.root}", ("stage", "key", "state"), rows)


@app.command()
def explain(
    key: Annotated[str | None, typer.Argument(help="Such as ssl, ssl.lr, score, select.options.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of recipes, for editors.")] = False,
) -> None:
    """Explain what a recipe may hold: its sections, or a key and all below it, with values, default and meaning."""
    from pipeline import reference

    if schema:
        typer.echo(json.dumps(reference.schema(), indent=2))
        return
    rows = [(found.name, found.values, found.default, found.meaning) for found in reference.keys(key)]
    table(f"Keys of a recipe{f': {key}' if key else ''}", ("key", "values", "default", "meaning"), rows)
    if key is None:
        typer.echo("More: semiprune explain SECTION")


@app.command()
def status(run: Annotated[str, typer.Argument(help="Run directory (the recipe's root).")]) -> None:
    """Show how far a run is, from its directory alone."""
    from pipeline.status import read_status

    rows = [(row.title, row.key, row.state, row.detail) for row in read_status(run)]
    table(f"Status of {run}", ("stage", "key", "state", "detail"), rows)


@app.command()
def fsck(
    run: Annotated[str, typer.Argument(help="Run directory, a stage's folder in it, or a folder of dynamics.")],
) -> None:
    """Read all of a run again: what is damaged, missing or left over; exit status 1 if anything is damaged."""
    from pipeline.fsck import check

    with Display() as display, display.stage("fsck") as progress:
        report = check(run, progress)
    rows = [(finding.where, finding.kind, finding.detail, finding.fix) for finding in report.findings]
    if rows:
        table(f"Findings in {run}", ("where", "kind", "detail", "fix"), rows)
    damages = sum(finding.is_damage for finding in report.findings)
    verdict = f"damaged in {damages:,} place{'s' if damages > 1 else ''}" if damages else "whole"
    typer.echo(f"{run} is {verdict}: {counted(report.files, 'files')}, {counted(report.bytes, 'bytes')} read")
    if not report.is_whole:
        raise typer.Exit(1)


@app.command()
def refresh(recipe: RecipePath, set_: Overrides = None) -> None:
    """Run the recipe on the pool as it is now, if anything is new: a new version of the coreset, and its changes."""
    from jobs.history import show_version
    from jobs.results import show
    from pipeline.recipe import load_recipe
    from pipeline.refresh import refresh as bring_up_to_date

    loaded = load_recipe(recipe, tuple(set_ or ()))
    try:
        with Display() as display:
            made = bring_up_to_date(loaded, display)
    except KeyboardInterrupt:
        error("stopped; what was committed is kept, and the same command continues from there")
        raise typer.Exit(130) from None
    if made.is_new:
        show(made.artifacts)
    show_version(loaded.root, made.version, made.is_new)


@app.command()
def history(run: Annotated[str, typer.Argument(help="Run directory (the recipe's root).")]) -> None:
    """Show the versions that refreshes made: when, of what, and how the coresets changed."""
    from jobs.history import show_history
    from pipeline.versions import load

    show_history(run, load(run))


@app.command()
def gc(
    run: Annotated[str, typer.Argument(help="Run directory (the recipe's root).")],
    keep: Annotated[int, typer.Option(min=1, help="Versions whose stages stay, counted from the last.")] = 3,
    delete: Annotated[bool, typer.Option("--delete", help="Delete; without it, only show what would go.")] = False,
) -> None:
    """Find, and with --delete remove, what neither the last versions nor the last plan need."""
    from jobs.history import show_waste
    from pipeline.gc import find, remove

    waste = find(run, keep)
    if delete:
        remove(run, keep, waste)
    show_waste(run, waste, deleted=delete)


@app.command(epilog=describe_scores())
def score(
    dynamics: Annotated[str, typer.Argument(help="Store of training dynamics: {root}/proxy/{key}/dynamics.")],
    out: Annotated[str, typer.Option("--out", "-o", help="Parquet file to write.")],
    scores: Annotated[
        list[str] | None, typer.Option("--score", "-s", help="Score, or score:option=value,..; all when none is named.")
    ] = None,
) -> None:
    """Turn recorded training dynamics into difficulty scores, without a recipe."""
    with Display() as display:
        rows, left_out = score_store(dynamics, out, scores or [], display.stage)
    table(f"Scores in {out}", ("score", "harder", "min", "mean", "max"), rows)
    for why in left_out:
        typer.echo(f"Left out: {why}")


@app.command(epilog=describe_selectors())
def select(
    scores: Annotated[str, typer.Argument(help="Parquet file, or folder of them, with sample_id and score columns.")],
    selector: Annotated[str, typer.Argument(help="Selector: one of those below.")],
    keep_fraction: Annotated[
        list[float], typer.Option(help="Share of the pool to keep, above 0 and up to 1; may be repeated.")
    ],
    out: Annotated[
        str,
        typer.Option("--out", "-o", help="Parquet file to write: the kept sample_ids. {keep} stands for the share."),
    ],
    seed: Annotated[int, typer.Option(help="Seed of random selectors, and of ties.")] = 0,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="Option of the selector.")
    ] = None,
) -> None:
    """Select coresets from scores, yours or of `semiprune score`, without a recipe."""
    with Display() as display:
        rows = select_from_files(scores, selector, keep_fraction, seed, option or [], out, display.stage)
    table("Coresets", ("file", "kept", "of"), [(file, f"{kept:,}", f"{of:,}") for file, kept, of in rows])


@app.command()
def doctor(
    storage: Annotated[list[str] | None, typer.Argument(help="Locations to try, local or s3://.")] = None,
) -> None:
    """Examine this machine: Python, Ray, disk, memory, GPU, storage; a verdict and a fix for each."""
    from pipeline.doctor import examine

    findings = examine(storage or ["."])
    table(
        "This machine",
        ("check", "verdict", "detail", "fix"),
        [(finding.name, finding.verdict, finding.detail, finding.fix) for finding in findings],
    )
    if any(finding.verdict == "fail" for finding in findings):
        raise typer.Exit(1)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where the demo's data and run directory go.")] = Path("demo"),
    set_: Overrides = None,
) -> None:
    """Prune scikit-learn's handwritten digits, start to report, on this machine."""
    from jobs.importers import write_digits

    data = folder.absolute() / "data"
    if not (data / "test-000000.tar").exists():
        write_digits(str(data))
    places = {
        "root": str(folder.absolute() / "run"),
        "data.shards": f"{data}/train-{{000000..000005}}.tar",
        "evaluate.test_shards": f"{data}/test-000000.tar",
    }
    named = [f"{key}={json.dumps(place)}" for key, place in places.items()]  # quoted: a path may look like YAML
    _run(str(Path(__file__).parent / "recipes" / "digits.yaml"), [*named, *(set_ or [])])


@app.command()
def prepare(
    shards: Annotated[str, typer.Argument(help="Shards to read: a path or URI with {000..019} or wildcards.")],
    out: Annotated[str, typer.Argument(help="Folder for the new shards, local or s3://.")],
    size: Annotated[int, typer.Option(min=8, max=4096, help="Pixels of the shorter side; smaller images stay.")],
    samples_per_shard: Annotated[int, typer.Option(min=1)] = 1000,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of the JPEGs that are written.")] = 90,
    png: Annotated[bool, typer.Option("--png", help="Write PNG instead: larger, without loss.")] = False,
    quarantine_limit: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the data that may be left out as unusable.")
    ] = 0.01,
    tasks: Annotated[int | None, typer.Option(min=1, help="Shards at a time; as many as there are cores.")] = None,
) -> None:
    """Resize a dataset once to training size, into new shards; a killed one is continued by the same command."""
    from pipeline.prepare import PrepareConfig
    from pipeline.prepare import prepare as resize
    from pipeline.resize import ImageConfig
    from pipeline.resources import Resources

    config = PrepareConfig(
        image=ImageConfig(size=size, form="png" if png else "jpg", quality=quality), samples_per_shard=samples_per_shard
    )
    resources = Resources(num_workers=1, tasks=tasks)
    try:
        with Display() as display, display.stage("prepare") as progress:
            made = resize([shards], out, config, quarantine_limit, resources=resources, progress=progress)
    except KeyboardInterrupt:
        error("stopped; what was finished is kept, and the same command continues from there")
        raise typer.Exit(130) from None
    size_before, size_now = f"{made.source_bytes / 1e6:,.1f} MB", f"{made.num_bytes / 1e6:,.1f} MB"
    row = (f"{made.num_samples:,}", str(len(made.shards)), size_before, size_now, made.shards[0])
    table("Prepared", ("samples", "shards", "before", "now", "first shard"), [row])
    if made.reasons:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in made.reasons.items())
        typer.echo(f"Left out: {reasons}; all in {out.rstrip('/')}/quarantine.parquet")


@imports.command("images")
def import_images(
    source: Annotated[str, typer.Argument(help="Folder with images at any depth, local or s3://.")],
    out: Annotated[str, typer.Argument(help="Folder for the shards, local or s3://.")],
    samples_per_shard: Annotated[int, typer.Option(min=1, help="At most; less where the images are large.")] = 2500,
) -> None:
    """Shards from images without classes, from a local folder or a store; the image bytes stay as they are."""
    from jobs.importers import import_images
    from jobs.shard_folder import LIST
    from pipeline import storage

    try:
        with Display() as display, display.stage("import") as progress:
            written = import_images(source, out, samples_per_shard, progress=progress)
    except KeyboardInterrupt:
        error(f"stopped; nothing is left in {out!r}")
        raise typer.Exit(130) from None
    _show_import(written)
    typer.echo(
        f"Keys look like {written.key!r}: label some of them in a table key,label (CSV or Parquet), name it in "
        f"data.labels and {storage.join(out, LIST)} in data.shards of a copy of jobs/recipes/photos.yaml, and run it: "
        "semiprune run RECIPE"
    )


@imports.command("imagefolder")
def import_imagefolder(
    source: Annotated[str, typer.Argument(help="Folder with one folder of images per class.")],
    out: Annotated[str, typer.Argument(help="Folder for the shards.")],
    samples_per_shard: Annotated[int, typer.Option(min=1)] = 2500,
    classes: Annotated[
        str | None, typer.Option(help="The classes.json of another import, such as of the training images.")
    ] = None,
) -> None:
    """Shards from DIR/class/image files; the image bytes stay as they are."""
    from jobs.importers import import_imagefolder

    _show_import(import_imagefolder(source, out, samples_per_shard, classes))


@imports.command("torchvision")
def import_torchvision(
    name: Annotated[str, typer.Argument(help="Dataset class of torchvision.datasets, such as CIFAR10.")],
    out: Annotated[str, typer.Argument(help="Folder for the shards.")],
    cache: Annotated[
        str | None, typer.Option(help="Where torchvision keeps its download; a folder deleted afterwards by default.")
    ] = None,
    samples_per_shard: Annotated[int, typer.Option(min=1)] = 2500,
) -> None:
    """Shards from a torchvision dataset, train and test."""
    from jobs.importers import import_torchvision

    _show_import(import_torchvision(name, out, cache, samples_per_shard))


def _show_import(written: "Imported") -> None:
    counts = {"samples": written.num_samples, "classes": len(written.classes), "shards": len(written.shards)}
    counts = {name: count for name, count in counts.items() if count}
    row = (*map(str, counts.values()), written.shards[0])
    table("Imported", (*counts, "first shard"), [row])
    if written.skipped:
        why = "no images or in no class folder" if written.classes else "no images or hidden"
        typer.echo(f"Left out, {why}: {counted(len(written.skipped), 'files')}, such as {written.skipped[0]!r}")


if __name__ == "__main__":
    main()
