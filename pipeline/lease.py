"""Of several attempts at one stage that are alive at the same time, one holds its lease; the others say who it is.

A lease is for a stage's folder, the unit of commit: runs of different recipes share a root. A refresh holds one more,
that of the folder of versions, for its whole length. `_LEASE-000001.json`, `_LEASE-000002.json`, .. there are its
generations, each created only if absent. Whoever created the last one holds the lease, and none is deleted before the
stage is committed, so that no number is taken twice.

The holder writes `_ALIVE-{attempt}` every BEAT seconds, and nobody else writes there. Who finds a holder watches that
file for up to LAPSE seconds of a clock of its own, so clocks need not agree: if it changes, the holder is alive, and
UserError names it; if not, the next generation is taken. Nobody waits for a holder that has released its lease (an
error, Ctrl-C), nor for one whose process on the same machine has ended (`pipeline.process_mark`).

A holder that was only suspended, or cut off from the store, finds the next generation when it is back, at its next sign
of life or right before it commits, and stops. Between this last look and the commit it can be suspended once more, and
nothing can prevent that. Nothing is lost by it: a manifest is created once and names only parts of its own attempt,
epochs are created once, each on top of the attempt's own, and names that attempts share have the same bytes in both. So
the lease spares work that would be thrown away; that a result is whole and of one attempt does not rest on it.

Of several attempts that find a lease free, one gets it: on a disk, where a hard link decides, and on a store with
conditional writes. On a store without them, attempts that ask within the same round trip may all get it, and work; what
was written last stays. Each looks again before it commits, SETTLE seconds or more after it asked, and all but one stop.
Only a write that was under way for longer lets two come as far as the manifest. There the later one takes the result of
the first, or, within a round trip again, replaces it by its own: one whole result in either case.
"""

import getpass
import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import Field

from pipeline import process_mark, storage
from pipeline.errors import SemiPruneError, UserError

BEAT = 5.0
"""Seconds between two signs of life: a small write each time."""

LAPSE = 30.0
"""Seconds without a sign of life after which a holder counts as dead.

Five of them may be late or lost: a client that tries a request again, a machine that swaps. People wait for so long
after another machine has died, and a retry that comes sooner is told to come again.
"""

LOOK = 1.0
"""Seconds between two looks at a holder's sign of life."""

SETTLE = 2.0
"""Seconds after which no write of a rival is on its way any more, where a store lets two create the same object."""

_GENERATION = re.compile(r"_LEASE-(\d{6,})\.json")
_FILE = re.compile(r"_LEASE-\d{6,}\.json|_ALIVE-[0-9a-f]{32}")


@dataclass(frozen=True)
class Holder:
    """A generation of a lease: an attempt's process, and whether it has let go. since: UTC; job: of Ray, or empty."""

    attempt: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    user: str
    host: str
    pid: int
    job: str
    since: datetime
    released: bool = False

    @classmethod
    def new(cls) -> "Holder":
        """A new attempt of this process."""
        try:
            user = getpass.getuser()
        except (OSError, KeyError):  # a container may run as a number without a name
            user = str(os.getuid())
        metadata = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("metadata") or {}
        job = str(metadata.get("job_submission_id", ""))
        return cls(
            uuid.uuid4().hex, user, socket.gethostname(), os.getpid(), job, datetime.now(UTC).replace(microsecond=0)
        )

    def __str__(self) -> str:
        job = f"job {self.job}, " if self.job else ""
        return f"{self.user}@{self.host} ({job}pid {self.pid}, since {self.since:%Y-%m-%d %H:%M:%S} UTC)"

    def encode(self) -> bytes:
        """The content of a generation."""
        return json.dumps({**asdict(self), "since": self.since.isoformat()}, indent=1).encode()

    def is_gone(self) -> bool:
        """Whether it ran on this machine and has ended; False where that is not known."""
        return self.host == socket.gethostname() and process_mark.is_gone(self.attempt)


def is_file(name: str) -> bool:
    """Whether a file of that name in a stage's folder belongs to its lease."""
    return _FILE.fullmatch(name) is not None


def running(folder: str, names: Iterable[str]) -> Holder | None:
    """Who holds the lease of a folder with these names, and seems alive; asked without waiting, so by the clocks."""
    last = _last(folder, names)
    if last is None or last[1].released or last[1].is_gone():
        return None
    holder = last[1]
    seen = datetime.fromisoformat(sign.split()[1]) if (sign := _sign_of_life(folder, holder)) else holder.since
    return holder if datetime.now(UTC) - seen < timedelta(seconds=LAPSE) else None


@contextmanager
def hold(folder: str, what: str, tell: Callable[[str], None]) -> Iterator["Lease"]:
    """The lease of a stage's folder for the length of the block, at whose regular end the stage is committed.

    what: is run there, in the words of a sentence; tell: is told if the wait will take its time. UserError, which names
    the holder, if another attempt that is alive holds the lease, or if it took it from this one, in whose block then
    something else went wrong.
    """
    me = Holder.new()
    with process_mark.marked(me.attempt) as mark:
        lease = Lease(folder, what, me, _acquire(folder, what, me, tell))
        beat = threading.Thread(target=lease.beat, daemon=True, name=f"lease of {what}")
        beat.start()
        committed = False
        try:
            yield lease
            committed = True
        except SemiPruneError:
            lease.verify_if_possible()
            raise
        finally:
            mark.kept = True
            mark.kept = not lease.end(beat, committed)


class Lease:
    """A lease that was taken; whether it still is this attempt's, the store knows."""

    def __init__(self, folder: str, what: str, me: Holder, generation: int):
        self.folder, self.what, self.me, self.generation = folder, what, me, generation
        self._taken = time.monotonic()
        self._ended = threading.Event()
        self._lost: UserError | None = None

    def check(self) -> None:
        """UserError if another attempt is known to have taken the lease; costs nothing."""
        if self._lost:
            raise self._lost

    def verify(self) -> None:
        """Ask the store; UserError, which names who has it, if the lease is another attempt's now."""
        self.check()
        if not storage.is_exclusive(self.folder):
            time.sleep(max(0.0, self._taken + SETTLE - time.monotonic()))
        last = _last(self.folder)
        if last is None:
            self._lost = UserError(
                f"the lease of the {self.what} in {self.folder!r} is gone: another attempt has finished it, "
                "or its files were deleted; run the same command again, which continues from what is there"
            )
        elif last[1].attempt != self.me.attempt:
            self._lost = UserError(
                f"the {self.what} in {self.folder!r} was taken over by {last[1]}, for this attempt seemed "
                "dead (suspended, or cut off from the store): let that one finish, or end it and run the same command "
                "again"
            )
        self.check()

    def verify_if_possible(self) -> None:
        """The same where something has gone wrong already, which may be the store."""
        with suppress(OSError, SemiPruneError):
            self.verify()
        self.check()

    def beat(self) -> None:
        """Give signs of life until the lease ends or is another's; what fails is tried again at the next one."""
        beats = 0
        while not self._ended.wait(BEAT):
            beats += 1
            with suppress(OSError, SemiPruneError):
                self.give_sign(beats)
            if self._lost:
                return

    def give_sign(self, beats: int) -> None:
        """The sign of life number `beats`, unless the lease is another's, which `check` tells from now on."""
        with suppress(UserError):
            self.verify()
        if not self._lost:
            sign = f"{beats} {datetime.now(UTC).isoformat()}"
            storage.write(storage.join(self.folder, f"_ALIVE-{self.me.attempt}"), sign.encode())

    def end(self, beat: threading.Thread | None, committed: bool) -> bool:
        """Let others have the lease at once; delete it where the stage is committed. False if the store refuses."""
        self._ended.set()
        if beat:
            beat.join(LAPSE)  # a last sign of life may be on its way
        try:
            if committed:
                for name in filter(is_file, storage.names(self.folder)):
                    storage.delete(storage.join(self.folder, name))
            elif not self._lost:
                last = _last(self.folder)
                if last and last[1].attempt == self.me.attempt:
                    storage.write(_generation(self.folder, self.generation), replace(self.me, released=True).encode())
                    storage.delete(storage.join(self.folder, f"_ALIVE-{self.me.attempt}"))
        except (OSError, SemiPruneError):
            return False
        return True


def _acquire(folder: str, what: str, me: Holder, tell: Callable[[str], None]) -> int:
    """The generation that is now `me`'s."""
    generation = 1
    while not storage.create(_generation(folder, generation), me.encode()):
        last = _await_end(folder, what, me, tell)
        if last and last[1].attempt == me.attempt:
            return last[0]  # the answer to a request was lost, and its repetition found what the first one had created
        generation = last[0] + 1 if last else 1
    return generation


def _await_end(folder: str, what: str, me: Holder, tell: Callable[[str], None]) -> tuple[int, Holder] | None:
    """The last generation, which is nobody's or `me`'s; None if there is none; UserError if its holder is alive."""
    watched: Holder | None = None
    first, deadline = None, 0.0
    while True:
        now = time.monotonic()  # before the look: if it takes long, the sign is not older than that
        last = _last(folder)
        if last is None or last[1].released or last[1].attempt == me.attempt or last[1].is_gone():
            return last
        holder = last[1]
        sign = _sign_of_life(folder, holder)
        if holder != watched:
            watched, first, deadline = holder, sign, time.monotonic() + LAPSE
            tell(f"looks for up to {LAPSE:.0f} s whether {holder}, who has it, is alive")
        elif sign is not None and sign != first:
            raise UserError(
                f"the {what} in {folder!r} is being run by {holder}: wait until that has ended, or end it; "
                "then run the same command again"
            )
        elif now >= deadline:
            return last
        time.sleep(LOOK)


def _last(folder: str, names: Iterable[str] | None = None) -> tuple[int, Holder] | None:
    """The last generation and its holder; None if there is none; names: the folder's, if they are known already."""
    matches = (_GENERATION.fullmatch(name) for name in (storage.names(folder) if names is None else names))
    numbers = [int(match[1]) for match in matches if match]
    if not numbers:
        return None
    mend = "delete it and run the same command again"
    try:
        return max(numbers), storage.read_json(_generation(folder, max(numbers)), Holder, mend)
    except FileNotFoundError:  # the stage was committed since
        return None


def _sign_of_life(folder: str, holder: Holder) -> str | None:
    try:
        return storage.read(storage.join(folder, f"_ALIVE-{holder.attempt}")).decode()
    except FileNotFoundError:
        return None


def _generation(folder: str, number: int) -> str:
    return storage.join(folder, f"_LEASE-{number:06d}.json")
