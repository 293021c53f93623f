"""How many weights a layer's parts have, from its config alone; no torch."""

from __future__ import annotations

from litlm.config.layers import LayerConfig, MoEConfig, NormConfig


def norm_size(norm: NormConfig, size: int) -> int:
    return (norm.weight + (norm.kind == "layer" and norm.bias)) * size


def linear_size(n_in: int, n_out: int, bias: bool) -> int:
    return n_in * n_out + bias * n_out


def attention_size(layer: LayerConfig) -> int:
    attention, latent, c, h = layer.attention, layer.attention.latent, layer.n_embd, layer.n_head
    if latent is not None:
        total = linear_size(c, latent.kv_rank + latent.rope_head_dim, attention.bias)
        total += norm_size(latent.norm, latent.kv_rank)
        total += latent.kv_rank * h * (latent.nope_head_dim + latent.v_head_dim)
        if latent.q_rank is None:
            total += c * h * layer.head_dim
        else:
            total += linear_size(c, latent.q_rank, attention.bias) + norm_size(latent.norm, latent.q_rank)
            total += latent.q_rank * h * layer.head_dim
        return total + linear_size(h * latent.v_head_dim, c, attention.out_bias)
    width, kv_width = h * layer.head_dim, layer.n_kv_head * layer.head_dim
    own_kv = layer.kv_layer is None
    total = linear_size(c, width, attention.bias)
    total += own_kv * (2 - attention.k_as_v) * linear_size(c, kv_width, attention.bias)
    total += linear_size(width, c, attention.out_bias) + attention.sinks * h
    if (qk := attention.qk_norm) is not None:
        q, k = (layer.head_dim, layer.head_dim) if qk.over == "head" else (width, kv_width)
        total += norm_size(qk.norm, q) + own_kv * norm_size(qk.norm, k)
    if attention.v_norm is not None:
        total += own_kv * norm_size(attention.v_norm, layer.head_dim)
    return total


def mlp_size(layer: LayerConfig) -> int:
    return one_mlp(layer, layer.intermediate_size, layer.mlp.bias)


def one_mlp(layer: LayerConfig, width: int, bias: bool) -> int:
    wide = 2 if layer.mlp.kind == "gated" else 1
    total = wide * linear_size(layer.n_embd, width, bias) + linear_size(width, layer.n_embd, bias)
    return total + 2 * (layer.mlp.activation == "xielu")


def moe_size(layer: LayerConfig, moe: MoEConfig, active: bool) -> int:
    total = linear_size(layer.n_embd, moe.n_expert, moe.router_bias) + moe.selection_bias * moe.n_expert
    experts = moe.n_expert_per_token if active else moe.n_expert
    total += experts * one_mlp(layer, moe.intermediate_size, moe.expert_bias)
    if moe.shared_intermediate_size:
        total += one_mlp(layer, moe.shared_intermediate_size, layer.mlp.bias) + moe.shared_gate * layer.n_embd
    if moe.own_norms:  # one of them in the place of the layer's own
        total += (3 if moe.shared_intermediate_size else 1) * norm_size(layer.norm, layer.n_embd)
    return total + moe.router_scales * (layer.n_embd + moe.n_expert)
