"""Every error of the core says what came, what is accepted and what to do; each is a child of `SwiftVLMError`."""

import json
from dataclasses import dataclass, replace
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    MllamaConfig,
    MllamaForConditionalGeneration,
)

import swiftvlm
from swiftvlm import ModelShape, Plan, SwiftVLM, SwiftVLMError, Trace
from swiftvlm.engine.segment import Segment
from swiftvlm.errors import BudgetError, FamilyError, MethodError, TraceError, UnsupportedError
from swiftvlm.families import FAMILIES
from swiftvlm.families.base import Family
from swiftvlm.families.llava import Llava
from swiftvlm.methods.base import Method
from swiftvlm.methods.cdpruner import CDPruner
from swiftvlm.methods.fastv import FastV
from swiftvlm.methods.greedyprune import GreedyPrune
from swiftvlm.methods.ivcprune import IVCPrune
from swiftvlm.methods.star import Star
from swiftvlm.methods.topv import TopV
from swiftvlm.methods.vitcop import ViTCoP
from swiftvlm.plans import Cut
from swiftvlm.scores import TextAttention
from swiftvlm.stage import Bypass, Stage
from tests.support import IMAGE, PATCH, SIDE, VOCAB, batch_of, make_row, tiny

SHAPE = ModelShape()
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": VOCAB,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}


@dataclass(frozen=True)
class Made(Method):
    """A method of a user's own: any stages."""

    name = "made"

    given: tuple[Stage, ...] = ()

    def stages(self, shape: ModelShape) -> tuple[Stage, ...]:
        """As given."""
        return self.given


def llava_with(text: Any, **more: Any) -> nn.Module:
    """A tiny LLaVA around any text model."""
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=CLIPVisionConfig(**VISION), text_config=text, image_token_index=IMAGE, **more)
    ).eval()


# --- methods by name -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("typo", "meant"), [("swiftvml", "swiftvlm"), ("FastV", "fastv"), ("fast-v", "fastv")])
def test_an_unknown_method_is_guessed(typo, meant):
    """A typo names the nearest method and all known ones."""
    message = rf"unknown method '{typo}'; did you mean '{meant}'\? known: vanilla, random, .*swiftvlm"
    with pytest.raises(MethodError, match=message):
        swiftvlm.prune(tiny(), typo)
    with pytest.raises(MethodError, match=message):
        swiftvlm.plan(typo, 192, SHAPE, 576)


def test_a_method_like_no_other_is_not_guessed():
    """Where nothing is near, no guess."""
    with pytest.raises(MethodError, match=r"unknown method 'xyz'; known: vanilla, ") as error:
        swiftvlm.prune(tiny(), "xyz")
    assert "did you mean" not in str(error.value)


# --- budgets ---------------------------------------------------------------------------------------------------------

BUDGETS = {
    "zero": (0, r"budget in tokens must be at least 1, got 0"),
    "negative": (-1, r"budget in tokens must be at least 1, got -1"),
    "zero fraction": (0.0, r"fraction in \(0, 1\], got 0\.0; write an int for tokens"),
    "tokens as a float": (192.0, r"fraction in \(0, 1\], got 192\.0; write an int for tokens"),
    "over one": (1.5, r"fraction in \(0, 1\], got 1\.5; write an int for tokens"),
    "nan": (float("nan"), r"fraction in \(0, 1\], got nan; write an int for tokens"),
    "true": (True, r"a budget is an int .* or a float in \(0, 1\] .*, got True"),
    "false": (False, r"a budget is an int .* or a float in \(0, 1\] .*, got False"),
}


@pytest.mark.parametrize("method", ["vanilla", "random", "uniform", "fastv", "swiftvlm"])
@pytest.mark.parametrize(("budget", "message"), BUDGETS.values(), ids=BUDGETS)
def test_a_budget_out_of_range_is_told_at_once(method, budget, message):
    """By `plan`, and by `prune` before any prompt."""
    method = SwiftVLM(layers=(3, 5, 6)) if method == "swiftvlm" else method
    with pytest.raises(BudgetError, match=message):
        swiftvlm.plan(method, budget, SHAPE, 576)
    with pytest.raises(BudgetError, match=message):
        swiftvlm.prune(tiny(), method, budget=budget)


UNREACHABLE = [
    ("fastv", 30, 576, r"30 visual tokens .* after layers \[2\] of 32 leave between 37\.0 and 576\.0 of 576"),
    ("fastv", 0.05, 576, r"28\.8 visual tokens .* \[2\] of 32 leave between 37\.0 and 576\.0 of 576"),
    ("swiftvlm", 50, 576, r"50 visual tokens .* \[3, 10, 14\] of 32 leave between 55\.\d and 576\.0 of 576"),
    ("swiftvlm", 0.09, 576, r"51\.84 visual tokens .* \[3, 10, 14\] of 32 leave between 55\.\d and 576\.0 of 576"),
    ("vanilla", 100, 576, r"100 visual tokens .* between 576\.0 and 576\.0 of 576"),
    ("vanilla", 0.5, 576, r"288 visual tokens .* between 576\.0 and 576\.0 of 576"),
]


@pytest.mark.parametrize(("method", "budget", "visual", "message"), UNREACHABLE)
def test_an_unreachable_budget_names_the_range(method, budget, visual, message):
    """What the stages can leave at least and at most; asking for the named least then works."""
    with pytest.raises(BudgetError, match=message) as error:
        swiftvlm.plan(method, budget, SHAPE, visual)
    least = float(str(error.value).split("between ")[1].split(" ")[0])
    assert swiftvlm.plan(method, least / visual, SHAPE, visual).average_tokens <= least


def test_an_unreachable_budget_is_told_at_the_prompt():
    """Where only the prompt's size decides."""
    model = tiny()
    with swiftvlm.prune(model, "fastv", budget=2), pytest.raises(BudgetError, match=r"between 5\.3 and 16\.0 of 16"):
        model(**batch_of(model, [make_row(model, 0)]))


TWO = {
    "budget and preset": ("fastv", 192, "192", r"one of counts, .*, got None, 192 and '192'"),
    "budget and counts": (
        FastV(counts=(5,)),
        0.5,
        None,
        r"one of counts, .*, got \(5,\), 0\.5 and None",
    ),
    "preset and counts": (
        FastV(counts=(5,)),
        None,
        "64",
        r"one of counts, .*, got \(5,\), None and '64'",
    ),
    "all": (FastV(counts=(5,)), 3, "64", r"one of counts, .*, got \(5,\), 3 and '64'"),
}


@pytest.mark.parametrize(("method", "budget", "preset", "message"), TWO.values(), ids=TWO)
def test_two_ways_to_say_how_many_are_one_too_many(method, budget, preset, message):
    """Budget, preset and counts exclude each other."""
    with pytest.raises(BudgetError, match=message):
        swiftvlm.plan(method, budget, SHAPE, 576, preset=preset)
    with pytest.raises(BudgetError, match=message):
        swiftvlm.prune(tiny(), method, budget=budget, preset=preset)


def test_an_unknown_preset_names_the_known():
    """All of them, in their order; `none` where a method has none."""
    with pytest.raises(BudgetError, match=r"fastv has no preset '193'; it has: 192, 128, 64$"):
        swiftvlm.prune(tiny(), "fastv", preset="193")
    with pytest.raises(BudgetError, match=r"vanilla has no preset '192'; it has: none"):
        swiftvlm.prune(tiny(), "vanilla", preset="192")


def test_a_method_without_presets_wants_a_budget():
    """No budget, no counts, no preset: said at once, not at the first prompt."""
    method = Made(given=(Stage(2, TextAttention("previous")),))
    with pytest.raises(BudgetError, match=r"made has no presets: give it a budget"):
        swiftvlm.plan(method, None, SHAPE, 576)


COUNTS = [(6, 3, 5, 2), (6,), (), (6, 3, 5, 2, 4, 1, 1)]
COUNTS += [(6, 3, -5, 2, 4), (6, -3, 5, 2, 4), (0, 3, 5, 2, 4), (6, 3, 5, 2, 0)]


@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_wrong_counts_say_how_many_and_which(counts):
    """A wrong number of them, a negative one, a stage that keeps none."""
    message = r"swiftvlm has 3 stages here, counts = \(k1, Z1, \.\.\., k3\) are 5 ints: every k at least 1 .*; got \("
    with pytest.raises(BudgetError, match=message) as error:
        swiftvlm.plan(SwiftVLM(layers=(3, 5, 6), counts=counts), None, SHAPE, 576)
    assert str(error.value).endswith(str(counts))


@pytest.mark.parametrize("counts", [(6, 3), (0, 3, 5, 2, 4)], ids=str)
def test_wrong_counts_are_told_at_once(counts):
    """By `prune`, before any prompt."""
    with pytest.raises(BudgetError, match="swiftvlm has 3 stages here"):
        swiftvlm.prune(tiny(), SwiftVLM(layers=(3, 5, 6), counts=counts))


def test_counts_beyond_the_row_are_clamped():
    """More than there is keeps all there is."""
    assert swiftvlm.plan(FastV(counts=(999,)), None, SHAPE, 576).tokens_per_layer == (576,) * 32


@pytest.mark.parametrize("visual", [-1, True])
def test_plan_wants_a_number_of_visual_tokens(visual):
    """An int from 0."""
    with pytest.raises(BudgetError, match=rf"visual_tokens must be an int of at least 0, got {visual}"):
        swiftvlm.plan("fastv", 192, SHAPE, visual)


@pytest.mark.parametrize("text", [0, -3, 0.5])
def test_plan_wants_somebody_who_asks(text):
    """At least the last prompt token is text."""
    with pytest.raises(BudgetError, match=rf"text_tokens must be at least 1 .*, got {text}"):
        swiftvlm.plan("fastv", 192, SHAPE, 576, text_tokens=text)


CUTS = {
    "same depth": ((Cut(2, 5), Cut(2, 4)), r"increasing depths below 8 layers, got \[2, 2\]"),
    "backwards": ((Cut(5, 5), Cut(2, 4)), r"increasing depths below 8 layers, got \[5, 2\]"),
    "too deep": ((Cut(8, 5),), r"increasing depths below 8 layers, got \[8\]"),
    "negative depth": ((Cut(-1, 5),), r"increasing depths below 8 layers, got \[-1\]"),
    "none kept": ((Cut(2, 0, 3),), r"after layer 2 keeps 0 \+ 3 merged of 16 .*keep at least 1"),
    "more than there are": ((Cut(2, 10, 7),), r"after layer 2 keeps 10 \+ 7 merged of 16 .*no more than there are"),
    "negative merged": ((Cut(2, 3, -4),), r"after layer 2 keeps 3 \+ -4 merged of 16"),
}


@pytest.mark.parametrize(("cuts", "message"), CUTS.values(), ids=CUTS)
def test_a_plan_by_hand_is_checked(cuts, message):
    """Depths rise inside the model, every stage keeps between one token and all."""
    with pytest.raises(BudgetError, match=message):
        Plan(8, 16, 5, cuts)


# --- fields of methods -----------------------------------------------------------------------------------------------

FIELDS = {
    "merged_share 1": ({"merged_share": 1.0}, r"merged_share is a fraction in \[0, 1\) .*, got 1\.0"),
    "merged_share -0.1": ({"merged_share": -0.1}, r"merged_share is a fraction in \[0, 1\) .*, got -0\.1"),
    "merged_share nan": ({"merged_share": float("nan")}, r"merged_share is a finite number, got nan"),
    "refine": ({"refine": -1}, r"refine counts k-means steps and cannot be negative, got -1"),
    "no layers": ({"layers": ()}, r"layers must name at least one layer, got \(\)"),
}


@pytest.mark.parametrize(("fields", "message"), FIELDS.values(), ids=FIELDS)
def test_fields_are_checked_where_they_are_given(fields, message):
    """When the method is made, before any model is near."""
    with pytest.raises(MethodError, match=message):
        SwiftVLM(**fields)


LAYERS = {
    "falling": ((5, 3, 6), r"stages must act after more and more layers, got \[5, 2, 5\]"),
    "twice": ((3, 5, 5), r"stages must act after more and more layers, got \[3, 4, 4\]"),
    "touching": ((3, 4), r"stages must act after more and more layers, got \[3, 3\]"),
    "beyond": ((3, 5, 9), r"after layers \[3, 4, 8\], but a model of 7 layers can be cut after layers 1 to 6"),
    "the last": ((7,), r"after layers \[7\], but a model of 7 layers can be cut after layers 1 to 6"),
    "zero": ((0, 3), r"after layers \[0, 2\], but a model of 7 layers can be cut after layers 1 to 6"),
    "negative": ((-2, 3), r"after layers \[-2, 2\], but a model of 7 layers can be cut after layers 1 to 6"),
}


@pytest.mark.parametrize(("layers", "message"), LAYERS.values(), ids=LAYERS)
def test_layers_must_fit_each_other_and_the_model(layers, message):
    """Depths rise, and lie inside the model; told before any prompt."""
    with pytest.raises(MethodError, match=message):
        swiftvlm.prune(tiny(), SwiftVLM(layers=layers), budget=0.5)


@pytest.mark.parametrize("after", [0, 7, 8, -1])
def test_fastv_after_must_be_inside_the_model(after):
    """One layer runs before the cut and one behind it."""
    with pytest.raises(MethodError, match=rf"fastv: stages act after layers \[{after}\], .*after layers 1 to 6"):
        swiftvlm.prune(tiny(), FastV(after=after), budget=0.5)


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_a_model_too_shallow_for_three_stages(depth):
    """Says so, and that layers can be given; with two it works."""
    shape = replace(SHAPE, layers=depth)
    with pytest.raises(MethodError, match=rf"a model of {depth} layers is too shallow .*; give layers="):
        swiftvlm.plan("swiftvlm", 0.5, shape, 576)
    if depth == 5:
        assert swiftvlm.plan(SwiftVLM(layers=(1, 3)), 0.5, shape, 576).average_tokens <= 288


RESTS: dict[str, Any] = {
    "one too few": ("bypass",),
    "one too many": ("bypass", "drop", "drop"),
    "none": (),
}


@pytest.mark.parametrize("rest", RESTS.values(), ids=RESTS)
def test_rest_names_a_fate_for_every_stage_but_the_last(rest):
    """A tuple of the wrong length."""
    method = SwiftVLM(layers=(3, 5, 6), rest=rest)
    message = (
        r"rest is 'bypass', 'merge' or 'drop', or a tuple of 2 of them for 3 stages \(the last always drops\); got \("
    )
    with pytest.raises(MethodError, match=message):
        swiftvlm.prune(tiny(), method, budget=0.5)


def test_stages_of_a_users_own_are_checked():
    """A bypass with nothing behind it, and one whose next stage reads a map without the restored tokens."""
    last = Made(given=(Stage(2, TextAttention("previous"), Bypass()),))
    with pytest.raises(MethodError, match=r"made: the last stage cannot bypass, nothing would bring its tokens back"):
        swiftvlm.prune(tiny(), last, budget=0.5)
    blind = Made(given=(Stage(2, TextAttention("previous"), Bypass()), Stage(4, TextAttention("previous"))))
    with pytest.raises(MethodError, match=r"made: the stage after layer 4 cannot read .*; score with probe='next'"):
        swiftvlm.prune(tiny(), blind, budget=0.5)


def test_a_stage_that_trims_is_the_only_one():
    """Caches of several lengths cannot be cut to one set of tokens."""
    score = TextAttention("previous")
    two = Made(given=(Stage(2, score, trims=True), Stage(4, score)))
    with pytest.raises(MethodError, match=r"made: a stage that trims the caches .* got stages after \[2, 4\]"):
        swiftvlm.prune(tiny(), two, budget=0.5)


OTHERS = {
    "topv": (TopV, {"recover": 1}, r"recover is a step over unchosen tokens of at least 2, got 1"),
    "greedyprune": (GreedyPrune, {"alike": 1.5}, r"alike is a cosine in \[-1, 1\], got 1\.5"),
    "coordinates": (IVCPrune, {"coordinates": 1.0}, r"coordinates is a share .*\[0, 1\), got 1\.0"),
    "seeds": (IVCPrune, {"seeds": -0.1}, r"seeds is a share .*\[0, 1\), got -0\.1"),
    "star": (Star, {"after": (2, 3)}, r"after names the one cut inside the model, .* got \(2, 3\)"),
    "vitcop": (ViTCoP, {"after": (2,)}, r"after names the two cuts inside the model, .* got \(2,\)"),
}


@pytest.mark.parametrize(("method", "fields", "message"), OTHERS.values(), ids=OTHERS)
def test_fields_of_other_methods_are_checked(method, fields, message):
    """When the method is made."""
    with pytest.raises(MethodError, match=message):
        method(**fields)


def test_cdpruner_needs_a_relevance():
    """It can be planned without one; running names the way, and a relevance must fit its tile."""
    assert swiftvlm.plan("cdpruner", 192, SHAPE, 576).average_tokens == 192
    with pytest.raises(MethodError, match=r"takes a CLIP text tower: pass CDPruner\(relevance=.*'divprune' needs none"):
        swiftvlm.prune(tiny(), "cdpruner", budget=9)
    model = tiny()
    wrong = CDPruner(counts=(3,), relevance=lambda seen: torch.zeros(5))
    with (
        swiftvlm.prune(model, wrong),
        pytest.raises(MethodError, match=r"one number a patch, \(16,\), got \(5,\)"),
    ):
        model(**batch_of(model, [make_row(model, 0)]))


@pytest.mark.parametrize("budget", [1, 3])
def test_vitcop_says_what_it_can_reach(budget):
    """Its first cut follows from the budget, and holds for some layers."""
    with pytest.raises(
        BudgetError, match=rf"a budget of {budget} .*cannot be reached: stages after layers \[0, 2, 22\]"
    ):
        swiftvlm.plan("vitcop", budget, SHAPE, 576)


def test_unmeasured_depths_warn_with_what_is_used():
    """A warning, not an error: which layers, whence, and how to choose others."""
    with pytest.warns(UserWarning, match=r"no measured pruning layers for 40 layers.*\(4, 14, 19\).*Pass layers="):
        swiftvlm.plan("swiftvlm", 192, replace(SHAPE, layers=40), 576)


# --- models ----------------------------------------------------------------------------------------------------------


def test_a_module_that_is_no_transformers_model():
    """Its type is named."""
    with pytest.raises(FamilyError, match=r"prune\(\) takes a transformers vision-language model, got Linear"):
        swiftvlm.prune(nn.Linear(2, 2), "fastv")


def test_a_language_model_has_nothing_to_prune():
    """A plain LLM."""
    with pytest.raises(FamilyError, match=r"LlamaForCausalLM has no language model with visual tokens inside.*nothing"):
        swiftvlm.prune(LlamaForCausalLM(LlamaConfig(**TEXT)), "fastv")


def test_a_cross_attention_vlm_is_refused():
    """Mllama's language model sees its image through cross-attention: no visual token is in the sequence."""
    text = {**TEXT, "cross_attention_layers": [1, 3], "bos_token_id": 1, "eos_token_id": 2}
    vision = {**VISION, "attention_heads": 2, "num_global_layers": 1, "vision_output_dim": 32, "max_num_tiles": 1}
    vision |= {"intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1]]}
    model = MllamaForConditionalGeneration(MllamaConfig(vision_config=vision, text_config=text, image_token_index=9))
    with pytest.raises(FamilyError, match=r"Mllama.*[Cc]ross-attention VLMs such as .* are not supported"):
        swiftvlm.prune(model, "fastv", budget=0.5)


def test_sliding_windows_are_refused():
    """A Mistral text model with a window of 8; without the window it is pruned like any other."""
    with pytest.raises(FamilyError, match=r"\(mistral\) has layers that do not attend .*Sliding.*not supported yet"):
        swiftvlm.prune(llava_with(MistralConfig(**TEXT, sliding_window=8)), "fastv", budget=0.5)
    model = llava_with(MistralConfig(**TEXT, sliding_window=None))
    with swiftvlm.prune(model, "fastv", budget=0.75) as trace:
        model(**batch_of(model, [make_row(model, 0)]))
    assert trace.tokens_per_layer == (16, 16, 8, 8)


def test_a_config_without_a_placeholder_is_refused(monkeypatch):
    """Visual tokens are found by their id."""
    model = tiny.__wrapped__()
    plain = model.config.to_dict()
    bare = {name: value for name, value in plain.items() if name not in ("image_token_id", "image_token_index")}
    monkeypatch.setattr(type(model.config), "to_dict", lambda self: bare)
    with (
        swiftvlm.prune(model, "fastv", budget=0.5),
        pytest.raises(FamilyError, match=r"Llava\w+'s config has no image_token_id"),
    ):
        model(**batch_of(model, [make_row(model, 0)]))


def test_a_stage_before_the_familys_first_legal_layer(monkeypatch):
    """A family whose first layers must see every token."""
    families = MappingProxyType({**FAMILIES, "llava": Llava(first_stage=3)})
    monkeypatch.setattr("swiftvlm.families.FAMILIES", families)
    with pytest.raises(FamilyError, match=r"fastv cuts after layer 2, .*llava .*after layer 3 at the earliest"):
        swiftvlm.prune(tiny(), "fastv", budget=0.5)
    model = tiny()
    with swiftvlm.prune(model, FastV(after=3), budget=0.75) as trace:
        model(**batch_of(model, [make_row(model, 0)]))
    assert trace.tokens_per_layer[:4] == (16, 16, 16, 9)


SHAPES = {
    "zero layers": ({"layers": 0}, r"ModelShape\.layers must be a positive int, got 0"),
    "negative": ({"hidden": -4096}, r"ModelShape\.hidden must be a positive int, got -4096"),
    "true": ({"vocab": True}, r"ModelShape\.vocab must be a positive int, got True"),
    "kv": ({"heads": 32, "kv_heads": 5}, r"heads \(32\) must be a multiple of kv_heads \(5\)"),
    "head width": ({"head_dim": -1}, r"head_dim must be a positive int.*got -1"),
    "no head width": ({"hidden": 100, "heads": 32}, r"hidden \(100\) must be a multiple of heads \(32\)"),
}


@pytest.mark.parametrize(("fields", "message"), SHAPES.values(), ids=SHAPES)
def test_a_shape_by_hand_is_checked(fields, message):
    """Widths are positive and divide."""
    with pytest.raises(FamilyError, match=message):
        ModelShape(**fields)


@pytest.mark.parametrize("source", [SimpleNamespace(), CLIPVisionConfig(**VISION), "llava", None], ids=str)
def test_a_shape_cannot_be_read_from_anything(source):
    """The type is named, what is missing, and the way by hand."""
    message = rf"cannot read a decoder's shape from {type(source).__name__}: .*\. Pass a transformers VLM.*by hand"
    with pytest.raises(FamilyError, match=message):
        ModelShape.of(source)


@pytest.mark.parametrize("layers", [(0,), (8,), (3, -1, 99)], ids=str)
def test_recorded_states_name_layers_of_the_model(layers):
    """1 to the depth; the wrong ones are named."""
    with pytest.raises(SwiftVLMError, match=r"record_states names layers 1 to 7, got \[") as error:
        swiftvlm.prune(tiny(), "fastv", record_states=layers)
    assert str([layer for layer in layers if layer != 3]) in str(error.value)


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_a_row_that_attends_to_nothing():
    """Its number is named."""
    model = tiny()
    batch = batch_of(model, [make_row(model, 0), make_row(model, 1, images=0)])
    batch["attention_mask"][1] = 0
    with (
        swiftvlm.prune(model, "fastv", budget=0.5),
        pytest.raises(UnsupportedError, match=r"row 1 .* no token"),
    ):
        model(**batch)


def test_a_mask_of_another_length():
    """Both shapes are named. (The model itself may refuse it first.)"""
    model = tiny()
    batch = batch_of(model, [make_row(model, 0)])
    length = batch["input_ids"].shape[1]
    batch["attention_mask"] = torch.ones(1, length + 4, dtype=torch.long)
    message = rf"prompt's shape \(1, {length}\), got \(1, {length + 4}\); pass the processor's attention_mask"
    with swiftvlm.prune(model, "fastv", budget=0.5), pytest.raises(UnsupportedError, match=message):
        model(**batch)


def test_several_tokens_behind_ragged_rows_without_a_mask():
    """A backend that hands its layers no mask: nothing says what the new tokens may see."""
    slot = torch.tensor([[0, 1, 2], [-1, 0, 1]])
    segment = Segment(2, 5, slot, slot >= 0, True, False)
    hidden = torch.zeros(2, 3, 4)
    with pytest.raises(UnsupportedError, match=r"3 tokens at once .*pass the attention_mask of the whole conversation"):
        segment.step(hidden, {"attention_mask": None}, 8, lambda *_: (hidden, hidden))


# --- traces ----------------------------------------------------------------------------------------------------------


def one_run() -> str:
    """The JSON of a real trace."""
    model = tiny()
    with swiftvlm.prune(model, "fastv", budget=0.5) as trace:
        model(**batch_of(model, [make_row(model, 0)]))
    return trace.to_json()


def test_an_empty_trace_says_so():
    """Reading the last run before the first prompt, by method or by attribute."""
    with swiftvlm.prune(tiny(), "fastv", budget=0.5) as trace:
        for name in ("last", "kept", "average_tokens"):
            with pytest.raises(TraceError, match=r"no prompt has run inside this prune\(\) yet"):
                getattr(trace, name)


def test_a_trace_has_no_other_attributes():
    """A typo is an AttributeError, with or without runs."""
    for trace in (Trace(), Trace.from_json(one_run())):
        with pytest.raises(AttributeError, match=r"a trace has no attribute 'keptt'"):
            _ = trace.keptt


BROKEN = {
    "no JSON": "not json",
    "empty": "",
    "a list": "[1, 2]",
    "no format": "{}",
    "no runs": '{"format": 1}',
    "runs is a number": '{"format": 1, "runs": 3}',
    "a run is a number": '{"format": 1, "runs": [3]}',
    "null": "null",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_what_is_no_trace_is_refused(text):
    """Any text."""
    with pytest.raises(TraceError, match=r"not a trace written by Trace\.to_json: "):
        Trace.from_json(text)


def test_a_trace_of_another_format_is_refused():
    """Both formats are named."""
    with pytest.raises(TraceError, match=r"this trace has format 99, this version reads 1"):
        Trace.from_json('{"format": 99, "runs": []}')


def test_a_run_with_other_fields_is_refused():
    """The expected fields and the given ones are named."""
    data = json.loads(one_run())
    del data["runs"][0]["kept"]
    with pytest.raises(TraceError, match=r"a run must have the fields \[.*'kept'.*\], got \["):
        Trace.from_json(json.dumps(data))


@pytest.mark.parametrize(
    ("name", "value"),
    [("kept", [[["a"]]]), ("kept", None), ("cells", [[[1, 2, 3]]]), ("cells", [[[1, 2, 3, 4], [5]]]), ("groups", 7)],
)
def test_a_run_with_broken_values_is_refused(name, value):
    """Words, ragged cells, nothing at all: a `TraceError` when read, not something else later."""
    data = json.loads(one_run())
    data["runs"][0][name] = value
    with pytest.raises(TraceError, match=r"not a trace written by Trace\.to_json"):
        Trace.from_json(json.dumps(data))


# --- the hierarchy ---------------------------------------------------------------------------------------------------


def test_every_error_is_caught_by_the_base_and_by_pythons_own_kind():
    """`except SwiftVLMError` is enough; wrong values are ValueErrors, wrong uses RuntimeErrors."""
    for kind in (BudgetError, MethodError, FamilyError, TraceError):
        assert issubclass(kind, SwiftVLMError)
        assert issubclass(kind, ValueError)
    assert issubclass(UnsupportedError, SwiftVLMError)
    assert issubclass(UnsupportedError, RuntimeError)


def test_the_generic_family_serves_no_type():
    """Its first stage is layer 1."""
    assert (Family().model_types, Family().first_stage) == ((), 1)
