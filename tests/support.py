"""Tiny random models and prompts for every test: no network, no weights, a second to build."""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

IMAGE, VOCAB, SIDE, PATCH = 60, 64, 28, 7
PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
LAYERS = 7


@cache
def tiny(
    family: str = "llava", kv_heads: int = 4, attn: str = "sdpa", layers: int = LAYERS, seed: int = 0
) -> nn.Module:
    """A tiny random VLM in float32: 16 visual tokens a LLaVA image, a hidden width of 32."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
    )
    text = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        vocab_size=VOCAB,
        initializer_range=0.15,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    common: dict[str, Any] = {"vision_config": vision, "text_config": text, "image_token_index": IMAGE}
    if family == "llava":
        model: nn.Module = LlavaForConditionalGeneration(LlavaConfig(**common))
    else:
        model = LlavaNextForConditionalGeneration(LlavaNextConfig(**common, image_grid_pinpoints=PINPOINTS))
    model.set_attn_implementation(attn)
    return model.eval()


@dataclass
class Row:
    """One prompt: ids with placeholders, and the images behind them ((height, width) sizes for LLaVA-NeXT)."""

    ids: list[int]
    pixels: list[Tensor] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)


def features_of(model: nn.Module, row: Row) -> dict[str, Tensor]:
    """The image arguments of a forward for these images; empty without any."""
    if not row.pixels:
        return {}
    if model.config.model_type == "llava":
        return {"pixel_values": torch.stack(row.pixels)}
    most = max(len(tiles) for tiles in row.pixels)
    padded = [nn.functional.pad(tiles, (0, 0, 0, 0, 0, 0, 0, most - len(tiles))) for tiles in row.pixels]
    return {"pixel_values": torch.stack(padded), "image_sizes": torch.tensor(row.sizes)}


def make_row(
    model: nn.Module, seed: int, *, images: int = 1, text: int = 6, sizes: list[tuple[int, int]] | None = None
) -> Row:
    """A prompt of random text, one token before each image and `text` tokens behind the last."""
    generator = torch.Generator().manual_seed(seed)
    row = Row([1])
    for number in range(images):
        row.ids.append(int(torch.randint(2, IMAGE, (1,), generator=generator)))
        if model.config.model_type == "llava":
            row.pixels.append(torch.randn(3, SIDE, SIDE, generator=generator))
            row.ids += [IMAGE] * (SIDE // PATCH) ** 2
        else:
            size = (sizes or [(40, 56), (20, 56), (56, 56)])[number % 3]
            row.sizes.append(size)
            row.pixels.append(torch.randn(_tiles(model, size), 3, SIDE, SIDE, generator=generator))
            row.ids += [IMAGE] * _feature_count(model, row, number)
    row.ids += torch.randint(2, IMAGE, (text,), generator=generator).tolist()
    return row


def _tiles(model: nn.Module, size: tuple[int, int]) -> int:
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    return int(image_size_to_num_patches(list(size), model.config.image_grid_pinpoints, SIDE))


def _feature_count(model: nn.Module, row: Row, number: int) -> int:
    one = Row([], [row.pixels[number]], [row.sizes[number]])
    with torch.no_grad():
        return len(model.model.get_image_features(**features_of(model, one), return_dict=True).pooler_output[0])


def batch_of(model: nn.Module, rows: list[Row], *, side: str = "left", extra: int = 0) -> dict[str, Tensor]:
    """Inputs of one forward: rows padded to one length (plus `extra` padding), images of all rows in order."""
    longest = max(len(row.ids) for row in rows) + extra
    ids, mask = [], []
    for row in rows:
        gap = longest - len(row.ids)
        pads, ones = [0] * gap, [1] * len(row.ids)
        ids.append(pads + row.ids if side == "left" else row.ids + pads)
        mask.append(pads + ones if side == "left" else ones + pads)
    every = Row([], [image for row in rows for image in row.pixels], [size for row in rows for size in row.sizes])
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask), **features_of(model, every)}
