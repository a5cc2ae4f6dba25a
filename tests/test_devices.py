"""Models placed, loaded and driven as users do: offloaded and dispatched weights, checkpoints on disk, pipelines."""

from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    pipeline,
)

import swiftvlm
from swiftvlm.methods.base import Method
from swiftvlm.trace import Trace
from tests.laws.generation import FAMILIES, METHODS, mixed_rows, snapshot
from tests.support import IMAGE, PATCH, SIDE, VOCAB, batch_of, tiny

EVERY = {
    "fastv": METHODS["fastv"],
    "renumbered": METHODS["renumbered"],
    "visual": swiftvlm.SwiftVLM(layers=(3, 5, 6), counts=(6, 3, 5, 2, 4), softmax_over="visual", rope=False, refine=1),
}


@pytest.fixture(params=EVERY)
def method(request: pytest.FixtureRequest) -> Method:
    """One that drops, one that renumbers, and one whose score projects its keys itself at every stage."""
    return EVERY[request.param]


def answers(model: nn.Module, method: Method, batch: dict[str, Tensor]) -> tuple[Trace, Tensor, Tensor]:
    """Trace, prefill logits and those of two decoded tokens under pruning.

    Not by generate: transformers cannot generate with a LLaVA-NeXT whose newline feature is on `meta`, pruned or not.
    """
    mask, steps = batch["attention_mask"], []
    with swiftvlm.prune(model, method, record_states=(1, 4)) as trace:
        out = model(**batch)
        for token in (5, 9):
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            ids = torch.full_like(mask[:, :1], token)
            steps.append(model(input_ids=ids, attention_mask=mask, past_key_values=out.past_key_values).logits)
    return trace, out.logits, torch.cat(steps, dim=1)


def offloaded(model: nn.Module, folder: Path) -> nn.Module:
    """Every weight lives in host memory, on `meta` in the module, and is fetched for each module's forward."""
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    return model


def on_disk(model: nn.Module, folder: Path) -> nn.Module:
    """The same from files."""
    accelerate.disk_offload(model, str(folder), execution_device=torch.device("cpu"))
    return model


def dispatched(model: nn.Module, folder: Path) -> nn.Module:
    """What `device_map` makes: hooks of accelerate on every part, some layers on disk."""
    parts = {f"model.language_model.layers.{i}": "disk" if i in (2, 4) else "cpu" for i in range(7)}
    parts |= dict.fromkeys(("model.language_model.embed_tokens", "model.language_model.norm", "lm_head"), "cpu")
    parts |= dict.fromkeys(("model.language_model.rotary_emb", "model.vision_tower"), "cpu")
    parts["model.multi_modal_projector"] = "cpu"
    return accelerate.dispatch_model(model, parts, main_device="cpu", offload_dir=str(folder), force_hooks=True)


PLACED = {
    "cpu_offload": (offloaded, "llava"),
    "cpu_offload, llava_next": (offloaded, "llava_next"),
    "disk_offload": (on_disk, "llava"),
    "dispatch_model": (dispatched, "llava"),
}


@pytest.mark.parametrize(("place", "family"), PLACED.values(), ids=PLACED)
def test_placed_weights_answer_like_resident_ones(family, method, place, tmp_path):
    """Weights fetched by accelerate's hooks: same tokens, same logits, nothing on `meta`, the model left as found."""
    model = tiny.__wrapped__(family)
    batch = batch_of(model, mixed_rows(model))
    trace, logits, steps = answers(model, method, batch)
    place(model, tmp_path)
    assert "meta" in {parameter.device.type for parameter in model.parameters()}
    before = named(model)
    placed, same_logits, same_steps = answers(model, method, batch)
    assert named(model) == before
    assert placed == trace
    assert torch.equal(same_logits, logits)
    assert torch.equal(same_steps, steps)
    parts = [stage for part in (placed.kept, placed.anchors, placed.groups) for stage in part]
    tensors = [slots for stage in parts for slots in stage] + list(placed.states.values())
    assert {tensor.device.type for tensor in tensors} == {"cpu"}


def named(model: nn.Module) -> dict[str, Any]:
    """Attributes and hooks by name; accelerate puts new placeholders in place of parameters at every forward."""
    parts = snapshot(model)
    return {name: {key: list(v) if isinstance(v, dict) else None for key, v in parts[name].items()} for name in parts}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_comes_back_as_it_went(family, method, tmp_path):
    """Saved and loaded by the Auto class: the same tokens kept, the same logits."""
    model = tiny(family)
    batch = batch_of(model, mixed_rows(model))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert type(loaded) is type(model)
    trace, logits, steps = answers(model, method, batch)
    again, same_logits, same_steps = answers(loaded, method, batch)
    assert again == trace
    assert torch.equal(same_logits, logits)
    assert torch.equal(same_steps, steps)


def test_a_checkpoint_in_bfloat16_prunes_alike(method, tmp_path):
    """`dtype=` at loading: counts as planned, half the cache, and the cache's type is the model's."""
    model = tiny("llava")
    batch = batch_of(model, mixed_rows(model))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    trace, _, _ = answers(model, method, batch)
    again, logits, _ = answers(loaded, method, batch)
    assert logits.dtype == torch.bfloat16
    assert again.per_row == trace.per_row
    assert 2 * again.kv_bytes == trace.kv_bytes


# --- pipelines -------------------------------------------------------------------------------------------------------


def processor() -> LlavaProcessor:
    """A processor for the tiny LLaVA: one token a word, pictures of 28 x 28."""
    words = {f"w{i}": i for i in range(VOCAB)}
    words = {{0: "<pad>", 1: "<s>", 2: "<unk>", IMAGE: "<image>"}.get(i, word): i for word, i in words.items()}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<pad>", "<s>", "<unk>", "<image>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", unk_token="<unk>", padding_side="left"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    pictures = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="{% for m in messages %}{% for c in m['content'] %}"
        "{{ '<image>' if c['type'] == 'image' else ' ' + c['text'] + ' ' }}{% endfor %}{% endfor %}",
    )


def picture(seed: int = 0) -> Image.Image:
    """Coloured noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 56, 3), dtype=np.uint8))


def test_a_pipeline_is_pruned(method):
    """`image-text-to-text`: one run, the planned counts, and the answer of `generate` on the same inputs."""
    model, prepare = tiny("llava"), processor()
    ask: Any = pipeline("image-text-to-text", model=model, processor=prepare)
    question = {"images": picture(), "text": "w1 <image> w7 w9 w11"}
    inputs = prepare(**question, return_tensors="pt")
    assert int((inputs["input_ids"] == IMAGE).sum()) == 16
    with swiftvlm.prune(model, method) as trace:
        said = ask(**question, generate_kwargs={"do_sample": False, "max_new_tokens": 6}, return_full_text=False)
    with swiftvlm.prune(model, method) as direct:
        tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert len(trace) == 1
    assert trace.visual == (16,)
    assert trace.tokens_per_layer == direct.tokens_per_layer
    assert trace.average_tokens < 16
    assert [stage[0].tolist() for stage in trace.kept] == [stage[0].tolist() for stage in direct.kept]
    new = tokens[0, inputs["input_ids"].shape[1] :]
    assert said[0]["generated_text"].split() == prepare.decode(new, skip_special_tokens=True).split()
    assert len(said[0]["generated_text"].split()) >= 3


def test_a_pipeline_of_several_prompts_is_a_run_each():
    """A list, fed one by one, and as a batch: every prompt is pruned, and the answers agree."""
    model = tiny("llava")
    ask: Any = pipeline("image-text-to-text", model=model, processor=processor())
    chats = [
        [{"role": "user", "content": [{"type": "image", "image": picture(seed)}, {"type": "text", "text": words}]}]
        for seed, words in enumerate(("w5 w6 w7", "w8", "w9 w10 w11 w12"))
    ]
    told = {"text": chats, "generate_kwargs": {"do_sample": False, "max_new_tokens": 5}, "return_full_text": False}
    with swiftvlm.prune(model, METHODS["swiftvlm"]) as trace:
        alone = [answer[0]["generated_text"] for answer in ask(**told)]
        together = [answer[0]["generated_text"] for answer in ask(**told, batch_size=3)]
    assert [len(run.visual) for run in trace] == [1, 1, 1, 3]
    assert {row for run in trace for row in run.per_row} == {(16, 16, 16, 9, 7, 4, 4)}
    assert alone == together
    assert len(set(alone)) > 1
