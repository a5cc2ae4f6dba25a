"""What methods still have in the last layer: patches of the answer, of anything, of the ground behind them.

    python scripts/kept.py --budget 128 --limit 40 --methods fastv,swiftvlm:layers=3/8/11 --out results/kept-128.json

Questions of the embedded model's test pool, one prefill each. For every method and task: the share of the answer's
patches (`Sample.target`), of all that show something (`Sample.shown`) and of all others that the last stage kept. Of
tokens that were merged only the one that stands for them counts.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

import swiftvlm
from swiftvlm.cli.parse import read_method
from swiftvlm.errors import SwiftVLMError
from swiftvlm.evaluation import Sample, fingerprint
from swiftvlm.inputs import build_prompt
from swiftvlm.methods import Method
from swiftvlm.mini import embedded_task, load_mini
from swiftvlm.scenes import VISUAL_TOKENS

WITH_TARGETS = ("ref", "ref+", "refg", "text")


def main() -> None:
    """Measure, and write one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", required=True, help="as `swiftvlm eval` takes them, with commas")
    parser.add_argument("--tasks", default="ref,text", help=f"some of {','.join(WITH_TARGETS)}")
    parser.add_argument("--budget", type=int, default=128, help="average visual tokens")
    parser.add_argument("--limit", type=int, default=50, help="questions a task")
    parser.add_argument("--out", type=Path, required=True, help="result file")
    asked = parser.parse_args()
    try:
        methods = {name.strip(): read_method(name.strip()) for name in asked.methods.split(",")}
    except SwiftVLMError as error:
        parser.error(str(error))
    names = asked.tasks.split(",")
    if asked.limit < 1 or not set(names) <= set(WITH_TARGETS):
        parser.error(f"at least one question of some of {', '.join(WITH_TARGETS)}: others have no patch to keep")
    torch.set_num_threads(1)
    model, processor = load_mini()
    tasks = {name: embedded_task(name, asked.limit).samples for name in names}
    found = {name: _shares(model, processor, method, asked.budget, tasks) for name, method in methods.items()}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    about = {"budget": asked.budget, "questions a task": asked.limit, "model": fingerprint(model), "versions": versions}
    asked.out.write_text(json.dumps({"header": about, "kept": found}, indent=1) + "\n")


def _shares(
    model: Any, processor: Any, method: Method, budget: int, tasks: dict[str, tuple[Sample, ...]]
) -> dict[str, dict[str, float]]:
    """Means over each task's questions."""
    told = {}
    for task, samples in tasks.items():
        shares = [kept(model, processor, method, budget, sample) for sample in samples]
        told[task] = {key: round(sum(one[key] for one in shares) / len(shares), 3) for key in shares[0]}
    return told


@torch.no_grad()
def kept(model: Any, processor: Any, method: Method, budget: int, sample: Sample) -> dict[str, float]:
    """Shares of a picture's patches that are left behind the last stage, by what they show."""
    prompt = build_prompt(processor, sample.question, 1)
    inputs = processor(images=[sample.picture()], text=prompt, return_tensors="pt")
    first = int((inputs["input_ids"][0] == processor.image_token_id).nonzero()[0, 0])
    with swiftvlm.prune(model, method, budget=budget) as trace:
        model(**inputs)
    every: Sequence[int] = range(VISUAL_TOKENS)
    left = {place - first for place in trace.kept[-1][0].tolist()} if trace.kept else set(every)
    answer, shown = set(sample.target), set(sample.shown)
    sides = {"answer": answer, "shown": shown, "ground": set(every) - shown}
    return {name: len(left & side) / len(side) for name, side in sides.items()}


if __name__ == "__main__":
    main()
