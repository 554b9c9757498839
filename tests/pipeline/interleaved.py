"""Several attempts at one stage, one storage operation at a time, in an order that is chosen: threads that take turns.

A `World` stands for `pipeline.storage` and `time` as `pipeline.lease` sees them: a store that orders its operations,
and one clock that moves only while somebody sleeps.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import TypeAdapter

from pipeline import lease
from pipeline.errors import SemiPruneError
from pipeline.lease import Holder
from pipeline.process_mark import Mark

FOLDER = "root/stage/key"
MANIFEST = f"{FOLDER}/_MANIFEST.json"
_HOLDER = TypeAdapter(Holder)
BEAT, LAPSE, LOOK, SETTLE = 1.0, 3.0, 1.0, 1.0


class Killed(BaseException):
    """The process ends here: not even its `finally` reaches the store."""


class Attempt:
    """One attempt, in a thread that waits for its turn before every operation.

    script: what it does; dies_at: the operation, counted from 0, in which it is killed; effective: whether that one
    still reaches the store. Afterwards `error` is what it ended with.
    """

    def __init__(self, world: "World", number: int, script: Callable[["Attempt"], None], dies_at: int, effective: bool):
        self.world, self.number, self.dies_at, self.effective = world, number, dies_at, effective
        self.holder = Holder(f"{number:032x}", "ana", f"box-{number}", 1000 + number, "", datetime.now(UTC))
        self.error: BaseException | None = None
        self.taken: int | None = None  # the step in which it got the lease
        self.asked = 0  # the step of its last listing
        self.passed: int | None = None  # the step in which it asked whether it may commit, if it was told yes
        self.generation = 0  # the one with which it was told yes
        self.looks: list[float] = []
        self.sleeping = self.creating = self.dead = False
        self.operations = 0
        self.turn, self.thread = threading.Lock(), threading.Thread(target=self._run, args=(script,), daemon=True)
        self.turn.acquire()

    def _run(self, script: Callable[["Attempt"], None]) -> None:
        self.turn.acquire()
        try:
            script(self)
        except BaseException as error:  # noqa: BLE001  for the test to look at
            self.error = error
        self.world.running.remove(self)
        self.world.back.release()

    def wait(self, sleeping: bool = False) -> None:
        """Let the others have their turns."""
        self.sleeping = sleeping
        self.world.back.release()
        self.turn.acquire()
        self.sleeping = False

    def operate(self, operation: Callable[[], Any]) -> Any:
        """An operation on the store, in this attempt's next turn."""
        if self.dead:
            raise Killed
        self.wait()
        self.dead = self.operations == self.dies_at
        self.operations += 1
        self.world.step += 1
        if self.dead and not self.effective:
            raise Killed
        result = operation()
        if self.dead:
            raise Killed
        return result


class World:
    """The store, the clock and the attempts. exclusive: whether the store has conditional writes."""

    def __init__(self, exclusive: bool) -> None:
        self.exclusive = exclusive
        self.objects: dict[str, bytes] = {}
        self.signs: list[tuple[str, float]] = []  # name and time of every sign of life
        self.passed_over: list[str] = []
        self.now, self.step = 0.0, 0
        self.attempts: list[Attempt] = []
        self.running: list[Attempt] = []
        self.back = threading.Lock()
        self.back.acquire()

    def add(self, script: Callable[[Attempt], None], dies_at: int = -1, effective: bool = False) -> Attempt:
        attempt = Attempt(self, len(self.attempts), script, dies_at, effective)
        self.attempts.append(attempt)
        self.running.append(attempt)
        return attempt

    def run(self, schedule: Sequence[int]) -> None:
        """Carry the attempts on to their ends, in the order of the schedule and then one after the other.

        While somebody's creation is under way, nobody's sleep ends, as if a request took less time than SETTLE.
        """
        turns = iter(schedule)
        for attempt in self.running:
            attempt.thread.start()
        while self.running:
            creating = any(attempt.creating for attempt in self.running)
            able = [attempt for attempt in self.running if not (creating and attempt.sleeping)]
            able[next(turns, 0) % len(able)].turn.release()
            self.back.acquire()
        for attempt in self.attempts:
            attempt.thread.join()

    @property
    def _self(self) -> Attempt:
        return next(attempt for attempt in self.running if attempt.thread is threading.current_thread())

    # What pipeline.lease knows as `storage`.

    def join(self, *names: str) -> str:
        return "/".join(names)

    def is_exclusive(self, uri: str) -> bool:
        return self.exclusive

    def names(self, uri: str) -> list[str]:
        def listing() -> list[str]:
            return sorted(name.removeprefix(f"{uri}/") for name in self.objects)

        found: list[str] = self._self.operate(listing)
        self._self.asked = self.step
        return found

    def read(self, uri: str) -> bytes:
        found: bytes | None = self._self.operate(lambda: self.objects.get(uri))
        if "_ALIVE-" in uri:
            self._self.looks.append(self.now)
        if found is None:
            raise FileNotFoundError(uri)
        return found

    def read_json(self, uri: str, kind: Any, mend: str) -> Any:
        return _HOLDER.validate_json(self.read(uri))

    def write(self, uri: str, data: bytes) -> None:
        def put() -> None:
            self.objects[uri] = data
            if "_ALIVE-" in uri:
                self.signs.append((uri, self.now))

        self._self.operate(put)

    def delete(self, uri: str) -> None:
        self._self.operate(lambda: self.objects.pop(uri, None))

    def create(self, uri: str, data: bytes) -> bool:
        me = self._self

        def put_if_absent() -> bool:
            created = self.objects.setdefault(uri, data) is data
            if created and uri != MANIFEST:
                me.taken = self.step
                self._note_who_is_passed_over(me, uri)
            return created

        if self.exclusive:
            return bool(me.operate(put_if_absent))
        if me.operate(lambda: uri in self.objects):
            return False
        me.creating = True
        try:
            self.write(uri, data)
            written = self.step
        finally:
            me.creating = False
        kept = bool(me.operate(lambda: self.objects.get(uri) == data))
        if kept and uri != MANIFEST:
            me.taken = written
        return kept

    def _note_who_is_passed_over(self, me: Attempt, uri: str) -> None:
        """Whoever holds the generation before, though it was heard of in the LAPSE before `me` last looked."""
        number = int(uri[-11:-5])
        if number == 1 or MANIFEST in self.objects:  # then it may have died while it cleared up
            return
        before = _HOLDER.validate_json(self.objects[f"{uri[:-11]}{number - 1:06d}.json"])
        if before.released or before.is_gone():
            return
        sign, look = f"{FOLDER}/_ALIVE-{before.attempt}", me.looks[-1]
        if any(name == sign and look - LAPSE < when < look for name, when in self.signs):
            self.passed_over.append(str(before))

    # What it knows as `time`.

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        me, end = self._self, self.now + seconds
        if me.dead:
            raise Killed
        me.wait(sleeping=True)
        self.now = max(self.now, end)


@contextmanager
def world(exclusive: bool = True, one_host: bool = False) -> Iterator[World]:
    """A world in which `pipeline.lease` is, for the block; one_host: who is killed is known to be gone."""
    made = World(exclusive)

    def is_gone(attempt: str) -> bool:
        return one_host and any(each.dead for each in made.attempts if each.holder.attempt == attempt)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease, "storage", made)
        patch.setattr(lease, "time", made)
        patch.setattr(lease.process_mark, "marked", lambda name: nullcontext(Mark()))
        patch.setattr(Holder, "is_gone", lambda holder: is_gone(holder.attempt))
        patch.setattr(Holder, "new", classmethod(lambda cls: made._self.holder))
        for name, value in {"BEAT": 1e6, "LAPSE": LAPSE, "LOOK": LOOK, "SETTLE": SETTLE}.items():
            patch.setattr(lease, name, value)  # signs of life are the scripts' affair
        yield made


def commits(attempt: Attempt, works: bool = True, fails: bool = False) -> None:
    """As `pipeline.run` does: looks, takes the lease, looks again, works, commits."""
    here = attempt.world
    if MANIFEST in here.objects:
        return
    with lease.hold(FOLDER, "stage", lambda text: None) as held:
        if attempt.operate(lambda: MANIFEST in here.objects):
            return
        if works:
            here.sleep(BEAT)
            held.give_sign(1)
            held.check()
        if fails:
            raise SemiPruneError("the work failed")
        held.verify()
        attempt.passed, attempt.generation = attempt.asked, held.generation
        here.create(MANIFEST, attempt.holder.encode())


def hurries(attempt: Attempt) -> None:
    """The same, with next to nothing to do."""
    commits(attempt, works=False)


def fails(attempt: Attempt) -> None:
    """The same, but its work ends with an error."""
    commits(attempt, fails=True)
