"""What choosing costs: seconds in SwiftVLM's stages against the prefill they serve, at the LLaVA-1.5-7B shape.

    python scripts/overhead.py --budget 192 --repeats 7 --save results/overhead-192.json

Six random bf16 decoder layers of LLaVA-1.5-7B's widths (2.4 GB) stand for 32: stages act after 3, 4 and 5 layers with
the counts of the real schedule, so every sequence length of the schedule is run by at least one layer. The 32-layer
prefill is summed from those layers' own times: 3 at full length, 7, 4 and 18 behind the stages. Numerator: everything
a stage does (restore, score, select, group, merge, cut), and slicing masks and rotary embeddings for the layers.
"""

import argparse
import json
import platform
import statistics
import subprocess
import time
from pathlib import Path

import torch
import transformers
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import swiftvlm
from swiftvlm.engine import handle as handles
from swiftvlm.engine import prefill as prefills

SPANS = (3, 7, 4, 18)  # layers of the real schedule that run at each length
IMAGE = 32000


def build(seed: int) -> LlavaForConditionalGeneration:
    """Six layers of LLaVA-1.5-7B's language model behind a tiny tower with the real 24 x 24 grid."""
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.bfloat16)
    tower = CLIPVisionConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=336, patch_size=14
    )
    text = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=6,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=32064,
        rms_norm_eps=1e-5,
    )
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=tower, text_config=text, image_token_index=IMAGE))
    torch.set_default_dtype(torch.float32)
    model.train(False)
    return model


class Clock:
    """Adds up seconds by name while a `with` of patched methods lasts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, function):  # type: ignore[no-untyped-def]  # wraps methods of any signature
        """The function, its time added under `name`."""

        def run(*args, **kwargs):  # type: ignore[no-untyped-def]
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

        return run


def measure(
    model: LlavaForConditionalGeneration, inputs: dict[str, torch.Tensor], counts: tuple[int, ...]
) -> dict[str, float]:
    """One prefill: seconds in the stages, in slicing, and in each of the six layers."""
    clock = Clock()
    layers = model.model.language_model.layers
    for index, layer in enumerate(layers):
        layer.forward = clock.timed(f"layer {index}", layer.forward)
    stage, sliced = prefills.Prefill.stage, handles.Handle._sliced
    prefills.Prefill.stage = clock.timed("stages", stage)  # type: ignore[method-assign]
    handles.Handle._sliced = clock.timed("slices", sliced)  # type: ignore[method-assign]
    try:
        with torch.no_grad(), swiftvlm.prune(model, swiftvlm.SwiftVLM(layers=(3, 5, 6), counts=counts)):
            model(**inputs, logits_to_keep=1)
    finally:
        prefills.Prefill.stage, handles.Handle._sliced = stage, sliced  # type: ignore[method-assign]
        for layer in layers:
            del layer.forward
    return clock.seconds


def summarise(seconds: dict[str, float]) -> dict[str, float]:
    """The 32-layer prefill implied by the measured layers, and the share that choosing adds to it."""
    full = statistics.mean(seconds[f"layer {index}"] for index in range(3))
    per_layer = (full, *(seconds[f"layer {index}"] for index in (3, 4, 5)))
    layers = sum(span * one for span, one in zip(SPANS, per_layer, strict=True))
    added = seconds["stages"] + seconds["slices"]
    return {"layers_s": layers, "stages_s": seconds["stages"], "slices_s": seconds["slices"], "share": added / layers}


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    plan = swiftvlm.plan("swiftvlm", args.budget, swiftvlm.ModelShape(), 576, 70)
    counts = tuple(count for cut in plan.cuts for count in (cut.kept, cut.merged))[:-1]
    model = build(args.seed)
    ids = torch.randint(3, IMAGE, (1, 646))
    ids[:, 35:611] = IMAGE
    inputs = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 336, 336, dtype=torch.bfloat16)}
    measure(model, inputs, counts)  # warm-up
    runs = [summarise(measure(model, inputs, counts)) for _ in range(args.repeats)]
    middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    report = {
        "command": f"python scripts/overhead.py --budget {args.budget} --repeats {args.repeats} "
        f"--threads {args.threads}",
        "commit": commit.stdout.strip(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "hardware": f"{platform.machine()} CPU, {args.threads} threads, bf16",
        "seed": args.seed,
        "counts": counts,
        "median": middle,
        "share_min": min(run["share"] for run in runs),
        "share_max": max(run["share"] for run in runs),
    }
    print(json.dumps(report, indent=1))
    if args.save:
        args.save.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
