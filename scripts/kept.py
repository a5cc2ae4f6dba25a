"""What methods still have in the last layer: patches of the answer, of other things, of the ground behind them.

    python scripts/kept.py --budget 128 --limit 50 --methods fastv,topv,swiftvlm:layers=3/8/11 > results/kept-128.json

Questions of the embedded model's test pool, one prefill each. For every method and task: the share of the answer's
patches (`Sample.target`), of all that show something (`Sample.shown`) and of all others that the last stage kept.
"""

import argparse
import json
from typing import Any

import torch
import transformers

import swiftvlm
from swiftvlm.cli.parse import read_method
from swiftvlm.evaluation.run import fingerprint
from swiftvlm.evaluation.tasks import Sample, embedded_task
from swiftvlm.inputs.prompts import build_prompt
from swiftvlm.methods.base import Method
from swiftvlm.mini import load_mini, pool


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", required=True, help="as `swiftvlm eval` takes them, with commas")
    parser.add_argument("--tasks", default="ref,text", help="with commas")
    parser.add_argument("--budget", type=int, default=128, help="average visual tokens")
    parser.add_argument("--limit", type=int, default=50, help="questions a task")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model, processor = load_mini()
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in asked.methods.split(","):
        method = read_method(name)
        for task in asked.tasks.split(","):
            samples = embedded_task(task, asked.limit).samples
            shares = [kept(model, processor, method, asked.budget, sample) for sample in samples]
            means = {key: round(sum(one[key] for one in shares) / len(shares), 3) for key in shares[0]}
            found.setdefault(name, {})[task] = means
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    about = {"budget": asked.budget, "questions a task": asked.limit, "model": fingerprint(model), "versions": versions}
    print(json.dumps({"header": about, "kept": found}, indent=1))


@torch.no_grad()
def kept(model: Any, processor: Any, method: Method, budget: int, sample: Sample) -> dict[str, float]:
    """Shares of a picture's patches that are left behind the last stage, by what they show."""
    prompt = build_prompt(processor, sample.question, 1)
    inputs = processor(images=[sample.picture()], text=prompt, return_tensors="pt")
    first = int((inputs["input_ids"][0] == processor.image_token_id).nonzero()[0, 0])
    with swiftvlm.prune(model, method, budget=budget) as trace:
        model(**inputs)
    left = {place - first for place in trace.kept[-1][0].tolist()}
    answer, shown = set(sample.target), set(sample.shown)
    sides = {"answer": answer, "shown": shown, "ground": set(range(pool.VISUAL)) - shown}
    return {name: len(left & side) / len(side) for name, side in sides.items()}


if __name__ == "__main__":
    main()
