"""The embedded model as a LLaVA-NeXT: the same weights behind a thumbnail and a tile."""

import copy
from typing import Any

import torch
from PIL import Image
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
    side = plain.config.vision_config.image_size
    config = LlavaNextConfig(
        vision_config=plain.config.vision_config,
        text_config=copy.deepcopy(plain.config.text_config),
        image_token_index=plain.config.image_token_id,
        vision_feature_layer=plain.config.vision_feature_layer,
        vision_feature_select_strategy=plain.config.vision_feature_select_strategy,
        image_grid_pinpoints=[[side, side]],
        image_seq_length=plain.config.image_seq_length,
    )
    model = LlavaNextForConditionalGeneration(config).to(dtype)
    newline = "model.image_newline"
    model.load_state_dict(plain.state_dict() | {newline: _grey(plain, processor)})
    return model.eval(), _processor(plain.config, side)


@torch.no_grad()
def _grey(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> torch.Tensor:
    """What the language model is given for a patch of plain grey, the mean over the picture."""
    size = (model.config.vision_config.image_size,) * 2
    seen: Any = processor.image_processor(images=[Image.new("RGB", size, (GREY,) * 3)], return_tensors="pt")
    pixels = seen["pixel_values"].to(model.dtype)
    features: Any = model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
    return torch.as_tensor(features[0].mean(0))


def _processor(config: Any, side: int) -> LlavaNextProcessor:
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, image_grid_pinpoints=[[side, side]]
    )
    return LlavaNextProcessor(
        image_processor=images,
        tokenizer=tokens.tokenizer(),
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        chat_template=tokens.TEMPLATE,
        num_additional_image_tokens=1,
    )
