"""`semiprune submit` and `semiprune job`: what they print, and the exit status that follows the job's."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.display import error, table
from jobs.interrupt import Interrupt

if TYPE_CHECKING:
    from jobs.cluster import Cluster, Job

app = typer.Typer(help="Watch and cancel the jobs of a cluster.", no_args_is_help=True)

TUNNEL = "http://127.0.0.1:8265"
"""Where `ray dashboard cluster.yaml` puts the head."""
Address = Annotated[
    str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard; by default a tunnel's end.")
]
_JOB = typer.Argument(metavar="JOB", help="The job's id, or its run directory (the recipe's root).")


def submit(recipe: str, overrides: tuple[str, ...], address: str, wait: bool, refresh: bool) -> None:
    """Submit the run, or the refresh, unless it has a job that lives or its results are there, and follow it."""
    from jobs.submit import local_places
    from jobs.submit import submit as submit_run
    from pipeline.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    if local := local_places(loaded):
        # No refusal: a disk that all nodes share looks like this too. Nor silence for a loopback address, which is
        # that of any cluster at the end of a tunnel.
        _note(
            f"{local[0]!r} is a place on local disks: right only where every node and this machine share it, else name "
            "an s3:// location"
        )
    cluster = _cluster(address)
    job, is_new = submit_run(cluster, loaded, recipe, _note, "refresh" if refresh else "run")
    if job.is_live and wait:
        typer.echo(f"Job {job.id} {'submitted' if is_new else 'is there already'}; its log follows", err=True)
        _follow(cluster, job)
    elif job.is_live:
        typer.echo(f"Job {job.id} {'submitted' if is_new else 'is there already'}: {cluster.command('follow', job)}")
    elif is_new:
        _end(job)
    else:
        typer.echo(f"Job {job.id} succeeded before, and nothing of the run has changed since; its root is {job.root}")


@app.command()
def status(name: Annotated[str | None, _JOB] = None, address: Address = TUNNEL) -> None:
    """Show the jobs of a cluster, or one of them."""
    cluster = _cluster(address)
    jobs = cluster.jobs() if name is None else [cluster.find(name)]
    rows = [
        (job.id, job.status.lower(), time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.started)), job.root)
        for job in jobs
    ]
    table(f"Jobs of {cluster.address}", ("job", "state", "started", "run"), rows)


@app.command()
def follow(name: Annotated[str, _JOB], address: Address = TUNNEL) -> None:
    """Show a job's log from its beginning and as it grows; the exit status is the job's."""
    cluster = _cluster(address)
    _follow(cluster, cluster.find(name))


@app.command()
def cancel(name: Annotated[str, _JOB], address: Address = TUNNEL) -> None:
    """Stop a job; what its run committed is kept, and submitting it again continues from there."""
    cluster = _cluster(address)
    job = cluster.find(name)
    ended = cluster.cancel(job) if job.is_live else job
    typer.echo(f"Job {ended.id} {'is' if job.is_live else 'was before'} {ended.status.lower()}")


def _note(text: str) -> None:
    typer.echo(f"semiprune: note: {text}", err=True)


def _cluster(address: str) -> "Cluster":
    from jobs.cluster import Cluster, use_token

    use_token()
    return Cluster(address)


def _follow(cluster: "Cluster", job: "Job") -> None:
    try:
        with Interrupt():
            ended = cluster.follow(job, lambda text: typer.echo(text, nl=False))
    except KeyboardInterrupt:
        error(
            f"no longer followed; the job goes on: {cluster.command('follow', job)} shows it again, "
            f"{cluster.command('cancel', job)} ends it"
        )
        raise typer.Exit(130) from None
    _end(ended)


def _end(job: "Job") -> None:
    from jobs.cluster import exit_status

    if job.status != "SUCCEEDED":
        error(f"job {job.id} {job.status.lower()}: {job.message}; the same submission continues the run")
    raise typer.Exit(exit_status(job))
