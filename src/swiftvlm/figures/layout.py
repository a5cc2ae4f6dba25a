"""Where the patches of one image lie: its only grid, or a thumbnail and stitched anyres tiles."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from swiftvlm.errors import TraceError


@dataclass(frozen=True)
class Panel:
    """One grid of patches to draw. `place`: (row, column) of each token, -1 where it lies in another panel or nowhere.

    `fitted`: the picture keeps its proportions inside the grid, centred, as anyres tiles do; else it fills the grid.
    """

    name: str
    rows: int
    columns: int
    place: Int[Tensor, "visual 2"]
    fitted: bool = False

    def holds(self) -> Bool[Tensor, " visual"]:
        """Which tokens lie in this panel."""
        return self.place[:, 0] >= 0

    def bounds(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of what its tokens cover, in patches; the whole grid where there are none."""
        placed = self.place[self.holds()]
        if not len(placed):
            return 0, 0, self.columns, self.rows
        (top, left), (bottom, right) = placed.amin(0).tolist(), placed.amax(0).tolist()
        return left, top, right + 1, bottom + 1

    def frame(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of a picture of this size in pixels, in patches from the grid's upper left."""
        if not self.fitted:
            return 0.0, 0.0, float(self.columns), float(self.rows)
        # In patches a pixel: the picture fills one axis of the grid and is centred on the other.
        scale = min(self.columns / width, self.rows / height)
        left, top = (self.columns - width * scale) / 2, (self.rows - height * scale) / 2
        return left, top, self.columns - left, self.rows - top


def layout_of(cells: Int[Tensor, "visual 4"], tile_grid: tuple[int, int] | None = None) -> tuple[Panel, ...]:
    """The panels of one image: its only grid, or the thumbnail and the anyres tiles stitched together.

    `cells`: (image, tile, row, column) of one image's tokens, as in `Run.cells`. `tile_grid`: (rows, columns) of tiles;
    None reads them from the order of the tokens, which runs through the stitched picture row by row. Raises
    `TraceError` where that order does not tell, or where `tile_grid` has no room for the tiles.
    """
    tile, within = cells[:, 1], cells[:, 2:]
    if not bool((tile == 0).any()):
        raise TraceError(f"none of the {len(cells)} cells lies in tile 0, so the grid's size is unknown")
    # Every tile is as large as tile 0; the others may have lost rows or columns to unpadding.
    high, wide = (within[tile == 0].amax(0) + 1).tolist()
    # Newlines have tile -1 and lie in no panel.
    first = Panel("picture", high, wide, torch.where((tile == 0)[:, None], within, -1))
    if not bool((tile > 0).any()):
        return (first,)
    # argmax of a mask is its first True: the first token behind the thumbnail.
    down, across = _tile_grid(cells[int((tile > 0).int().argmax()) :], tile_grid)
    # Tiles count from 1, row by row; a cell's row and column are those within its tile.
    corner = torch.stack([(tile - 1) // across * high, (tile - 1) % across * wide], dim=1)
    stitched = torch.where((tile > 0)[:, None], corner + within, -1)
    thumbnail = Panel("thumbnail", high, wide, first.place)
    return thumbnail, Panel("tiles", down * high, across * wide, stitched, fitted=True)


def _tile_grid(tiles: Int[Tensor, "visual 4"], given: tuple[int, int] | None) -> tuple[int, int]:
    """(rows, columns) of anyres tiles, from the cells behind the thumbnail."""
    most = int(tiles[:, 1].max())
    if given is not None:
        if min(given) < 1 or given[0] * given[1] < most:
            raise TraceError(f"tile_grid={given} (rows, columns) has no room for this image's {most} tiles")
        return given
    # The first row of the stitched picture ends at a newline, or where the next row of patches begins.
    changed = (tiles[:, 2] != tiles[0, 2]).int()
    end = int(changed.argmax()) if bool(changed.any()) else len(tiles)
    across = int(tiles[end - 1, 1])
    # Padding can swallow whole tiles; which ones, the tokens that are left do not say.
    if int(tiles[0, 1]) != 1 or most % across:
        raise TraceError(
            f"{most} tiles whose first row of patches runs through tiles {int(tiles[0, 1])} to {across}: their grid "
            "cannot be read from the tokens; pass tile_grid=(rows, columns)"
        )
    return most // across, across
