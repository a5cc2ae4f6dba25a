"""LLaVA-1.5: one square grid of patches an image, placed at the `<image>` placeholders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from swiftvlm.families.base import Family, grid_cells, share_out


@dataclass(frozen=True)
class Llava(Family):
    """`LlavaForConditionalGeneration`: 576 visual tokens an image at 336 px and patch 14, in raster order."""

    name: str = "llava"
    model_types: tuple[str, ...] = ("llava",)

    def cells(
        self, model: PreTrainedModel, request: Mapping[str, Any], counts: Sequence[int]
    ) -> list[Int[Tensor, "visual 4"]] | None:
        """Every token has a cell of its image's grid; there is one tile."""
        vision: Any = model.config.vision_config
        side = vision.image_size // vision.patch_size
        images = [grid_cells(0, 0, side, side)] * (sum(counts) // max(side * side, 1))
        return share_out(images, counts)
