"""The projector alone, fitted to the codes: the tower's output is computed once, so a minute is worth many steps.

The tower's own phase spends its time on the tower. Its output tells 97% of the letters to a linear layer, but under a
squared error the projector passed on a third letter at a tenth of its height: rare entries are learnt last.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

from swiftvlm.mini import codes
from swiftvlm.mini.dense import letter_loss
from swiftvlm.mini.forward import see
from swiftvlm.mini.phases import pictures
from swiftvlm.scenes import SIDE, TRAIN, scene

WINDOWS, WHOLE = 9600, 800  # pictures of 12 x 12 patches full of signs, and whole ones
FIRST = 7 * 10**8  # no other phase draws scenes from here on
BATCH, ROUND = 512, 8  # patches of each kind a step; pictures looked at at once


@torch.no_grad()
def _looked_at(model: LlavaForConditionalGeneration, first: int) -> list[Tensor]:
    """The tower's output, codes, words (as `letter_loss` takes them) and middles of many patches (patches, ...)."""
    found: list[list[Tensor]] = []
    for count, side in ((WINDOWS, SIDE // 2), (WHOLE, SIDE)):
        for start in range(first, first + count, ROUND):
            scenes = [scene(TRAIN, start + i, side=side, objects=(6, 12), plates=side < SIDE) for i in range(ROUND)]
            # No corners: windows lie in the upper left one, for labels and tower alike; whole pictures show the rest.
            labels = codes.patches(scenes)
            sign = (labels.middle & (labels.kind == codes.SIGN))[..., None]
            hidden = see(model, pictures(scenes).to(model.device))[:, 1:].cpu()
            whole = hidden, codes.encode(labels, codes.WIDTH), torch.where(sign, labels.word + 1, 0), labels.middle
            # Most patches show nothing, and one in eight of them says as much.
            used = (labels.middle | (torch.rand(labels.middle.shape) < 0.12)).flatten()
            found.append([part.flatten(0, 1)[used] for part in whole])
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def fit_projector(model: LlavaForConditionalGeneration, steps: int, rate: float = 2e-3, first: int = FIRST) -> float:
    """Train the projector on codes, the tower as it is; returns the mean letter loss of the last hundred steps."""
    hidden, code, word, middle = _looked_at(model, first)
    projector = model.model.multi_modal_projector
    optimizer = torch.optim.AdamW(projector.parameters(), lr=rate, weight_decay=0.0)
    # At least two steps of rise: the schedule divides by one less than their number.
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=max(0.1, 2 / steps))
    # Signs, things and nothing are drawn equally often: the letters of signs are the rare entries that come last.
    sides = [there.nonzero()[:, 0] for there in (word[:, 0] > 0, middle & (word[:, 0] == 0), ~middle)]
    last: list[float] = []
    for _ in range(steps):
        rows = torch.cat([side[torch.randint(len(side), (BATCH,))] for side in sides])
        projected = projector(hidden[rows].to(model.device)).cpu()
        target = F.pad(code[rows], (0, projected.shape[-1] - code.shape[-1]))
        letters = letter_loss(projected[None], word[rows][None])
        loss = ((projected - target) ** 2).sum(-1).mean() + letters
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        last = [*last[-99:], float(letters.detach())]
    return sum(last) / len(last)
