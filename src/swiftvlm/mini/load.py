"""The embedded model, ready to use."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from swiftvlm.errors import SwiftVLMError
from swiftvlm.mini import tokens

WEIGHTS = Path(__file__).parent / "weights"


def load_mini(dtype: torch.dtype = torch.float32) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The embedded model and its processor: a small LLaVA-1.5 that knows the rendered scenes of `swiftvlm.scenes`.

    `dtype`: of the weights in memory; they are stored in bfloat16, which many CPUs compute slowly.

    Raises:
        SwiftVLMError: the weights are missing from this installation.
    """
    if not (WEIGHTS / "config.json").is_file():
        raise SwiftVLMError(f"the embedded model's weights are not in {WEIGHTS}: reinstall swiftvlm")
    model = LlavaForConditionalGeneration.from_pretrained(WEIGHTS, dtype=dtype)
    return model, LlavaProcessor.from_pretrained(WEIGHTS)


def ship(model: LlavaForConditionalGeneration, folder: Path = WEIGHTS) -> int:
    """Write a trained model as this package ships it: bfloat16, shards of at most 15 MB. Returns its size in bytes."""
    # Emptied first: shards that an earlier model was split into would be shipped beside the new ones.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for weight in model.parameters():
        weight.data = weight.data.to(torch.bfloat16)
    # A model that was loaded in float32 would write that into its parts.
    parts: list[Any] = [model.config.text_config, model.config.vision_config]
    for part in parts:
        part.dtype = None
    model.save_pretrained(folder, max_shard_size="15MB")
    tokens.processor().save_pretrained(folder)
    return sum(file.stat().st_size for file in folder.iterdir())
