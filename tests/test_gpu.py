"""On a CUDA device: the same numbers as on the CPU, in fp32 and bf16. No file and no network is needed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from litlm.config import AttentionConfig, Config, MLPConfig, NormConfig, QKNormConfig, RopeConfig
from litlm.generate.sampling import Sampler
from litlm.llm import LLM, pick_device, pick_dtype
from litlm.model import GPT
from litlm.settings import MethodSettings, SamplingSettings, TrainSettings

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

_SMALL: dict[str, Any] = dict(vocab_size=307, n_layer=3, n_embd=96, n_head=6, max_seq_len=128)
CONFIGS = {
    "llama": Config(family="llama", n_kv_head=2, head_dim=16, tie_embeddings=True, **_SMALL),
    "qwen3": Config(
        family="qwen3", n_kv_head=3, head_dim=24, attention=AttentionConfig(qk_norm=QKNormConfig()), sliding_window=5,
        layer_types=("sliding", "full", "sliding"), **_SMALL,
    ),
    "gpt_neox": Config(
        family="gpt_neox", block="parallel", norm=NormConfig(kind="layer"), rope=RopeConfig(fraction=0.25),
        attention=AttentionConfig(bias=True, out_bias=True), mlp=MLPConfig(kind="plain", activation="gelu", bias=True),
        **_SMALL,
    ),
}  # fmt: skip
PROMPTS = [[5, 9, 100, 3], [7], list(range(40)), [300, 2, 2, 8, 150, 33, 4]]


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """fp32 products in fp32, whatever the machine's default is."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@cache
def _weights(family: str) -> dict[str, Tensor]:
    """Large enough that a wrong detail shows."""
    gen = torch.Generator().manual_seed(len(family))
    weights = {}
    for name, p in GPT(CONFIGS[family]).named_parameters():
        noise = torch.randn(p.shape, generator=gen)
        if p.dim() > 1:
            weights[name] = noise if "embed" in name else noise * 1.5 * p.shape[1] ** -0.5
        else:
            weights[name] = noise * 0.3 + ("norm" in name and name.endswith("weight"))
    return weights


def _llm(family: str, device: str, dtype: torch.dtype = torch.float32) -> LLM:
    model = GPT(CONFIGS[family])
    model.load_state_dict(_weights(family), strict=False)
    return LLM(model.to(device=device, dtype=dtype).eval(), CONFIGS[family])


def _tokens(batch: int = 3, length: int = 50) -> Tensor:
    return torch.randint(307, (batch, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 6e-2)])
def test_logits_equal_the_cpu(family: str, dtype: torch.dtype, tolerance: float) -> None:
    expected = _llm(family, "cpu").model(_tokens())
    actual = _llm(family, "cuda", dtype).model(_tokens().cuda())
    assert actual.dtype == dtype
    error = (actual.cpu().float() - expected).norm() / expected.norm()
    assert error < tolerance


@pytest.mark.parametrize("family", CONFIGS)
def test_greedy_answers_equal_the_cpu(family: str) -> None:
    options: dict[str, Any] = dict(max_new_tokens=30, return_ids=True)
    expected = _llm(family, "cpu").generate(PROMPTS, **options)
    llm = _llm(family, "cuda")
    assert llm.generate(PROMPTS, **options) == expected
    assert [llm.generate(prompt, **options) for prompt in PROMPTS] == expected


@pytest.mark.parametrize("family", CONFIGS)
def test_sampled_answers_equal_the_cpu(family: str) -> None:
    """Random numbers come from the CPU, so a seed means the same everywhere."""
    options: dict[str, Any] = dict(
        max_new_tokens=20, return_ids=True, temperature=0.7, top_k=50, top_p=0.9, seed=3, repetition_penalty=1.1
    )
    assert _llm(family, "cuda").generate(PROMPTS, **options) == _llm(family, "cpu").generate(PROMPTS, **options)


@torch.no_grad()
@pytest.mark.parametrize("family", CONFIGS)
def test_the_cache_in_bf16_stays_close_to_the_full_pass(family: str) -> None:
    """Every token that the cached loop chose is all but the best of a full bf16 pass."""
    llm = _llm(family, "cuda", torch.bfloat16)
    for prompt, answer in zip(PROMPTS, llm.generate(PROMPTS, max_new_tokens=40, return_ids=True), strict=True):
        logits = llm.model(torch.tensor([prompt + answer], device="cuda"))[0, len(prompt) - 1 : -1].float()
        chosen = logits.gather(1, torch.tensor(answer, device="cuda")[:, None])[:, 0]
        assert (logits.amax(-1) - chosen).max() < 0.06 * logits.abs().max()


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lora_learns(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    from litlm.checkpoint.peft import load_adapter, save_adapter
    from litlm.data.base import Example, TokenizedDataset
    from litlm.train import fit
    from litlm.train.report import Report
    from litlm.transforms.lora import apply_lora

    llm = _llm(family, "cuda", dtype)
    before = {name: p.detach().clone() for name, p in llm.model.named_parameters()}
    torch.manual_seed(0)
    apply_lora(llm.model, MethodSettings(r=8))
    train = TokenizedDataset.from_examples([Example(row.tolist(), [True] * 20) for row in _tokens(4, 20)], max_len=32)
    settings = TrainSettings(
        max_steps=80, batch_size=4, micro_batch_size=2, lr=1e-2, warmup_steps=5,
        compile=(family, dtype) == ("gpt_neox", torch.bfloat16),  # test_gpu_train.py compiles the others' layers
    )  # fmt: skip
    result = fit(llm.model, train, train, settings=settings, seed=1, report=Report(None, None, quiet=True))
    assert result.losses[-1] < 0.3 * result.losses[0]
    assert result.val_losses[-1][1] < 0.5 * result.losses[0]
    for name, p in llm.model.named_parameters():
        if ".lora." in name:
            assert p.dtype == torch.float32
        else:
            assert torch.equal(p, before[name])
    save_adapter(llm.model, tmp_path / "a", base="x")
    again = _llm(family, "cuda", dtype)
    load_adapter(again.model, tmp_path / "a")
    with torch.no_grad():
        assert torch.equal(again.model(_tokens().cuda()), llm.model(_tokens().cuda()))
    llm.save(tmp_path / "m")
    merged = LLM.load(tmp_path / "m", device="cuda", dtype="float32")
    with torch.no_grad():
        expected = llm.model(_tokens().cuda()).float()
        assert (merged.model(_tokens().cuda()) - expected).norm() / expected.norm() < (
            1e-4 if dtype == torch.float32 else 0.08
        )


def test_gradients_equal_the_cpu() -> None:
    from litlm.ops.cross_entropy import cross_entropy_sum

    grads = []
    for device in ("cpu", "cuda"):
        model = _llm("qwen3", device).model
        tokens = _tokens().to(device)
        targets = tokens[:, 1:].masked_fill(tokens[:, :-1] % 3 == 0, -100)
        cross_entropy_sum(model(tokens[:, :-1], output="hidden"), model.head_weight, targets).backward()
        grads.append({name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, expected in grads[0].items():
        assert (grads[1][name] - expected).norm() <= 1e-4 * expected.norm(), name


def test_draws_never_hit_an_impossible_token() -> None:
    """Parallel sums need not rise step by step; a wide vocabulary with holes finds it out."""
    device = torch.device("cuda")
    gen = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 150_000, generator=gen)
    logits[torch.rand(64, 150_000, generator=gen) < 0.7] = -torch.inf
    logits = logits.to(device)
    sampler = Sampler(SamplingSettings(temperature=1.0, seed=0), [[0]] * 64, 150_000, device)
    for i, random in enumerate(sampler.generators):
        random.manual_seed(i)
    for _ in range(50):
        assert logits.gather(1, sampler(logits)[:, None]).isfinite().all()


def test_devices_and_dtypes_by_name() -> None:
    assert pick_device().type == "cuda"
    assert pick_device("cuda:0").index == 0
    assert pick_dtype("auto", "float32", torch.device("cuda"), quantized=True) == torch.bfloat16
    with pytest.raises(ValueError, match="not available|unknown"):
        pick_device(f"cuda:{torch.cuda.device_count()}")
