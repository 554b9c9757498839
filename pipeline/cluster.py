"""One Ray for a run: a cluster that is there already, or a private one on this machine."""

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator

from pipeline.errors import UserError
from pipeline.resources import Resources


@contextlib.contextmanager
def connected(resources: Resources) -> Iterator[None]:
    """Ray for the length of the block; one that is connected already is left as it was.

    With RAY_ADDRESS set, as in a submitted job, it is that cluster; else a Ray of this process's own, which ends with
    it and admits only holders of a token made for it.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        # A private Ray whose head is gone does not come back: do not wait a minute for it.
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "20")
        # Not a process for every core before one is asked for, and none that looks out for spot instances being taken.
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        if "RAY_AUTH_MODE" not in os.environ:
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    import ray  # not before: it reads the variables above when it is imported

    for name in ("ray", "ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    ours = not ray.is_initialized()
    if ours:
        local = {} if address else {"include_dashboard": False}
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
        except (ValueError, ConnectionError, RuntimeError) as error:
            where = f"the Ray at RAY_ADDRESS={address!r}" if address else "a Ray on this machine"
            first = (str(error).strip().splitlines() or [""])[0]
            raise UserError(
                f"cannot use {where}: {first}; unset RAY_ADDRESS to run on this machine, or hand the recipe to a "
                "cluster with `ray job submit`"
            ) from error
    try:
        if not address:
            _check_room(resources)
        yield
    finally:
        if ours:
            if not address:
                # Else Ray first ends what keeps its state, and then waits a second for the autoscaler, which has last
                # words to write there. There is nothing to scale.
                ray._private.worker._global_node.kill_monitor(check_alive=False)
            ray.shutdown()


def _check_room(resources: Resources) -> None:
    """A training that can never be placed would wait for ever; say so instead. A cluster may still grow."""
    import ray

    have = ray.cluster_resources()
    for kind, each, remedy in (
        ("CPU", resources.cpus_per_worker, "lower resources.num_workers"),
        ("GPU", resources.gpus_per_worker, "set resources.gpus_per_worker to 0"),
    ):
        wanted = each * resources.min_workers
        if wanted > have.get(kind, 0):
            raise UserError(
                f"resources ask for {wanted:g} {kind}s ({resources.min_workers} workers of {each:g}) but this machine "
                f"has {have.get(kind, 0):g}: {remedy}, or run on a cluster"
            )
