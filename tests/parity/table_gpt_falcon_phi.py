"""Cases of GPT-2 and its heirs, Falcon, the Phi models, StableLM and StarCoder."""

from __future__ import annotations

from typing import Any

from parity.case import Case, rope


def _maker(family: str, **base: Any) -> Any:
    def make(name: str, seed: int, **hf: Any) -> Case:
        return Case(f"{family}-{name}", family, base | hf, seed)

    return make


_gpt2 = _maker("gpt2", vocab_size=61, n_embd=48, n_layer=3, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=2)
_gptj = _maker(
    "gptj", vocab_size=59, n_embd=48, n_layer=3, n_head=4, n_positions=128, rotary_dim=6, bos_token_id=1, eos_token_id=2
)
_falcon = _maker(
    "falcon", vocab_size=61, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=128,
    bos_token_id=1, eos_token_id=2,
)  # fmt: skip
_phi = _maker(
    "phi", vocab_size=61, hidden_size=48, intermediate_size=76, num_hidden_layers=3, num_attention_heads=4,
    max_position_embeddings=128,
)  # fmt: skip
_phi3 = _maker(
    "phi3", vocab_size=61, hidden_size=48, intermediate_size=76, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, original_max_position_embeddings=128, pad_token_id=None,
    eos_token_id=2,
)  # fmt: skip
_stablelm = _maker(
    "stablelm", vocab_size=61, hidden_size=48, intermediate_size=76, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=4, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.34},
)  # fmt: skip
_starcoder2 = _maker(
    "starcoder2", vocab_size=61, hidden_size=48, intermediate_size=76, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
_bigcode = _maker(
    "gpt_bigcode", vocab_size=61, n_embd=48, n_layer=3, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=2
)
_codegen = _maker(
    "codegen", vocab_size=59, n_embd=48, n_layer=3, n_head=4, n_positions=128, rotary_dim=6, bos_token_id=1,
    eos_token_id=2, n_ctx=128,
)  # fmt: skip
_neo = _maker(
    "gpt_neo", vocab_size=61, hidden_size=48, num_layers=4, num_heads=4, max_position_embeddings=128, bos_token_id=1,
    eos_token_id=2, attention_types=[[["global", "local"], 2]], window_size=5,
)  # fmt: skip
_persimmon = _maker(
    "persimmon", vocab_size=61, hidden_size=48, intermediate_size=76, num_hidden_layers=3, num_attention_heads=4,
    max_position_embeddings=128,
)  # fmt: skip
_opt = _maker(
    "opt", vocab_size=61, hidden_size=48, ffn_dim=76, num_hidden_layers=3, num_attention_heads=4,
    max_position_embeddings=128, pad_token_id=None,  # transformers keeps the padding token's gradient at zero
)  # fmt: skip
_bloom = _maker(
    "bloom", vocab_size=61, hidden_size=48, n_layer=3, n_head=4, seq_length=128, bos_token_id=1, eos_token_id=2
)
_mpt = _maker("mpt", vocab_size=61, d_model=48, n_layers=3, n_heads=4, max_seq_len=128)


def longrope(pairs: int, original: int, **more: Any) -> dict[str, Any]:
    """A short and a long list of divisors that differ in every pair."""
    short = [1.0 + 0.1 * j for j in range(pairs)]
    long = [2.0 + 0.9 * j for j in range(pairs)]
    found = rope("longrope", 100.0, short_factor=short, long_factor=long, **more)
    return found | {"original_max_position_embeddings": original}


CASES = [
    _gpt2("plain", 300),
    _gpt2("untied-inner", 301, tie_word_embeddings=False, n_inner=50, activation_function="relu"),
    _gpt2("one-head", 302, n_head=1, n_embd=22, n_layer=2, scale_attn_weights=False, layer_norm_epsilon=1e-3),
    _gpt2("narrow-heads", 303, n_head=5, n_embd=35, n_layer=4, n_positions=111, activation_function="gelu"),
    _gptj("plain", 310),
    _gptj("odd-share", 311, n_head=3, n_embd=66, rotary_dim=14, n_inner=49),
    _gptj("whole-heads", 312, n_head=2, n_embd=20, rotary_dim=10, n_layer=4, activation_function="relu"),
    _gptj("one-pair-tied", 313, n_head=6, n_embd=42, rotary_dim=2, layer_norm_epsilon=1e-3, tie_word_embeddings=True),
    _falcon("7b", 320),
    _falcon("40b", 321, new_decoder_architecture=True, num_kv_heads=2, ffn_hidden_size=70),
    _falcon("11b", 322, new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1,
            tie_word_embeddings=False, activation="relu"),
    _falcon("old-biases", 323, multi_query=False, parallel_attn=False, bias=True, num_attention_heads=3),
    _falcon("old-mqa", 324, parallel_attn=False, hidden_size=50, num_attention_heads=5, bias=True,
            tie_word_embeddings=False),
    _falcon("180b-mqa", 325, new_decoder_architecture=True, num_kv_heads=1, hidden_size=60, num_attention_heads=6,
            bias=True, **rope("linear", 300.0, factor=2.5)),
    _phi("plain", 330),
    _phi("gqa-norms-tied", 331, num_key_value_heads=2, qk_layernorm=True, hidden_act="gelu", tie_word_embeddings=True),
    _phi("odd-share", 332, hidden_size=66, num_attention_heads=3, num_key_value_heads=1, layer_norm_eps=1e-3,
         **rope("default", 99.0, partial_rotary_factor=0.4)),
    _phi("whole-linear", 333, qk_layernorm=True, num_hidden_layers=2,
         **rope("linear", 1000.0, factor=3.0, partial_rotary_factor=1.0)),
    _phi3("mini", 340),
    _phi3("sliding", 341, sliding_window=5, num_key_value_heads=1, tie_word_embeddings=True),
    _phi3("longrope-short", 342, max_position_embeddings=512, **longrope(6, 128)),
    _phi3("mini4", 343, hidden_size=72, num_attention_heads=3, num_key_value_heads=3, tie_word_embeddings=True,
          max_position_embeddings=260, sliding_window=200,
          **longrope(9, 130, partial_rotary_factor=0.75, attention_factor=1.3)),
    _phi3("theta-gelu", 344, hidden_size=40, num_hidden_layers=4, hidden_act="gelu", rms_norm_eps=1e-3,
          **rope("default", 250.0, partial_rotary_factor=0.6)),
    _stablelm("3b", 350),
    _stablelm("12b", 351, use_parallel_residual=True, qk_layernorm=True, num_key_value_heads=2),
    _stablelm("1.6b", 352, use_qkv_bias=True, hidden_size=70, num_attention_heads=5, num_key_value_heads=5,
              tie_word_embeddings=True, layer_norm_eps=1e-3),
    _stablelm("norms-mqa", 353, qk_layernorm=True, use_qkv_bias=True, num_key_value_heads=1, hidden_act="gelu",
              **rope("linear", 500.0, factor=2.5, partial_rotary_factor=1.0)),
    _starcoder2("full", 360),
    _starcoder2("sliding", 361, sliding_window=7, num_key_value_heads=1, hidden_act="gelu"),
    _starcoder2("no-bias-untied", 362, use_bias=False, tie_word_embeddings=False, hidden_size=50,
                num_attention_heads=5, num_key_value_heads=5, norm_epsilon=1e-3),
    _starcoder2("yarn", 363, sliding_window=64, hidden_size=72,
                **rope("yarn", 200.0, factor=3.0, original_max_position_embeddings=40)),
    _bigcode("mqa", 370),
    _bigcode("mha", 371, multi_query=False, n_head=3),
    _bigcode("unscaled-inner", 372, scale_attn_weights=False, n_inner=50, activation_function="gelu", n_embd=35,
             n_head=5),
    _bigcode("untied", 373, tie_word_embeddings=False, n_layer=2, layer_norm_epsilon=1e-3),
    _codegen("plain", 380),
    _codegen("eight-heads", 381, n_head=8, n_embd=72, rotary_dim=4, n_inner=50),
    _codegen("whole-heads-tied", 382, rotary_dim=12, tie_word_embeddings=True, activation_function="relu"),
    _codegen("one-pair", 383, n_embd=40, rotary_dim=2, n_layer=2, layer_norm_epsilon=1e-3),
    _neo("alternating", 390),
    _neo("mid-pattern", 391, num_layers=3, attention_types=[[["local", "global", "local"], 1]], window_size=3,
         intermediate_size=50),
    _neo("all-global", 392, num_layers=2, attention_types=[[["global"], 2]], window_size=256, tie_word_embeddings=False,
         num_heads=3, activation_function="relu"),
    _neo("window-one", 393, window_size=1, hidden_size=35, num_heads=5, layer_norm_epsilon=1e-3),
    _persimmon("plain", 400),
    _persimmon("no-norms", 401, qk_layernorm=False, tie_word_embeddings=True, num_attention_heads=3),
    _persimmon("odd-share", 402, hidden_size=50, num_attention_heads=5, hidden_act="gelu", layer_norm_eps=1e-3,
               **rope("default", 25000.0, partial_rotary_factor=0.65)),
    _persimmon("linear", 403, num_hidden_layers=2,
               **rope("linear", 300.0, factor=2.5, partial_rotary_factor=1.0)),
    _opt("plain", 410),
    _opt("untied-gelu", 411, tie_word_embeddings=False, activation_function="gelu", num_attention_heads=3),
    _opt("no-biases", 412, enable_bias=False, hidden_size=35, num_attention_heads=5, num_hidden_layers=2),
    _opt("plain-norms", 413, layer_norm_elementwise_affine=False, max_position_embeddings=111),
    _bloom("plain", 420),
    _bloom("five-heads", 421, n_head=5, hidden_size=35, n_layer=2),
    _bloom("three-heads-untied", 422, n_head=3, tie_word_embeddings=False, layer_norm_epsilon=1e-3),
    _bloom("one-head", 423, n_head=1, hidden_size=22),
    _mpt("plain", 430),
    _mpt("clip-scale", 431, attn_config={"clip_qkv": 1.5, "softmax_scale": 0.2}),
    _mpt("six-heads", 432, n_heads=6, layer_norm_epsilon=1e-3, n_layers=2),
    _mpt("seven-heads-untied", 433, n_heads=7, d_model=42, tie_word_embeddings=False),
]  # fmt: skip
