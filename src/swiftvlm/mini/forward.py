"""Training passes through the model's own layers: the tower on a window of the grid, the language model on a pack."""

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from swiftvlm.mini.packing import PREFIX, Pack, mask
from swiftvlm.mini.tokens import SPECIAL
from swiftvlm.scenes import GRID

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's, which its image processor subtracts
STD = (0.26862954, 0.26130258, 0.27577711)


def see(model: LlavaForConditionalGeneration, pixels: Tensor, corners: list[tuple[int, int]] | None = None) -> Tensor:
    """Output of the tower's last layer (rows, 1 + patches, width) for pictures (rows, 3, h, w), 0 to 1.

    `corners`: row and column of the full grid at which each picture lies; smaller pictures use those positions only.
    """
    # Step by step, since CLIP's own embeddings refuse a smaller picture or stretch all positions over it.
    tower = model.model.vision_tower
    shade = (pixels - pixels.new_tensor(MEAN)[:, None, None]) / pixels.new_tensor(STD)[:, None, None]
    parts = tower.embeddings.patch_embedding(shade)
    cells = parts.shape[-1]
    index = torch.arange(GRID * GRID, device=pixels.device).view(GRID, GRID)
    windows = [index[down : down + cells, across : across + cells] for down, across in corners or [(0, 0)]]
    # + 1: the table begins with the class token's position. A single window serves all rows.
    places = torch.stack(windows).flatten(1) + 1
    table = tower.embeddings.position_embedding.weight
    parts = parts.flatten(2).transpose(1, 2) + table[places]
    first = (tower.embeddings.class_embedding + table[0]).expand(len(parts), 1, -1)
    hidden: Tensor = tower.pre_layrnorm(torch.cat([first, parts], dim=1))
    # No norm behind the last layer: its output is taken as it is (`vision_feature_layer=-1`).
    for layer in tower.encoder.layers:
        hidden = layer(hidden, None)
    return hidden


def answer(model: LlavaForConditionalGeneration, visual: Tensor, places: Tensor, pack: Pack) -> Tensor:
    """Logits (rows, text, vocabulary) over packed questions behind projected visual tokens (rows, k, width).

    `places` (rows, k): index of each visual token among the picture's patches; the model may be given only some.
    """
    language = model.model.language_model
    embed = language.embed_tokens
    # `SPECIAL` opens the vocabulary, so an index in it is an id.
    start = embed(torch.tensor([SPECIAL.index("<s>"), SPECIAL.index("USER:")], device=visual.device))
    hidden = torch.cat([start.expand(len(visual), -1, -1), visual, embed(pack.ids)], dim=1)
    first = torch.arange(PREFIX, device=visual.device).expand(len(visual), -1)
    # Positions keep their gaps where only some visual tokens are given.
    where = torch.cat([first, places + PREFIX, pack.places], dim=1)
    sight = mask(pack.owner, PREFIX + visual.shape[1])
    angles = language.rotary_emb(hidden, position_ids=where)
    for layer in language.layers:
        hidden = layer(hidden, attention_mask=sight, position_ids=where, position_embeddings=angles)
    logits: Tensor = model.lm_head(language.norm(hidden[:, -pack.ids.shape[1] :]))
    return logits


def answer_loss(logits: Tensor, pack: Pack) -> Tensor:
    """Weighted mean cross-entropy of the answers' tokens; `logits` (rows, tokens, words)."""
    # Shifted over the whole row: an answer's first token is told at its own `ASSISTANT:`, never by another question.
    wrong = nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), pack.labels[:, 1:].flatten(), ignore_index=-100, reduction="none"
    )
    weights = pack.weights[:, 1:].flatten()
    return (wrong * weights).sum() / weights.sum()
