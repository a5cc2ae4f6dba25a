"""Slow tiles of LLaVA-NeXT and the later cuts of VScan and Nuwa, against examples worked out by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.reference.slow_field import slow_pdrop
from tests.reference.slow_prelm import gathered, local_patches, region_candidates, slow_hiprune, slow_vscan
from tests.reference.slow_tiles import best_resolution, slow_fed, slow_nuwa_cut, slow_places, slow_shares
from tests.test_slow_prelm import head, numbers, same, tower
from tests.test_slow_rest import by_hand, one_hot

PINPOINTS = [[2, 4], [4, 2], [4, 4]]


@pytest.mark.parametrize(
    ("size", "best"),
    [
        ((2, 4), (2, 4)),  # 8 pixels used of 8, or of 16
        ((4, 4), (4, 4)),
        ((9, 3), (4, 2)),  # 1 x 4 = 4 pixels either way, least waste in 4 x 2
        ((3, 4), (4, 4)),  # 3 x 4 = 12; in 2 x 4 it would be 2 x 2
    ],
)
def test_resolutions_by_hand(size, best):
    """The most pixels of the picture that fit, then the least waste."""
    assert best_resolution(size, PINPOINTS) == best


def test_places_by_hand():
    """Tiles of 2 x 2 patches. A picture twice as wide as high fills two tiles beside each other, rows end in newlines.

    4 high, 1 wide fills tiles 1 and 2, one above the other, scaled by 1: 1 column of 2 is left, padding int(1 / 2) = 0.
    """
    thumbnail = [(0, patch) for patch in range(4)]
    wide = [(1, 0), (1, 1), (2, 0), (2, 1), None, (1, 2), (1, 3), (2, 2), (2, 3), None]
    assert slow_places((2, 4), PINPOINTS, 2, 2) == thumbnail + wide
    high = [(1, 0), (1, 1), None, (1, 2), (1, 3), None, (2, 0), (2, 1), None, (2, 2), (2, 3), None]
    assert slow_places((4, 1), PINPOINTS, 2, 2) == thumbnail + high


def test_unpadded_places_by_hand():
    """4 x 4 patches in 2 x 2 tiles, a picture of 2 x 3: int(2 * 4 / 3) = 2 rows of 4 are left, the two in the middle.

    So the lower rows of tiles 1 and 2, and the upper ones of 3 and 4.
    """
    rows = [(1, 2), (1, 3), (2, 2), (2, 3), None, (3, 0), (3, 1), (4, 0), (4, 1), None]
    assert slow_places((2, 3), [[4, 4]], 2, 2)[4:] == rows
    columns = [[(1, 1), (2, 0), None], [(1, 3), (2, 2), None], [(3, 1), (4, 0), None], [(3, 3), (4, 2), None]]
    assert slow_places((3, 2), [[4, 4]], 2, 2)[4:] == [place for row in columns for place in row]


@pytest.mark.parametrize(
    ("count", "shares"),
    [
        (5, [2, 2, 1]),  # 5 * 4/10 = 2, 5 * 3/10 = 1.5 each: the first of the two
        (4, [2, 1, 1]),  # 1.6 1.2 1.2
        (8, [3, 3, 2]),  # 3.2 2.4 2.4
        (9, [3, 3, 3]),  # 3.6 2.7 2.7
        (99, [4, 3, 3]),
    ],
)
def test_shares_by_hand(count, shares):
    """Sizes 4 3 3: rounded down, then the largest remainders, of equal ones the first."""
    assert slow_shares(count, [4, 3, 3]) == shares


def test_fed_by_hand():
    """Tiles of 2 and 3 patches, two newlines, 6 tokens: all patches, and the first newline, which is number 4."""
    places: list[Any] = [(0, 0), (0, 1), (1, 1), (1, 2), None, (1, 3), None]
    tiles = [(torch.tensor([[1.0], [2]]), [-1, 1]), (torch.tensor([[3.0], [4], [5]]), [0, 2, 1])]
    newline = torch.tensor([9.0])
    fed = slow_fed(places, newline, 6, tiles, [[0, 1], [1, 0, 1]], ordered=False)
    assert (fed.features[:, 0].tolist(), fed.numbers) == ([9, 1, 2, 3, 4, 5], [4, -1, 1, 2, 5, 3])
    assert fed.labels == [-1, 0, 1, 3, 2, 3]
    tiles[0] = (tiles[0][0], [0, 1])
    fed = slow_fed(places, newline, 5, tiles, [], ordered=True)
    assert (fed.features[:, 0].tolist(), fed.numbers) == ([1, 2, 3, 5, 4], [0, 1, 2, 3, 5])


def test_windows_by_hand():
    """The two upper rows of 6 of an 8 x 8 grid: windows {0 1 6 7} {2 3 8 9} {4 5 10 11}, scores are the numbers.

    int(32 / 2) // 16 = 1 each: the lower right; 31 tokens give int(15.5) // 16 = 0, 64 give 2.
    """
    cells = [*range(6), *range(8, 14)]
    scores = torch.arange(12.0)
    assert [sorted(local_patches(scores, 8, count, cells)) for count in (31, 32, 64)] == [
        [],
        [7, 9, 11],
        [6, 7, 8, 9, 10, 11],
    ]


def test_vscan_by_hand():
    """Eight patches, two rows of a 4 x 4 grid; two to keep, so that no window gives any: layer 22 has 2 and 5 first.

    Features 1 to 8 in the first channel, 2 and 5 also 3 and 6 in the second: (3, 3) and (6, 6) have cosine 1, so the
    lower takes all that is dropped: (3 + 1 + 2 + 4 + 5 + 7 + 8) / 7 = 30 / 7, and 3 / 7. Patches that are not there
    would be first by attention.
    """
    features = [[0.0, 0.0], *([number + 1.0, 0.0] for number in range(8)), *[[99.0, 99.0]] * 8]
    features[3][1], features[6][1] = 3, 6
    picture = tower(features, {5: head([1] * 17), 22: head([1, 1, 1, 8, 2, 1, 9, 1, 1, *[20] * 8])}, same)
    picture.here = list(range(8))
    made, places = slow_vscan(picture, 2)
    assert places == [2, 5]
    torch.testing.assert_close(made, torch.tensor([[30 / 7, 3 / 7], [6, 6]]))


def test_patches_that_are_not_there():
    """The middle rows of a 4 x 4 grid: patches 0 to 7 are cells 4 to 11.

    Regions {0 1} {2 3} {4 5} {6 7}. Around patch 0 (cell 4) lie cells 0 (gone), 3 (gone), 5 and 8, patches 1 and 4.
    """
    cells = list(range(4, 12))
    assert region_candidates(torch.arange(8.0), 4, 4, cells) == [1, 3, 5, 7]
    middle = head([1] * 17, [1, 9, 1, 1, 1, 5, *[1] * 11])  # cell 0 is first, but gone, then cell 4
    picture = tower([[0.0], *([float(cell)] for cell in range(16))], {8: middle, 22: head([1] * 17)}, same)
    picture.here = cells
    features, places = slow_hiprune(picture, 3, alpha=1)
    assert (places, numbers(features)) == ([0, 1, 4], [4, 5, 8])


def test_distances_are_those_of_the_grid():
    """2 x 2 without its second: from cell 3 (1, 1) to cell 2 it is 1, to cell 0 1.4142, beyond the radius 1.3944."""
    share = 1 - 12 / math.sqrt(280)
    made = gathered(torch.tensor([[1000.0], [100], [10]]), torch.ones(3, 1), 2, 2, [0, 2, 3])
    assert float(made) == pytest.approx(10 + 100 * share / (1 + share), rel=1e-5)


def asking() -> tuple[Any, Tensor, Tensor, int]:
    """Slots 1..4 visual, 0 5 6 text, 7 later; slot 6 is the last of the prompt. The first of two heads asks.

    In layer 1 6 weighs 2 and 4 with 5 where it does not turn, 5 weighs 1; in layer 2 6 weighs 3 with 4 and 2 with 3.
    """
    queries, keys = torch.zeros(2, 2, 8, 4), torch.zeros(2, 2, 8, 4)
    queries[0, 0, 6, 0] = queries[0, 0, 5, 1] = queries[1, 0, 6, 1] = 2
    keys[0, 0, 2, 0] = keys[0, 0, 4, 0] = keys[0, 0, 1, 1] = math.log(5)
    keys[1, 0, 3, 1], keys[1, 0, 2, 1] = math.log(4), math.log(3)
    one, two = ({"q": queries[layer], "k": keys[layer]} for layer in range(2))
    return by_hand(8, [{}, one, two]), *one_hot(8, 4), 7


def test_nuwa_cut_by_hand():
    """Positions 0 1 4 5 8 9 10 11, so that 2 is 6 before the last and 4 is 2 before it: cosines .96 and -.42.

    Behind layer 1: 5 to the power of these, 4.69 and .51, and 1 for the other five of 7 slots; head 2 is even, 1/7.
    """
    model, embeds, visual, length = asking()
    positions = torch.tensor([0, 1, 4, 5, 8, 9, 10, 11])
    made = slow_nuwa_cut(model, embeds, visual, length, after=2, count=2, positions=positions)
    two, four = 5 ** math.cos(6), 5 ** math.cos(2)
    total = two + four + 5
    expected = {1: 1 / total, 2: two / total, 3: 1 / total, 4: four / total}
    assert made.scores[0] == pytest.approx({slot: (value + 1 / 7) / 2 for slot, value in expected.items()}, rel=1e-5)
    assert made.kept == [[1, 2]]
    assert made.present == [list(range(8))] * 2 + [[0, 1, 2, 5, 6, 7]]


def test_vscan_cut_by_hand():
    """VScan ranks as PyramidDrop, by the layer that comes next: 4 for 3 and 3 for 2, of 1 + 1 + 3 + 4 + 3."""
    made = slow_pdrop(*asking(), layers=(2,), counts=(1,))
    expected = {1: 1 / 12, 2: 3 / 12, 3: 4 / 12, 4: 1 / 12}
    assert made.scores[0] == pytest.approx({slot: (value + 1 / 7) / 2 for slot, value in expected.items()}, rel=1e-5)
    assert made.kept == [[3]]
