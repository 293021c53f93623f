"""llama.cpp's own converter on many Hugging Face directories, in a process of its own (it brings its own `gguf`).

python convert_gguf.py LLAMA_CPP JOBS.json, where JOBS.json lists [directory, file to write]. Vocabularies are left out:
the directories have none. What can't be converted leaves its reason in FILE.error.
"""

import json
import logging
import math
import sys
import traceback
from pathlib import Path
from typing import Any

from safetensors import safe_open

sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]) / "gguf-py")]

import gguf  # noqa: E402
from conversion import (  # noqa: E402 # pyright: ignore[reportMissingImports]
    ModelBase,
    ModelType,
    get_model_architecture,
    get_model_class,
)


def published(folder: Path) -> dict[str, Any]:
    """config.json as the models' publishers write it, with older fields that the converter insists on."""
    data: dict[str, Any] = json.loads((folder / "config.json").read_text())
    kind, rope = data["model_type"], data.get("rope_parameters") or {}
    share = rope.get("partial_rotary_factor", 1.0)
    if kind in ("gpt_neox", "cohere2"):
        data["rotary_pct"] = share
    elif kind in ("phi", "stablelm", "nemotron", "solar_open"):
        data["partial_rotary_factor"] = rope["partial_rotary_factor"] = share
    elif kind == "minimax_m2":
        data["rotary_dim"] = int(share * data["head_dim"])
    elif kind == "gpt2":
        data["n_ctx"] = data["n_positions"]
    elif kind == "falcon" and data["multi_query"] and not data["new_decoder_architecture"]:
        del data["num_kv_heads"]
    elif kind == "phimoe":
        data["architectures"] = ["PhiMoEForCausalLM"]
        data.setdefault("original_max_position_embeddings", data["max_position_embeddings"])
    elif kind == "mistral4":
        data["architectures"] = ["Mistral3ForConditionalGeneration"]
    elif kind == "mpt":
        data["architectures"] = ["MPTForCausalLM"]
        data["attn_config"]["alibi_bias_max"] = 8
    elif kind == "granitemoehybrid":
        data |= dict(
            mamba_n_groups=1,
            mamba_expand=2,
            mamba_d_conv=4,
            mamba_d_state=128,
            mamba_d_head=2 * data["hidden_size"] // data["mamba_n_heads"],
        )
    elif kind == "hunyuan_v1_moe":
        data |= dict(
            moe_intermediate_size=[data["intermediate_size"]], moe_topk=[data["moe_topk"]], num_shared_expert=[1]
        )
    elif kind == "llama4_text":
        data["interleave_moe_layer_step"] = math.gcd(*(i + 1 for i in data["moe_layers"]))
    elif kind == "ministral3" and rope.get("attention_factor") == 1.0:
        rope["mscale"] = rope["mscale_all_dim"] = 1.0
        del rope["attention_factor"]
    elif kind == "afmoe":
        data |= dict(score_func="sigmoid", route_norm=True)
    elif kind == "lfm2":
        data |= dict(block_ffn_dim_multiplier=1.0, block_multiple_of=256)
    elif kind == "glm4_moe_lite":
        data["first_k_dense_replace"] = [*data["mlp_layer_types"], "sparse"].index("sparse")
    if kind == "solar_open":
        data["intermediate_size"] = 4 * data["hidden_size"]  # of no layer
    return data


def modified(method: Any) -> Any:
    """The converter of StableLM returns a generator where it should have yielded from it."""

    def modify(self: Any, *args: Any) -> Any:
        more = yield from method(self, *args)
        if more is not None:
            yield from more

    return modify


logging.disable(logging.WARNING)
# As written: the converter would ask the installed transformers, which renames fields that it looks for.
ModelBase.load_hparams = staticmethod(
    lambda folder, is_mistral_format=False: json.loads((folder / "config.json").read_text())
)  # type: ignore

for folder, file in json.loads(Path(sys.argv[2]).read_text()):
    try:
        hparams = published(Path(folder))
        (Path(folder) / "config.json").write_text(json.dumps(hparams))
        architecture = get_model_architecture(hparams, ModelType.TEXT)
        kind = get_model_class(architecture)
        for part in (kind, *(part for part in vars(kind).values() if isinstance(part, type))):
            part.set_vocab = lambda self: None  # type: ignore[method-assign]
        with safe_open(Path(folder) / "model.safetensors", "pt") as tensors:
            predicts = any(name.startswith("mtp.") for name in tensors.keys())  # noqa: SIM118
        kind.no_mtp = kind.supports_mtp_export and not predicts  # as --no-mtp
        if architecture == "StableLmForCausalLM" and kind.modify_tensors.__name__ != "modify":
            kind.modify_tensors = modified(kind.modify_tensors)  # type: ignore[method-assign]
        if architecture in ("Gemma3ForCausalLM", "Gemma4ForCausalLM"):  # counts the tokens
            words = dict(model=dict(vocab=dict.fromkeys(map(str, range(hparams["vocab_size"])), 0)), added_tokens=[])
            (Path(folder) / "tokenizer.json").write_text(json.dumps(words))
        model = kind(Path(folder), gguf.LlamaFileType.ALL_F32, Path(file), eager=True)
        model.write()
    except BaseException:
        Path(file + ".error").write_text(traceback.format_exc())
