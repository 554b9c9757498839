"""The jobs of a Ray cluster, by its Jobs API: list, submit, follow, cancel."""

import asyncio
import contextlib
import logging
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.errors import SemiPruneError, UserError

LIVE = ("PENDING", "RUNNING")
PATIENCE = 60.0
"""Seconds for which a cluster is asked again that does not answer while a job is followed."""
_REACH_SECONDS = 10
_POLL_SECONDS = 0.5
_TOKEN = (
    "set RAY_AUTH_TOKEN_PATH to a file with the cluster's token, or RAY_AUTH_MODE=disabled for a cluster that has none"
)


@dataclass(frozen=True)
class Job:
    """A job as its cluster knows it. root: of its run; started: seconds since 1970; exit_code: of its driver."""

    id: str
    status: str
    root: str
    message: str
    started: float
    exit_code: int | None

    @property
    def is_live(self) -> bool:
        """Whether it waits or runs."""
        return self.status in LIVE


class Cluster:
    """The jobs of a Ray cluster. Its mistakes are sentences: no answer and a wrong token are UserErrors."""

    def __init__(self, address: str) -> None:
        """address: of its dashboard, http://HOST:8265. Call `use_token` before anything imports Ray."""
        storage.refuse_credentials(address)
        if not re.fullmatch(r"https?://[^/@\s]+(/[^@\s]*)?", address):
            raise UserError(
                f"{address!r} is no address of a cluster: name its dashboard, such as http://127.0.0.1:8265"
            )
        self.address = address.rstrip("/")
        _reach(self.address)
        from ray.job_submission import JobSubmissionClient

        for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
            logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)
        for overriding in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):  # Ray would take these instead of the address
            os.environ.pop(overriding, None)
        with self._explained():
            self._client = JobSubmissionClient(self.address)

    def jobs(self) -> list[Job]:
        """Those of ours, the oldest first."""
        with self._explained():
            found = self._client.list_jobs()
        ours = [_job(details) for details in found if (details.submission_id or "").startswith("semiprune-")]
        return sorted(ours, key=lambda job: job.started)

    def find(self, name: str) -> Job:
        """The job of that id, or the last one of the run with that root; UserError if there is none."""
        wanted = name.rstrip("/")
        matching = [job for job in self.jobs() if wanted in (job.id, job.root.rstrip("/"))]
        if not matching:
            raise UserError(
                f"{self.address} has no job or run {name!r}: `semiprune job status` lists those that it knows"
            )
        return matching[-1]

    def submit(self, name: str, folder: str, entrypoint: str, metadata: dict[str, str]) -> bool:
        """Start a job in a copy of the folder; False if there is one of that name already.

        Nothing else of this machine travels, least of all its environment. metadata: readable for whoever may use the
        cluster.
        """
        with self._explained():
            try:
                self._client.submit_job(
                    entrypoint=entrypoint, submission_id=name, runtime_env={"working_dir": folder}, metadata=metadata
                )
            except RuntimeError as error:
                if "already exists" not in str(error):
                    raise
                return False
        return True

    def follow(self, job: Job, echo: Callable[[str], None]) -> Job:
        """Hand the log to `echo` from its beginning on as it grows, over lost connections too; the job as it ended."""
        import aiohttp

        told = Told(echo)
        while True:
            with contextlib.suppress(OSError, RuntimeError, aiohttp.ClientError):
                asyncio.run(self._tail(job.id, told))
            now = self._ask(job)
            if not now.is_live:
                return now
            time.sleep(_POLL_SECONDS)

    def _ask(self, job: Job) -> Job:
        """The job now; a cluster that does not answer is asked again for a while."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self.find(job.id)
            except UserError as error:
                if time.monotonic() > deadline:
                    raise SemiPruneError(
                        f"job {job.id} cannot be followed any more: {error}; if its cluster lives, it goes on, and "
                        f"{self.command('follow', job)} shows it again"
                    ) from error
            time.sleep(_POLL_SECONDS)

    async def _tail(self, name: str, told: "Told") -> None:
        told.begin()
        async for text in self._client.tail_job_logs(name):
            told(text)

    def cancel(self, job: Job) -> Job:
        """Stop the job, and wait until it has; the job as it ended."""
        with self._explained():
            self._client.stop_job(job.id)
        while (now := self.find(job.id)).is_live:
            time.sleep(_POLL_SECONDS)
        return now

    def command(self, verb: str, job: Job) -> str:
        """The command that does this with the job."""
        return f"`semiprune job {verb} {job.id} --address {self.address}`"

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            wrong = "does not accept the token" if "invalid" in str(error).lower() else "wants a token"
            raise UserError(f"{self.address} {wrong}: {_TOKEN}") from error
        except (OSError, RuntimeError) as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise UserError(f"{self.address} could not do it: {said}; is it the dashboard of a Ray head?") from error


class Told:
    """How much of a log was told: each connection begins with its first character again."""

    def __init__(self, echo: Callable[[str], None]) -> None:
        self._echo, self._told, self._seen = echo, 0, 0

    def begin(self) -> None:
        """A new connection."""
        self._seen = 0

    def __call__(self, text: str) -> None:
        """Tell what of the next piece was not told before."""
        new = text[max(0, self._told - self._seen) :]
        self._seen += len(text)
        self._told = max(self._told, self._seen)
        if new:
            self._echo(new)


def use_token() -> None:
    """Token authentication unless the environment says otherwise. Ray reads it when it is imported: call it before."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")


def exit_status(job: Job) -> int:
    """Of a command that waited for the job: 0 if it succeeded, that of its driver if it failed by itself, else 1."""
    if job.status == "SUCCEEDED":
        return 0
    return job.exit_code if job.exit_code and job.exit_code > 0 else 1


def _reach(address: str) -> None:
    """UserError unless something answers in a few seconds; Ray's own client would wait for minutes."""
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=_REACH_SECONDS).close()
    except urllib.error.HTTPError:
        return  # it answers: that it wants a token is told by the client, who has it
    except OSError as error:
        why = getattr(error, "reason", None) or error
        raise UserError(
            f"no cluster answers at {address}: {why}; is it up, and the tunnel to it (`ray dashboard cluster.yaml`)?"
        ) from error


def _job(details: Any) -> Job:
    metadata: Mapping[str, str] = details.metadata or {}
    return Job(
        id=details.submission_id,
        status=details.status.value,
        root=metadata.get("root", ""),
        message=((details.message or "").splitlines() or [""])[0].split(", last available logs")[0],
        started=(details.start_time or 0) / 1000,
        exit_code=details.driver_exit_code,
    )
