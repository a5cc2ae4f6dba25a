"""Checkpoints: a folder or hub id as a model and its processor, checked before any weight is read."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from swiftvlm.errors import SwiftVLMError
from swiftvlm.families import find_family

DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class CheckpointError(SwiftVLMError, ValueError):
    """Not a checkpoint of a model that can be pruned."""


def load_checkpoint(name: str, dtype: str = "auto", device: str = "auto") -> tuple[PreTrainedModel, Any]:
    """Load a checkpoint folder or hub id.

    `dtype`: "auto" (the checkpoint's own), "float32", "bfloat16" or "float16"; `device`: "auto" (a GPU if there is
    one), "cpu", "cuda:1", ... Raises `CheckpointError` for what is not a vision-language checkpoint, `FamilyError` for
    one that has no visual tokens in its language model.
    """
    folder = Path(name)
    if folder.is_file():
        raise CheckpointError(f"{name}: is a file, give the checkpoint's folder or a hub id")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise CheckpointError(f"{name}: not a checkpoint folder, it has no config.json")
    place = _device(device)
    try:
        config = AutoConfig.from_pretrained(name)
        # The architecture without its weights: what cannot be pruned is refused before gigabytes are read.
        with torch.device("meta"):
            skeleton: PreTrainedModel = AutoModelForImageTextToText.from_config(config)  # type: ignore[no-untyped-call]
        family = find_family(skeleton)
        family.language_model(skeleton)
        model = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype)
        processor: Any = AutoProcessor.from_pretrained(name)  # type: ignore[no-untyped-call]
    # FamilyError is a ValueError, too, and says more than the line below would.
    except SwiftVLMError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        why = str(error).strip().splitlines()
        raise CheckpointError(
            f"{name}: not a vision-language checkpoint we can load ({why[0] if why else error!r})"
        ) from None
    loaded: Any = model
    return loaded.to(place).eval(), processor


def placed(model: Any, dtype: str, device: str) -> Any:
    """A model that is there already, moved where and to what is asked for; "auto" leaves it as it is.

    Raises `CheckpointError` for a device or type that there is not.
    """
    if dtype not in DTYPES:
        raise CheckpointError(f"--dtype is one of {', '.join(DTYPES)}, got {dtype!r}")
    return model.to(model.device if device == "auto" else _device(device), DTYPES[dtype] or model.dtype)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(name)
        # `torch.device` takes any index; that the device is there only shows when something is put on it.
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise CheckpointError(f"device {name!r} is not available here ({str(error).splitlines()[0]})") from None
    return place
