"""The trained network of a finished stage, in the tasks that look at images with it."""

import json
from functools import lru_cache
from typing import TYPE_CHECKING

from pipeline import storage
from pipeline.resources import Resources
from pipeline.stage import Artifact

if TYPE_CHECKING:
    from models.training import Predictor
    from pipeline.proxy import ProxyConfig
    from pipeline.ssl import SslConfig

ROWS_PER_TASK = 8192

ROWS_AT_A_TIME = 1024
"""Images that a task holds decoded: 150 MB of 224x224."""


def load_predictor(
    trained: Artifact, config: "type[SslConfig] | type[ProxyConfig]", resources: Resources
) -> "Predictor":
    """The network of the part `model`, once per process, on the device and the threads that a task has."""
    import torch

    torch.set_num_threads(resources.cpus_per_worker)
    (model,) = trained.parts("model")
    place = storage.join(trained.uri, model.name)
    return _load(place, model.sha256, config, json.dumps(trained.manifest["config"]), resources.gpus_per_worker > 0)


@lru_cache(maxsize=1)
def _load(
    place: str, checksum: str, config: "type[SslConfig] | type[ProxyConfig]", settings: str, use_gpu: bool
) -> "Predictor":
    import torch

    from models.training import Predictor

    made = config.model_validate_json(settings)
    weights = storage.read_verified(place, checksum)
    device = torch.device("cuda" if use_gpu else "cpu")
    return Predictor(made.training.model, made.num_classes, weights, made.training.precision, device)
