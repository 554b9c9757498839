"""The encoder: features of the network without its head, from files that are safe to load, and from no others."""

import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models.encoder import PIXELS, Encoder, encoders, published_weights, read_weights
from pipeline.errors import UserError

CPU = torch.device("cpu")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
NAME = "shufflenet_v2_x0_5"


def images(n: int, size: int = 16) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    from torchvision import models

    torch.manual_seed(0)
    return models.get_model(NAME, weights=None, num_classes=7).eval()


def saved(content: object) -> bytes:
    sink = io.BytesIO()
    torch.save(content, sink)
    return sink.getvalue()


def as_safetensors(state: dict[str, torch.Tensor]) -> bytes:
    header, body = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in state.items():
        data = tensor.numpy().tobytes()
        kind = {torch.float32: "F32", torch.int64: "I64"}[tensor.dtype]
        offsets = [len(body), len(body) + len(data)]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": offsets}
        body += data
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def build(weights: dict[str, torch.Tensor], name: str = NAME, size: int | None = None) -> Encoder:
    return Encoder(name, weights, size, MEAN, STD, "fp32", CPU)


def test_it_gives_what_reaches_the_head(network: nn.Module) -> None:
    seen: list[torch.Tensor] = []
    handle = network.fc.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    pixels = torch.from_numpy(images(3)).permute(0, 3, 1, 2).float() / 255
    resized = nn.functional.interpolate(pixels, size=(32, 32), mode="bilinear", antialias=True)
    with torch.no_grad():
        network((resized - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))
    handle.remove()
    found = build(read_weights(saved(network.state_dict())), size=32)(images(3))
    assert found.shape == (3, 1024)
    torch.testing.assert_close(found, seen[0], rtol=1e-4, atol=1e-5)


def test_both_kinds_of_files_hold_the_same_tensors(network: nn.Module) -> None:
    state = network.state_dict()
    for data in (saved(state), as_safetensors(state)):
        found = read_weights(data)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], state[name]) for name in state)


def test_an_embedding_does_not_depend_on_how_many_came_with_it(network: nn.Module) -> None:
    encoder, many = build(network.state_dict()), images(70)
    whole = encoder(many)
    assert torch.equal(encoder(many[66:]), whole[66:])
    assert torch.equal(encoder(many[5:6]), whole[5:6])


def test_pixels_are_an_encoder_without_weights() -> None:
    found = Encoder(PIXELS, {}, None, (0.0,) * 3, (1.0,) * 3, "fp32", CPU)(images(2, 4))
    np.testing.assert_allclose(found, images(2, 4).transpose(0, 3, 1, 2).reshape(2, -1) / 255, rtol=1e-6)


class Evil:
    """Unpickled, it leaves a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.place,)


def test_nothing_is_unpickled(tmp_path: Path, network: nn.Module) -> None:
    trap = tmp_path / "ran"
    for data in (pickle.dumps(Evil(trap)), saved({"fc.weight": Evil(trap)}), saved(network)):
        with pytest.raises(UserError, match="save network"):
            read_weights(data)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "no file of torch.save or safetensors"),
        (b"no weights at all", "save network"),
        (saved({"state_dict": {}, "epoch": 3}), "an object with state_dict, epoch instead of tensors"),
        (saved([1]), "of another kind"),
        (b"./a\0" * 200, "save network"),  # a stack that its reader finds empty
        (b"\x80\x02.", "save network"),
        ((30).to_bytes(8, "little") + b'{"a": {"dtype": "F8", "shape":' + b"  ", "header is damaged"),
    ],
)
def test_what_holds_no_weights_is_said(data: bytes, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read_weights(data)


def test_weights_of_another_network_are_refused(network: nn.Module) -> None:
    state = network.state_dict()
    with pytest.raises(
        UserError, match=r"no weights of 'shufflenet_v2_x0_5' \(it lacks 1 tensors, the first is 'conv1"
    ):
        build({name: x for name, x in state.items() if name != "conv1.0.weight"})
    with pytest.raises(UserError, match="it has no place for 1 tensors, the first is 'more'"):
        build({**state, "more": torch.zeros(1)})
    with pytest.raises(UserError, match=r"'conv1.0.weight' is \[2\] and not \[24, 3, 3, 3\]"):
        build({**state, "conv1.0.weight": torch.zeros(2)})
    with pytest.raises(UserError, match="'squeezenet1_0' does not end in a linear layer"):
        build(state, "squeezenet1_0")


def test_every_published_weight_has_a_place_to_come_from() -> None:
    assert {"resnet50", "vit_b_16", PIXELS} <= set(encoders())
    assert published_weights("resnet50")["IMAGENET1K_V2"].endswith(".pth")


@pytest.mark.slow
def test_every_network_of_torchvision_loses_its_last_layer_alone() -> None:
    from torchvision import models

    for name in encoders()[1:]:
        if "_b7" in name or "_h_" in name or "_l_" in name or "128gf" in name:
            continue  # of the same families, too large to build many of
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        state = models.get_model(name, weights=None, **options).state_dict()
        try:
            build(state, name)
        except UserError as error:
            assert "squeezenet" in name and "does not end in a linear layer" in str(error)
