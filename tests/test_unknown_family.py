"""A family not in the table: the generic record is tried, checks itself once, and is refused unless exact."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

import swiftvlm
from swiftvlm.errors import FamilyError, UnsupportedError
from tests.laws.generation import snapshot
from tests.reference.slow_methods import embed_row, slow_swiftvlm
from tests.support import IMAGE, PATCH, SIDE, VOCAB, tiny

LAYERS, COUNTS = (3, 5, 6), (6, 3, 5, 2, 4)
METHOD = swiftvlm.SwiftVLM(layers=LAYERS, counts=COUNTS)
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
EYES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}


def vip_llava() -> nn.Module:
    """LLaVA's structure under another name: visual tokens in the sequence, a Llama behind them."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(**EYES, image_size=SIDE, patch_size=PATCH)
    config = VipLlavaConfig(
        vision_config=vision, text_config=LlamaConfig(**TEXT), image_token_index=IMAGE, vision_feature_layers=[-1, -2]
    )
    return VipLlavaForConditionalGeneration(config).eval()


def intern_vl() -> nn.Module:
    """Another tower and projector, and a Qwen2 whose config does not say how wide a head is."""
    torch.manual_seed(0)
    vision = InternVLVisionConfig(**EYES, image_size=[2 * SIDE, 2 * SIDE], patch_size=[PATCH, PATCH])
    config = InternVLConfig(
        vision_config=vision, text_config=Qwen2Config(**TEXT), image_token_id=IMAGE, downsample_ratio=0.5
    )
    return InternVLForConditionalGeneration(config).eval()


def qwen() -> nn.Module:
    """Positions on three axes (M-RoPE)."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "patch_size": PATCH}
    vision |= {"out_hidden_size": 32, "fullatt_block_indexes": [0], "window_size": SIDE}
    config = Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": rope}, vision_config=vision, image_token_id=IMAGE, video_token_id=61
    )
    config.text_config.head_dim = 8
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def prompt(text: int = 5, seed: int = 0, side: int = SIDE) -> dict[str, Tensor]:
    """One image of 16 visual tokens, then text."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(2, IMAGE, (text,), generator=generator).tolist()
    ids = torch.tensor([[1, 5, *[IMAGE] * 16, *words]])
    pixels = torch.randn(1, 3, side, side, generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def qwen_prompt() -> dict[str, Tensor]:
    """16 visual tokens: a grid of 8 x 8 patches merged by 2."""
    ids = prompt()["input_ids"]
    told = {"image_grid_thw": torch.tensor([[1, 8, 8]]), "mm_token_type_ids": (ids == IMAGE).int()}
    return {"input_ids": ids, "pixel_values": torch.randn(64, 3 * 2 * PATCH * PATCH), **told}


def perturbed() -> nn.Module:
    """A model that reads in a layer what pruning takes away: its position ids."""
    model = vip_llava()
    layer = model.model.language_model.layers[4]

    def nudge(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        positions = kwargs.get("position_ids")
        return None if positions is None else ((args[0] + 0.01 * positions[..., None], *args[1:]), kwargs)

    original = layer.forward

    def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        changed = nudge(layer, (hidden, *args), kwargs)
        return original(hidden, *args, **kwargs) if changed is None else original(*changed[0], **changed[1])

    layer.forward = forward
    return model


@contextmanager
def announced(name: str) -> Iterator[None]:
    """The warning that the generic record is tried, and what that costs."""
    with pytest.warns(
        UserWarning, match=rf"no family knows model_type '{name}'.*two more prefills.*Known: llava, llava_n"
    ):
        yield


# --- families that pass ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "name", "side"), [(vip_llava, "vipllava", SIDE), (intern_vl, "internvl", 2 * SIDE)])
def test_a_llava_like_family_is_pruned(make, name, side):
    """It warns, passes, and every layer holds what the plan says; the cache too."""
    model = make()
    with announced(name):
        handle = swiftvlm.prune(model, METHOD)
    with handle as trace:
        cache = model(**prompt(side=side)).past_key_values
    assert trace.tokens_per_layer == (16, 16, 16, 9, 7, 4, 4)
    assert [layer.get_seq_length() - 7 for layer in cache.layers] == [16, 16, 16, 9, 7, 4, 4]
    assert [len(stage[0]) for stage in trace.kept] == [6, 5, 4]
    assert [len(stage[0]) for stage in trace.anchors] == [3, 2, 0]
    assert sum(len(cells) for cells in trace.cells) == 0
    assert len(trace) == 1


def test_what_the_generic_record_keeps_is_what_the_reference_keeps():
    """The slow reference on the same weights: kept tokens, anchors, and logits behind generate."""
    model, batch = vip_llava(), prompt()
    embeds = embed_row(model, batch["input_ids"], pixel_values=batch["pixel_values"])
    visual = batch["input_ids"][0] == IMAGE
    slow = slow_swiftvlm(model, embeds, visual, len(visual), layers=LAYERS, counts=COUNTS)
    with announced("vipllava"), swiftvlm.prune(model, METHOD) as trace:
        out = model.generate(
            **batch, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    assert [stage[0].tolist() for stage in trace.kept] == slow.kept
    assert [stage[0].tolist() for stage in trace.anchors] == slow.anchors
    torch.testing.assert_close(out.logits[0][0], slow.logits[-1], atol=1e-5, rtol=0)


def test_the_check_runs_once_and_costs_two_prefills():
    """The first prompt runs three times, later ones once; the answer is the same as of a handle that has checked."""
    model, calls = vip_llava(), []
    model.model.language_model.register_forward_hook(lambda *_: calls.append(1))
    with announced("vipllava"), swiftvlm.prune(model, METHOD) as trace:
        first = model(**prompt()).logits
        assert len(calls) == 3
        second = model(**prompt()).logits
        assert len(calls) == 4
    assert torch.equal(first, second)
    assert len(trace) == 2
    assert trace.runs[0] == trace.runs[1]


def test_the_check_leaves_the_model_as_found():
    """Law 8 for a family that passes."""
    model = vip_llava()
    plain = model(**prompt()).logits
    before = snapshot(model)
    with announced("vipllava"), swiftvlm.prune(model, METHOD):
        model.generate(**prompt(), max_new_tokens=2)
    assert snapshot(model) == before
    assert torch.equal(model(**prompt()).logits, plain)


def test_a_shallow_model_is_checked_too():
    """Two layers: one stage fits, and so must the check."""
    torch.manual_seed(0)
    text = LlamaConfig(**{**TEXT, "num_hidden_layers": 2})
    vision = CLIPVisionConfig(**EYES, image_size=SIDE, patch_size=PATCH)
    config = VipLlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layers=[-1, -2]
    )
    model = VipLlavaForConditionalGeneration(config).eval()
    with announced("vipllava"), swiftvlm.prune(model, swiftvlm.METHODS["fastv"](after=1), budget=0.75) as trace:
        model(**prompt())
    assert trace.tokens_per_layer == (16, 8)


def test_known_families_do_not_warn():
    """The table's own models are trusted."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        swiftvlm.prune(tiny(), METHOD)


# --- families that are refused ---------------------------------------------------------------------------------------

REFUSED = {
    "positions on three axes": (
        qwen,
        "qwen2_5_vl",
        qwen_prompt,
        r"Qwen2_5_VL\w+ cannot be pruned by the generic",
    ),
    "a perturbed layer": (perturbed, "vipllava", prompt, r"but logits moved by up to [\d.]+\. It needs a family"),
}


@pytest.fixture(params=REFUSED.values(), ids=REFUSED)
def refused(request: pytest.FixtureRequest) -> tuple[Any, ...]:
    """A model that must not be pruned, a prompt, and why not."""
    make, name, inputs, message = request.param
    model = make()
    with announced(name):
        handle = swiftvlm.prune(model, METHOD)
    return model, handle, inputs(), message


def test_an_inexact_family_is_refused_with_the_reason(refused):
    """A `FamilyError` at the first prompt; the model is left as found."""
    model, handle, batch, message = refused
    plain = model(**batch).logits
    before = snapshot(model)
    with handle as trace, pytest.raises(FamilyError, match=message):
        model(**batch)
    after = snapshot(model)
    for parts in (before, after):
        parts["model"].pop("rope_deltas", None)  # Qwen's own memory, set anew by every forward
    assert len(trace) == 0
    assert after == before
    assert torch.equal(model(**batch).logits, plain)


def test_it_stays_refused(refused):
    """Whoever catches the error and goes on inside the `with` must not get silent vanilla, nor pruned, answers."""
    model, handle, batch, message = refused
    with handle as trace:
        for _ in range(2):
            with pytest.raises(FamilyError, match=message):
                model(**batch)
    assert len(trace) == 0


def test_a_text_only_prompt_does_not_earn_trust(refused):
    """Keeping every token of a prompt without an image proves nothing: the first image is checked all the same."""
    model, handle, batch, message = refused
    ids = torch.tensor([[1, 5, 6, 7]])
    plain = model(input_ids=ids).logits
    with handle:
        assert torch.equal(model(input_ids=ids).logits, plain)
        with pytest.raises(FamilyError, match=message):
            model(**batch)


@pytest.mark.parametrize(
    ("told", "message"), [("labels", "labels"), ("use_cache", "use_cache"), ("logits_to_keep", "=2")]
)
def test_a_wrong_call_is_not_the_familys_fault(told, message):
    """What is refused for known families is refused in the same words at the first prompt, and the next one passes."""
    model, batch = vip_llava(), prompt()
    wrong = {"labels": batch["input_ids"], "use_cache": False, "logits_to_keep": 2}
    with announced("vipllava"), swiftvlm.prune(model, METHOD) as trace:
        with pytest.raises(UnsupportedError, match=message):
            model(**batch, **{told: wrong[told]})
        model(**batch)
    assert [run.tokens_per_layer for run in trace] == [(16, 16, 16, 9, 7, 4, 4)]
