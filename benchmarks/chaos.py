"""Does a run survive what happens to a cluster? Faults at random moments in every stage, and what comes of them.

A Ray cluster of a head and two nodes on this machine, which share no disk; shards and runs are in an object store on
loopback. Whole runs of a tiny recipe, of the digits, suffer some faults each; after every run it is checked that the
epochs of both trainings hold what they must, every sample exactly once, and that labels, scores, selections and exports
are, byte for byte, those of the run that nothing happened to. A driver that ends early is started again by the same
command. Half of the runs take their images from the nodes' caches, the others stream them.

    python -m benchmarks.chaos FOLDER --faults 200

FOLDER has to be new and its path short. Ctrl-C or SIGTERM ends it, with the tables of what was done; each run is also a
line of FOLDER/runs.jsonl as soon as it is over. The moments come from --seed.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil

from pipeline.dynamics_store import DynamicsStore
from pipeline.epochs import EpochLog
from tests import object_store
from tests.ray_cluster import Nodes, Store
from tests.running import start, tiny_recipe

STAGES = ("index", "split", "ssl", "pseudo_label", "proxy", "score", "trust", "select", "export", "evaluate", "report")
"""In which faults happen, in the order in which a run comes to them."""

COMPARED = ("split", "pseudo_label", "score", "select", "export")
"""Whose parts have to be those of the undisturbed run."""

PATIENCE = 600.0
"""Seconds without anything new after which a run counts as stuck."""

COMMANDS = 20
"""How often the same command is given before a run counts as lost."""


@dataclass
class Fault:
    """What happened. stage: in which; seconds: until something new was committed; again: whether that, or what came
    later until the next fault, took another start of the same command."""

    run: int
    kind: str
    stage: str
    seconds: float = 0.0
    again: bool = False


@dataclass
class Outcome:
    """Of one run. violations: sentences; none is hoped for."""

    run: int
    faults: list[Fault] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    seconds: float = 0.0


class StuckError(Exception):
    """Nothing new was committed for too long."""


class Run:
    """A run in the store, and the process that drives it. root: its folder on the disk behind the store."""

    def __init__(self, nodes: Nodes, store: Store, number: int, chance: random.Random, images: str) -> None:
        self.nodes, self.store, self.chance = nodes, store, chance
        self.root = store.folder / "runs" / str(number)
        data = {"data.shards": "s3://data/train-{000000..000005}.tar"}
        recipe = tiny_recipe(Path("s3://data"), self.root.parent.parent / f"recipe-{number}", **data)
        changes = {
            "root": f"s3://runs/{number}",
            "resources.images": images,
            "evaluate.test_shards": "s3://data/test-000000.tar",
            "evaluate.baselines": "[random]",
            "evaluate.training.epochs": "1",
        }
        settings = [f"{name}={value}" for name, value in changes.items()]
        self._command = ("run", str(recipe), *(word for setting in settings for word in ("--set", setting)))
        self.commands = 0
        self.outcome = Outcome(number)
        self.start()

    def start(self) -> None:
        self.commands += 1
        self.driver = start(*self._command, **self.nodes.environment)

    def stage(self) -> str:
        """The stage that an attempt has begun and not finished; else "between"."""
        for name in STAGES:
            for folder in (self.root / name).glob("*"):
                if any(folder.glob("_LEASE-*.json")) and not (folder / "_MANIFEST.json").exists():
                    return name
        return "between"

    def commits(self) -> set[Path]:
        """All that counts by now: stages, epochs, trainings of the evaluation."""
        patterns = ("*/*/_MANIFEST.json", "*/*/*/epoch-?????.json", "evaluate/trainings/*.json")
        return {path for pattern in patterns for path in self.root.glob(pattern)}

    def is_past(self, stage: str) -> bool:
        """Whether that stage, or a later one, was committed."""
        return any(any((self.root / name).glob("*/_MANIFEST.json")) for name in STAGES[STAGES.index(stage) :])

    def wait(self, condition: Callable[[], bool]) -> bool:
        """Until it holds, giving the command again as often as needed; False if the run is over before."""
        seen, since = len(self.commits()), time.monotonic()
        while not condition():
            if self.driver.poll() is not None and not self.restarted():
                return condition()
            count = len(self.commits())
            if count != seen:
                seen, since = count, time.monotonic()
            if time.monotonic() - since > PATIENCE:
                raise StuckError(f"nothing new for {PATIENCE:.0f} s in stage {self.stage()}")
            time.sleep(0.02)
        return True

    def restarted(self) -> bool:
        """What is to be done about a driver that has ended; False if that is right."""
        out, err = self.driver.communicate()
        if self.driver.returncode == 0:
            return False
        self.outcome.ended.append(f"{self.driver.returncode}: {(err or out)[-1500:]}")
        if self.outcome.faults:
            self.outcome.faults[-1].again = True
        if self.commands == COMMANDS:
            raise StuckError(f"not finished by {COMMANDS} commands; the last one said {err[-500:]}")
        self.start()
        return True

    def suffer(self, kind: str, stage: str, delay: float) -> Fault | None:
        """A fault, `delay` seconds into a stage or at its end, until something new is committed; None if the run ended
        before."""
        if not self.wait(lambda: self.stage() == stage or self.is_past(stage)):
            return None
        deadline = time.monotonic() + delay
        if not self.wait(lambda: time.monotonic() > deadline or (self.is_past(stage) and self.stage() != stage)):
            return None
        before, began = self.commits(), time.monotonic()
        fault = Fault(self.outcome.run, kind, self.stage())
        self.outcome.faults.append(fault)
        try:
            FAULTS[kind](self)
            self.wait(lambda: bool(self.commits() - before))
        finally:
            fault.seconds = round(time.monotonic() - began, 2)
        return fault

    def finish(self) -> None:
        """To the end of the command."""
        self.wait(lambda: False)

    def end(self) -> None:
        """Of a run that is given up."""
        with contextlib.suppress(OSError):
            self.driver.kill()
        self.driver.communicate()


def kill_worker(run: Run) -> None:
    """SIGKILL for a process that trains, where there is one, else for one that works at a task, or could."""
    _kill_one(run, "ray::RayTrainWorker", "ray::Map", "ray::_train", "ray::")


def kill_other(run: Run) -> None:
    """SIGKILL for any other process of Ray's that works for the run: a controller, an actor, an idle worker."""
    _kill_one(run, "ray::")


def _kill_one(run: Run, *names: str) -> None:
    """Of the first name that any process has. With an agent its whole node would go, which is another fault."""
    for name in names:
        found = [each for each in run.nodes.processes(name) if not each.name().endswith("Agent")]
        if found:
            with contextlib.suppress(psutil.NoSuchProcess):
                run.chance.choice(found).kill()
            return


def kill_node(run: Run) -> None:
    """SIGKILL for the raylet of a node that is not the head; a new node comes up to 3 s later."""
    run.nodes.kill(run.chance.choice(run.nodes.workers))
    time.sleep(run.chance.uniform(0, 3))
    run.nodes.add()


def kill_head(run: Run) -> None:
    """SIGKILL for the driver, the head and all nodes, as if the machine of the first two went; then a new cluster, and
    the same command."""
    run.driver.kill()
    run.nodes.replace()
    run.driver.wait()


def kill_driver(run: Run) -> None:
    """SIGKILL; the same command follows."""
    run.driver.kill()
    run.driver.wait()


def restart_store(run: Run) -> None:
    """SIGKILL; half a second to 4 s later it is there again, on the same port with the same data."""
    run.store.end()
    time.sleep(run.chance.uniform(0.5, 4))
    run.store.start()


def suspend_store(run: Run) -> None:
    """SIGSTOP for 1 to 8 s."""
    run.store.process.send_signal(signal.SIGSTOP)
    time.sleep(run.chance.uniform(1, 8))
    run.store.process.send_signal(signal.SIGCONT)


FAULTS: dict[str, Callable[[Run], None]] = {
    "worker": kill_worker,
    "other Ray process": kill_other,
    "node": kill_node,
    "head": kill_head,
    "driver": kill_driver,
    "store killed": restart_store,
    "store suspended": suspend_store,
}


def results(root: Path) -> dict[str, list[str]]:
    """SHA-256 of what the finished stages of COMPARED hold, by title: of the bytes that their manifests name."""
    found = {}
    for stage in COMPARED:
        for path in (root / stage).glob("*/_MANIFEST.json"):
            manifest = json.loads(path.read_text())
            parts = [(path.parent / part["name"]).read_bytes() for part in manifest["parts"]]
            found[manifest["title"]] = sorted(hashlib.sha256(part).hexdigest() for part in parts)
    return found


def violations(root: Path, reference: Path) -> list[str]:
    """What is wrong with a finished run."""
    wrong = []
    ours, theirs = results(root), results(reference)
    wrong += [
        f"{title} differs" for title in sorted(ours.keys() | theirs.keys()) if ours.get(title) != theirs.get(title)
    ]
    [training], [expected] = (list(place.glob("ssl/*/training")) for place in (root, reference))
    steps = [[commit.facts["step"] for commit in EpochLog(str(place)).commits()] for place in (training, expected)]
    if steps[0] != steps[1]:
        wrong.append(f"ssl committed after the steps {steps[0]}, not {steps[1]}")
    [dynamics], [expected] = (list(place.glob("proxy/*/dynamics")) for place in (root, reference))
    epochs = [len(DynamicsStore(str(place)).epochs) for place in (dynamics, expected)]
    if epochs[0] != epochs[1]:
        wrong.append(f"the proxy has {epochs[0]} epochs, not {epochs[1]}")
    wrong += [f"epoch {epoch} of the proxy does not hold every sample once" for epoch in broken_epochs(dynamics)]
    return wrong


def broken_epochs(dynamics: Path) -> list[int]:
    """The committed epochs whose files do not hold every sample_id exactly once."""
    store = DynamicsStore(str(dynamics))
    broken = []
    for epoch in store.epochs:
        read = [np.asarray(ids) for file in store.files(epoch) for ids, _ in file.blocks(["p_label"])]
        if not np.array_equal(np.sort(np.concatenate(read)), np.arange(store.num_samples)):
            broken.append(epoch)
    return broken


def seconds(root: Path) -> dict[str, float]:
    """What each stage of a finished run took."""
    manifests = [json.loads(path.read_text()) for path in root.glob("*/*/_MANIFEST.json")]
    return {manifest["stage"]: manifest["seconds"] for manifest in manifests}


class Chaos:
    """A cluster and a store, and runs on them."""

    def __init__(self, folder: Path, seed: int, **environment: str) -> None:
        from jobs.importers import write_digits

        self.chance, self.number = random.Random(seed), 0
        buckets = folder / "store"
        (buckets / "runs").mkdir(parents=True)
        write_digits(str(buckets / "data"))
        self.store = Store(buckets)
        try:
            self.nodes = Nodes(folder, 3, **object_store.environment(self.store.endpoint), **environment)
        except BaseException:
            self.store.end()
            raise

    def calm(self) -> Path:
        """The run to compare with."""
        run = self._run("auto")
        try:
            run.finish()
        finally:
            run.end()
        assert not run.outcome.ended, run.outcome.ended
        return run.root

    def ordeal(self, plan: Sequence[tuple[str, str]], reference: Path) -> Outcome:
        """A run with these (kind, stage) of faults, in the order of the stages; reference: what it has to be like."""
        lasts = seconds(reference)
        began = time.monotonic()
        run = self._run(("auto", "stream")[self.number % 2])
        try:
            for kind, stage in sorted(plan, key=lambda pair: STAGES.index(pair[1])):
                run.suffer(kind, stage, self.chance.uniform(0, lasts[stage]))
            run.finish()
            run.outcome.violations = violations(run.root, reference)
        except StuckError as error:
            run.outcome.violations = [str(error)]
        finally:
            run.end()
        run.outcome.seconds = round(time.monotonic() - began, 1)
        return run.outcome

    def _run(self, images: str) -> Run:
        self.number += 1
        return Run(self.nodes, self.store, self.number, self.chance, images)

    def end(self) -> None:
        self.nodes.end()
        self.store.end()


def decks(chance: random.Random, faults: int, at_a_time: int) -> Iterator[list[tuple[str, str]]]:
    """All pairs of a fault and a stage, shuffled, again and again, a few at a time, `faults` of them."""
    pairs: list[tuple[str, str]] = []
    while faults > 0:
        if len(pairs) < at_a_time:
            more = [(kind, stage) for kind in FAULTS for stage in STAGES]
            chance.shuffle(more)
            pairs += more
        count = min(at_a_time, faults)
        yield pairs[:count]
        del pairs[:count]
        faults -= count


def table(title: str, outcomes: Sequence[Outcome], group: Callable[[Fault], str], order: Sequence[str]) -> str:
    """In Markdown: a line per group."""
    bad = {outcome.run for outcome in outcomes if outcome.violations}
    lines = [
        f"| {title} | faults | went on by itself | by the same command | violations | median s | longest s |",
        "|---|---|---|---|---|---|---|",
    ]
    faults = [fault for outcome in outcomes for fault in outcome.faults]
    for name in [*order, "all"]:
        those = [fault for fault in faults if name in (group(fault), "all")]
        if those:
            took = [fault.seconds for fault in those]
            again, wrong = sum(fault.again for fault in those), sum(fault.run in bad for fault in those)
            lines.append(
                f"| {name} | {len(those)} | {len(those) - again} | {again} | {wrong} | {statistics.median(took):.1f} "
                f"| {max(took):.1f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--at-a-time", type=int, default=5, help="faults of a run")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.default_int_handler)
    outcomes: list[Outcome] = []
    chaos = Chaos(options.folder.resolve(), options.seed)
    try:
        began = time.monotonic()
        reference = chaos.calm()
        print(f"undisturbed: {time.monotonic() - began:.1f} s; stages {seconds(reference)}", flush=True)
        with (options.folder / "runs.jsonl").open("a") as log:
            for plan in decks(chaos.chance, options.faults, options.at_a_time):
                outcome = chaos.ordeal(plan, reference)
                outcomes.append(outcome)
                log.write(json.dumps(asdict(outcome)) + "\n")
                log.flush()
                print(f"run {outcome.run}: {outcome.seconds:.0f} s, {len(outcome.faults)} faults", flush=True)
                for violation in outcome.violations:
                    print(f"run {outcome.run}: VIOLATION: {violation}", flush=True)
    except KeyboardInterrupt:
        print("stopped")
    finally:
        chaos.end()
        kinds, stages = list(FAULTS), [*STAGES, "between"]
        print(table("fault", outcomes, lambda fault: fault.kind, kinds))
        print(table("stage", outcomes, lambda fault: fault.stage, stages))
        wrong = sum(bool(outcome.violations) for outcome in outcomes)
        cores = len(os.sched_getaffinity(0))
        versions = ", ".join(f"{name} {version(name)}" for name in ("ray", "torch"))
        print(
            f"{len(outcomes)} runs, {wrong} of them wrong; {cores} cores, Python {sys.version.split()[0]}, {versions}"
        )


if __name__ == "__main__":
    main()
