"""Sizes of the embedded model, and the model itself before training: LLaVA-1.5's architecture, made small."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from swiftvlm.mini.tokens import SPECIAL, vocabulary
from swiftvlm.scenes import PATCH, SIDE


@dataclass(frozen=True)
class Recipe:
    """Widths and depths; `seed_layers` is the depth at which the language model starts, before it is grown."""

    width: int = 192
    heads: int = 6
    layers: int = 24
    seed_layers: int = 6
    inner: int = 384
    tower_width: int = 192
    tower_heads: int = 6
    tower_layers: int = 8
    tower_inner: int = 576


# The shipped model is `CPU`.
CPU = Recipe()
GPU = Recipe(width=256, heads=8, inner=512, tower_width=320, tower_heads=8, tower_layers=10, tower_inner=1280)
RECIPES = {"cpu": CPU, "gpu": GPU}


def config(recipe: Recipe) -> LlavaConfig:
    """The configuration that `from_pretrained` reads back."""
    ids = {token: i for i, token in enumerate(SPECIAL)}
    marks: dict[str, Any] = {"pad_token_id": ids["<pad>"], "bos_token_id": ids["<s>"], "eos_token_id": ids["</s>"]}
    text = LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=recipe.width,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        max_position_embeddings=2048,
        # At width 192 a random word is 0.7 long, beside the 1 that `start` adds where a word names something.
        initializer_range=0.05,
        # Slow waves: what a token shows must match over 600 positions.
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        **marks,
    )
    vision = CLIPVisionConfig(
        hidden_size=recipe.tower_width,
        intermediate_size=recipe.tower_inner,
        num_hidden_layers=recipe.tower_layers,
        num_attention_heads=recipe.tower_heads,
        image_size=SIDE,
        patch_size=PATCH,
    )
    # The tower is trained for its last layer's output, so that is taken, where LLaVA-1.5 takes the layer before.
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=ids["<image>"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(SIDE // PATCH) ** 2,
        **marks,
    )


def build(recipe: Recipe, seed: int = 0) -> LlavaForConditionalGeneration:
    """An untrained model with explicit attention: SDPA's backward pass is several times slower on a CPU."""
    torch.manual_seed(seed)
    settings = config(recipe)
    settings._attn_implementation = "eager"
    return LlavaForConditionalGeneration(settings)


def grow(model: LlavaForConditionalGeneration, recipe: Recipe) -> LlavaForConditionalGeneration:
    """A deeper model that answers as `model` does: before each layer stand copies of it that add nothing yet.

    Their last projections are zero, so training starts from the same function and puts the new depth to use.
    """
    old = model.model.language_model.layers
    deeper = build(recipe)
    theirs = deeper.model.language_model.layers
    every = recipe.layers // len(old)
    state = {key: value for key, value in model.state_dict().items() if ".language_model.layers." not in key}
    deeper.load_state_dict(state, strict=False)
    for i, layer in enumerate(theirs):
        layer.load_state_dict(old[i // every].state_dict())
        # The last of each group is the old layer itself; without its two last projections a layer is the identity.
        if i % every < every - 1:
            nn.init.zeros_(layer.self_attn.o_proj.weight)
            nn.init.zeros_(layer.mlp.down_proj.weight)
    return deeper
