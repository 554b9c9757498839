"""A random part of every image in every epoch, as networks on large photographs are trained."""

from functools import partial

from pydantic import Field, model_validator

from models.supervised import SupervisedConfig
from pipeline import counter
from pipeline.config import Config
from pipeline.decoder import Views
from pipeline.epoch_order import Ids
from pipeline.images import Box, Crop


class RandomCrop(Config):
    """Which parts of images are seen.

    Unlike torchvision's RandomResizedCrop, which draws again what does not fit, a ratio is clipped to one that does.
    """

    area: tuple[float, float] = Field(default=(0.08, 1.0), description="of the part, as a fraction of the image's")
    ratio: tuple[float, float] = Field(
        default=(0.75, 4 / 3), description="of the part's width to its height, where that fits"
    )
    flip: bool = Field(default=True, description="mirror half of the images")

    @model_validator(mode="after")
    def _agree(self) -> "RandomCrop":
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError("area must be two fractions above 0 and up to 1, the smaller one first")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError("ratio must be two numbers above 0, the smaller one first")
        return self

    def views(self, seed: int, purpose: str, epoch: int, ids: Ids) -> list[tuple[Crop, bool]]:
        """What to cut out of each image, and whether to mirror it: a function of (seed, purpose, epoch, id) alone."""
        draws = [counter.uniform(seed, purpose + " crop", epoch, ids, draw).tolist() for draw in range(5)]
        return [(partial(self._box, draws=draw), self.flip and draw[4] < 0.5) for draw in zip(*draws, strict=True)]

    def _box(self, width: int, height: int, draws: tuple[float, ...]) -> Box:
        area, ratio, x, y = draws[:4]
        wanted = (self.area[0] + area * (self.area[1] - self.area[0])) * width * height
        shape = self.ratio[0] * (self.ratio[1] / self.ratio[0]) ** ratio
        shape = min(max(shape, wanted / height**2), width**2 / wanted)
        across = min(max(round((wanted * shape) ** 0.5), 1), width)
        down = min(max(round((wanted / shape) ** 0.5), 1), height)
        return int(x * (width - across + 1)), int(y * (height - down + 1)), across, down


class CroppedTraining(SupervisedConfig):
    """A supervised training. Parts are cut from whole images: a training with them streams from the shards."""

    random_crop: RandomCrop | None = Field(
        default=None, description="the part of each image that an epoch sees; null: the centre square"
    )

    def views(self, seed: int, purpose: str) -> Views | None:
        """For `pipeline.stream`."""
        return None if self.random_crop is None else partial(self.random_crop.views, seed, purpose)
