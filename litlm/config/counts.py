"""Counts that follow from a config alone: weights, operations, attended tokens. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from litlm.config.layers import GatedDeltaConfig, LayerConfig, MoEConfig, NormConfig, ShortConvConfig

if TYPE_CHECKING:
    from litlm.config.model import Config

Shapes = dict[str, tuple[int, int]]  # name -> (in, out)


def norm_size(norm: NormConfig, size: int) -> int:
    """Weights of a norm over `size` channels."""
    return (norm.weight + (norm.kind == "layer" and norm.bias)) * size


def linear_size(n_in: int, n_out: int, bias: bool) -> int:
    """Weights of a linear layer."""
    return n_in * n_out + bias * n_out


def mixer_layers(layer: LayerConfig) -> Shapes:
    """The linear layers of a layer's mixer: attention or a recurrence."""
    c, mixer = layer.n_embd, layer.recurrent
    if mixer is None:
        return attention_layers(layer)
    if isinstance(mixer, ShortConvConfig):
        return {"in_proj": (c, 3 * c), "out_proj": (c, c)}
    heads, width = mixer.n_value_head, mixer.n_value_head * mixer.value_dim
    one = {"in_proj_qkv": mixer.qkv_dim}
    qkv = dict(zip(("q_proj", "k_proj", "v_proj"), mixer.qkv_dims, strict=True)) if mixer.separate_qkv else one
    projections = qkv | {"in_proj_z": width, "in_proj_b": heads, "in_proj_a": heads}
    return {name: (c, size) for name, size in projections.items()} | {"out_proj": (width, c)}


def mixer_size(layer: LayerConfig) -> int:
    """All weights of a layer's mixer."""
    mixer = layer.recurrent
    if mixer is None:
        return attention_size(layer)
    bias = isinstance(mixer, ShortConvConfig) and mixer.bias
    total = sum(linear_size(*shape, bias) for shape in mixer_layers(layer).values())
    total += (mixer.kernel_size + bias) * layer.conv_dim
    # A_log and dt_bias of each head, and the norm
    return total if isinstance(mixer, ShortConvConfig) else total + 2 * mixer.n_value_head + mixer.value_dim


def attention_layers(layer: LayerConfig) -> Shapes:
    """The linear layers of a layer's attention."""
    c, h, latent = layer.n_embd, layer.n_head, layer.attention.latent
    if latent is None:
        width, kv_width = h * layer.head_dim, layer.n_kv_head * layer.head_dim
        found = {"q_proj": (c, width), "k_proj": (c, kv_width), "v_proj": (c, kv_width), "o_proj": (width, c)}
        if (gate := layer.attention.gate) is not None:
            if gate.in_q_proj:
                found["q_proj"] = (c, 2 * width)
            else:
                found["gate_proj"] = (c, width if gate.over == "channel" else h)
    else:
        found = {
            "kv_a_proj": (c, latent.kv_rank + latent.rope_head_dim),
            "kv_b_proj": (latent.kv_rank, h * (latent.nope_head_dim + latent.v_head_dim)),
            "o_proj": (h * latent.v_head_dim, c),
        }
        if latent.q_rank is None:
            found["q_proj"] = (c, h * layer.head_dim)
        else:
            found |= {"q_a_proj": (c, latent.q_rank), "q_b_proj": (latent.q_rank, h * layer.head_dim)}
    if layer.kv_layer is not None:  # keys and values are another layer's
        del found["k_proj"], found["v_proj"]
    elif layer.attention.k_as_v:
        del found["v_proj"]
    return found


def attention_size(layer: LayerConfig) -> int:
    """Weights of a layer's attention, with its biases, norms and sinks."""
    attention, latent, shapes = layer.attention, layer.attention.latent, attention_layers(layer)
    with_bias = {"q_proj", "k_proj", "v_proj"} if latent is None else {"kv_a_proj", "q_a_proj"}
    bias = dict.fromkeys(with_bias, attention.bias) | {"o_proj": attention.out_bias}
    total = sum(linear_size(*shape, bias.get(name, False)) for name, shape in shapes.items())
    if latent is not None:
        if (index := latent.index) is not None:
            c = layer.n_embd
            total += index.head_dim * (index.n_head * (latent.q_rank or 0) + c + 2) + index.n_head * c
        return total + norm_size(latent.norm, latent.kv_rank) + norm_size(latent.norm, latent.q_rank or 0)
    has_kv = layer.kv_layer is None
    if (qk := attention.qk_norm) is not None:
        widths = layer.n_head * layer.head_dim, layer.n_kv_head * layer.head_dim
        q, k = (layer.head_dim, layer.head_dim) if qk.over == "head" else widths
        total += norm_size(qk.norm, q) + has_kv * norm_size(qk.norm, k)
    if attention.v_norm is not None:
        total += has_kv * norm_size(attention.v_norm, layer.head_dim)
    return total + attention.sinks * layer.n_head


def linear_layers(layer: LayerConfig) -> Shapes:
    """The linear layers that every token goes through: of mixer, MLP or shared expert, but not the router."""
    found = {f"attn.{name}": shape for name, shape in mixer_layers(layer).items()}
    c, moe = layer.n_embd, layer.moe
    if layer.layer_input_dim:
        found |= {"layer_input.gate": (c, layer.layer_input_dim), "layer_input.proj": (layer.layer_input_dim, c)}
    width, name = (layer.intermediate_size, "mlp") if moe is None else (moe.shared_intermediate_size, "mlp.shared")
    if width:
        found |= {f"{name}.up_proj": (c, width), f"{name}.down_proj": (width, c)}
        if layer.mlp.kind == "gated":
            found[f"{name}.gate_proj"] = (c, width)
    if moe is not None and moe.shared_gate and moe.shared_intermediate_size:
        found["mlp.shared_gate"] = (c, 1)
    return found


def mlp_size(layer: LayerConfig) -> int:
    """Weights of a layer's MLP."""
    return one_mlp(layer, layer.intermediate_size, layer.mlp.bias)


def one_mlp(layer: LayerConfig, width: int, bias: bool) -> int:
    """Weights of one MLP of this width: a layer's, an expert's or the shared expert's."""
    n_up = 2 if layer.mlp.kind == "gated" else 1
    total = n_up * linear_size(layer.n_embd, width, bias) + linear_size(width, layer.n_embd, bias)
    return total + 2 * (layer.mlp.activation == "xielu")


def moe_size(layer: LayerConfig, moe: MoEConfig, active: bool) -> int:
    """Weights of a layer's experts, router and shared expert; active: only those that one token uses."""
    total = linear_size(layer.n_embd, moe.n_expert, moe.router_bias) + moe.selection_bias * moe.n_expert
    experts = moe.n_expert_per_token if active else moe.n_expert
    total += experts * one_mlp(layer, moe.intermediate_size, moe.expert_bias)
    if moe.shared_intermediate_size:
        total += one_mlp(layer, moe.shared_intermediate_size, layer.mlp.bias) + moe.shared_gate * layer.n_embd
    if moe.own_norms:  # less the layer's norm before the MLP, which the caller counts but they replace
        total += (3 if moe.shared_intermediate_size else 1) * norm_size(layer.norm, layer.n_embd)
    total += moe.output_norm * norm_size(layer.norm, layer.n_embd)
    return total + moe.router_scales * (layer.n_embd + moe.n_expert)


def forward_flops(config: Config, context: int) -> float:
    """FLOPs per token in matrix products and attention, mean over a row of `context` tokens. The backward pass takes
    twice as many.
    """
    total = config.n_embd * (config.n_output + config.n_layer * config.layer_input_dim)
    for layer in map(config.layer, range(config.n_layer)):
        total += sum(n_in * n_out for n_in, n_out in linear_layers(layer).values())
        if layer.moe is not None:
            matrices = 3 if layer.mlp.kind == "gated" else 2
            total += layer.n_embd * layer.moe.n_expert
            total += layer.moe.n_expert_per_token * matrices * layer.n_embd * layer.moe.intermediate_size
    return 2 * total + attention_flops(config, context)


def attention_flops(config: Config, context: int) -> float:
    """The part of `forward_flops` that mixes tokens: queries times keys, and scores times values; in recurrent layers
    the convolution and the three products with the state."""
    total = 0.0
    for layer in map(config.layer, range(config.n_layer)):
        if (mixer := layer.recurrent) is not None:
            total += 2 * layer.conv_dim * mixer.kernel_size
            if isinstance(mixer, GatedDeltaConfig):
                total += 2 * 3 * mixer.n_value_head * mixer.key_dim * mixer.value_dim
            continue
        latent = layer.attention.latent
        value_dim = layer.head_dim if latent is None else latent.v_head_dim
        total += 2 * layer.n_head * (layer.head_dim + value_dim) * mean_attended(context, layer)
    return total


def mean_attended(context: int, layer: LayerConfig) -> float:
    """Tokens that a token attends to, mean over a row of `context` tokens."""

    def triangle(n: int) -> int:  # 1 + 2 + ... + n
        return n * (n + 1) // 2

    if layer.chunk is not None:
        chunks, rest = divmod(context, layer.chunk)
        return (chunks * triangle(layer.chunk) + triangle(rest)) / context
    window = min(layer.window or context, context)
    return (triangle(window) + (context - window) * window) / context
