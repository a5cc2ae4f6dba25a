"""Tiny LLaVA-1.5 and LLaVA-NeXT checkpoints on disk, with tokenizer and processor: what a user's folder looks like."""

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

SIDE, PATCH, LAYERS = 56, 7, 8
PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE], [3 * SIDE, SIDE], [SIDE, 3 * SIDE]]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte: any text in, any text out."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<pad>", "<s>", "</s>", "<image>"]
    vocab = {token: i for i, token in enumerate([*specials, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True) for token in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left"
    )


def save_checkpoint(folder: Path, family: str, *, side: int = SIDE, patch: int = PATCH, layers: int = LAYERS) -> Path:
    """A random model of `family` ("llava" or "llava_next") with its processor in `folder`; 64 patches a view."""
    sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=side,
        patch_size=patch,
    )
    text = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    common = {
        "vision_config": vision,
        "text_config": text,
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
    }
    shared = {"tokenizer": tokenizer, "patch_size": patch, "vision_feature_select_strategy": "default"}
    shared |= {"num_additional_image_tokens": 1, "chat_template": None}
    if family == "llava":
        model = LlavaForConditionalGeneration(LlavaConfig(**common))
        processor = LlavaProcessor(image_processor=CLIPImageProcessorPil(**sizes), **shared)
    else:
        model = LlavaNextForConditionalGeneration(LlavaNextConfig(**common, image_grid_pinpoints=PINPOINTS))
        processor = LlavaNextProcessor(
            image_processor=LlavaNextImageProcessorPil(**sizes, image_grid_pinpoints=PINPOINTS), **shared
        )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
