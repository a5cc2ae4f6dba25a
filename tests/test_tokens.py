"""The token algebra, by hand on a few numbers and by property on random ones."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swiftvlm import tokens

FEW = settings(max_examples=60, deadline=None, derandomize=True)


def test_keep_top_by_hand():
    """Best first, ties to the lower index, only candidates, each row its own count."""
    scores = torch.tensor([[0.5, 0.9, 0.5, 0.5], [0.1, 0.2, 0.3, 9.0]])
    candidates = torch.tensor([[True, True, True, True], [True, True, True, False]])
    kept = tokens.keep_top(scores, candidates, torch.tensor([2, 1]))
    assert kept.tolist() == [[True, True, False, False], [False, False, True, False]]


def test_strided_by_hand():
    """7 low tokens, 3 anchors: every second one, the first three."""
    low = torch.tensor([[False, True, True, True, True, True, True, True]])
    assert tokens.strided(low, torch.tensor([3])).int().tolist() == [[0, 1, 0, 1, 0, 1, 0, 0]]


def test_group_merge_and_unmerge_by_hand():
    """Two directions, two anchors; the third anchor-like token joins the nearer; means and offsets go to members."""
    states = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [3.0, 0.3], [0.1, 1.0], [5.0, 5.0]]])
    low = torch.tensor([[True, True, True, True, False]])
    anchors = torch.tensor([[True, True, False, False, False]])
    groups = tokens.group(states, low, anchors, 2)
    assert groups.tolist() == [[0, 1, 0, 1, -1]]
    means = tokens.means(states, groups, 2)
    torch.testing.assert_close(means, torch.tensor([[[2.0, 0.15], [0.05, 1.5]]]))
    offsets = torch.tensor([[[1.0, 1.0], [-1.0, 0.0]]])
    expected = [[[1.0, 1.0], [-1.0, 0.0], [1.0, 1.0], [-1.0, 0.0], [0.0, 0.0]]]
    assert tokens.unmerge(offsets, groups).tolist() == expected


def test_an_anchor_stays_in_its_own_group():
    """Two equal anchors: the second would be nearest to the first by the tie rule, but keeps its own group."""
    states = torch.ones(1, 3, 2)
    anchors = torch.tensor([[True, True, False]])
    assert tokens.group(states, torch.ones(1, 3, dtype=torch.bool), anchors, 2).tolist() == [[0, 1, 0]]


def test_rows_reads_token_zero_for_fillers_and_spreads_a_batch_of_one():
    """Negative indexes are fillers; a (1, tokens) tensor serves every row."""
    cos = torch.arange(4.0)[None, :, None].expand(1, 4, 2)
    out = tokens.rows(cos, torch.tensor([[-1, 3], [1, 2]]))
    assert out[..., 0].tolist() == [[0.0, 3.0], [1.0, 2.0]]


@given(seed=st.integers(0, 9999), length=st.integers(1, 30), keep=st.integers(0, 30))
@FEW
def test_keep_top_keeps_the_highest(seed, length, keep):
    """No token left out beats one that was kept, and the count is exact."""
    scores = torch.rand(1, length, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    candidates = torch.ones(1, length, dtype=torch.bool)
    kept = tokens.keep_top(scores, candidates, torch.tensor([keep]))[0]
    assert int(kept.sum()) == min(keep, length)
    assert not kept.any() or kept.all() or scores[0][kept].min() >= scores[0][~kept].max()


@given(seed=st.integers(0, 9999), length=st.integers(1, 40), count=st.integers(1, 40))
@FEW
def test_strided_marks_exactly_as_many_as_there_can_be(seed, length, count):
    """min(Z, R) anchors, all of them low, the first low token among them."""
    low = torch.rand(2, length, generator=torch.Generator().manual_seed(seed)) < 0.7
    anchors = tokens.strided(low, torch.tensor([count, count]))
    assert (anchors & ~low).sum() == 0
    assert anchors.sum(1).tolist() == low.sum(1).clamp(max=count).tolist()


@given(seed=st.integers(0, 9999), count=st.integers(1, 8))
@FEW
def test_group_means_keep_the_sum(seed, count):
    """Group means times group sizes add up to the sum of all low states: merging invents nothing."""
    generator = torch.Generator().manual_seed(seed)
    states, low = torch.randn(1, 20, 4, generator=generator), torch.rand(1, 20, generator=generator) < 0.8
    anchors = tokens.strided(low, torch.tensor([count]))
    groups = tokens.group(states, low, anchors, count)
    sizes = tokens.membership(groups, count).sum(1)
    total = (tokens.means(states, groups, count) * sizes[..., None]).sum(1)
    torch.testing.assert_close(total, (states * low[..., None]).sum(1), atol=1e-5, rtol=0)


def test_anchors_cover_the_image():
    """A 3 x 3 tile with its middle kept, then a newline: corners first, each as far as can be from those before."""
    cells = torch.tensor([[[0, 0, row, column] for row in range(3) for column in range(3)] + [[0, -1, -1, -1]]])
    low = torch.tensor([[True] * 4 + [False] + [True] * 5])

    def anchors(count: int) -> list[int]:
        return tokens.covering(low, cells, torch.tensor([count]))[0].nonzero()[:, 0].tolist()

    assert anchors(0) == []
    assert anchors(1) == [0]
    assert anchors(2) == [0, 8]  # the opposite corner
    assert anchors(4) == [0, 2, 6, 8]  # of two corners equally far, the first, then the other
    assert anchors(8) == [0, 1, 2, 3, 5, 6, 7, 8]  # the newline comes last
    assert anchors(9) == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert anchors(12) == anchors(9)


def test_tiles_share_anchors():
    """Two tiles of two patches: the second anchor stands in the other tile."""
    cells = torch.tensor([[[0, 0, 0, 0], [0, 0, 0, 9], [0, 1, 0, 0], [0, 1, 0, 1]]])
    found = tokens.covering(torch.ones(1, 4, dtype=torch.bool), cells, torch.tensor([2]))
    assert found[0].tolist() == [True, False, False, True]
