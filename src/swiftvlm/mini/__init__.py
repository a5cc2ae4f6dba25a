"""The embedded model: a small LLaVA-1.5, the scenes it was trained on and is tested on, and its training."""

from swiftvlm.mini.load import load_mini

__all__ = ["load_mini"]
