"""Training-free visual-token pruning, with bypass, for Hugging Face vision-language models."""

from swiftvlm.engine import prune
from swiftvlm.errors import SwiftVLMError
from swiftvlm.families import FAMILIES
from swiftvlm.methods import METHODS, SwiftVLM, plan
from swiftvlm.mini import load_mini
from swiftvlm.plans import Plan
from swiftvlm.shape import ModelShape
from swiftvlm.trace import Trace

__all__ = [
    "FAMILIES",
    "METHODS",
    "ModelShape",
    "Plan",
    "SwiftVLM",
    "SwiftVLMError",
    "Trace",
    "load_mini",
    "plan",
    "prune",
]
