"""Where training starts: words that mean what codes show, and attention that begins by looking for its like.

A language model from random weights needs hundreds of thousands of questions before any token finds the patch that it
names. Two choices of the first weights spare most of them: the word `umbrella` begins as the vector that stands for an
umbrella in a patch's code, in and out; and two heads of each layer begin by comparing names with what patches show, in
the spirit of the mimetic initialisation of Trockman and Kolter (arXiv 2305.09828). The tower's positions begin
as waves over the grid, and most of its heads begin by looking at one neighbour each, as a convolution does.
"""

import math

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from swiftvlm.mini.codes import FREQUENCIES, SLOTS, WIDTH, WIDTHS
from swiftvlm.mini.scenes import GRID
from swiftvlm.mini.tokens import GAP, vocabulary
from swiftvlm.mini.words import COLORS, KINDS, LETTERS, PLURALS

STRENGTH = 2.0  # of a position's waves beside a patch's pixels
SHARPNESS = 0.65  # of the attention to a neighbour
GAIN = 1.0  # of the attention to what a word names


def _meanings() -> dict[str, int]:
    """The entry of a patch's code that each word names."""
    first = dict(zip(WIDTHS, torch.tensor([0, *WIDTHS.values()]).cumsum(0).tolist(), strict=False))
    found = {GAP + kind: first["kind"] + i for i, kind in enumerate(KINDS)}
    found |= {GAP + PLURALS[kind]: first["kind"] + i for i, kind in enumerate(KINDS)}
    found |= {GAP + "sign": first["kind"] + len(KINDS)}
    found |= {GAP + color: first["color"] + i for i, color in enumerate(COLORS)}
    return found | {GAP + letter: first["word"] + i for i, letter in enumerate(LETTERS)}


@torch.no_grad()
def prime(model: LlavaForConditionalGeneration) -> LlavaForConditionalGeneration:
    """Give an untrained model these first weights, in place."""
    ids = {token: i for i, token in enumerate(vocabulary())}
    words = (model.model.language_model.embed_tokens.weight, model.lm_head.weight)
    for word, entry in _meanings().items():
        for table in words:
            table[ids[word], entry] += 1.0
    slots = len(LETTERS)
    word_start = _meanings()[GAP + LETTERS[0]]
    for i, letter in enumerate(LETTERS):
        for slot in range(1, SLOTS):
            words[1][ids[letter], word_start + slot * slots + i] += 0.7
    angle = 2 * math.pi * (torch.arange(101) / 100)[:, None] * torch.tensor(FREQUENCIES)
    # A coordinate is a point on waves, so that neighbours are alike and what is learnt of one serves all.
    for table, strength in zip(words, (0.4, 0.6), strict=True):
        table[ids["0.00"] : ids["1.00"] + 1, WIDTH : WIDTH + 2 * len(FREQUENCIES)] += strength * torch.cat(
            [angle.sin(), angle.cos()], dim=-1
        )
    _find_the_named(model)
    _see_neighbours(model)
    _see_smoothly(model.model.vision_tower.embeddings.patch_embedding)
    return model


def _see_smoothly(patches: nn.Conv2d) -> None:
    """The first look at a patch: its slowest cosine waves in each colour channel, as in JPEG, and nothing finer."""
    size, count = patches.kernel_size[0], patches.out_channels // 3
    steps = (torch.arange(size) + 0.5) * math.pi / size
    waves = torch.stack([(steps * n).cos() for n in range(size)])
    waves = waves / waves.norm(dim=1, keepdim=True)
    slowest = sorted((a * a + b * b, a, b) for a in range(size) for b in range(size))[:count]
    patches.weight.zero_()
    for i, (_, down, across) in enumerate(slowest):
        # Slow waves carry far more of a picture than fast ones: rather level them.
        strength = 0.25 * (1 + math.hypot(down, across)) ** 0.7
        for channel in range(3):
            patches.weight[3 * i + channel, channel] = strength * waves[down][:, None] * waves[across]


def _find_the_named(model: LlavaForConditionalGeneration) -> None:
    """Two heads of each layer begin by taking a word that names a kind to the patches of that kind.

    Only the slow waves of a head compare over hundreds of positions, so what is compared stands there.
    """
    entries = dict(zip(WIDTHS, torch.tensor([0, *WIDTHS.values()]).cumsum(0).tolist(), strict=False))
    kinds = slice(entries["kind"], entries["kind"] + WIDTHS["kind"])
    for layer in model.model.language_model.layers:
        attention = layer.self_attn
        half = attention.head_dim // 2
        slow = [i for i in reversed(range(attention.head_dim)) if i % half >= half // 2]
        for head in range(2):
            rows = torch.tensor(slow) + head * attention.head_dim
            query, key = (torch.zeros(len(slow), attention.q_proj.in_features) for _ in range(2))
            mix = torch.randn(len(slow) - 1, WIDTHS["kind"])
            query[1:, kinds] = key[1:, kinds] = GAIN * mix / mix.norm(dim=0)
            # A patch that shows something is worth more to a name than the name itself.
            query[0, kinds], key[0, entries["shown"]] = GAIN, 2.5 * GAIN
            attention.q_proj.weight[rows], attention.k_proj.weight[rows] = query, key
        finders = slice(0, 2 * attention.head_dim)
        fast = torch.tensor([i for i in range(2 * attention.head_dim) if i % attention.head_dim not in slow])
        attention.q_proj.weight[finders][fast] = 0.0
        attention.k_proj.weight[finders][fast] = 0.0


def _see_neighbours(model: LlavaForConditionalGeneration) -> None:
    """Positions of the tower as waves; four heads of each layer begin with the patches beside, above and below."""
    tower = model.model.vision_tower
    table = tower.embeddings.position_embedding.weight
    waves = _grid_waves()
    basis = nn.init.orthogonal_(torch.empty(waves.shape[1], table.shape[1]))
    table.zero_()
    table[1:] = STRENGTH * waves @ basis
    for depth, layer in enumerate(tower.encoder.layers):
        attention, reach = layer.self_attn, 1 + depth % 2
        for head, (across, down) in enumerate(((reach, 0), (-reach, 0), (0, reach), (0, -reach))):
            rows = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
            mix = nn.init.orthogonal_(torch.empty(attention.head_dim, waves.shape[1])) * SHARPNESS
            attention.k_proj.weight[rows] = mix @ basis
            attention.q_proj.weight[rows] = mix @ _shift(across, down).T @ basis


def _shift(across: int, down: int) -> torch.Tensor:
    """The rotation that takes a patch's waves to those of the patch so many columns and rows further."""
    width = len(FREQUENCIES)
    turn = torch.zeros(4 * width, 4 * width)
    for part, step in ((0, across), (2 * width, down)):
        for i, frequency in enumerate(FREQUENCIES):
            angle = torch.tensor(2 * math.pi * frequency * step / GRID)
            sine, cosine = part + i, part + width + i
            turn[sine, sine] = turn[cosine, cosine] = angle.cos()
            turn[cosine, sine], turn[sine, cosine] = angle.sin(), -angle.sin()
    return turn.T


def _grid_waves() -> torch.Tensor:
    """Sines and cosines of the middle of each patch (patches, 4 * frequencies)."""
    spots = (torch.arange(GRID) + 0.5) / GRID
    angle = 2 * math.pi * spots[:, None] * torch.tensor(FREQUENCIES)
    line = torch.cat([angle.sin(), angle.cos()], dim=-1)
    across, down = line.expand(GRID, -1, -1), line[:, None].expand(-1, GRID, -1)
    return torch.cat([across, down], dim=-1).flatten(0, 1)
