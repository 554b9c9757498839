"""A frozen encoder of images: a classification network of torchvision without its last linear layer, or the pixels."""

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from models.precision import Precision, autocast
from models.training import reproducible
from pipeline.errors import UserError

PIXELS = "pixels"
"""The encoder without weights: what each image is made of."""

ROWS = 64
"""Images of every forward, so that the embedding of one does not depend on how many came with it."""

_SAFETENSORS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def encoders() -> list[str]:
    """Every name that Encoder takes."""
    from torchvision import models  # here, because its import takes a second that other encoders need not pay

    return [PIXELS, *models.list_models(module=models)]


def published_weights(name: str) -> dict[str, str]:
    """Names and URLs of the weights that torchvision publishes for one of its networks."""
    from torchvision import models

    return {weights.name: weights.url for weights in models.get_model_weights(name)}


def read_weights(data: bytes) -> dict[str, torch.Tensor]:
    """Tensors by name, from what torch.save or safetensors wrote; nothing is ever unpickled.

    UserError if it is neither, or holds more than tensors.
    """
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8:
        return _read_safetensors(data)
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # its reader of legacy files stumbles over foreign bytes in any way
        raise UserError(
            "it is no file of torch.save or safetensors, or holds more than tensors, which is not safe to load: save "
            "network.state_dict() alone"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        found = f"with {', '.join(map(str, list(state)[:4]))}" if isinstance(state, dict) else "of another kind"
        raise UserError(f"it holds an object {found} instead of tensors by name: save network.state_dict() alone")
    return state


def _read_safetensors(data: bytes) -> dict[str, torch.Tensor]:
    """The format: 8 bytes with the length of a JSON header, the header, the bytes of the tensors."""
    end = 8 + int.from_bytes(data[:8], "little")
    found = {}
    try:
        for name, entry in json.loads(data[8:end]).items():
            if name == "__metadata__":
                continue
            low, high = entry["data_offsets"]
            content = bytearray(data[end + low : end + high])
            dtype, shape = _SAFETENSORS[entry["dtype"]], entry["shape"]
            flat = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
            found[name] = flat.view(shape)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError("its safetensors header is damaged, or names a type that is not known: save it anew") from error
    return found


class Encoder:
    """Penultimate features of one network.

    weights: all of the network's tensors by name but for the last linear layer's, which are not looked at; none for
    pixels. size: side to which images are resized first, None for as they are; mean, std: of each channel, in 0..1, by
    which they are standardised. UserError if the weights do not fit the network.
    """

    def __init__(
        self,
        name: str,
        weights: Mapping[str, torch.Tensor],
        size: int | None,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        precision: Precision,
        device: torch.device,
    ) -> None:
        self.size, self.precision, self.device = size, precision, device
        network = nn.Flatten() if name == PIXELS else _headless(name, weights)
        self._network = network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
        self._mean, self._std = (torch.tensor(x, device=device).view(1, 3, 1, 1) for x in (mean, std))

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor | NDArray[np.uint8]) -> torch.Tensor:
        """Float32 [n, d], on the host, of uint8 images [n, S, S, 3]."""
        found = []
        with reproducible():
            for chunk in torch.as_tensor(images).split(ROWS):
                padded = functional.pad(chunk, (0, 0, 0, 0, 0, 0, 0, ROWS - len(chunk))).to(self.device)
                with autocast(self.precision, self.device):
                    features = self._network(self._prepared(padded))
                found.append(features[: len(chunk)].float().flatten(1).cpu())
        return torch.cat(found)

    def check(self, side: int) -> None:
        """UserError if the network cannot take images [n, side, side, 3], resized as they will be."""
        image = torch.zeros((1, side, side, 3), dtype=torch.uint8, device=self.device)
        try:
            with torch.inference_mode():
                self._network(self._prepared(image))
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"the network takes no images of {self.size or side} pixels ({reason})") from error

    def _prepared(self, images: torch.Tensor) -> torch.Tensor:
        x = images.permute(0, 3, 1, 2).float() / 255
        if self.size is not None and self.size != x.shape[-1]:
            x = functional.interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True)
        return (x - self._mean) / self._std


def _headless(name: str, weights: Mapping[str, torch.Tensor]) -> nn.Module:
    """The network, its last linear layer gone."""
    from torchvision import models

    # These two draw their initial weights slowly, and warn, unless they are told not to.
    options: dict[str, Any] = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.random.fork_rng(devices=[]):
        network: nn.Module = models.get_model(name, weights=None, **options)
    linear = [place for place, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError(f"the network {name!r} does not end in a linear layer: choose another one")
    parent, _, last = linear[-1].rpartition(".")
    setattr(network.get_submodule(parent), last, nn.Identity())
    own = network.state_dict()
    given = {key: value for key, value in weights.items() if key.rpartition(".")[0] != linear[-1]}
    lacking = [key for key in own if key not in given and not key.endswith("num_batches_tracked")]
    unknown = [key for key in given if key not in own]
    if lacking or unknown:
        complaints = [
            f"{what} {len(keys)} tensors, the first is {keys[0]!r}"
            for what, keys in (("it lacks", lacking), ("it has no place for", unknown))
            if keys
        ]
        raise UserError(f"these are no weights of {name!r} ({'; '.join(complaints)}): name the network they are of")
    for key, value in given.items():
        if value.shape != own[key].shape:
            raise UserError(
                f"these are no weights of {name!r} ({key!r} is {list(value.shape)} and not "
                f"{list(own[key].shape)}): name the network they are of"
            )
    own.update(given)  # which keeps the versions of its modules, that some look at
    network.load_state_dict(own)
    return network
