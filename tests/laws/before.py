"""What the tests of methods before the language model share: the methods, and which of them change nothing at all."""

from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from swiftvlm.methods.base import Method
from swiftvlm.methods.cdpruner import CDPruner
from swiftvlm.methods.divprune import DivPrune
from swiftvlm.methods.fastv import RandomTokens, UniformTokens
from swiftvlm.methods.hiprune import HiPrune
from swiftvlm.methods.holov import HoloV
from swiftvlm.methods.nuwa import Nuwa
from swiftvlm.methods.prumerge import PruMerge, PruMergePlus
from swiftvlm.methods.star import Star
from swiftvlm.methods.tome import ToMe
from swiftvlm.methods.visionzip import VisionZip
from swiftvlm.methods.vispruner import VisPruner
from swiftvlm.methods.vitcop import ViTCoP
from swiftvlm.methods.vscan import VScan
from swiftvlm.tower import Seen
from tests.laws.cases import METHODS as IN_MODEL
from tests.laws.cases import SETTINGS


def by_question(seen: Seen) -> Tensor:
    """A relevance that depends on picture and text."""
    return seen.embeds.float()[:, 0] * (1 + seen.text.sum() % 7)


METHODS: dict[str, Method] = {
    "visionzip": VisionZip(counts=(5, 2)),
    "vispruner": VisPruner(counts=(6,)),
    "prumerge": PruMerge(counts=(6,)),
    "prumerge+": PruMergePlus(counts=(9,)),
    "divprune": DivPrune(counts=(7,)),
    "hiprune": HiPrune(counts=(8,), alpha=0.6),
    "holov": HoloV(counts=(6,), crops=4),
    "vscan": VScan(after=(3,), counts=(7, 3)),
    "nuwa": Nuwa(after=(3,), counts=(6, 3)),
    "cdpruner": CDPruner(counts=(6,), relevance=by_question),
    "tome": ToMe(counts=(6,)),
    "star": Star(after=(3,), counts=(7, 3)),
    "vitcop": ViTCoP(after=(2, 5), counts=(9, 0, 4, 3, 2)),
    "true positions": VisPruner(counts=(6,), positions="original"),
}
# What feeds patches as they are: with all of them, nothing may change. Not VisionZip and PruMerge, whose tokens are no
# patches, and not Nuwa, whose collectors gather their surroundings however many patches stay.
CHOOSING = {name: method for name, method in METHODS.items() if not name.startswith(("visionzip", "prumerge", "nuwa"))}
# Both families, attentions and sides; each method in two of the four, one of each family.
FOUR = [SETTINGS[0], SETTINGS[1], SETTINGS[5], SETTINGS[7]]
# Methods inside the model that the files of laws 8 to 11 leave to these.
INSIDE = {
    "random": RandomTokens(after=2, counts=(5,)),
    "uniform": UniformTokens(after=1, counts=(6,)),
    **{name: IN_MODEL[name] for name in ("dart", "topv", "greedyprune", "ivcprune", "sparsevlm", "sparsevlm+")},
}
EVERY = METHODS | INSIDE
every = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
every_one = pytest.mark.parametrize("method", EVERY.values(), ids=EVERY)
both = pytest.mark.parametrize("family", ["llava", "llava_next"])


def by_budget(method: Any) -> Any:
    """The method without counts."""
    return replace(method, counts=None)
