"""LLaVA-NeXT: a thumbnail, then anyres tiles stitched, unpadded and ended row by row with a newline feature."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.llava_next.modeling_llava_next import (
    get_anyres_image_grid_shape,
    image_size_to_num_patches,
)

from swiftvlm.families.base import Family, grid_cells, share_out

NO_CELL = -1


@dataclass(frozen=True)
class LlavaNext(Family):
    """`LlavaNextForConditionalGeneration`: counts vary with the image; newline features count and may be pruned."""

    name: str = "llava_next"
    model_types: tuple[str, ...] = ("llava_next",)

    def tile_grid(self, model: PreTrainedModel, request: Mapping[str, Any], image: int) -> tuple[int, int] | None:
        """The best anyres resolution for the image, in tiles."""
        config: Any = model.config
        size = [int(edge) for edge in request["image_sizes"][image]]
        grid: Any = get_anyres_image_grid_shape  # transformers leaves it untyped
        rows, columns = grid(size, config.image_grid_pinpoints, config.vision_config.image_size)
        return int(rows), int(columns)

    def cells(
        self, model: PreTrainedModel, request: Mapping[str, Any], counts: Sequence[int]
    ) -> list[Int[Tensor, "visual 4"]] | None:
        """Tile 0 is the thumbnail, tiles 1.. the anyres tiles in raster order, cells local to the tile.

        The geometry is the model's own: coordinates travel through its `pack_image_features` as if they were features.
        """
        sizes = request.get("image_sizes")
        if sizes is None:
            return None
        config: Any = model.config
        vision = config.vision_config
        side = vision.image_size // vision.patch_size
        sizes = [[int(edge) for edge in size] for size in sizes]
        # Processors pad every image to the batch's most tiles, so they are counted from the sizes, as the model does.
        tiles = [image_size_to_num_patches(size, config.image_grid_pinpoints, vision.image_size) for size in sizes]
        coordinates = [torch.stack([grid_cells(0, tile, side, side) for tile in range(n)]).float() for n in tiles]
        core: Any = self.core(model)
        packed, _ = core.pack_image_features(
            coordinates,
            sizes,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            image_newline=torch.full((4,), float(NO_CELL)),
        )
        return share_out([cells.long() for cells in packed], counts)
