"""LLaVA-NeXT: a thumbnail, then anyres tiles stitched, unpadded and ended row by row with a newline feature."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

from swiftvlm.families.base import Family, clip_layers, grid_cells

NO_CELL = -1


@dataclass(frozen=True)
class LlavaNext(Family):
    """`LlavaNextForConditionalGeneration`: counts vary with the image; newline features count and may be pruned."""

    name: str = "llava_next"
    model_types: tuple[str, ...] = ("llava_next",)
    tiled: bool = True

    def tile_grid(self, model: PreTrainedModel, request: Mapping[str, Any], image: int) -> tuple[int, int] | None:
        """The best anyres resolution for the image, in tiles."""
        config: Any = model.config
        size = [int(edge) for edge in request["image_sizes"][image]]
        grid: Any = get_anyres_image_grid_shape  # transformers leaves it untyped
        rows, columns = grid(size, config.image_grid_pinpoints, config.vision_config.image_size)
        return int(rows), int(columns)

    def tower_layers(self, model: PreTrainedModel) -> Sequence[nn.Module]:
        """CLIP's."""
        return clip_layers(self.core(model).get_submodule("vision_tower"))

    def cells(
        self, model: PreTrainedModel, features: Float[Tensor, "visual dim"], tiles: Sequence[Tensor] = ()
    ) -> Int[Tensor, "visual 4"] | None:
        """Tile 0 is the thumbnail, tiles 1.. the anyres tiles in raster order, cells local to the tile.

        Rows are read off the newline features, which end every row of patches: generate encodes images before the
        prefill, so image sizes do not reach it. Where several grids of tiles leave as many rows, `tiles` decides. None
        where the features do not fall into such images, or are of no tile that was seen.
        """
        core: Any = self.core(model)
        vision: Any = model.config.vision_config
        side = vision.image_size // vision.patch_size
        # All channels equal: the model puts in this very vector.
        newline = (features == core.image_newline.to(features)).all(-1).cpu()
        images: list[Tensor] = []
        start = 0
        while start < len(features):
            # The thumbnail comes first and has no newlines.
            rows, columns = _extent(newline[start + side * side :])
            grids = self._grids(model, rows, columns, side)
            fitting = [_image_cells(len(images), grid, rows, columns, side) for grid in grids]
            # Comparing waits for the device, so tiles are asked only where rows and columns leave a doubt.
            if not _certain(grids, rows, columns, side):
                fitting = [cells for cells in fitting if _shows(cells, features[start:], tiles, side)]
            if not fitting:
                return None
            images.append(fitting[0])
            start += len(images[-1])
        return torch.cat([torch.zeros(0, 4, dtype=torch.long), *images]) if start == len(features) else None

    def _grids(self, model: PreTrainedModel, rows: int, columns: int, side: int) -> list[tuple[int, int]]:
        """The resolutions, in tiles, that `rows` x `columns` patches can be the unpadded middle of; the smallest first.

        One axis is unpadded only, evenly on both sides.
        """
        config: Any = model.config
        edge = config.vision_config.image_size
        grids = [(height // edge, width // edge) for height, width in config.image_grid_pinpoints]
        fitting = [
            (high, wide)
            for high, wide in grids
            if (high * side == rows and wide * side >= columns) or (wide * side == columns and high * side >= rows)
        ]
        return sorted(fitting, key=lambda grid: grid[0] * grid[1]) if rows else []


def _certain(grids: Sequence[tuple[int, int]], rows: int, columns: int, side: int) -> bool:
    """Whether the first of these grids is the image's, by its rows and columns alone.

    Padding makes a larger grid wasteful, so the smallest is taken, unless the image is a little less oblong than that
    grid: then it lies in the middle of a larger one, and rounding may leave it as many rows as would fill the smaller.
    """
    sizes = [high * wide for high, wide in grids]
    full = bool(grids) and (grids[0][0] * side, grids[0][1] * side) == (rows, columns)
    return len(grids) == 1 or (len(grids) > 1 and not full and sizes[0] < sizes[1])


def _shows(cells: Tensor, features: Tensor, tiles: Sequence[Tensor], side: int) -> bool:
    """Whether an image with these cells (visual, 4) shows tiles that were encoded one behind the other."""
    count = int(cells[:, 1].max()) + 1
    placed = (cells[:, 2] >= 0).nonzero()[:, 0]
    if len(tiles) < count or len(features) < len(cells):
        return False
    known = torch.stack(list(tiles)).to(features)
    tile, patch = cells[placed, 1], cells[placed, 2] * side + cells[placed, 3]
    own = features[placed, : known.shape[2]]
    # Bit for bit: the model puts these very features into the prompt, cast to its type.
    return any(torch.equal(known[first + tile, patch], own) for first in range(len(tiles) - count + 1))


def _extent(newline: Tensor) -> tuple[int, int]:
    """(rows, columns) of the patches behind a thumbnail: how far to the first newline, and how often it recurs."""
    ends = newline.nonzero()[:, 0]
    if not len(ends):
        return 0, 0
    columns, rows = int(ends[0]), 0
    # The next image starts with a thumbnail, where no newline is due.
    while rows < len(ends) and int(ends[rows]) == (rows + 1) * (columns + 1) - 1:
        rows += 1
    return rows, columns


def _image_cells(image: int, grid: tuple[int, int], rows: int, columns: int, side: int) -> Int[Tensor, "visual 4"]:
    """Thumbnail, then the unpadded middle of a grid of tiles, row by row with a newline behind each."""
    top, left = (grid[0] * side - rows) // 2, (grid[1] * side - columns) // 2
    row, column = torch.meshgrid(torch.arange(rows) + top, torch.arange(columns) + left, indexing="ij")
    # Of the padded grid: an unpadded tile at the edge begins with a row or column that is not its first.
    tile = 1 + (row // side) * grid[1] + column // side
    patches = torch.stack([torch.full_like(row, image), tile, row % side, column % side], dim=-1)
    ends = torch.tensor([image, NO_CELL, NO_CELL, NO_CELL]).expand(rows, 1, 4)
    return torch.cat([grid_cells(image, 0, side, side), torch.cat([patches, ends], dim=1).reshape(-1, 4)])
