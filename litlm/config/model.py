"""`Config`: a model's architecture as a frozen dataclass. No torch.

Sizes are flat, under their usual names; `norm`, `attention`, `mlp`, `moe` and `rope` each have a small config of their
own (layers.py). Nothing is inferred from a model's name. Layers may differ: `Config.layer(i)` resolves what one has.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from litlm.config.counts import mixer_size, mlp_size, moe_size, norm_size
from litlm.config.layers import (
    AttentionConfig,
    GatedDeltaConfig,
    LatentConfig,
    LayerConfig,
    MLPConfig,
    MoEConfig,
    NormConfig,
    RopeConfig,
    ShortConvConfig,
    index_limit,
    moe_problems,
    norm_problems,
    recurrent_problems,
    rope_problems,
)
from litlm.io.dataclass import from_dict, type_problems
from litlm.io.yaml import read_yaml

DTYPES = ("float32", "bfloat16", "float16")
LAYER_TYPES = ("full", "sliding", "chunked", "recurrent")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The architecture of a decoder-only transformer.

    A size of 0 or an empty tuple means left out. `n_kv_head`, `head_dim`, `intermediate_size`, `layer_types`,
    `moe_layers`, `rope_layers` and `index_layers` then get the value named below when the Config is made.

    name: of the model, for people; it changes nothing.
    family: Hugging Face `model_type`: how config.json and the names of tensors are read and written.

    vocab_size: rows of the embedding and of the output head.
    head_vocab_size: rows of the output head where it is smaller than the embedding: there are logits only for tokens
        below this; 0: vocab_size.
    n_layer: number of layers.
    n_embd: size of the hidden state.
    n_head: query heads per layer.
    n_kv_head: key and value heads per layer; left out: n_head (multi-head attention). Divides n_head.
    head_dim: size of a head; left out: n_embd / n_head.
    intermediate_size: hidden size of the MLP; left out: 4 * n_embd.
    max_seq_len: context length in tokens.
    sliding_window: tokens that a `sliding` layer sees, or size of a `chunked` layer's chunks; None: no such layers.
    layer_types: one per layer; left out: all `full`. `full`: a token sees all tokens up to itself; `sliding`: the last
        `sliding_window` tokens, itself included; `chunked`: those in its own chunk of `sliding_window` tokens;
        `recurrent`: the layer has the recurrence that `recurrent` describes instead of attention.

    block: where a layer's norms are. `pre` norms the input of attention and of the MLP (Llama), `post` their output
        (OLMo 2), `sandwich` both (Gemma 2); `parallel` gives attention and MLP the same input, normed (GPT-NeoX).
    shared_norm: in `parallel` layers, attention and MLP have one norm in common instead of one each.
    tie_embeddings: the output head is the embedding.
    norm: of layers and of the final hidden state.
    attention: what all attention layers have in common.
    recurrent: what `recurrent` layers have instead of attention; None: there are no such layers.
    recurrent_block: `block` of `recurrent` layers; None: the same.
    mlp: the MLP, and the form of experts.
    moe: experts instead of the MLP; None: no layer has any.
    moe_layers: which layers have experts; left out: all, if `moe` is set.
    rope: rotary position embedding; None: there is none.
    sliding_rope: rope of `sliding` and `chunked` layers; None: `rope`.
    rope_layers: which layers have rope; left out: all, if `rope` is set.
    index_layers: which layers have an indexer of their own; left out: all, if `attention.latent.index` is set.

    full_head_dim: head_dim of `full` layers; 0: head_dim.
    full_n_kv_head: n_kv_head of `full` layers; 0: n_kv_head.
    n_kv_shared_layer: this many of the last layers have no keys and values of their own; each attends to those of the
        last earlier layer of its type that has them (Gemma 4's num_kv_shared_layers).
    kv_shared_intermediate_size: intermediate_size of these layers (of the shared expert, with `moe`); 0: the same.
    layer_input_dim: size of the per-layer embeddings, an extra input of every layer (Gemma 4's
        hidden_size_per_layer_input, model/layer_inputs.py); 0: there are none.
    layer_input_vocab_size: rows of the per-layer embeddings; 0: vocab_size.
    layer_scalar: each layer's output is multiplied by a scalar from the checkpoint (Gemma 4).

    learned_positions: a learned vector is added per position, up to max_seq_len (GPT-2).
    position_offset: unused rows at the start of the learned positions (OPT has 2).
    embed_scale: factor of the embeddings.
    round_embed_scale: that factor is first rounded to the model's dtype, as Gemma does.
    embed_norm: the embeddings are normed (BLOOM).
    residual_scale: factor of what attention and MLP add to the hidden state (Granite's residual_multiplier).
    logit_scale: factor of the logits, before `logit_softcap`.
    logit_softcap: the logits become logit_softcap * tanh(logits / logit_softcap) (Gemma 2).
    head_bias: the output head has a bias.

    init_std: standard deviation of new weights.
    dtype: of the checkpoint's weights.
    bos_token_id: beginning-of-sequence token.
    eos_token_id: end-of-sequence token, or several; see `eos_token_ids`.
    pad_token_id: padding token.
    """

    name: str = ""
    family: str = "llama"
    vocab_size: int
    head_vocab_size: int = 0
    n_layer: int
    n_embd: int
    n_head: int
    n_kv_head: int = 0
    head_dim: int = 0
    intermediate_size: int = 0
    max_seq_len: int = 2048
    sliding_window: int | None = None
    layer_types: tuple[str, ...] = ()
    block: Literal["pre", "post", "sandwich", "parallel"] = "pre"
    shared_norm: bool = False
    tie_embeddings: bool = False
    norm: NormConfig = field(default_factory=NormConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    recurrent: ShortConvConfig | GatedDeltaConfig | None = None
    recurrent_block: Literal["pre", "post", "sandwich"] | None = None
    mlp: MLPConfig = field(default_factory=MLPConfig)
    moe: MoEConfig | None = None
    moe_layers: tuple[bool, ...] = ()
    rope: RopeConfig | None = field(default_factory=RopeConfig)
    sliding_rope: RopeConfig | None = None
    rope_layers: tuple[bool, ...] = ()
    index_layers: tuple[bool, ...] = ()
    full_head_dim: int = 0
    full_n_kv_head: int = 0
    n_kv_shared_layer: int = 0
    kv_shared_intermediate_size: int = 0
    layer_input_dim: int = 0
    layer_input_vocab_size: int = 0
    layer_scalar: bool = False
    learned_positions: bool = False
    position_offset: int = 0
    embed_scale: float = 1.0
    round_embed_scale: bool = True
    embed_norm: bool = False
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    head_bias: bool = False
    init_std: float = 0.02
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        for key in ("layer_types", "moe_layers", "rope_layers", "index_layers"):
            if isinstance(getattr(self, key), list):
                object.__setattr__(self, key, tuple(getattr(self, key)))
        self._raise(type_problems(self))
        if not self.head_dim and self.attention.latent is None and self.n_head > 0 and self.n_embd % self.n_head:
            self._raise([f"n_embd={self.n_embd} must be a multiple of n_head={self.n_head}, or head_dim be given"])
        for key, value in self._derived().items():
            object.__setattr__(self, key, getattr(self, key) or value)
        self._raise(self._problems())

    def _derived(self) -> dict[str, Any]:
        """The values that left-out fields get."""
        latent = self.attention.latent
        head_dim = self.n_embd // self.n_head if self.n_head else 0
        return {
            "n_kv_head": self.n_head,
            "head_dim": head_dim if latent is None else latent.nope_head_dim + latent.rope_head_dim,
            "intermediate_size": 4 * self.n_embd,
            "layer_types": ("full",) * self.n_layer,
            "moe_layers": (self.moe is not None,) * self.n_layer,
            "rope_layers": tuple(self.rope is not None and t != "recurrent" for t in self.layer_types)
            or (self.rope is not None,) * self.n_layer,
            "index_layers": (True,) * self.n_layer if latent is not None and latent.index is not None else (),
        }

    def _raise(self, problems: list[str]) -> None:
        if problems:
            raise ValueError(f"Config {self.name!r} is not valid:\n" + "\n".join(f"- {p}" for p in problems))

    def _problems(self) -> list[str]:
        sizes = (
            "vocab_size",
            "n_layer",
            "n_embd",
            "n_head",
            "n_kv_head",
            "head_dim",
            "intermediate_size",
            "max_seq_len",
        )
        problems = [f"{key}={getattr(self, key)} must be at least 1" for key in sizes if getattr(self, key) < 1]
        if self.n_kv_head > 0 and self.n_head % self.n_kv_head:
            problems.append(f"n_head={self.n_head} must be a multiple of n_kv_head={self.n_kv_head}")
        for key in ("layer_types", "moe_layers", "rope_layers", *(("index_layers",) if self.index_layers else ())):
            if self.n_layer > 0 and len(getattr(self, key)) != self.n_layer:
                problems.append(f"{key} has {len(getattr(self, key))} entries for n_layer={self.n_layer}")
        for unknown in sorted(set(self.layer_types) - set(LAYER_TYPES)):
            problems.append(f"layer_types holds {unknown!r}; known are {', '.join(map(repr, LAYER_TYPES))}")
        if set(self.layer_types) & {"sliding", "chunked"} and not self.sliding_window:
            problems.append("layer_types has sliding or chunked layers, so sliding_window must be set (in tokens)")
        if self.sliding_window is not None and self.sliding_window < 1:
            problems.append(f"sliding_window={self.sliding_window} must be at least 1, or None for no window")
        if any(self.moe_layers) and self.moe is None:
            problems.append("moe_layers names layers with experts, so moe must say what they are")
        if any(self.index_layers) and (self.attention.latent is None or self.attention.latent.index is None):
            problems.append("index_layers names layers with an indexer, so attention.latent.index must say what it is")
        if any(self.rope_layers) and self.rope is None:
            problems.append("rope_layers names layers with rope, so rope must say what it is")
        if self.head_vocab_size and not 0 < self.head_vocab_size < self.vocab_size:
            problems.append(
                f"head_vocab_size={self.head_vocab_size} must be less than vocab_size={self.vocab_size}, or 0 for all"
            )
        if self.head_vocab_size and self.tie_embeddings:
            problems.append("head_vocab_size needs an output head of its own: tie_embeddings must be false")
        if ("recurrent" in self.layer_types) != (self.recurrent is not None):
            problems.append("recurrent must be set where layer_types has recurrent layers, and only there")
        if self.recurrent is not None:
            problems += [f"recurrent.{problem}" for problem in recurrent_problems(self.recurrent)]
            if any(has and t == "recurrent" for has, t in zip(self.rope_layers, self.layer_types, strict=False)):
                problems.append("rope_layers names recurrent layers, which have no rope")
            if self.block == "parallel" or self.n_kv_shared_layer or self.attention.latent is not None:
                problems.append(
                    "recurrent can't be combined with block='parallel', n_kv_shared_layer or attention.latent"
                )
        elif self.recurrent_block is not None:
            problems.append(
                f"recurrent_block={self.recurrent_block!r} is for recurrent layers and there are none; leave it out"
            )
        gate = self.attention.gate
        if gate is not None and gate.in_q_proj and gate.over == "head":
            problems.append("attention.gate.in_q_proj=True needs over='channel'")
        if self.shared_norm and self.block != "parallel":
            problems.append(f"shared_norm is for block='parallel', not {self.block!r}")
        latent, qk = self.attention.latent, self.attention.qk_norm
        norms = {
            "norm": self.norm,
            "attention.qk_norm.norm": None if qk is None else qk.norm,
            "attention.v_norm": self.attention.v_norm,
            "attention.latent.norm": None if latent is None else latent.norm,
        }
        for name, norm in norms.items():
            each_head = name == "attention.qk_norm.norm" and qk is not None and qk.over == "each_head"
            if norm is not None:
                problems += [f"{name}.{problem}" for problem in norm_problems(norm, each_head=each_head)]
        if self.attention.alibi and self.attention.sinks:
            problems.append("attention.alibi can't be combined with sinks")
        if self.mlp.activation == "clamped" and self.mlp.kind != "gated":
            problems.append("mlp.activation='clamped' needs a gate: mlp.kind='gated'")
        if qk is not None and qk.over == "all" and qk.after_rope:
            problems.append("attention.qk_norm.over='all' comes before rope; after_rope must be false")
        if latent is not None:
            problems += self._latent_problems(latent)
        problems += self._layer_problems()
        for name, rope in (("rope", self.rope), ("sliding_rope", self.sliding_rope)):
            if rope is not None:
                size = self.head_dim if latent is None else latent.rope_head_dim
                size = self.full_head_dim or size if name == "rope" else size
                problems += [f"{name}.{problem}" for problem in rope_problems(rope, size)]
        return problems + ([] if self.moe is None else moe_problems(self.moe))

    def _latent_problems(self, latent: LatentConfig) -> list[str]:
        problems = []
        for key in ("kv_rank", "q_rank", "nope_head_dim", "rope_head_dim", "v_head_dim"):
            if (value := getattr(latent, key)) is not None and value < 1:
                problems.append(f"attention.latent.{key}={value} must be at least 1")
        if self.head_dim != latent.nope_head_dim + latent.rope_head_dim:
            problems.append(
                f"head_dim={self.head_dim} must be attention.latent.nope_head_dim + rope_head_dim = "
                f"{latent.nope_head_dim + latent.rope_head_dim}, or left out"
            )
        if (index := latent.index) is not None:
            for key in ("n_head", "head_dim", "top_k"):
                if getattr(index, key) < 1:
                    problems.append(f"attention.latent.index.{key}={getattr(index, key)} must be at least 1")
            if latent.q_rank is None:
                problems.append("attention.latent.index needs attention.latent.q_rank, the latent of its queries")
            if self.max_seq_len > index.top_k:
                problems.append(f"max_seq_len={self.max_seq_len} must be at most {index_limit(index)}")
        if self.n_kv_head not in (0, self.n_head):
            problems.append(f"n_kv_head={self.n_kv_head} must be n_head={self.n_head} with attention.latent")
        if self.attention.qk_norm is not None or self.attention.clip is not None or self.attention.sinks:
            problems.append("attention.latent can't be combined with qk_norm, clip or sinks")
        if self.attention.alibi or self.attention.gate is not None:
            problems.append("attention.latent can't be combined with alibi or gate")
        if self.attention.v_norm or self.attention.k_as_v or self.full_head_dim or self.n_kv_shared_layer:
            problems.append(
                "attention.latent can't be combined with v_norm, k_as_v, full_head_dim or n_kv_shared_layer"
            )
        return problems

    def _layer_problems(self) -> list[str]:
        """What is wrong with the fields by which layers differ in size or share keys and values."""
        sizes = (
            "full_head_dim",
            "full_n_kv_head",
            "n_kv_shared_layer",
            "kv_shared_intermediate_size",
            "layer_input_dim",
            "layer_input_vocab_size",
        )
        problems = [f"{key}={getattr(self, key)} must not be negative" for key in sizes if getattr(self, key) < 0]
        if self.full_n_kv_head > 0 and self.n_head % self.full_n_kv_head:
            problems.append(f"n_head={self.n_head} must be a multiple of full_n_kv_head={self.full_n_kv_head}")
        first = self.n_layer - self.n_kv_shared_layer
        if self.n_kv_shared_layer >= max(self.n_layer, 1):
            problems.append(f"n_kv_shared_layer={self.n_kv_shared_layer} must be less than n_layer={self.n_layer}")
        elif self.n_kv_shared_layer > 0 and (
            missing := sorted(set(self.layer_types[first:]) - set(self.layer_types[:first]))
        ):
            problems.append(
                f"n_kv_shared_layer={self.n_kv_shared_layer}: none of the {first} layers before is "
                f"{' or '.join(missing)}, whose keys and values the last ones would read"
            )
        if 0 < self.layer_input_vocab_size < self.vocab_size:
            problems.append(
                f"layer_input_vocab_size={self.layer_input_vocab_size} must be at least vocab_size={self.vocab_size}"
            )
        if self.moe is not None and self.moe.own_norms and self.block not in ("pre", "sandwich"):
            problems.append(f"moe.own_norms is for block='pre' or 'sandwich', not {self.block!r}")
        return problems

    def _kv_layer(self, i: int) -> int | None:
        """The layer whose keys and values layer `i` attends to; None: its own."""
        first = self.n_layer - self.n_kv_shared_layer
        return None if i < first else max(j for j in range(first) if self.layer_types[j] == self.layer_types[i])

    def layer(self, i: int) -> LayerConfig:
        """What layer `i` (0-based) is made of."""
        is_full, has_rope = self.layer_types[i] == "full", self.rope_layers[i]
        recurrent = self.recurrent if self.layer_types[i] == "recurrent" else None
        n_kv_head, head_dim, rope, attention = self.n_kv_head, self.head_dim, self.rope, self.attention
        if is_full:
            n_kv_head, head_dim = self.full_n_kv_head or n_kv_head, self.full_head_dim or head_dim
        else:
            rope = self.sliding_rope or rope
        if has_rope and attention.temperature is not None and attention.temperature.no_rope_only:
            attention = dataclasses.replace(attention, temperature=None)
        if not has_rope and attention.qk_norm is not None and attention.qk_norm.after_rope:
            attention = dataclasses.replace(attention, qk_norm=None)
        if attention.latent is not None and attention.latent.index is not None and not self.index_layers[i]:
            attention = dataclasses.replace(attention, latent=dataclasses.replace(attention.latent, index=None))
        if not is_full and attention.k_as_v:
            attention = dataclasses.replace(attention, k_as_v=False)
        moe, kv_layer = self.moe if self.moe_layers[i] else None, self._kv_layer(i)
        kv_shared_size = self.kv_shared_intermediate_size if kv_layer is not None else 0
        if kv_shared_size and moe is not None and moe.shared_intermediate_size:
            moe = dataclasses.replace(moe, shared_intermediate_size=kv_shared_size)
        return LayerConfig(
            block=self.block if recurrent is None else self.recurrent_block or self.block,
            shared_norm=self.shared_norm,
            residual_scale=self.residual_scale,
            n_embd=self.n_embd,
            n_head=self.n_head,
            n_kv_head=n_kv_head,
            head_dim=head_dim,
            intermediate_size=kv_shared_size or self.intermediate_size,
            window=self.sliding_window if self.layer_types[i] == "sliding" else None,
            chunk=self.sliding_window if self.layer_types[i] == "chunked" else None,
            norm=self.norm,
            attention=attention,
            mlp=self.mlp,
            moe=moe,
            rope=rope if has_rope else None,
            recurrent=recurrent,
            kv_layer=kv_layer,
            layer_input_dim=self.layer_input_dim,
            layer_scalar=self.layer_scalar,
        )

    def n_parameters(self) -> int:
        """Number of parameters; a tied output head counts once."""
        return self._count(active=False)

    def n_active_parameters(self) -> int:
        """Parameters used per token: of the experts, only those that a token is routed to."""
        return self._count(active=True)

    def _count(self, active: bool) -> int:
        total = self.n_embd * (self.vocab_size + (0 if self.tie_embeddings else self.n_output))
        total += self.learned_positions * (self.max_seq_len + self.position_offset) * self.n_embd
        total += self.head_bias * self.n_output
        total += (1 + self.embed_norm) * norm_size(self.norm, self.n_embd)
        if input_dims := self.layer_input_dim * self.n_layer:
            total += ((self.layer_input_vocab_size or self.vocab_size) + self.n_embd) * input_dims
            total += norm_size(self.norm, self.layer_input_dim)
        for layer in map(self.layer, range(self.n_layer)):
            norms = {"pre": 2, "post": 2, "sandwich": 4, "parallel": 1 if layer.shared_norm else 2}[layer.block]
            total += norms * norm_size(layer.norm, layer.n_embd)
            total += mixer_size(layer)
            total += mlp_size(layer) if layer.moe is None else moe_size(layer, layer.moe, active)
            if layer.layer_input_dim:
                total += 2 * layer.n_embd * layer.layer_input_dim + norm_size(layer.norm, layer.n_embd)
        return total

    def kv_bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """Size in bytes of one token's keys and values (or latents) in all layers."""
        return sum(self.layer(i).state_spec.bytes_per_token(bytes_per_value) for i in range(self.n_layer))

    def state_bytes_per_row(self, bytes_per_value: int = 2) -> int:
        """Size in bytes of what the recurrent layers keep of a row, however long it is."""
        return sum(self.layer(i).state_spec.bytes_per_row(bytes_per_value) for i in range(self.n_layer))

    @property
    def n_output(self) -> int:
        """Rows of the output head: how many logits there are."""
        return self.head_vocab_size or self.vocab_size

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The end-of-sequence tokens: none, one or several."""
        if self.eos_token_id is None:
            return ()
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else tuple(self.eos_token_id)

    # --- from names, Hugging Face and YAML, and back --------------------------------------------------------------

    @classmethod
    def from_name(cls, name: str, **overrides: Any) -> Config:
        """The config of a zoo model (`litlm models`), with fields replaced by `overrides`.

        Raises ValueError for a name that the zoo doesn't know.
        """
        from litlm.zoo import get_model

        info = get_model(name)
        return dataclasses.replace(cls.from_hf(dict(info.hf)), name=info.name).changed(**overrides)

    def changed(self, **fields: Any) -> Config:
        """A copy with other values. Fields that have the value they get when left out are left out again, so n_layer=2
        alone also shortens `layer_types`. Raises ValueError for unknown fields and wrong values."""
        if not fields:
            return self
        followed = [key for key, value in self._derived().items() if getattr(self, key) == value]
        return self.from_dict({k: v for k, v in self.to_dict().items() if k not in followed} | fields)

    @classmethod
    def from_hf(cls, source: str | Path | dict[str, Any], *, ignore_fields: Collection[str] = ()) -> Config:
        """Read a Hugging Face `config.json`: from a directory, from the file, or from its content.

        Raises ValueError naming every field that litlm doesn't know, since it may change the math. ignore_fields: the
        ones that you know don't.
        """
        from litlm.config.hf import config_from_hf

        return config_from_hf(source, ignore_fields)

    def to_hf(self) -> dict[str, Any]:
        """The content of a `config.json` with which transformers builds the same model.

        Raises ValueError naming what the family's format can't express.
        """
        from litlm.config.hf import config_to_hf

        return config_to_hf(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and scalars, as YAML and JSON hold them."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Config:
        """The inverse of `to_dict`. Raises one ValueError for all unknown fields and wrong types."""
        problems: list[str] = []
        config = from_dict(cls, data, "", problems)
        if problems:
            raise ValueError("The config is not valid:\n" + "\n".join(f"- {p}" for p in problems))
        return config

    def to_yaml(self, path: str | Path | None = None) -> str:
        """The config as YAML text, also written to `path` if given."""
        import yaml

        from litlm.io.writing import write_text

        text = yaml.safe_dump(self.to_dict(), sort_keys=False)
        if path is not None:
            write_text(Path(path), text)
        return text

    @classmethod
    def from_yaml(cls, path: str | Path) -> Config:
        """Read a file written by `to_yaml` or by hand; fields that it leaves out have their defaults.

        Raises ValueError if it can't be read, is not a mapping, or has unknown fields or wrong types.
        """
        data = read_yaml(path)
        if not isinstance(data, dict):
            raise ValueError(f"{path} must hold a mapping of config fields")
        try:
            return cls.from_dict(data)
        except ValueError as e:
            raise ValueError(f"{path}: {e}") from None
