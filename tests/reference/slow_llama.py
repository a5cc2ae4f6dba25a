"""A hand-written float32 Llama decoder on the weights of a Hugging Face LLaVA model.

One row (sample) at a time: no batch, no padding, no cache. Every tensor always keeps all `tokens` slots of
the row. A slot that is absent at a layer is hidden from every query of that layer and its own state is left
as it was, so nothing is ever gathered or cut: slot number = index into the row's input_ids, everywhere.

Only the weights and the configuration of the model are read; no forward of its language model is called.
"""

from typing import Any

import torch
from torch import Tensor

# A LlavaForConditionalGeneration or LlavaNextForConditionalGeneration, untyped: only attributes are read.
Model = Any


def text_config(model: Model) -> Any:
    """The configuration of the language model."""
    return model.config.text_config


def layer_count(model: Model) -> int:
    """How many decoder layers the language model runs."""
    return int(text_config(model).num_hidden_layers)


def linear(x: Tensor, module: Any) -> Tensor:
    """x (..., n_in) through the weights of an nn.Linear -> (..., n_out), float32."""
    y: Tensor = x @ module.weight.float().T
    if module.bias is not None:
        y = y + module.bias.float()
    return y


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (tokens, hidden) over its root mean square per token, times weight (hidden,) -> (tokens, hidden)."""
    mean_square = (x * x).mean(dim=-1, keepdim=True)
    return weight.float() * (x / torch.sqrt(mean_square + eps))


def input_norm(model: Model, layer_index: int, states: Tensor) -> Tensor:
    """states (tokens, hidden) through layers[layer_index].input_layernorm -> (tokens, hidden)."""
    layer = model.model.language_model.layers[layer_index]
    return rms_norm(states, layer.input_layernorm.weight, text_config(model).rms_norm_eps)


def inverse_frequencies(config: Any) -> Tensor:
    """The RoPE frequencies theta ** (-2 i / head_dim) -> (head_dim / 2,)."""
    parameters = config.rope_parameters
    if parameters["rope_type"] != "default":
        raise NotImplementedError(f"only default RoPE, not {parameters['rope_type']!r}")
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    return torch.pow(float(parameters["rope_theta"]), -exponents)


def rotate(heads: Tensor, positions: Tensor, config: Any) -> Tensor:
    """RoPE in the Llama half-rotate convention.

    heads (heads, tokens, head_dim), positions (tokens,) float -> (heads, tokens, head_dim).
    Component i is paired with component i + head_dim / 2; the pair turns by position * frequency_i.
    """
    angles = positions.float()[:, None] * inverse_frequencies(config)[None, :]  # (tokens, head_dim / 2)
    cos, sin = angles.cos(), angles.sin()
    half = heads.shape[-1] // 2
    first, second = heads[..., :half], heads[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def split_heads(x: Tensor, head_dim: int) -> Tensor:
    """x (tokens, heads * head_dim) -> (heads, tokens, head_dim)."""
    return x.reshape(x.shape[0], -1, head_dim).permute(1, 0, 2)


def repeat_key_heads(heads: Tensor, query_heads: int) -> Tensor:
    """Grouped-query attention: (kv_heads, tokens, head_dim) -> (query_heads, tokens, head_dim).

    Neighbouring query heads share a key/value head.
    """
    share = query_heads // heads.shape[0]
    return torch.stack([heads[query_head // share] for query_head in range(query_heads)])


def queries_and_keys(
    model: Model, layer_index: int, normed: Tensor, positions: Tensor, rope: bool
) -> tuple[Tensor, Tensor]:
    """Queries and keys of one layer: normed (tokens, hidden) -> two (query_heads, tokens, head_dim)."""
    config = text_config(model)
    attention = model.model.language_model.layers[layer_index].self_attn
    queries = split_heads(linear(normed, attention.q_proj), config.head_dim)
    keys = split_heads(linear(normed, attention.k_proj), config.head_dim)
    if rope:
        queries = rotate(queries, positions, config)
        keys = rotate(keys, positions, config)
    return queries, repeat_key_heads(keys, config.num_attention_heads)


def visibility(present: list[bool]) -> Tensor:
    """Which key slot each query slot sees -> (tokens, tokens) bool, [query, key].

    A present slot sees the present slots up to itself. An absent slot sees only itself: nobody reads its
    output, but a row without any key would make the softmax NaN.
    """
    tokens = len(present)
    visible = torch.zeros(tokens, tokens, dtype=torch.bool)
    for query in range(tokens):
        for key in range(query + 1):
            visible[query, key] = present[query] and present[key]
        visible[query, query] = True
    return visible


def attention_block(model: Model, layer_index: int, normed: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
    """Self-attention of one layer: normed (tokens, hidden), visible (tokens, tokens) -> (tokens, hidden)."""
    config = text_config(model)
    attention = model.model.language_model.layers[layer_index].self_attn
    queries, keys = queries_and_keys(model, layer_index, normed, positions, rope=True)
    values = split_heads(linear(normed, attention.v_proj), config.head_dim)
    values = repeat_key_heads(values, config.num_attention_heads)
    scale = float(config.head_dim) ** -0.5
    logits = queries @ keys.transpose(1, 2) * scale  # (query_heads, tokens, tokens)
    logits = logits.masked_fill(~visible, float("-inf"))
    mixed = torch.softmax(logits, dim=-1) @ values  # (query_heads, tokens, head_dim)
    joined = mixed.permute(1, 0, 2).reshape(normed.shape[0], -1)
    return linear(joined, attention.o_proj)


def mlp_block(model: Model, layer_index: int, normed: Tensor) -> Tensor:
    """SwiGLU: normed (tokens, hidden) -> (tokens, hidden)."""
    if text_config(model).hidden_act != "silu":
        raise NotImplementedError(f"only silu, not {text_config(model).hidden_act!r}")
    mlp = model.model.language_model.layers[layer_index].mlp
    gate = linear(normed, mlp.gate_proj)
    gate = gate * torch.sigmoid(gate)
    return linear(gate * linear(normed, mlp.up_proj), mlp.down_proj)


def run_layer(model: Model, layer_index: int, states: Tensor, positions: Tensor, present: list[bool]) -> Tensor:
    """One decoder layer: states (tokens, hidden) -> new states, same shape; absent slots keep theirs."""
    layer = model.model.language_model.layers[layer_index]
    normed = input_norm(model, layer_index, states)
    middle = states + attention_block(model, layer_index, normed, positions, visibility(present))
    normed = rms_norm(middle, layer.post_attention_layernorm.weight, text_config(model).rms_norm_eps)
    output = middle + mlp_block(model, layer_index, normed)
    new_states = states.clone()
    for slot in range(len(present)):
        if present[slot]:
            new_states[slot] = output[slot]
    return new_states


def attention_row(
    model: Model,
    layer_index: int,
    states: Tensor,
    positions: Tensor,
    query_slot: int,
    key_slots: list[int],
    rope: bool = True,
) -> Tensor:
    """One row of a layer's attention map, averaged over heads after the softmax -> (tokens,).

    states (tokens, hidden) is the layer's input. The softmax runs over key_slots only; all other slots get 0.
    """
    normed = input_norm(model, layer_index, states)
    queries, keys = queries_and_keys(model, layer_index, normed, positions, rope)
    seen = torch.zeros(states.shape[0], dtype=torch.bool)
    for slot in key_slots:
        seen[slot] = True
    scale = float(text_config(model).head_dim) ** -0.5
    rows = []
    for head in range(queries.shape[0]):
        logits = keys[head] @ queries[head, query_slot] * scale  # (tokens,)
        rows.append(torch.softmax(logits.masked_fill(~seen, float("-inf")), dim=-1))
    return torch.stack(rows).mean(dim=0)


def read_logits(model: Model, states: Tensor) -> Tensor:
    """Final norm and lm_head: states (tokens, hidden) -> (tokens, vocab)."""
    norm_weight = model.model.language_model.norm.weight
    return linear(rms_norm(states, norm_weight, text_config(model).rms_norm_eps), model.lm_head)
