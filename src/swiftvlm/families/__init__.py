"""The one table of model families, and how a model finds its own."""

import warnings
from collections.abc import Mapping
from types import MappingProxyType

from torch import nn
from transformers import PreTrainedModel

from swiftvlm.errors import FamilyError
from swiftvlm.families.base import Family
from swiftvlm.families.llava import Llava
from swiftvlm.families.llava_next import LlavaNext

__all__ = ["FAMILIES", "Family", "find_family"]

FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in (Llava(), LlavaNext())})


def find_family(model: nn.Module) -> Family:
    """The family that serves `model.model.config.model_type`; the generic record, with a warning, where none does.

    Raises `FamilyError` for what is not a transformers VLM, or has no visual tokens in its language model.
    """
    if not isinstance(model, PreTrainedModel):
        raise FamilyError(f"prune() takes a transformers vision-language model, got {type(model).__name__}")
    for family in FAMILIES.values():
        if model.config.model_type in family.model_types:
            return family
    # Refuse what has no decoder to prune before saying that we try.
    generic = Family()
    generic.language_model(model)
    warnings.warn(
        f"no family knows model_type {model.config.model_type!r}: the generic record is tried and checks itself on the "
        f"first prompt, which costs two more prefills. Known: {', '.join(FAMILIES)}",
        stacklevel=4,  # to the line that called `prune`
    )
    return generic
