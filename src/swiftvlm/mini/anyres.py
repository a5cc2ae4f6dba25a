"""The embedded model as a LLaVA-NeXT: the same weights behind a thumbnail and a tile."""

import copy
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
)

from swiftvlm.mini import tokens
from swiftvlm.mini.load import load_mini

# Plain grey needs no data, and signs are read as well with it as with the mean feature of a patch (LOG.md).
GREY = 128


def load_mini_anyres(
    dtype: torch.dtype = torch.float32,
) -> tuple[LlavaNextForConditionalGeneration, LlavaNextProcessor]:
    """The embedded model's weights in a `LlavaNextForConditionalGeneration`, and its processor. Nothing is trained.

    A picture is a thumbnail and one tile of the same size, since the model was trained on whole pictures only and takes
    a tile's place in the picture for the picture's: 1176 visual tokens, 24 of them newlines. A newline is what the
    model sees in a patch of plain grey; a vector of zeros, which it never saw, costs it the signs.

    Raises:
        SwiftVLMError: the weights are missing from this installation.
    """
    plain, processor = load_mini(dtype)
    known: Any = plain.config
    side = known.vision_config.image_size
    # One size to choose from, so every picture becomes one tile, whatever its shape.
    config = LlavaNextConfig(
        vision_config=copy.deepcopy(known.vision_config),
        text_config=copy.deepcopy(known.text_config),
        image_token_index=known.image_token_id,
        vision_feature_layer=known.vision_feature_layer,
        vision_feature_select_strategy=known.vision_feature_select_strategy,
        image_grid_pinpoints=[[side, side]],
        image_seq_length=known.image_seq_length,
    )
    with torch.random.fork_rng(devices=[]):  # its first weights are random, and are replaced at once
        model: Any = LlavaNextForConditionalGeneration(config)
    model.load_state_dict(plain.state_dict() | {"model.image_newline": _grey(plain, processor, side)})
    return model.to(dtype).eval(), _processor(side)


@torch.no_grad()
def _grey(model: LlavaForConditionalGeneration, processor: LlavaProcessor, side: int) -> Tensor:
    """What the language model is given for a patch of plain grey, the mean over the picture."""
    seen: Any = processor.image_processor(images=[Image.new("RGB", (side, side), (GREY,) * 3)], return_tensors="pt")
    features: Any = model.get_image_features(pixel_values=seen["pixel_values"].to(model.dtype), return_dict=True)
    # Equal patches differ by their places, and a newline stands at the end of every row.
    mean: Tensor = features.pooler_output[0].mean(0)
    return mean


def _processor(side: int) -> LlavaNextProcessor:
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, image_grid_pinpoints=[[side, side]]
    )
    made: LlavaNextProcessor = tokens.processor_of(LlavaNextProcessor, images)
    return made
