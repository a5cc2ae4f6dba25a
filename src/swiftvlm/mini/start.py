"""Where training starts: words that mean what codes show, and attention that begins by looking for its like.

A language model from random weights needs hundreds of thousands of questions before any token finds the patch that it
names. Two choices of the first weights spare most of them: the word `umbrella` begins as the vector that stands for an
umbrella in a patch's code, in and out; and three heads of each layer begin by comparing names with what patches show,
in the spirit of the mimetic initialisation of Trockman and Kolter (arXiv 2305.09828). The tower's positions begin as
waves over the grid, and most of its heads begin by looking at one neighbour each, as a convolution does.
"""

import math

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration
from transformers.models.llama.modeling_llama import LlamaAttention

from swiftvlm.mini.codes import FREQUENCIES, SLOTS, WIDTH, WIDTHS
from swiftvlm.mini.tokens import GAP, vocabulary
from swiftvlm.scenes import COLORS, GRID, KINDS, LETTERS, PLURALS

STRENGTH = 2.0  # of a position's waves beside a patch's pixels
SHARPNESS = 0.65  # of the attention to a neighbour
GAIN = 1.0  # of the attention to what a word names
BROUGHT = 0.33  # in and out, of what these heads bring
# Heads from 4 on, and head 2 behind the second layer, stay random and add nothing at first.
FINDERS, BACK = (0, 1, 3), 2  # heads that begin with what a word names, and with the word before
# The last of 192. Codes end at 135 and are padded with zeros.
WORD = 191  # the entry that every word has and no patch


def _meanings() -> dict[str, int]:
    """The entry of a patch's code that each word names."""
    first = dict(zip(WIDTHS, torch.tensor([0, *WIDTHS.values()]).cumsum(0).tolist(), strict=False))
    found = {GAP + kind: first["kind"] + i for i, kind in enumerate(KINDS)}
    found |= {GAP + PLURALS[kind]: first["kind"] + i for i, kind in enumerate(KINDS)}
    found |= {GAP + "sign": first["kind"] + len(KINDS)}
    found |= {GAP + color: first["color"] + i for i, color in enumerate(COLORS)}
    # Letters with a space before them, which are the first on a sign; plurals share their kind's entry.
    return found | {GAP + letter: first["word"] + i for i, letter in enumerate(LETTERS)}


@torch.no_grad()
def prime(model: LlavaForConditionalGeneration) -> LlavaForConditionalGeneration:
    """Give an untrained model these first weights, in place."""
    ids = {token: i for i, token in enumerate(vocabulary())}
    # In and out: the embedding and the head are two tables.
    words = (model.model.language_model.embed_tokens.weight, model.lm_head.weight)
    for word, entry in _meanings().items():
        for table in words:
            table[ids[word], entry] += 1.0
    slots = len(LETTERS)
    word_start = _meanings()[GAP + LETTERS[0]]
    # A letter without a space is the second or third on a sign: in the head, both slots call for the same token.
    for i, letter in enumerate(LETTERS):
        for slot in range(1, SLOTS):
            words[1][ids[letter], word_start + slot * slots + i] += 0.7
    # (101, frequencies). These go behind a code's entries, since a coordinate may be any edge of a box.
    angle = 2 * math.pi * (torch.arange(101) / 100)[:, None] * torch.tensor(FREQUENCIES)
    # A coordinate is a point on waves, so that neighbours are alike and what is learnt of one serves all.
    for table, strength in zip(words, (0.4, 0.6), strict=True):
        table[ids["0.00"] : ids["1.00"] + 1, WIDTH : WIDTH + 2 * len(FREQUENCIES)] += strength * torch.cat(
            [angle.sin(), angle.cos()], dim=-1
        )
    _find_the_named(model)
    # After the meanings are in: what marks a word is a share of its length.
    _look_back(model)
    _see_neighbours(model)
    _see_smoothly(model.model.vision_tower.embeddings.patch_embedding)
    return model


def _see_smoothly(patches: nn.Conv2d) -> None:
    """The first look at a patch: its slowest cosine waves in each colour channel, as in JPEG, and nothing finer."""
    # No gain was measured (kinds 20% with it, 19% without: LOG.md); it costs nothing.
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


def _spans() -> dict[str, slice]:
    """Where each part of a patch's code stands."""
    ends = torch.tensor([0, *WIDTHS.values()]).cumsum(0).tolist()
    return {name: slice(first, end) for name, first, end in zip(WIDTHS, ends, ends[1:], strict=False)}


def _signatures(count: int, room: int) -> torch.Tensor:
    """Unit vectors (room, count), as unlike as may be: axes and their opposites, or corners of a cube."""
    if count > 2 * room:
        corners = 1.0 - 2.0 * (torch.arange(2**room) // 2 ** torch.arange(room)[:, None] % 2)
        return corners[:, :count] / math.sqrt(room)
    axes = torch.eye(room)
    return torch.cat([axes, -axes], dim=1)[:, :count]


def _find_the_named(model: LlavaForConditionalGeneration) -> None:
    """Three heads of each layer begin by taking a word to the patches that show the kind and the colour it names.

    Only the slow waves of a head compare over hundreds of positions, so what is compared stands there. What they bring
    back is where the thing stands, its colour and its kind.
    """
    for layer in model.model.language_model.layers:
        # What layers add at random would drown words of length 1: they begin by adding what is said here and no more.
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
    spans = _spans()
    # Without the entry of signs: they are asked for by the thing beside them.
    kinds = slice(spans["kind"].start, spans["kind"].start + len(KINDS))
    colors, box = spans["color"], spans["box"]
    # Waves stand edge by edge: one half is the upper left corner, the other the lower right one.
    middle = (box.start + box.stop) // 2
    where = range(box.start, middle), range(middle, box.stop)
    # No more than a head of 32 holds: 20 waves and 8 colours, 20 waves, 24 kinds.
    brought = ([*where[0], *range(colors.start, colors.stop)], [*where[1]], [*range(kinds.start, kinds.stop)])
    for depth, layer in enumerate(model.model.language_model.layers):
        attention = layer.self_attn
        size, half = attention.head_dim, attention.head_dim // 2
        # Llama turns entry i with i + half, slower as i grows: the slow half of the pairs, slowest first.
        slow = [i for i in reversed(range(size)) if i % half >= half // 2]
        for head, told in zip(FINDERS, brought, strict=True):
            query, key = (torch.zeros(size, attention.q_proj.in_features) for _ in range(2))
            # 15 slow entries are left, shuffled by head: 24 kinds on 12, axes and opposites; 8 colours on 3, a cube.
            room = torch.tensor(slow[1:])[torch.randperm(len(slow) - 1)]
            many = len(KINDS) // 2
            for rows, entries in ((room[:many], kinds), (room[many:], colors)):
                signs = GAIN * _signatures(entries.stop - entries.start, len(rows))
                query[rows, entries], key[rows, entries] = signs, signs
            # A patch that shows something is worth more to a name than the name itself.
            query[slow[0], kinds] = query[slow[0], colors] = GAIN
            key[slow[0], spans["shown"].start] = 2.5 * GAIN
            mine = slice(head * size, (head + 1) * size)
            attention.q_proj.weight[mine], attention.k_proj.weight[mine] = query, key
            # In the first layer no word knows the word before it yet: what is found there is not brought.
            if depth:
                _bring(attention, head, told, BROUGHT)


def _bring(attention: LlamaAttention, head: int, entries: list[int], strength: float) -> None:
    """Let a head add these entries of what it attends to, as they are."""
    size = attention.head_dim
    for i, entry in enumerate(entries[:size]):
        attention.v_proj.weight[head * size + i] = 0.0
        attention.o_proj.weight[:, head * size + i] = 0.0
        attention.v_proj.weight[head * size + i, entry] = strength
        attention.o_proj.weight[entry, head * size + i] = strength


def _look_back(model: LlavaForConditionalGeneration) -> None:
    """A head of the first two layers begins with the word before: `red umbrella` makes one thing of two words.

    Every word has the entry `WORD`, and turning what asks for it by one position's angle makes the last position match.
    """
    language = model.model.language_model
    table = language.embed_tokens.weight
    table[:, WORD] = 0.0
    table[:, WORD] = 0.4 * table.norm(dim=1)  # the same share of every word, long or short
    waves = language.rotary_emb.inv_freq
    # So the second layer brings, with the word before, what the first had brought to that one.
    for layer in language.layers[:2]:
        attention = layer.self_attn
        size, half = attention.head_dim, attention.head_dim // 2
        rows = slice(BACK * size, (BACK + 1) * size)
        attention.q_proj.weight[rows], attention.k_proj.weight[rows] = 0.0, 0.0
        # The three fastest pairs: slower ones hardly tell one position from the next.
        for i in range(3):
            attention.k_proj.weight[BACK * size + i, WORD] = 1.2
            attention.q_proj.weight[BACK * size + i, WORD] = 1.2 * waves[i].cos()
            attention.q_proj.weight[BACK * size + half + i, WORD] = -1.2 * waves[i].sin()
        # The colour, and 24 entries that no code uses, random in every word: they say which it was. A head is full.
        colors = _spans()["color"]
        _bring(attention, BACK, [*range(colors.start, colors.stop), *range(WORD - 24, WORD)], BROUGHT)


def _see_neighbours(model: LlavaForConditionalGeneration) -> None:
    """Positions of the tower as waves; four heads of each layer begin with the patches beside, above and below."""
    tower = model.model.vision_tower
    table = tower.embeddings.position_embedding.weight
    waves = _grid_waves()
    # Orthonormal rows, (waves, width): positions lie in 20 directions, and `x @ basis.T` reads them.
    basis = nn.init.orthogonal_(torch.empty(waves.shape[1], table.shape[1]))
    # Row 0, the class token's, stays zero: it has no place.
    table.zero_()
    table[1:] = STRENGTH * waves @ basis
    for depth, layer in enumerate(tower.encoder.layers):
        # Every other layer looks two patches away.
        attention, reach = layer.self_attn, 1 + depth % 2
        for head, (across, down) in enumerate(((reach, 0), (-reach, 0), (0, reach), (0, -reach))):
            rows = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
            # Its columns are orthonormal but for the factor: query times key is the product of the two patches' waves,
            # the query's turned back by the shift, so that the best key lies `reach` patches the other way.
            mix = nn.init.orthogonal_(torch.empty(attention.head_dim, waves.shape[1])) * SHARPNESS
            attention.k_proj.weight[rows] = mix @ basis
            attention.q_proj.weight[rows] = mix @ _shift(across, down).T @ basis


def _shift(across: int, down: int) -> torch.Tensor:
    """The rotation that takes a patch's waves to those of the patch so many columns and rows further."""
    width = len(FREQUENCIES)
    turn = torch.zeros(4 * width, 4 * width)
    # x before y and sines before cosines, as `_grid_waves` has them.
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
