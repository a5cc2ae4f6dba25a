"""Labels for every patch: what the tower and the projector are asked for, besides the answers."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swiftvlm.mini import codes
from swiftvlm.scenes import COLORS, KINDS, LETTERS, PATCH, SIDE

WEIGHTS = {"code": 0.3, "word": 0.3, "box": 2.0}  # of the losses, so that none drowns the others
SLOTS = range(codes.SLOTS)


class Heads(nn.Module):
    """What the tower's output is asked for directly; thrown away after training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        letters = len(LETTERS) + 1
        # Each with a class for none, `kind` with one for signs as well; then the four edges of the box.
        self.sizes = [len(KINDS) + 2, len(COLORS) + 1, letters, *[letters] * codes.SLOTS, 4]
        self.patch = nn.Linear(width, sum(self.sizes))
        self.whole = nn.Linear(width, len(KINDS))

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """Of `hidden` (rows, patches, width): logits of kind, color, letter and each slot, then box offsets."""
        return torch.split(self.patch(hidden), self.sizes, dim=-1)


def patch_loss(heads: Heads, hidden: Tensor, projected: Tensor, labels: codes.Patches) -> dict[str, Tensor]:
    """Losses of the tower's output (rows, 1 + patches, width) and of its projection against the patches' labels."""
    first, rest = hidden[:, 0], hidden[:, 1:]
    kind, color, letter, *slots, offsets = heads(rest)
    shown = labels.kind > 0
    core = labels.kind[shown], labels.color[shown], labels.word[shown]
    # Nothing is by far the commonest label, of kinds here and of letters below: it weighs less.
    rare = torch.where(shown, 1.0, 0.15)
    every = F.cross_entropy(kind.transpose(1, 2), labels.kind, reduction="none")
    found = {"kind": (every * rare).sum() / rare.sum()}
    found["color"] = F.cross_entropy(color[shown], core[1])
    weight = torch.where(labels.letter > 0, 1.0, 0.01)
    read = F.cross_entropy(letter.transpose(1, 2), labels.letter, reduction="none")
    found["letter"] = (read * weight).sum() / weight.sum()
    sign = core[0] == codes.SIGN
    if sign.any():
        # Empty slots count, too: a word of two letters must not get a third.
        found["word"] = torch.stack([F.cross_entropy(slots[i][shown][sign], core[2][sign, i]) for i in SLOTS]).sum()
    # In patches, from the patch's own middle: edges are small numbers at every place of the grid.
    around = (labels.box - labels.spot.repeat(1, 1, 2)) * SIDE / PATCH
    found["box"] = F.smooth_l1_loss(offsets[shown], around[shown], beta=0.2)
    # (rows, kinds): which kinds the picture has anywhere; the classes for none and for signs are cut off.
    there = F.one_hot(labels.kind, len(KINDS) + 2).amax(1)[:, 1:-1].float()
    found["whole"] = F.binary_cross_entropy_with_logits(heads.whole(first), there)
    target = codes.encode(labels, projected.shape[-1])
    wrong = ((projected - target) ** 2).sum(-1)
    # Two means, since codes stand on few patches and the sum over all others would outweigh them.
    found["code"] = wrong[labels.middle].mean() + 0.3 * wrong[~labels.middle].mean()
    return found


def read_codes(projected: Tensor, labels: codes.Patches) -> dict[str, float]:
    """How often projected tokens (rows, patches, dim) say kind, colour, first letters and (to 4 pixels) box edges."""
    split = torch.split(projected[..., : codes.WIDTH], list(codes.WIDTHS.values()), dim=-1)
    parts = dict(zip(codes.WIDTHS, split, strict=True))
    shown = labels.middle
    sign = shown & (labels.kind == codes.SIGN)
    thing = shown & ~sign
    # An argmax names a letter in empty slots, too; only the first two, which every sign has, are compared below.
    guess = parts["word"].reshape(*projected.shape[:2], codes.SLOTS, -1).argmax(-1) + 1
    wave = parts["box"].reshape(*projected.shape[:2], 4, -1) / codes.BOX_SCALE
    # One candidate for every pixel at which an edge may lie, 0 to 336.
    grid = torch.linspace(0, 1, 337, device=projected.device)
    keys = codes.waves(grid[:, None].expand(-1, 4)).reshape(len(grid), 4, -1)[:, 0]
    # All points on the waves are equally long: the largest product is the nearest point.
    edges = (wave[shown] @ keys.T).argmax(-1) / 336
    return {
        "kind": float((parts["kind"].argmax(-1) + 1 == labels.kind)[shown].float().mean()),
        "color": float((parts["color"].argmax(-1) + 1 == labels.color)[thing].float().mean()),
        "letters": float((guess == labels.word)[..., :2][sign].float().mean()),
        "edges": float(((edges - labels.box[shown]).abs() < 4 / 336).float().mean()),
        "shown": float((parts["shown"].argmax(-1) == (~shown)).float().mean()),
    }


def letter_loss(projected: Tensor, word: Tensor) -> Tensor:
    """Cross-entropy of the letters in projected tokens (rows, k, width); `word` (rows, k, slots): 0 for no sign here,
    1 for no letter in this slot, from 2 on the letters. An entry over a half tells a letter.

    Squared errors alone leave rare letters small: the projector passed on a third letter at a tenth of its height.
    """
    spans = list(codes.WIDTHS.values())
    word_part = torch.split(projected[..., : codes.WIDTH], spans, dim=-1)[-1]
    entries = word_part.reshape(*word_part.shape[:-1], codes.SLOTS, -1)
    # The first column, as high as what tells a letter, is no letter; `word` - 1 counts from it, and -1 is ignored.
    # Times 8, so that a perfect entry, 1 against a half, is told with 98%.
    none = torch.full_like(entries[..., :1], 0.5)
    return F.cross_entropy(8.0 * torch.cat([none, entries], dim=-1).flatten(0, 2), word.flatten() - 1, ignore_index=-1)
