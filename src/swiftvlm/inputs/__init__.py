"""From what a user has (files, a question, a checkpoint) to what a model takes, or an error that says what is wrong."""

from swiftvlm.inputs.checkpoint import load_checkpoint, placed
from swiftvlm.inputs.images import open_image, pad_to_square
from swiftvlm.inputs.prompts import System, build_prompt, check_question, read_boxes

__all__ = [
    "System",
    "build_prompt",
    "check_question",
    "load_checkpoint",
    "open_image",
    "pad_to_square",
    "placed",
    "read_boxes",
]
