"""LLaVA-1.5: one square grid of patches an image, placed at the `<image>` placeholders."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from swiftvlm.families.base import Family, clip_layers, grid_cells


@dataclass(frozen=True)
class Llava(Family):
    """`LlavaForConditionalGeneration`: 576 visual tokens an image at 336 px and patch 14, in raster order."""

    name: str = "llava"
    model_types: tuple[str, ...] = ("llava",)

    def tower_layers(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """CLIP's."""
        return clip_layers(self.core(model).get_submodule("vision_tower"))

    def cells(
        self, model: PreTrainedModel, features: Float[Tensor, "visual dim"], tiles: Sequence[Tensor] = ()
    ) -> Int[Tensor, "visual 4"] | None:
        """Every token has a cell of its image's grid; there is one tile. None for no whole number of images."""
        vision: Any = model.config.vision_config
        side = vision.image_size // vision.patch_size
        images, left = divmod(len(features), side * side)
        grids = [grid_cells(image, 0, side, side) for image in range(images)]
        # The empty one gives a row without images its shape: cat of nothing is an error.
        return None if left else torch.cat([torch.zeros(0, 4, dtype=torch.long), *grids])
