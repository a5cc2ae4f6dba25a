"""Tasks x methods x budgets on one model: batched, resumable, every picture encoded once for all methods."""

import hashlib
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from swiftvlm.amounts import Budget
from swiftvlm.engine import prune
from swiftvlm.errors import BudgetError
from swiftvlm.evaluation.journal import Journal, Row
from swiftvlm.evaluation.oracle import ORACLE, oracle
from swiftvlm.evaluation.scorers import score
from swiftvlm.evaluation.tasks import Sample, Task
from swiftvlm.families import find_family
from swiftvlm.inputs import build_prompt
from swiftvlm.methods import Method
from swiftvlm.shape import ModelShape

ROOM = 6  # tokens that an answer may have beyond the true one
LEAST = 16  # that it may have at least


@dataclass(frozen=True)
class Cell:
    """One method at one budget; `label` is its name in tables and files."""

    label: str
    method: Method
    budget: Budget

    def floor(self, shape: ModelShape, visual: int, patches: int) -> str | None:
        """Why the budget cannot be met by this method on this model, or None if it can; `patches` as in `Sample`."""
        if self.label == ORACLE and visual != patches:
            return f"it knows the places of {patches} patches, and here are {visual} visual tokens"
        try:
            # Any number of text tokens will do: counts depend on the visual ones alone.
            self.method.plan(shape, visual, 16, self.budget)
        except BudgetError as error:
            return str(error)
        return None

    def described(self, shape: ModelShape) -> str:
        """What the label stands for: the method's fields and, since some depend on the model, its depths."""
        depths = [stage.after for stage in self.method.stages(shape)]
        depths = depths if self.method.reduction is None else [0, *depths]
        return f"{self.method!r} after {depths}" if self.label != ORACLE else ORACLE


def fingerprint(model: PreTrainedModel) -> str:
    """A short hash of a model's weights: names, shapes and the first 1,024 values, in bfloat16, of all parameters."""
    known = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        known.update(f"{name}{tuple(weight.shape)}".encode())
        # Rounded, since a weight that was worked out when loading differs in its last bits from processor to processor;
        # result files name the dtype beside it. As float32 again, since numpy has no bfloat16.
        known.update(weight.flatten()[:1024].bfloat16().float().cpu().numpy().tobytes())
    return known.hexdigest()[:16]


def chunks(tasks: Sequence[Task], size: int) -> Iterator[list[Sample]]:
    """All samples, `size` pictures at a time, those of a picture together and tasks in order within a chunk."""
    order = {task.name: i for i, task in enumerate(tasks)}
    samples = [sample for task in tasks for sample in task.samples]
    # Short names first: they end in a scene's number, and 9 comes before 10.
    images = list(dict.fromkeys(sample.image for sample in sorted(samples, key=lambda s: (len(s.image), s.image))))
    for start in range(0, len(images), size):
        here = set(images[start : start + size])
        # A stable sort: each task's questions stay together and in order, which `Evaluation.run` groups by.
        yield sorted((sample for sample in samples if sample.image in here), key=lambda s: order[s.task])


class Evaluation:
    """A model with its processor, asked batch by batch."""

    def __init__(self, model: PreTrainedModel, processor: Any, batch: int) -> None:
        self.model, self.processor, self.batch = model, processor, batch
        self.shape = ModelShape.of(model)
        encoder: Any = model
        # Such as LLaVA-NeXT's: a picture becomes several tiles, and its size says how many.
        self.tiled = "image_sizes" in inspect.signature(encoder.get_image_features).parameters
        # Since transformers 5.20 encoded pictures can be handed to generate; before, every method encodes them anew.
        self.shares_features = "mm_encoder_outputs" in inspect.signature(model.forward).parameters

    def run(self, tasks: Sequence[Task], cells: Sequence[Cell], journal: Journal, tell: Callable[[int], None]) -> None:
        """Answer whatever the journal lacks; `tell` gets the number of answers so far."""
        said = 0
        for chunk in chunks(tasks, self.batch):
            missing = [(cell, s) for cell in cells for s in chunk if (cell.label, s.key) not in journal.done]
            said += len(cells) * len(chunk) - len(missing)
            tell(said)
            # Once for all cells of the chunk, whose turn comes one after the other.
            features = self._encode([sample for _, sample in missing])
            # `missing` runs through the cells, and within each through the tasks: groups are whole.
            for (cell, _), found in groupby(missing, key=lambda pair: (pair[0], pair[1].task)):
                samples = [sample for _, sample in found]
                # A user's picture may have many questions: a chunk of `batch` pictures can be more than one batch.
                for start in range(0, len(samples), self.batch):
                    part = samples[start : start + self.batch]
                    journal.add(self._answer(cell, part, features))
                    said += len(part)
                    tell(said)

    @torch.no_grad()
    def _encode(self, samples: list[Sample]) -> dict[str, dict[str, Any]]:
        """Processor's outputs and encoded features of each picture."""
        # Samples of several cells and tasks name the same picture: it is drawn once.
        pictures = {sample.image: sample.picture for sample in samples}
        found: dict[str, dict[str, Any]] = {}
        for name, make in pictures.items():
            picture = make()
            seen = self.processor.image_processor(images=[picture], return_tensors="pt").to(self.model.device)
            found[name] = {"image": picture, **seen}
        # Pictures of several tiles may differ in their number and go one by one.
        entries = list(found.values()) if self.shares_features else []
        for some in filter(None, [[entry] for entry in entries] if self.tiled else [entries]):
            for entry, feature in zip(some, self._features(some), strict=True):
                entry["feature"] = feature
        return found

    def _features(self, entries: list[dict[str, Any]]) -> Any:
        """What the language model is given for each of some pictures."""
        encoder: Any = self.model
        sizes = {"image_sizes": torch.cat([entry["image_sizes"] for entry in entries])} if self.tiled else {}
        # (pictures, 3, height, width); of a tiled family (1, tiles, 3, height, width), one picture at a time.
        pixels = torch.cat([entry["pixel_values"] for entry in entries]).to(self.model.dtype)
        return encoder.get_image_features(pixel_values=pixels, return_dict=True, **sizes).pooler_output

    def _inputs(
        self, samples: Sequence[Sample], features: dict[str, dict[str, Any]], encoded: bool = True
    ) -> dict[str, Any]:
        """What `generate` takes for these samples, encoded pictures instead of pixels where it can and `encoded`."""
        prompts = [build_prompt(self.processor, sample.question, 1) for sample in samples]
        # Encoded or not, the processor must see the pictures: it writes a placeholder for every visual token.
        images = [features[sample.image]["image"] for sample in samples]
        # All prompts of a batch end in the same column, so that answers can be cut off behind it.
        padded = {"padding": True, "padding_side": "left"}
        inputs = dict(self.processor(images=images, text=prompts, return_tensors="pt", **padded))
        inputs = {key: value.to(self.model.device) for key, value in inputs.items()}
        if self.shares_features and encoded:
            # transformers itself puts a list of tensors here, whatever its annotation says.
            shared: Any = [features[sample.image]["feature"] for sample in samples]
            # Without pixels, which the model refuses beside encoded pictures.
            inputs = {key: inputs[key] for key in ("input_ids", "attention_mask")}
            inputs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=shared)}
        return inputs

    def floors(self, cells: Sequence[Cell], sample: Sample) -> dict[str, str]:
        """Why cells cannot meet their budgets on pictures like this sample's, by label; only those that cannot."""
        prompt = build_prompt(self.processor, sample.question, 1)
        ids = self.processor(images=[sample.picture()], text=[prompt], return_tensors="pt")["input_ids"]
        visual = int(find_family(self.model).visual(self.model, ids).sum())
        return {cell.label: why for cell in cells if (why := cell.floor(self.shape, visual, sample.patches))}

    def longest(self, samples: Sequence[Sample]) -> int:
        """Tokens that answers may have: tokenizers differ, and one that spells numbers out needs many for a box."""
        true = [sample.answer or str([round(edge, 2) for edge in sample.box or ()]) for sample in samples]
        encoded = self.processor.tokenizer(true, add_special_tokens=False)["input_ids"]
        return max(LEAST, ROOM + max(map(len, encoded)))

    def method(self, cell: Cell, samples: Sequence[Sample], inputs: dict[str, Any]) -> Method:
        """What prunes these samples in a cell; the oracle's tokens differ from sample to sample."""
        return oracle(samples) if cell.label == ORACLE else cell.method

    @torch.no_grad()
    def _answer(self, cell: Cell, samples: list[Sample], features: dict[str, dict[str, Any]]) -> list[Row]:
        # What acts before the language model must see the pictures being encoded.
        inputs = self._inputs(samples, features, encoded=cell.method.reduction is None)
        method = self.method(cell, samples, inputs)
        model: Any = self.model
        # With shared features the encoding is not in this time, without (a cut before the language model) it is.
        began = time.perf_counter()
        with prune(self.model, method, budget=cell.budget) as trace:
            output = model.generate(**inputs, max_new_tokens=self.longest(samples), do_sample=False)
        seconds = time.perf_counter() - began
        run, new = trace.last, output[:, inputs["input_ids"].shape[1] :]
        answers = self.processor.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [
            {
                "task": sample.task,
                "cell": cell.label,
                "key": sample.key,
                "answer": answer.strip(),
                "score": score(sample, answer),
                "tokens": round(sum(run.per_row[i]) / len(run.per_row[i]), 3),
                "flops": round(run.flops / len(samples)),
                "kv_bytes": round(run.kv_bytes / len(samples)),
                "seconds": round(seconds / len(samples), 5),
            }
            for i, (sample, answer) in enumerate(zip(samples, answers, strict=True))
        ]
