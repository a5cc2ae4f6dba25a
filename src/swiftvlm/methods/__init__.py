"""The one table of methods, and the two ways to ask for one: by name or as an instance."""

import difflib
from collections.abc import Mapping
from math import inf
from types import MappingProxyType

from swiftvlm.amounts import Budget, Number
from swiftvlm.errors import BudgetError, MethodError
from swiftvlm.methods.base import Method, check_stages
from swiftvlm.methods.cdpruner import CDPruner
from swiftvlm.methods.coordinated import Coordinated
from swiftvlm.methods.dart import Dart
from swiftvlm.methods.divprune import DivPrune
from swiftvlm.methods.fastv import FastV, RandomTokens, UniformTokens
from swiftvlm.methods.feather import Feather
from swiftvlm.methods.fields import fits, kinds_of, said
from swiftvlm.methods.greedyprune import GreedyPrune
from swiftvlm.methods.hiprune import HiPrune
from swiftvlm.methods.holov import HoloV
from swiftvlm.methods.ivcprune import IVCPrune
from swiftvlm.methods.nuwa import Nuwa
from swiftvlm.methods.pdrop import PDrop
from swiftvlm.methods.prumerge import PruMerge, PruMergePlus
from swiftvlm.methods.sparsevlm import SparseVLM, SparseVLMPlus
from swiftvlm.methods.star import Star
from swiftvlm.methods.swiftvlm import SwiftVLM, scaled_layers
from swiftvlm.methods.tome import ToMe
from swiftvlm.methods.topv import TopV
from swiftvlm.methods.vanilla import Vanilla
from swiftvlm.methods.visionzip import VisionZip
from swiftvlm.methods.vispruner import VisPruner
from swiftvlm.methods.vitcop import ViTCoP
from swiftvlm.methods.vscan import VScan
from swiftvlm.plans import Plan
from swiftvlm.shape import ModelShape

__all__ = [
    "METHODS",
    "NEEDS_WEIGHTS",
    "CDPruner",
    "Coordinated",
    "Dart",
    "DivPrune",
    "FastV",
    "Feather",
    "GreedyPrune",
    "HiPrune",
    "HoloV",
    "IVCPrune",
    "Method",
    "Nuwa",
    "PDrop",
    "PruMerge",
    "PruMergePlus",
    "RandomTokens",
    "SparseVLM",
    "SparseVLMPlus",
    "Star",
    "SwiftVLM",
    "ToMe",
    "TopV",
    "UniformTokens",
    "VScan",
    "Vanilla",
    "ViTCoP",
    "VisPruner",
    "VisionZip",
    "check_stages",
    "find_method",
    "fits",
    "kinds_of",
    "plan",
    "said",
    "scaled_layers",
]

METHODS: Mapping[str, type[Method]] = MappingProxyType(
    {
        cls.name: cls
        for cls in (
            Vanilla,
            RandomTokens,
            UniformTokens,
            FastV,
            PDrop,
            SparseVLM,
            SparseVLMPlus,
            Feather,
            Dart,
            TopV,
            GreedyPrune,
            IVCPrune,
            VisionZip,
            VisPruner,
            PruMerge,
            PruMergePlus,
            DivPrune,
            CDPruner,
            HiPrune,
            HoloV,
            VScan,
            Nuwa,
            ViTCoP,
            Star,
            ToMe,
            SwiftVLM,
        )
    }
)

# Named beside these in the papers' tables, but trained: without their weights there is nothing to run.
NEEDS_WEIGHTS: Mapping[str, str] = MappingProxyType(
    {
        "q-former": "arXiv:2301.12597",
        "llama-vid": "arXiv:2311.17043",
        "voco-llama": "arXiv:2406.12275",
        "focusllava": "arXiv:2411.14228",
        "atp-llava": "arXiv:2412.00447",
        "glimpseprune": "arXiv:2508.01548",
        "visionthink": "arXiv:2507.13348",
    }
)


def find_method(method: str | Method) -> Method:
    """An instance for a name in `METHODS`, or the instance given. Raises `MethodError`, with a guess for a typo."""
    if isinstance(method, Method):
        return method
    # Before the guess below, which would offer another method for one that is known and cannot run.
    paper = NEEDS_WEIGHTS.get(str(method).lower())
    if paper is not None:
        raise MethodError(
            f"{method} ({paper}) needs trained weights, which this library does not have; a score that your own module "
            "computes can be plugged in: docs/adding.md"
        )
    if not isinstance(method, str) or method not in METHODS:
        close = difflib.get_close_matches(str(method), METHODS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise MethodError(f"unknown method {method!r}; {hint}known: {', '.join(METHODS)}")
    return METHODS[method]()


def plan(
    method: str | Method,
    budget: Budget,
    shape: ModelShape,
    visual_tokens: int,
    # A short question in LLaVA-1.5's template: the published FLOPs come out at 69.5 (tests/numbers).
    text_tokens: Number = 70,
    preset: str | None = None,
) -> Plan:
    """The counts that `method` would run at `budget` on a model of this shape, without running a model.

    `budget`: int = visual tokens averaged over the layers at layer input, float in (0, 1] = a fraction, None = the
    method's first published preset. Raises `BudgetError` or `MethodError`.
    """
    if not isinstance(shape, ModelShape):
        raise MethodError(f"shape is a ModelShape, such as swiftvlm.ModelShape(layers=24), got {shape!r}")
    if isinstance(visual_tokens, bool) or not isinstance(visual_tokens, int) or visual_tokens < 0:
        raise BudgetError(f"visual_tokens must be an int of at least 0, got {visual_tokens!r}")
    if not isinstance(text_tokens, int | float) or not 1 <= text_tokens < inf:
        raise BudgetError(f"text_tokens must be at least 1 (the last prompt token asks), got {text_tokens!r}")
    return find_method(method).plan(shape, visual_tokens, text_tokens, budget, preset)
