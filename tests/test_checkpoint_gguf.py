"""GGUF files, written here by a restatement of what llama.cpp's converter does, and a real one.

The converter's changes of layout: Llama's q and k rows are interleaved so that rotary pairs become neighbours, and
GPT-NeoX's QKV, stored head by head, becomes all of q, then k, then v. Everything one-dimensional stays in fp32.
"""

from __future__ import annotations

import copy
import functools
import re
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Q
from packages import unpacked
from parity import cases
from parity.cases import Case, close

from litlm.checkpoint.base import load_model
from litlm.checkpoint.gguf import GGUFSource, _reader
from litlm.config import LinearScaling, Llama3Scaling, LongRopeScaling, YarnScaling
from litlm.families.gguf import rotary_fraction
from litlm.model import GPT
from litlm.tokenizer import Tokenizer

LLAMA = Case(
    "gguf-llama", "llama",
    dict(vocab_size=37, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
         num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5, bos_token_id=3, eos_token_id=5,
         rope_parameters=dict(rope_type="default", rope_theta=5000.0)),
    40,
)  # fmt: skip
LLAMA_BIASES = Case(
    "gguf-llama-biases", "llama",
    LLAMA.hf | dict(attention_bias=True, mlp_bias=True, head_dim=32, num_key_value_heads=1, tie_word_embeddings=True),
    41,
)  # fmt: skip
QWEN3 = Case(
    "gguf-qwen3", "qwen3",
    dict(vocab_size=35, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
         num_key_value_heads=2, head_dim=32, max_position_embeddings=128, tie_word_embeddings=True,
         rope_parameters=dict(rope_type="default", rope_theta=1e6), bos_token_id=1, eos_token_id=2),
    42,
)  # fmt: skip
NEOX = Case(
    "gguf-neox", "gpt_neox",
    dict(vocab_size=33, hidden_size=96, intermediate_size=128, num_hidden_layers=2, num_attention_heads=3,
         max_position_embeddings=128, rotary_pct=0.375, bos_token_id=0, eos_token_id=0),
    43,
)  # fmt: skip
NEOX_SEQUENTIAL = Case(
    "gguf-neox-sequential", "gpt_neox", NEOX.hf | dict(use_parallel_residual=False, attention_bias=False), 44
)
ALL = [LLAMA, LLAMA_BIASES, QWEN3, NEOX, NEOX_SEQUENTIAL]

LLAMA_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
NEOX_NAMES = {
    "attention.query_key_value": "attn_qkv", "attention.dense": "attn_output", "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
OUTER = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "gpt_neox.embed_in": "token_embd", "gpt_neox.final_layer_norm": "output_norm",
}  # fmt: skip
ARCH = {"llama": "llama", "qwen3": "qwen3", "gpt_neox": "gptneox"}

Tensors = dict[str, tuple[np.ndarray, Q]]


def _interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Of each head: row 0, row D/2, row 1, row D/2 + 1, ..."""
    size = rows.shape[0] // heads
    order = [h * size + j + half * (size // 2) for h in range(heads) for j in range(size // 2) for half in (0, 1)]
    return rows[order]


def _q_then_k_then_v(rows: np.ndarray, heads: int) -> np.ndarray:
    size = rows.shape[0] // heads // 3
    return rows[[(3 * h + part) * size + j for part in range(3) for h in range(heads) for j in range(size)]]


def converted(case: Case, kind: Q) -> tuple[Any, Tensors]:
    """The tensors of a GGUF file of a case, and transformers' model with the values that quantization left."""
    model = copy.deepcopy(cases.build(case))
    config, tensors = model.config, {}
    for name, p in model.named_parameters():
        stem, suffix = name.rsplit(".", 1)
        if layer := re.match(r"(?:model|gpt_neox)\.layers\.(\d+)\.(.*)", stem):
            names = NEOX_NAMES if case.family == "gpt_neox" else LLAMA_NAMES
            stored = f"blk.{layer[1]}.{names[layer[2]]}.{suffix}"
        else:
            stored = f"{OUTER[stem]}.{suffix}"
        value, rows = p.detach().numpy(), None
        if case.family == "llama" and ".q_proj." in name:
            rows = functools.partial(_interleave, heads=config.num_attention_heads)
        elif case.family == "llama" and ".k_proj." in name:
            rows = functools.partial(_interleave, heads=config.num_key_value_heads)
        elif "query_key_value" in name:
            rows = functools.partial(_q_then_k_then_v, heads=config.num_attention_heads)
        used = Q.F32 if value.ndim == 1 else kind
        data = gguf.quantize(np.ascontiguousarray(value if rows is None else rows(value)), used)
        tensors[stored] = (data, used)
        # Quantization works along a row, so the order of the rows does not matter to the values.
        left = gguf.dequantize(gguf.quantize(value, used), used).reshape(value.shape)
        with torch.no_grad():
            p.copy_(torch.from_numpy(np.array(left)))
    return model, tensors


def metadata(case: Case) -> dict[str, Any]:
    hf = cases.hf_config(case)
    common = {
        "context_length": hf.max_position_embeddings, "embedding_length": hf.hidden_size,
        "block_count": hf.num_hidden_layers, "feed_forward_length": hf.intermediate_size,
        "attention.head_count": hf.num_attention_heads,
    }  # fmt: skip
    if case.family == "gpt_neox":
        share = hf.rope_parameters["partial_rotary_factor"]
        return common | {
            "rope.dimension_count": int(share * (hf.hidden_size // hf.num_attention_heads)),
            "attention.layer_norm_epsilon": hf.layer_norm_eps, "use_parallel_residual": hf.use_parallel_residual,
        }  # fmt: skip
    more = {
        "attention.head_count_kv": hf.num_key_value_heads, "attention.layer_norm_rms_epsilon": hf.rms_norm_eps,
        "rope.freq_base": hf.rope_parameters["rope_theta"], "attention.key_length": hf.head_dim,
        "attention.value_length": hf.head_dim,
    }  # fmt: skip
    llama = {"vocab_size": hf.vocab_size, "rope.dimension_count": hf.head_dim} if case.family == "llama" else {}
    return common | more | llama


def write(path: Path, case: Case, tensors: Tensors, arch: str | None = None, **changes: Any) -> Path:
    """changes: metadata below the architecture, with __ for dots; None removes it."""
    arch = arch or ARCH[case.family]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(case.name)
    writer.add_quantization_version(2)
    for key, value in (metadata(case) | {k.replace("__", "."): v for k, v in changes.items()}).items():
        key = key if key.startswith("split.") else f"{arch}.{key}"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
    writer.add_token_list([f"token{i}" for i in range(case.hf["vocab_size"])])
    writer.add_bos_token_id(case.hf["bos_token_id"])
    writer.add_eos_token_id(case.hf["eos_token_id"])
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def load(path: Path, dtype: torch.dtype = torch.float32) -> GPT:
    source = GGUFSource(path)
    return load_model(source.config, source, device=torch.device("cpu"), dtype=dtype)


@functools.cache
def plain(case: Case) -> tuple[Any, Tensors]:
    return converted(case, Q.F32)


def same_logits(path: Path, case: Case, theirs: Any) -> GPT:
    model, ids = load(path), cases.tokens(case, 2, 21)
    with torch.no_grad():
        close(model(ids), theirs(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits)
    return model


KINDS = [Q.F32, Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1]


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.name)
@pytest.mark.parametrize("case", ALL, ids=str)
def test_logits(case: Case, kind: Q, tmp_path: Path) -> None:
    theirs, tensors = converted(case, kind)
    model = same_logits(write(tmp_path / "m.gguf", case, tensors), case, theirs)
    config = model.config
    assert config.family == case.family
    assert (config.bos_token_id, config.eos_token_id) == (case.hf["bos_token_id"], case.hf["eos_token_id"])
    # The config is the one that the original checkpoint gives (float metadata is fp32, yet 1e-5 stays 1e-5).
    original = cases.load(cases.write(case)).config
    assert {k: v for k, v in config.to_dict().items() if k != "name"} == {
        k: v for k, v in original.to_dict().items() if k != "name"
    }


@pytest.mark.parametrize("case", ALL, ids=str)
def test_weights_are_bit_exact(case: Case, tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", case, plain(case)[1])
    original = cases.load(cases.write(case)).state_dict()
    state = load(path).state_dict()
    assert state.keys() == original.keys()
    assert all(torch.equal(state[name], original[name]) for name in state)
    half = load(path, torch.bfloat16).state_dict()
    assert all(torch.equal(half[name], original[name].bfloat16()) for name in state)


# --- rope ----------------------------------------------------------------------------------------------------------


def _rope_case(case: Case, **rope: Any) -> Case:
    base = {"rope_theta": case.hf.get("rope_parameters", {"rope_theta": 10000.0})["rope_theta"]}
    if case.family == "gpt_neox":
        base["partial_rotary_factor"] = case.hf["rotary_pct"]
    return Case(case.name + str(rope), case.family, case.hf | dict(rope_parameters=base | rope), case.seed)


def _llama3_divisors(case: Case, factor: float, low: float = 1.0, high: float = 4.0, length: int = 8192) -> np.ndarray:
    """llama.cpp's converter: by how much each pair's frequency is divided."""
    theta, size = case.hf["rope_parameters"]["rope_theta"], case.hf["head_dim"]
    divisors = []
    for j in range(size // 2):
        wavelength = 2 * np.pi * theta ** (2 * j / size)
        if wavelength < length / high:
            divisors.append(1.0)
        elif wavelength > length / low:
            divisors.append(factor)
        else:
            smooth = (length / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, dtype=np.float32)


def _llama31(factor: float, length: int = 8192, low: float = 1.0, high: float = 4.0) -> Case:
    rope = dict(rope_type="llama3", rope_theta=5e5, factor=factor, low_freq_factor=low, high_freq_factor=high)
    rope |= dict(original_max_position_embeddings=length)
    return Case(
        f"llama31-{factor}-{length}-{low}-{high}", "llama", LLAMA.hf | dict(head_dim=64, rope_parameters=rope), 45
    )


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama31_rope_is_recognised(factor: float, tmp_path: Path) -> None:
    case = _llama31(factor)
    divisors = _llama3_divisors(case, factor)
    assert sum(d not in (1.0, factor) for d in divisors) > 1
    theirs, tensors = converted(case, Q.F32)
    path = write(tmp_path / "m.gguf", case, tensors | {"rope_freqs.weight": (divisors, Q.F32)})
    model = load(path)
    assert model.config.rope.scaling == Llama3Scaling(factor=factor, original_max_seq_len=8192)
    ids, positions = cases.tokens(case, 2, 21), 60000 + torch.arange(21)[None]
    with torch.no_grad():
        expected = theirs(ids, position_ids=positions, attention_mask=torch.ones_like(ids), use_cache=False).logits
        close(model(ids, positions=positions), expected)


@pytest.mark.parametrize("rule", [dict(factor=7.0), dict(length=4096), dict(low=1.5, high=3.0)], ids=str)
def test_other_rope_factors_are_kept(rule: Any, tmp_path: Path) -> None:
    """Divisors of an unpublished rule become frequencies all the same; what the rule was is lost."""
    low, high = rule.get("low", 1.0), rule.get("high", 4.0)
    case = _llama31(rule.get("factor", 8.0), rule.get("length", 8192), low, high)
    theirs, tensors = converted(case, Q.F32)
    divisors = _llama3_divisors(case, **({"factor": 8.0} | rule))
    model = load(write(tmp_path / "m.gguf", case, tensors | {"rope_freqs.weight": (divisors, Q.F32)}))
    assert isinstance(model.config.rope.scaling, LongRopeScaling)
    for start in (0, 60000):
        ids, positions = cases.tokens(case, 2, 21), start + torch.arange(21)[None]
        with torch.no_grad():
            expected = theirs(ids, position_ids=positions, attention_mask=torch.ones_like(ids), use_cache=False).logits
            close(model(ids, positions=positions), expected)


def test_rope_factors_that_make_no_sense(tmp_path: Path) -> None:
    case = _llama31(8.0)
    tensors, right = converted(case, Q.F32)[1], _llama3_divisors(case, 8.0)
    for divisors in (right[:-1], -right, right * np.float32("inf"), right * np.float32("nan")):
        path = write(tmp_path / "m.gguf", case, tensors | {"rope_freqs.weight": (divisors, Q.F32)})
        with pytest.raises(
            ValueError, match=re.escape(str(path)) + ".*rope_freqs.weight must hold 32 positive numbers"
        ):
            GGUFSource(path)


@pytest.mark.parametrize("case", [LLAMA, QWEN3, NEOX], ids=str)
def test_rope_scaling_metadata(case: Case, tmp_path: Path) -> None:
    def check(changes: dict[str, Any], rope: dict[str, Any], scaling: Any) -> None:
        scaled = _rope_case(case, **rope)
        theirs, tensors = converted(scaled, Q.F32)
        path = write(tmp_path / "m.gguf", case, tensors, **{f"rope__{k}": v for k, v in changes.items()})
        assert same_logits(path, scaled, theirs).config.rope.scaling == scaling

    linear = dict(rope_type="linear", factor=2.5)
    check(dict(scaling__type="linear", scaling__factor=2.5), linear, LinearScaling(factor=2.5))
    check(dict(scaling__factor=2.5), linear, LinearScaling(factor=2.5))  # llama.cpp: no type means linear
    check(dict(scale_linear=2.5), linear, LinearScaling(factor=2.5))  # 2023's name
    check(dict(scaling__type="none", scaling__factor=2.5), dict(rope_type="default"), None)
    check(dict(scaling__type="linear", scaling__factor=1.0), dict(rope_type="default"), None)
    check(dict(scaling__type="yarn"), dict(rope_type="default"), None)
    yarn = dict(rope_type="yarn", factor=3.0, original_max_position_embeddings=40)
    stored = dict(scaling__type="yarn", scaling__factor=3.0, scaling__original_context_length=40)
    check(stored, yarn, YarnScaling(factor=3.0, original_max_seq_len=40))
    check(stored | dict(scaling__finetuned=True), yarn, YarnScaling(factor=3.0, original_max_seq_len=40))
    check(
        stored | dict(scaling__yarn_beta_fast=8.0, scaling__yarn_beta_slow=0.5),
        yarn | dict(beta_fast=8.0, beta_slow=0.5),
        YarnScaling(factor=3.0, original_max_seq_len=40, beta_fast=8.0, beta_slow=0.5),
    )
    own = 0.1 * np.log(3.0) + 1  # llama.cpp multiplies it by attn_factor
    check(
        stored | dict(scaling__attn_factor=0.5),
        yarn | dict(attention_factor=0.5 * float(own)),
        YarnScaling(factor=3.0, original_max_seq_len=40, attention_factor=0.5 * float(own)),
    )


def test_no_share_means_whole_heads(tmp_path: Path) -> None:
    case = Case("gguf-neox-whole", "gpt_neox", NEOX.hf | dict(rotary_pct=1.0), 46)
    theirs, tensors = converted(case, Q.F32)
    same_logits(write(tmp_path / "m.gguf", case, tensors, rope__dimension_count=None), case, theirs)


def test_every_share_of_a_head_survives() -> None:
    """The file has the number of turned dimensions; as a fraction of the head it must round back to it."""
    for size in range(2, 257, 2):
        for turned in range(2, size + 1, 2):
            assert int(size * rotary_fraction(turned, size)) == turned, (size, turned)


# --- what can't be read --------------------------------------------------------------------------------------------


def _refused(path: Path, *wrong: str) -> str:
    with pytest.raises(ValueError, match=re.escape(str(path))) as e:
        load(path)
    for text in wrong:
        assert text in str(e.value)
    return str(e.value)


@pytest.mark.parametrize(
    ("case", "changes", "wrong"),
    [
        (LLAMA, dict(logit_scale=2.0, residual_scale=8.0), ["llama.logit_scale=2.0", "llama.residual_scale=8.0"]),
        (LLAMA, dict(rope__dimension_count=8), ["llama.rope.dimension_count=8"]),
        (QWEN3, dict(attention__value_length=16), ["qwen3.attention.value_length=16"]),
        (LLAMA, dict(attention__sliding_window=4096), ["sliding_window=4096"]),
        (QWEN3, dict(rope__scaling__type="longrope", rope__scaling__factor=2.0), ["'longrope'"]),
        (LLAMA, dict(embedding_length=None, block_count=None), ["llama.embedding_length", "llama.block_count"]),
        (LLAMA, dict(attention__layer_norm_rms_epsilon=None), ["llama.attention.layer_norm_rms_epsilon"]),
        (NEOX, dict(attention__layer_norm_epsilon=None, context_length=None), ["layer_norm_epsilon", "context_length"]),
        (LLAMA, dict(attention__head_count_kv=[2, 1]), ["n_kv_head=[2, 1]"]),
        (LLAMA, dict(attention__head_count=3), ["multiple of n_kv_head"]),
        (LLAMA, dict(block_count=3), ["blk.2.attn_q.weight is missing"]),
        (LLAMA, dict(block_count=1), ["blk.1.attn_q.weight"]),
        (QWEN3, dict(feed_forward_length=64), ["has shape [96, 64], the config asks for [64, 64]"]),
        (LLAMA, dict(attention__head_count_kv=4), ["attn_k.weight has shape [32, 64]"]),
        (LLAMA, {"split.count": 3, "split.no": 0}, ["3 files"]),
    ],
)  # fmt: skip
def test_metadata_not_understood(case: Case, changes: dict[str, Any], wrong: list[str], tmp_path: Path) -> None:
    _refused(write(tmp_path / "m.gguf", case, plain(case)[1], **changes), *wrong)


def test_metadata_that_does_not_matter(tmp_path: Path) -> None:
    theirs, tensors = plain(LLAMA)
    same_logits(
        write(tmp_path / "m.gguf", LLAMA, tensors, expert_count=0, rope__scaling__finetuned=True), LLAMA, theirs
    )
    # Older files: no key_length.
    same_logits(
        write(tmp_path / "o.gguf", LLAMA, tensors, attention__key_length=None, attention__value_length=None,
              vocab_size=None),
        LLAMA, theirs,
    )  # fmt: skip


def test_tensors_that_do_not_fit_are_all_listed(tmp_path: Path) -> None:
    tensors = dict(plain(LLAMA)[1])
    del tensors["blk.0.attn_k.weight"], tensors["output_norm.weight"]
    tensors["blk.1.ffn_gate_exps.weight"] = (np.zeros((2, 3, 32), np.float32), Q.F32)
    tensors["blk.0.attn_v.weight"] = (np.zeros((32, 32), np.float32), Q.F32)
    _refused(
        write(tmp_path / "m.gguf", LLAMA, tensors),
        "blk.0.attn_k.weight is missing",
        "output_norm.weight is missing",
        "blk.1.ffn_gate_exps.weight [2, 3, 32] is not part of a llama model",
        "blk.0.attn_v.weight has shape [32, 32], the config asks for [32, 64]",
    )
    tensors = {k: v for k, v in plain(LLAMA)[1].items() if k != "token_embd.weight"}
    _refused(write(tmp_path / "m.gguf", LLAMA, tensors), "token_embd.weight")


def test_unknown_architecture(tmp_path: Path) -> None:
    _refused(write(tmp_path / "m.gguf", LLAMA, plain(LLAMA)[1], arch="mamba"), "'mamba'", "gptneox, granite, ")


def test_unsupported_quantization(tmp_path: Path) -> None:
    tensors = dict(plain(LLAMA)[1])
    block, size = gguf.GGML_QUANT_SIZES[Q.Q8_K]
    tensors["blk.0.ffn_down.weight"] = (np.zeros((64, size), np.uint8), Q.Q8_K)
    tensors |= {
        f"blk.{i}.ffn_{k}.weight": (np.zeros((block, 64), np.float32), Q.F32) for i in (0, 1) for k in ("up", "gate")
    }
    tensors["blk.1.ffn_down.weight"] = (np.zeros((64, block), np.float32), Q.F32)
    path = write(tmp_path / "m.gguf", LLAMA, tensors, feed_forward_length=block)
    _refused(path, "blk.0.ffn_down.weight", "Q8_K")
    # A type that this gguf package has never heard of.
    data = path.read_bytes()
    at = data.index(b"blk.0.ffn_down.weight") + len(b"blk.0.ffn_down.weight") + 4 + 2 * 8
    path.write_bytes(data[:at] + (250).to_bytes(4, "little") + data[at + 4 :])
    _refused(path, "250")


def test_not_a_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    for content in (b"", b"GGU", b"GGML" + bytes(100), b"version https://git-lfs.github.com/spec/v1\n", b"<html>"):
        path.write_bytes(content)
        _refused(path, "not a GGUF file")
    for content in (
        b"GGUF",
        b"GGUF" + bytes(40),
        b"GGUF" + b"\x01\0\0\0" + bytes(40),
        b"GGUF\x03\0\0\0" + b"\xff" * 64,
    ):
        path.write_bytes(content)
        _refused(path, "truncated or corrupt")
    _refused(tmp_path / "nowhere.gguf", "can't be read")
    _refused(tmp_path, "can't be read")


def test_truncated_files(tmp_path: Path) -> None:
    whole = write(tmp_path / "m.gguf", LLAMA, converted(LLAMA, Q.Q8_0)[1]).read_bytes()
    path = tmp_path / "cut.gguf"
    rng = np.random.default_rng(0)
    offsets = [*range(4, 200), *rng.integers(200, len(whole), 150).tolist(), len(whole) - 33, len(whole) - 40]
    for keep in offsets:
        path.write_bytes(whole[:keep])
        _refused(path, "truncated or corrupt")


def test_corrupt_headers(tmp_path: Path) -> None:
    """Any byte of the header may be wrong: the file loads or is refused by name, and nothing else happens."""
    whole = bytearray(write(tmp_path / "m.gguf", LLAMA, plain(LLAMA)[1]).read_bytes())
    header = gguf.GGUFReader(tmp_path / "m.gguf").data_offset
    path, rng = tmp_path / "bad.gguf", np.random.default_rng(1)
    refused = 0
    for at in rng.integers(8, header, 500):
        bad = whole.copy()
        bad[at] ^= int(rng.choice([1, 0x10, 0x80, 0xFF]))
        path.write_bytes(bad)
        try:
            load(path)
        except ValueError as e:
            assert str(path) in str(e)  # noqa: PT017 - it may also load
            refused += 1
    assert refused > 100


# --- tokenizers ----------------------------------------------------------------------------------------------------

# llama.cpp's test vectors: vocabularies of real models, texts, and what the models' own tokenizers make of these.
VOCABULARIES = """
    command-r deepseek-coder deepseek-llm falcon gpt-2 llama-bpe llama-spm mpt phi-3 qwen2 qwen35 refact starcoder
""".split()  # noqa: SIM905


@pytest.mark.parametrize("name", VOCABULARIES)
def test_vocabularies_of_llama_cpp(name: str) -> None:
    file = unpacked("llama-cpp-python==0.3.36") / "vendor/llama.cpp/models" / f"ggml-vocab-{name}.gguf"
    # litlm's reader: the package's own takes seconds for a vocabulary
    fields = {k: field.contents() for k, field in _reader(file).fields.items() if k.startswith("tokenizer.")}
    tokenizer = Tokenizer.from_gguf(fields)
    texts = Path(f"{file}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    answers = [[int(number) for number in line.split()] for line in Path(f"{file}.out").read_text().splitlines()]
    compared = 0
    for text, ids in zip(texts, answers, strict=False):
        # llama.cpp leaves accents apart that Qwen's own tokenizer composes.
        if name != "qwen35" or unicodedata.is_normalized("NFC", text):
            assert tokenizer.encode(text, add_special_tokens=False) == ids, text
            compared += 1
    assert compared >= 45


# --- a real file ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_smollm2_against_transformers(smollm2_gguf: Path, tmp_path: Path) -> None:
    """transformers reads the same file with its own reader."""
    from transformers import AutoModelForCausalLM

    shutil.copy(smollm2_gguf, tmp_path / "m.gguf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    model = load(smollm2_gguf)
    gen = torch.Generator().manual_seed(0)
    for length in (5, 33, 128):
        ids = torch.randint(49152, (1, length), generator=gen)
        with torch.no_grad():
            close(model(ids), theirs(ids, use_cache=False).logits, 1e-4)
