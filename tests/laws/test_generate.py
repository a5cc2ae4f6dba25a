"""Law 11: every way to generate gives what one prefill of the finished text gives, or is refused with a way out."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import DynamicCache, StaticCache, masking_utils
from transformers.integrations import flex_attention

import swiftvlm
from swiftvlm.errors import UnsupportedError
from swiftvlm.methods.base import Method
from swiftvlm.scores import TextAttention, View
from swiftvlm.trace import Run
from tests.laws.generation import (
    FAMILIES,
    METHODS,
    copied_rows,
    mixed_rows,
    recomputed,
    replay_of,
    small_row,
    text_ids,
)
from tests.support import IMAGE, Row, batch_of, features_of, make_row, tiny

CLOSE = {"atol": 1e-5, "rtol": 0}
DETAILS = {"return_dict_in_generate": True, "output_logits": True}
WORDS = {"suppress_tokens": [IMAGE]}  # no answer contains the placeholder of an image


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    """A tiny model a family."""
    return tiny(request.param)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    """Each method."""
    return METHODS[request.param]


def expected(model: nn.Module, method: Method, run: Run, rows: list[Row], index: int, answer: Tensor) -> Tensor:
    """Logits of an answer behind row `index` of a batch of prompts, each repeated equally often in the run."""
    copies = len(run.visual) // len(rows)
    longest = max(len(row.ids) for row in rows)
    row = rows[index]
    chosen = replay_of(model, method, run, index * copies, longest - len(row.ids))
    return recomputed(model, chosen, row, answer)


# Refusals depend little on method and family: one method that drops and one that bypasses, each on another family.
PAIRS = [("llava", METHODS["swiftvlm"]), ("llava_next", METHODS["fastv"])]
EACH_PAIR = pytest.mark.parametrize(("family", "method"), PAIRS, ids=["llava-swiftvlm", "llava_next-fastv"])


# --- what must be exact ---------------------------------------------------------------------------------------------


def test_beam_scores_are_teacher_forced_log_probabilities(model, method):
    """Every returned beam of a mixed, left-padded batch: its score is the mean log-probability of its tokens."""
    rows = copied_rows(model)
    batch = batch_of(model, rows)
    length = batch["input_ids"].shape[1]
    with swiftvlm.prune(model, method) as trace:
        out = model.generate(
            **batch, **WORDS, **DETAILS, output_scores=True, max_new_tokens=4, num_beams=3, num_return_sequences=2
        )
    assert len(trace) == 1
    crossed = 0
    for beam, sequence in enumerate(out.sequences):
        answer = sequence[length:]
        logits = expected(model, method, trace.last, rows, beam // 2, answer)
        chosen = torch.log_softmax(logits, dim=-1).gather(1, answer[:, None])[:, 0]
        torch.testing.assert_close(out.sequences_scores[beam], chosen.mean(), **CLOSE)
        crossed += int(len(out.beam_indices[beam].unique()) > 1)
    assert crossed > 0  # some beam changed its place, so the cache was reordered


def test_beams_of_one_prompt_share_one_choice(model, method):
    """Copies of a prompt keep the same tokens, and the same as the prompt alone."""
    rows = copied_rows(model)
    with swiftvlm.prune(model, method) as trace:
        model.generate(**batch_of(model, rows), max_new_tokens=1, num_beams=3)
        model.generate(**batch_of(model, rows), max_new_tokens=1)
    beams, alone = trace.runs
    for many, one in zip((*beams.kept, *beams.anchors), (*alone.kept, *alone.anchors), strict=True):
        assert [slots.tolist() for slots in many] == [slots.tolist() for slots in one for _ in range(3)]


def test_copies_share_one_choice_though_their_scores_round_apart(model, method, monkeypatch):
    """Beams swap their caches: copies must hold the same tokens however a row rounds its scores (noise, here)."""
    rate = TextAttention.rate

    def noisy(self: TextAttention, view: View) -> Tensor:
        scores = rate(self, view)
        return scores + 0.1 * torch.rand(scores.shape, generator=torch.Generator().manual_seed(0))

    monkeypatch.setattr(TextAttention, "rate", noisy)
    rows = copied_rows(model)
    with swiftvlm.prune(model, method) as trace:
        model.generate(**batch_of(model, rows), max_new_tokens=1, num_beams=2)
        model(**batch_of(model, [rows[0], rows[2], rows[2], rows[0]]))
    for stage in trace.runs[0].kept:
        assert [stage[2 * i].tolist() for i in range(4)] == [stage[2 * i + 1].tolist() for i in range(4)]
    first, second, third, fourth = trace.runs[1].kept[0]
    assert second.tolist() == third.tolist()
    assert first.tolist() != fourth.tolist()  # the noise is large enough to matter, and far copies are on their own


def test_sampled_answers_repeat_and_are_exact(model, method):
    """The same seed samples the same answers, and each step's logits are those of one prefill."""
    rows = copied_rows(model)
    batch = batch_of(model, rows)
    length = batch["input_ids"].shape[1]
    answers = []
    with swiftvlm.prune(model, method) as trace:
        for seed in (5, 5, 6):
            torch.manual_seed(seed)
            out = model.generate(**batch, max_new_tokens=4, do_sample=True, num_return_sequences=2, **WORDS, **DETAILS)
            answers.append(out)
    assert torch.equal(answers[0].sequences, answers[1].sequences)
    assert torch.equal(torch.stack(answers[0].logits), torch.stack(answers[1].logits))
    assert not torch.equal(answers[0].sequences, answers[2].sequences)
    for index, sequence in enumerate(out.sequences):
        logits = expected(model, method, trace.last, rows, index // 2, sequence[length:])
        torch.testing.assert_close(torch.stack(out.logits)[:, index], logits, **CLOSE)


def test_a_forward_and_generate_trace_the_same(model, method):
    """What a run records does not depend on who asked for the prefill."""
    batch = batch_of(model, mixed_rows(model))
    with swiftvlm.prune(model, method) as trace:
        model(**batch)
        model.generate(**batch, max_new_tokens=1)
    called, generated = trace.runs
    assert called == generated


@pytest.mark.parametrize("single", [True, False], ids=["one row, no mask", "mixed batch"])
def test_a_second_text_turn_is_the_recompute(model, method, single):
    """Several tokens at once behind a generated answer, then another answer, all against one prefill."""
    rows = [small_row(model)] if single else mixed_rows(model)
    batch = batch_of(model, rows)
    length = batch["input_ids"].shape[1]
    with swiftvlm.prune(model, method) as trace:
        first = model.generate(**batch, max_new_tokens=3, do_sample=False, **WORDS, **DETAILS)
        ids = torch.cat([first.sequences, text_ids(len(rows), 4)], dim=1)
        mask = torch.cat([batch["attention_mask"], torch.ones(len(rows), 7, dtype=torch.long)], dim=1)
        told = {} if single else {"attention_mask": mask}
        told |= {"input_ids": ids, "past_key_values": first.past_key_values}
        second = model.generate(**told, max_new_tokens=3, do_sample=False, **WORDS, **DETAILS)
    assert len(trace) == 1
    assert second.sequences.shape[1] == length + 3 + 4 + 3
    for index in range(len(rows)):
        logits = expected(model, method, trace.last, rows, index, second.sequences[index, length:])
        torch.testing.assert_close(torch.stack(second.logits)[:, index], logits[-3:], **CLOSE)


def test_a_later_turn_by_forward_is_the_recompute(model, method):
    """The same by hand: all logits of a piece of text fed to the cache after one decoded token; then two more turns."""
    rows = mixed_rows(model)
    batch = batch_of(model, rows)
    text = text_ids(len(rows), 11)
    mask, fed = batch["attention_mask"], []
    with swiftvlm.prune(model, method) as trace:
        cache = model(**batch).past_key_values
        for piece in text.split([1, 4, 1, 5], dim=1):
            mask = torch.cat([mask, torch.ones_like(piece)], dim=1)
            fed.append(model(input_ids=piece, attention_mask=mask, past_key_values=cache).logits)
    for index in range(len(rows)):
        logits = expected(model, method, trace.last, rows, index, torch.cat([text[index], text[index, :1]]))
        torch.testing.assert_close(torch.cat(fed, dim=1)[index], logits[1:], **CLOSE)


def test_a_cropped_answer_can_be_told_anew(model, method):
    """Tokens behind the prompt may be cropped from the cache and replaced; the result is the recompute."""
    rows = [small_row(model)]
    text = text_ids(1, 6)
    with swiftvlm.prune(model, method) as trace:
        cache = model(**batch_of(model, rows)).past_key_values
        model(input_ids=text[:, :1], past_key_values=cache)
        model(input_ids=text_ids(1, 3, seed=9), past_key_values=cache)
        cache.crop(-3)
        fed = model(input_ids=text[:, 1:], past_key_values=cache).logits
    logits = expected(model, method, trace.last, rows, 0, torch.cat([text[0], text[0, :1]]))
    torch.testing.assert_close(fed[0], logits[2:], **CLOSE)


def test_a_vanilla_cache_is_continued_as_it_is(model, method):
    """Contrast: a cache filled before the `with` is no business of ours, and a text turn on it is exact vanilla."""
    batch = batch_of(model, mixed_rows(model))
    text = text_ids(4, 5)
    mask = torch.cat([batch["attention_mask"], torch.ones_like(text)], dim=1)
    turn = {"input_ids": text, "attention_mask": mask}
    plain = model(**turn, past_key_values=model(**batch).past_key_values).logits
    cache = model(**batch).past_key_values
    with swiftvlm.prune(model, method) as trace:
        assert torch.equal(model(**turn, past_key_values=cache).logits, plain)
    assert len(trace) == 0


@EACH_PAIR
def test_text_first_then_text_is_untouched(family, method):
    """A conversation without any image, in pieces, inside the `with`: vanilla."""
    model = tiny(family)
    text = text_ids(1, 9)
    pieces = text.split([4, 5], dim=1)

    def talk() -> Tensor:
        cache = model(input_ids=pieces[0]).past_key_values
        return model(input_ids=pieces[1], past_key_values=cache).logits

    plain = talk()
    with swiftvlm.prune(model, method):
        assert torch.equal(talk(), plain)


@pytest.mark.parametrize("keep", [0, 1])
def test_the_last_logits_are_the_prompts(model, method, keep):
    """`logits_to_keep` of 0 or 1: the last one predicts the first new token."""
    row = small_row(model)
    with swiftvlm.prune(model, method) as trace:
        last = model(**batch_of(model, [row]), logits_to_keep=keep).logits[0, -1]
    logits = recomputed(model, replay_of(model, method, trace.last, 0, 0), row, text_ids(1, 1)[0])
    torch.testing.assert_close(last, logits[0], **CLOSE)


@EACH_PAIR
def test_a_cache_that_was_reset_is_a_new_conversation(family, method):
    """An emptied cache is prefilled, and pruned, like a new one."""
    model = tiny(family)
    batch = batch_of(model, [small_row(model)])
    with swiftvlm.prune(model, method) as trace:
        plain = model(**batch).logits
        cache = DynamicCache()
        model(**batch_of(model, [make_row(model, 8)]), past_key_values=cache)
        cache.crop(-cache.get_seq_length())
        assert torch.equal(model(**batch, past_key_values=cache).logits, plain)
    assert len(trace) == 3


def test_assisted_decoding_is_refused_or_exact(model, method):
    """Guessing by prompt lookup or by an assistant: the tokens of plain greedy decoding, or a refusal."""
    batch = batch_of(model, [small_row(model, 1, text=9)])
    assistant = tiny(model.config.model_type, layers=6, seed=1)
    ways: list[dict[str, Any]] = [
        {"prompt_lookup_num_tokens": 2},
        {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1},
        {"assistant_model": assistant},
    ]
    with swiftvlm.prune(model, method):
        greedy = model.generate(**batch, max_new_tokens=12, do_sample=False, **WORDS)
        for way in ways:
            refusal, tokens = None, greedy
            try:
                tokens = model.generate(**batch, max_new_tokens=12, do_sample=False, **WORDS, **way)
            except UnsupportedError as error:
                refusal = str(error)
            assert refusal is None or "assist" in refusal
            assert torch.equal(tokens, greedy)


# --- what is refused ------------------------------------------------------------------------------------------------

Act = Callable[[nn.Module, Any], None]


def _labels(model: nn.Module, batch: Any) -> None:
    model(**batch, labels=batch["input_ids"])


def _router(model: nn.Module, batch: Any) -> None:
    model(**batch, output_router_logits=True)


def _several_logits(model: nn.Module, batch: Any) -> None:
    model(**batch, logits_to_keep=2)


def _picked_logits(model: nn.Module, batch: Any) -> None:
    model(**batch, logits_to_keep=torch.tensor([-1]))


def _no_cache(model: nn.Module, batch: Any) -> None:
    model(**batch, use_cache=False)


def _no_cache_in_generate(model: nn.Module, batch: Any) -> None:
    model.generate(**batch, use_cache=False, max_new_tokens=2)


def _static_cache(model: nn.Module, batch: Any) -> None:
    model(**batch, past_key_values=StaticCache(config=model.config.get_text_config(), max_cache_len=256))


def _static_cache_in_generate(model: nn.Module, batch: Any) -> None:
    model.generate(**batch, cache_implementation="static", max_new_tokens=2)


def _four_dimensions(model: nn.Module, batch: Any) -> None:
    length = batch["input_ids"].shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    model(**{**batch, "attention_mask": mask})


def _embeddings(model: nn.Module, batch: Any) -> None:
    embeds = model.get_input_embeddings()(batch["input_ids"])
    model(inputs_embeds=embeds, attention_mask=batch["attention_mask"])


def _embeddings_in_generate(model: nn.Module, batch: Any) -> None:
    embeds = model.get_input_embeddings()(batch["input_ids"])
    model.generate(inputs_embeds=embeds, attention_mask=batch["attention_mask"], max_new_tokens=2)


def _image_later(model: nn.Module, batch: Any) -> None:
    cache = model(**batch).past_key_values
    model(input_ids=text_ids(1, 1), past_key_values=cache)
    model(**features(batch), input_ids=batch["input_ids"], past_key_values=cache)


def _image_after_text(model: nn.Module, batch: Any) -> None:
    cache = model(input_ids=text_ids(1, 4)).past_key_values
    model(**features(batch), input_ids=batch["input_ids"], past_key_values=cache)


def _chunks(model: nn.Module, batch: Any) -> None:
    ids = batch["input_ids"]
    cache = model(**features(batch), input_ids=ids[:, :-3]).past_key_values
    model(input_ids=ids[:, -3:], past_key_values=cache)


def _chunks_in_generate(model: nn.Module, batch: Any) -> None:
    model.generate(**batch, prefill_chunk_size=batch["input_ids"].shape[1] - 3, max_new_tokens=2)


def _small_chunks_in_generate(model: nn.Module, batch: Any) -> None:
    model.generate(**batch, prefill_chunk_size=7, max_new_tokens=2)


def _cropped(model: nn.Module, batch: Any) -> None:
    cache = model(**batch).past_key_values
    cache.crop(-1)
    model(input_ids=text_ids(1, 1), past_key_values=cache)


def _cropped_after_an_answer(model: nn.Module, batch: Any) -> None:
    cache = model(**batch).past_key_values
    model(input_ids=text_ids(1, 1), past_key_values=cache)
    cache.crop(-2)
    model(input_ids=text_ids(1, 2), past_key_values=cache)


def _lookup(model: nn.Module, batch: Any) -> None:
    ids = torch.cat([batch["input_ids"], batch["input_ids"][:, -3:]], dim=1)  # the end has been said before
    told = {**batch, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    model.generate(**told, max_new_tokens=4, prompt_lookup_num_tokens=2)


REFUSED: dict[str, tuple[Act, str]] = {
    "labels": (_labels, r"labels.*(outside prune|logits of the answer)"),
    "router logits": (_router, r"output_router_logits"),
    "several logits": (_several_logits, r"logits_to_keep=2 .*leave logits_to_keep at 0"),
    "picked logits": (_picked_logits, r"logits_to_keep=tensor\(\[-1\]\) .*leave logits_to_keep at 0"),
    "no cache": (_no_cache, r"Leave use_cache at True"),
    "no cache, generate": (_no_cache_in_generate, r"Leave use_cache at True"),
    "static cache": (_static_cache, r"StaticLayer in StaticCache .*use transformers\.DynamicCache"),
    "static cache, generate": (
        _static_cache_in_generate,
        r"StaticLayer in StaticCache .*use transformers\.DynamicCache",
    ),
    "4-D mask": (_four_dimensions, r"2-D attention mask.*\(1, 1, \d+, \d+\).*pass the processor's"),
    "embeddings": (_embeddings, r"pass input_ids, not only .*inputs_embeds"),
    "embeddings, generate": (_embeddings_in_generate, r"pass input_ids, not only .*inputs_embeds"),
    "image in a second turn": (_image_later, r"image in a later turn.*start a new cache"),
    "image after text": (_image_after_text, r"image in a later turn.*start a new cache"),
    "chunks": (_chunks, r"3 tokens arrive at once .*Prefill the whole prompt in one call"),
    "chunks, generate": (_chunks_in_generate, r"3 tokens arrive at once .*Prefill the whole prompt in one call|chunk"),
    "cropped": (_cropped, r"cropped to \d+ tokens, into its pruned prompt of \d+.*prefill again"),
    "cropped later": (_cropped_after_an_answer, r"cropped to \d+ tokens, into its pruned prompt of \d+.*prefill again"),
    "prompt lookup": (_lookup, r"logits_to_keep=3 .*Generate without an assistant"),
}


def features(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The image arguments of a batch."""
    return {name: batch[name] for name in ("pixel_values", "image_sizes") if name in batch}


@EACH_PAIR
@pytest.mark.parametrize(("act", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_with_the_way_out(family, method, act, message):
    """Never silently wrong: the error names what came and what to do; afterwards the same `with` still works."""
    model = tiny(family)
    batch = batch_of(model, [small_row(model)])
    with swiftvlm.prune(model, method) as trace:
        before = model(**batch).logits
        with pytest.raises(UnsupportedError, match=message):
            act(model, batch)
        assert torch.equal(model(**batch).logits, before)
    assert trace.runs[0] == trace.runs[-1]


@EACH_PAIR
def test_pieces_that_split_an_image_are_refused(family, method):
    """By us or by transformers."""
    model = tiny(family)
    with swiftvlm.prune(model, method), pytest.raises((UnsupportedError, ValueError), match=r"image|chunk"):
        _small_chunks_in_generate(model, batch_of(model, [small_row(model)]))


@EACH_PAIR
@pytest.mark.parametrize("turn", [1, 4])
@pytest.mark.parametrize("second", ["swiftvlm", "vanilla"])
def test_a_cache_pruned_by_an_earlier_with_is_refused(family, method, turn, second):
    """Its indexes are gone with the `with` that cut it; so for any method of the second `with`, vanilla too."""
    model = tiny(family)
    batch = batch_of(model, [small_row(model)])
    with swiftvlm.prune(model, method):
        cache = model(**batch).past_key_values
    later = swiftvlm.prune(model, METHODS.get(second, second))
    with later, pytest.raises(UnsupportedError, match=r"pruned inside another prune\(\).*inside one `with`"):
        model(input_ids=text_ids(1, turn), past_key_values=cache)


@pytest.mark.xfail(strict=True, reason="one token behind a prompt cannot be told from a generated one")
@EACH_PAIR
@pytest.mark.parametrize("rest", [1, 0], ids=["the last token alone", "token by token"])
def test_one_token_pieces_are_refused(family, method, rest):
    """Chunked prefill whose later pieces are single tokens: a known limit, told in the docs."""
    model = tiny(family)
    batch = batch_of(model, [small_row(model)])
    size = batch["input_ids"].shape[1] - 1 if rest else 1
    with swiftvlm.prune(model, method), pytest.raises(UnsupportedError):
        model.generate(**batch, prefill_chunk_size=size, max_new_tokens=2)


@EACH_PAIR
def test_a_copy_of_a_pruned_cache_is_refused(family, method):
    """A cache is known by itself, not by its contents."""
    model = tiny(family)
    with swiftvlm.prune(model, method):
        cache = model(**batch_of(model, [small_row(model)])).past_key_values
        with pytest.raises(UnsupportedError, match="is a copy"):
            model(input_ids=text_ids(1, 1), past_key_values=copy.deepcopy(cache))


@EACH_PAIR
def test_a_handle_attached_again_still_knows_its_caches(family, method):
    """Between detach and attach a conversation may rest; it goes on exactly."""
    model = tiny(family)
    rows = [small_row(model)]
    text = text_ids(1, 3)
    handle = swiftvlm.prune(model, method).attach()
    cache = model(**batch_of(model, rows)).past_key_values
    handle.detach()
    handle.attach()
    fed = [model(input_ids=token, past_key_values=cache).logits[0, -1] for token in text.split(1, dim=1)]
    handle.detach()
    logits = expected(model, method, handle.trace.last, rows, 0, torch.cat([text[0], text[0, :1]]))
    torch.testing.assert_close(torch.stack(fed), logits[1:], **CLOSE)


def test_flex_attention_is_refused(monkeypatch):
    """Its block masks cannot be sliced. (Nothing is compiled here, which would take half a minute.)"""
    one = torch.ones(1, 1, 1, dtype=torch.int32)
    monkeypatch.setattr(masking_utils, "create_block_mask", lambda **_: BlockMask.from_kv_blocks(one, one[..., None]))
    monkeypatch.setattr(flex_attention, "compile_friendly_flex_attention", lambda q, *_, **__: q)
    model = tiny.__wrapped__("llava", attn="flex_attention")
    with swiftvlm.prune(model, METHODS["fastv"]), pytest.raises(UnsupportedError, match="attn_implementation='sdpa'"):
        model(**batch_of(model, mixed_rows(model)))


def test_unequal_rows_need_no_mask_where_nothing_is_padded(model, method):
    """Rows of one length but unequal images become ragged at the cut: exact all the same, also several tokens later."""
    rows = [small_row(model), make_row(model, 2, images=0)]
    rows[1].ids += text_ids(1, len(rows[0].ids) - len(rows[1].ids))[0].tolist()
    batch = {"input_ids": torch.tensor([row.ids for row in rows]), **features_of(model, rows[0])}
    text = text_ids(2, 4)
    with swiftvlm.prune(model, method) as trace:
        cache = model(**batch).past_key_values
        fed = [model(input_ids=piece, past_key_values=cache).logits for piece in text.split([1, 3], dim=1)]
    for index in range(2):
        logits = expected(model, method, trace.last, rows, index, torch.cat([text[index], text[index, :1]]))
        torch.testing.assert_close(torch.cat(fed, dim=1)[index], logits[1:], **CLOSE)
