"""A question and its images as the prompt a checkpoint was trained on, and boxes read back out of an answer."""

import re
from typing import Any, Literal

from swiftvlm.errors import SwiftVLMError

System = Literal["template", "vicuna"]
# Vicuna v1's frame: LLaVA-1.5 was trained with its system sentences, which llava-hf's chat template leaves out.
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: {images}\n{question} ASSISTANT:"
)
PLAIN = "USER: {images}\n{question} ASSISTANT:"
NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
BOX = re.compile(rf"\[{NUMBER},{NUMBER},{NUMBER},{NUMBER}\]")


class PromptError(SwiftVLMError, ValueError):
    """A question that cannot be put to a model as it stands."""


def check_question(question: str, image_token: str = "<image>") -> str:
    """The question without surrounding space. Raises `PromptError` if it is empty or holds image placeholders."""
    if not question.strip():
        raise PromptError(f"the question is empty ({question!r}); ask something about the image")
    if image_token in question:
        raise PromptError(f"the question already contains {image_token!r}; images are placed for you, leave it out")
    return question.strip()


def build_prompt(processor: Any, question: str, images: int, system: System = "template") -> str:
    """The prompt for `images` pictures and a question, by the processor's chat template or Vicuna's.

    Raises `PromptError` as `check_question` does.
    """
    question = check_question(question, processor.image_token)
    if system == "template" and processor.chat_template is not None:
        content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
        turns = [{"role": "user", "content": content}]
        return str(processor.apply_chat_template(turns, add_generation_prompt=True))
    # Without a chat template, "template" means llava-hf's words.
    frames: dict[System, str] = {"vicuna": VICUNA, "template": PLAIN}
    return frames[system].format(images="\n".join([processor.image_token] * images), question=question)


def read_boxes(answer: str) -> list[tuple[float, float, float, float]]:
    """All boxes `[x1, y1, x2, y2]` in an answer whose numbers are fractions in order; others are left out."""
    found = [tuple(float(number) for number in match.groups()) for match in BOX.finditer(answer)]
    return [(x1, y1, x2, y2) for x1, y1, x2, y2 in found if 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1]
