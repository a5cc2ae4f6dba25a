"""Pure tensor algebra on the token axis: select, group, merge, unmerge. No model and no transformers type in sight.

Axes: `batch`; `tokens` of a padded row; `heads`; `groups`; `dim`. Masks mark which tokens a row really has, so rows of
different lengths share one call. Every choice breaks ties towards the lower index, on every device.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def keep_top(
    scores: Float[Tensor, "batch tokens"], candidates: Bool[Tensor, "batch tokens"], keep: Int[Tensor, " batch"]
) -> Bool[Tensor, "batch tokens"]:
    """Mark the `keep[row]` best candidates of each row; equal scores: the lower index wins (a stable sort)."""
    # Not topk: its order among equal scores differs between devices and sizes.
    # A candidate rated -inf would tie with tokens that are none and may lose its rank to them: scores must be finite.
    ranked = scores.float().masked_fill(~candidates, -torch.inf)
    order = ranked.sort(dim=1, descending=True, stable=True).indices
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return candidates & (rank < keep[:, None])


def strided(low: Bool[Tensor, "batch tokens"], count: Int[Tensor, " batch"]) -> Bool[Tensor, "batch tokens"]:
    """Mark `count[row]` anchors spread evenly over the low tokens in raster order: every (R // Z)-th, the first Z."""
    # VisionZip's spacing: the step is rounded down, so the tail of the image has fewer anchors, never too few of them.
    rank = low.cumsum(1) - 1
    step = (low.sum(1) // count.clamp(min=1)).clamp(min=1)[:, None]
    return low & (rank % step == 0) & (rank // step < count[:, None])


def covering(
    low: Bool[Tensor, "batch tokens"], cells: Int[Tensor, "batch tokens 4"], count: Int[Tensor, " batch"]
) -> Bool[Tensor, "batch tokens"]:
    """Mark `count[row]` anchors spread over the image: each is the low token farthest from those before it.

    `cells`: image, tile, row, column; the first anchor is the first low token, ties go to the lower index. Tiles are
    far from each other, and tokens without a place (newlines) come last.
    """
    # A tile's diagonal is far below 1000 cells. In double: beside another image a row and a column must still count.
    apart_by = torch.tensor([1e6, 1e3, 1.0, 1.0], device=cells.device, dtype=torch.double)
    place = cells * apart_by
    own = torch.arange(low.shape[1], device=low.device)
    # inf: no anchor yet; 0: without a place, below any distance between two cells; -inf: not to be picked.
    gap = torch.where(low, torch.where(cells[..., 2] >= 0, torch.inf, 0.0), -torch.inf).double()
    anchors = torch.zeros_like(low)
    for step in range(int(count.max())):
        best = gap.amax(1, keepdim=True)
        pick = torch.where((gap == best) & low, own, low.shape[1] - 1).amin(1, keepdim=True)
        # Rows whose anchors are all found go on beside the others, without effect.
        due = (step < count[:, None]) & (best > -torch.inf)
        anchors |= (own == pick) & due
        apart = (place - place.gather(1, pick[..., None].expand(-1, -1, 4))).norm(dim=-1)
        gap = torch.where(anchors, -torch.inf, torch.minimum(gap, apart))
    return anchors


def group(
    states: Float[Tensor, "batch tokens dim"],
    low: Bool[Tensor, "batch tokens"],
    anchors: Bool[Tensor, "batch tokens"],
    most: int,
    refine: int = 0,
) -> Int[Tensor, "batch tokens"]:
    """Assign every low token to the anchor of highest cosine similarity (paper eq. 10); -1 for all other tokens.

    Groups are numbered by their anchor's place; an anchor stays in its own group. `refine` repeats the assignment
    against the groups' means (k-means steps on the sphere).
    """
    # Cosines in float32 whatever the model's type: bf16 would make neighbours tie.
    index, real = places(anchors, most)
    unit = torch.nn.functional.normalize(states.float(), dim=-1, eps=1e-12)
    own = anchors.cumsum(1) - 1
    centres = unit.gather(1, index[..., None].expand(-1, -1, unit.shape[-1]))
    for step in range(refine + 1):
        # (batch, tokens, groups); of equal maxima `max` over a dimension gives the first, which topk does not promise.
        similarity = (unit @ centres.transpose(1, 2)).masked_fill(~real[:, None, :], -torch.inf)
        nearest = similarity.max(dim=-1).indices if most else torch.zeros_like(own)
        # Even where another anchor points the same way: a group without its anchor would have no slot to live in.
        groups = torch.where(anchors, own, nearest).masked_fill(~low, -1)
        if step < refine:
            centres = torch.nn.functional.normalize(means(states, groups, most), dim=-1, eps=1e-12)
    return groups


def peaks(
    states: Float[Tensor, "batch tokens dim"], low: Bool[Tensor, "batch tokens"], count: Int[Tensor, " batch"]
) -> tuple[Bool[Tensor, "batch tokens"], Int[Tensor, "batch tokens"]]:
    """Density-peak clusters of the low tokens: `count[row]` centres, and everyone's group, -1 for tokens not low.

    Density is exp(-mean squared distance to the `count` nearest, oneself among them); a centre has a high product of
    density and distance to the nearest denser token. Everyone else joins the nearest centre. (SparseVLM's clustering
    without its random addend; of equally dense tokens the lower index counts as the denser one.)
    """
    index, real = places(low, int(low.sum(1).max()))
    # (batch, low, dim): what follows is quadratic, so it looks at no other token.
    members = rows(states.float(), index)
    # Not by matrix products: they round distances of near neighbours, and equal tokens would differ.
    gap = torch.cdist(members, members, compute_mode="donot_use_mm_for_euclid_dist") / states.shape[-1] ** 0.5
    both = real[:, :, None] & real[:, None, :]
    density = _density(gap.masked_fill(~both, torch.inf), count)
    # Densities are at least 0: -1 ranks places that hold no token behind all others.
    rank = density.masked_fill(~real, -1.0).sort(dim=1, descending=True, stable=True).indices.argsort(1)
    # (batch, token, other): is the other denser? For the densest none is, and the widest distance stands in.
    denser = both & (rank[:, None, :] < rank[:, :, None])
    delta = gap.masked_fill(~denser, torch.inf).amin(2)
    widest = gap.masked_fill(~both, 0.0).amax((1, 2))[:, None]
    centres = keep_top(density * torch.where(delta.isinf(), widest, delta), real, count)
    nearest = gap.masked_fill(~centres[:, None, :], torch.inf).argmin(2)
    # A centre leads its own group, also where an equal token is a centre too.
    joined = torch.where(centres, torch.arange(gap.shape[1], device=gap.device), nearest)
    groups = (centres.cumsum(1) - 1).gather(1, joined)
    slot = index.masked_fill(~real, low.shape[1])
    return _put(centres & real, slot, low.shape[1], False), _put(groups, slot, low.shape[1], -1)


def labelled(
    low: Bool[Tensor, "batch tokens"], labels: Int[Tensor, "batch tokens"], count: Int[Tensor, " batch"]
) -> tuple[Bool[Tensor, "batch tokens"], Int[Tensor, "batch tokens"]]:
    """The low tokens of each of the first `count[row]` labels are a group, and its middle one is its anchor.

    Of 2 n tokens the later middle. Groups are numbered by their anchor's place, -1 for tokens in none.
    """
    labels = labels.masked_fill(~low | (labels >= count[:, None]), -1)
    alike = (labels[:, :, None] == labels[:, None, :]) & (labels >= 0)[:, :, None]
    before = torch.tril(alike, -1).sum(2)
    anchors = (labels >= 0) & (before == alike.sum(2) // 2)
    rank = anchors.cumsum(1) - 1
    # Every token's group has one anchor: its rank is the group's number.
    number = (alike & anchors[:, None, :]).to(rank.dtype).mul(rank[:, None, :] + 1).sum(2)
    return anchors, number - 1


def _density(gap: Float[Tensor, "batch low low"], count: Int[Tensor, " batch"]) -> Float[Tensor, "batch low"]:
    """From distances (inf: not there) to the `count[row]` nearest of each."""
    nearest = gap.square().sort(dim=2).values
    counted = (torch.arange(gap.shape[2], device=gap.device) < count[:, None])[:, None, :] & ~nearest.isinf()
    total = nearest.masked_fill(~counted, 0.0).sum(2)
    return torch.exp(-total / counted.sum(2).clamp(min=1))


def _put(values: Tensor, slot: Int[Tensor, "batch low"], tokens: int, empty: int | bool) -> Tensor:
    """Values back at their tokens; slots past the end stand for none."""
    whole = torch.full((len(values), tokens + 1), empty, dtype=values.dtype, device=values.device)
    return whole.scatter_(1, slot, values)[:, :tokens]


def places(
    mask: Bool[Tensor, "batch tokens"], most: int
) -> tuple[Int[Tensor, "batch groups"], Bool[Tensor, "batch groups"]]:
    """Ascending indexes of the marked tokens, and which are real: rows with fewer than `most` are padded with 0."""
    counts = mask.sum(1)
    order = mask.to(torch.int8).sort(dim=1, descending=True, stable=True).indices[:, :most]
    real = torch.arange(most, device=mask.device) < counts[:, None]
    return order.masked_fill(~real, 0), real


def membership(groups: Int[Tensor, "batch tokens"], count: int) -> Float[Tensor, "batch tokens groups"]:
    """One-hot float32 matrix of who belongs to which group; a row of zeros for tokens in none."""
    return (groups[..., None] == torch.arange(count, device=groups.device)).float()


def means(
    states: Float[Tensor, "batch tokens dim"], groups: Int[Tensor, "batch tokens"], count: int
) -> Float[Tensor, "batch groups dim"]:
    """Plain mean of each group's states in float32 (paper eq. 11): one matmul, so the order of sums is fixed."""
    # A matmul, not index_add: atomics would sum in another order on every run.
    belongs = membership(groups, count)
    size = belongs.sum(1).clamp(min=1)[..., None]
    return (belongs.transpose(1, 2) @ states.float()) / size


def unmerge(
    offsets: Float[Tensor, "batch groups dim"], groups: Int[Tensor, "batch tokens"]
) -> Float[Tensor, "batch tokens dim"]:
    """Give every member its group's offset (paper eq. 13); zero for tokens in no group."""
    return membership(groups, offsets.shape[1]) @ offsets.float()


def rows(tensor: Tensor, index: Int[Tensor, "batch chosen"]) -> Tensor:
    """Gather `tensor` (batch or 1, tokens, ...) along its token axis, row by row; negative indexes read token 0."""
    # Views up to the gather: cos and sin of batch 1 serve every row without a copy.
    tensor = tensor.expand(index.shape[0], *tensor.shape[1:])
    index = index.clamp(min=0).view(*index.shape, *[1] * (tensor.dim() - 2))
    return tensor.gather(1, index.expand(*index.shape[:2], *tensor.shape[2:]))
