"""Settings of training: the method, the training itself, and whole runs."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from litlm.settings.base import Settings, as_tuples, raise_problems
from litlm.settings.data import DataSettings, PreferenceData, TextData

Quantization = Literal["nf4", "nf4-dq", "fp4", "fp4-dq", "int8"]


class MethodFields(NamedTuple):
    """Which settings a method reads (None: any), and its own defaults."""

    reads: tuple[str, ...] | None
    defaults: dict[str, Any] = {}


_LORA = ("r", "alpha", "dropout", "targets", "rslora", "dora", "modules_to_save")
_ADAPTER = ("prompt_length", "start_layer")
METHODS: dict[str, MethodFields] = {  # what they do is in `litlm.train.methods`
    "full": MethodFields(("freeze",)),
    "lora": MethodFields(_LORA),
    "qlora": MethodFields((*_LORA, "quantize"), {"quantize": "nf4"}),
    "adapter": MethodFields(_ADAPTER),
    "adapter_v2": MethodFields(_ADAPTER),
}


def method_names() -> tuple[str, ...]:
    """The names of all methods, those of other packages (entry points of the group `litlm.methods`) included."""
    return (*dict.fromkeys((*METHODS, *entry_points(group="litlm.methods").names)),)


MethodName: Any = Literal[method_names()]  # for the command line's help, errors and completion


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """Which weights are trained, and how.

    Args:
        name: full (all weights), lora (low-rank adapters beside frozen weights), qlora (the same on quantized weights),
            adapter (LLaMA-Adapter: learned prompts with a gate in each layer), adapter_v2 (also biases, scales, norms).
        r: lora: rank of the adapters.
        alpha: lora: the adapters' output is scaled by alpha / r.
        dropout: lora: dropout of the adapters' input during training.
        targets: lora: layers to adapt, by the end of their name (q_proj, layers.0.attn.v_proj) or a pattern
            (layers.1?.mlp.*); all-linear means all linear layers within the decoder layers, experts those of a mixture;
            embed and lm_head are adapted separately even if they are tied.
        rslora: lora: scale by alpha / sqrt(r) (rank-stabilized LoRA).
        dora: lora: weight-decomposed adaptation (DoRA), which also learns the norm of each row.
        modules_to_save: lora: modules to train whole beside the adapters, such as embed, lm_head or norm.
        quantize: qlora: format of the frozen weights, nf4 by default; -dq also quantizes the scales.
        freeze: full: parameters not to train, by the end of their name or a pattern (embed.*, layers.0.*).
        prompt_length: adapter: learned prompt positions in each layer.
        start_layer: adapter: the first layer with a prompt.
    """

    name: MethodName = "lora"  # pyright: ignore[reportInvalidTypeForm]
    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("all-linear",)
    rslora: bool = False
    dora: bool = False
    modules_to_save: tuple[str, ...] = ()
    quantize: Quantization | None = None
    freeze: tuple[str, ...] = ()
    prompt_length: int = 10
    start_layer: int = 2

    def __post_init__(self) -> None:
        as_tuples(self, "targets", "modules_to_save", "freeze")
        fields = {key: f.default for key, f in type(self).__dataclass_fields__.items() if key != "name"}
        row = METHODS.get(self.name, MethodFields(None))
        problems = []
        if self.name not in METHODS and self.name not in method_names():
            problems.append(f"method={self.name!r} is unknown; there are {', '.join(method_names())}")
        for key, default in fields.items():
            if (value := getattr(self, key)) != default and row.reads is not None and key not in row.reads:
                owner = next(name for name, other in METHODS.items() if other.reads and key in other.reads)
                problems.append(f"{key}={value!r} means nothing to method {self.name}; it belongs to {owner}")
        if self.r < 1:
            problems.append(f"r={self.r} must be at least 1")
        if not self.alpha > 0:
            problems.append(f"alpha={self.alpha} must be positive")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout={self.dropout} must lie in [0, 1)")
        if not self.targets:
            problems.append("targets is empty; name at least one kind of linear layer, such as q_proj")
        if self.prompt_length < 1:
            problems.append(f"prompt_length={self.prompt_length} must be at least 1")
        if self.start_layer < 0:
            problems.append(f"start_layer={self.start_layer} must be 0 or more")
        raise_problems("Method settings", problems)
        for key, value in row.defaults.items():
            if getattr(self, key) == fields[key]:
                object.__setattr__(self, key, value)


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How to train.

    Args:
        max_steps: Stop after this many optimizer steps.
        max_tokens: Stop after this many tokens.
        max_time: Stop after this time: 90s, 30m, 2h, 1d.
        epochs: Stop after this many passes over the data. The first limit reached counts; without any, one epoch.
        batch_size: Examples (in pretraining rows) per optimizer step.
        micro_batch_size: Examples of full length per forward pass; gradients accumulate up to batch_size. Affects
            memory and speed, not the result. auto finds the largest that fits (CUDA).
        optimizer: adamw, adamw8bit (embeddings stay in 32 bits), muon (with AdamW for embeddings, head, experts and
            vectors), or the name of a class in torch.optim.
        optimizer_args: More arguments of the optimizer. In pretraining, betas of adamw, adamw8bit and muon default to
            (0.9, 0.95).
        lr: Peak learning rate; find runs a learning rate range test first.
        min_lr: Final learning rate, as a fraction of lr.
        schedule: Learning rate after the warmup: cosine or linear decay to min_lr, constant, or wsd (constant, then
            decay in the last decay_fraction).
        warmup_steps: Steps of linear warmup; at most half of the run's steps, if these are known.
        decay_fraction: wsd: fraction of the run in which the learning rate decays.
        weight_decay: Weight decay of matrices; biases and norms have none.
        grad_clip: Clip the global gradient norm to this; None for no clipping.
        optimizer_in_backward: Update each weight as soon as its gradient is computed, and free the gradient; needs
            micro_batch_size = batch_size and no grad_clip.
        precision: bf16-true; bf16-mixed (computes in bf16, updates fp32 master weights); 32-true. auto is, on CUDA,
            bf16-true for adapters and bf16-mixed for the model's own weights; on a CPU the checkpoint's dtype for
            adapters and 32-true for the model's own weights.
        compile: Compile each layer; None means yes on CUDA.
        checkpointing: Activation checkpointing: recompute all activations (full) or the cheap ones (selective; all in
            layers with capped scores, sinks, ALiBi or chunks).
        fp8: Matrix products in FP8 (torchao; Ada, Hopper or later GPUs).
        router_balance: Weight of the load-balancing loss (mixture of experts).
        router_z: Weight of the router z-loss (mixture of experts).
        val_interval: Validate every this many steps, and at the end.
        early_stop: Stop after this many validations without a better loss; final/ is then the best checkpoint.
        save_interval: Save a checkpoint every this many steps, and at the end.
        save_time: Save a checkpoint when the last one is older than this: 90s, 10m, 2h; None never.
        keep: Number of checkpoints to keep, besides the best.
        on_spike: When a step's loss is not finite, or jumps: stop, skip the step, or roll back to the last checkpoint
            of save_interval and skip the data since.
        spike_factor: A loss this many standard deviations above the running mean is a spike; None: only if not finite.
        samples: Prompts to continue before training, at each validation, and after.
        logger: Besides metrics.csv: tensorboard, wandb, mlflow.
    """

    max_steps: int | None = None
    max_tokens: int | None = None
    max_time: str | None = None
    epochs: int | None = None
    batch_size: int = 8
    micro_batch_size: int | Literal["auto"] = 4
    optimizer: str = "adamw"
    optimizer_args: dict[str, Any] = field(default_factory=dict)
    lr: float | Literal["find"] = 2e-4
    min_lr: float = 0.0
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    warmup_steps: int = 10
    decay_fraction: float = 0.2
    weight_decay: float = 0.0
    grad_clip: float | None = 1.0
    optimizer_in_backward: bool = False
    precision: Literal["auto", "bf16-true", "bf16-mixed", "32-true"] = "auto"
    compile: bool | None = None
    checkpointing: Literal["none", "selective", "full"] = "none"
    fp8: bool = False
    router_balance: float = 0.0
    router_z: float = 0.0
    val_interval: int = 50
    early_stop: int | None = None
    save_interval: int | None = None
    save_time: str | None = "10m"
    keep: int = 2
    on_spike: Literal["stop", "skip", "rollback"] = "stop"
    spike_factor: float | None = None
    samples: tuple[str, ...] = ()
    logger: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        as_tuples(self, "samples", "logger")
        counts = (
            "max_steps", "max_tokens", "epochs", "batch_size", "micro_batch_size", "val_interval", "early_stop",
            "save_interval", "keep",
        )  # fmt: skip
        at_least_one: dict[str, Any] = {key: getattr(self, key) for key in counts}
        problems = [f"{k}={v} must be at least 1" for k, v in at_least_one.items() if isinstance(v, int) and v < 1]
        if self.lr != "find" and not (isinstance(self.lr, (int, float)) and self.lr > 0):
            problems.append(f"lr={self.lr} must be positive, or find")
        if not 0 <= self.min_lr <= 1:
            problems.append(f"min_lr={self.min_lr} is a fraction of lr, so it must lie in [0, 1]")
        if not 0 < self.decay_fraction <= 1:
            problems.append(f"decay_fraction={self.decay_fraction} must lie in (0, 1]")
        if self.warmup_steps < 0:
            problems.append(f"warmup_steps={self.warmup_steps} must be 0 or more")
        problems += [
            f"{key}={getattr(self, key)} must be 0 or more"
            for key in ("weight_decay", "router_balance", "router_z")
            if not getattr(self, key) >= 0
        ]
        if self.grad_clip is not None and not self.grad_clip > 0:
            problems.append(f"grad_clip={self.grad_clip} must be positive, or None")
        if self.spike_factor is not None and not self.spike_factor > 0:
            problems.append(f"spike_factor={self.spike_factor} must be positive, or None")
        for key in ("max_time", "save_time"):
            if (value := getattr(self, key)) is not None and in_seconds(value) is None:
                problems.append(f"{key}={value!r} must be a number and a unit: 90s, 30m, 2h or 1d")
        if self.on_spike == "rollback" and self.save_interval is None:
            # With checkpoints by the clock, two equal runs could differ.
            problems.append("on_spike=rollback needs checkpoints to go back to; set save_interval")
        if self.optimizer_in_backward:
            if self.grad_clip is not None:
                problems.append("optimizer_in_backward never holds the whole gradient; set grad_clip to null")
            if self.on_spike != "stop":
                problems.append("optimizer_in_backward can't skip or undo a step; leave on_spike=stop")
        unknown = [name for name in self.logger if name not in ("tensorboard", "wandb", "mlflow")]
        if unknown:
            problems.append(f"logger={unknown[0]!r} is unknown; use tensorboard, wandb or mlflow")
        raise_problems("Training settings", problems)

    @property
    def seconds(self) -> float | None:
        """max_time in seconds."""
        return in_seconds(self.max_time)

    @property
    def save_seconds(self) -> float | None:
        """save_time in seconds."""
        return in_seconds(self.save_time)


def in_seconds(time: str | None) -> float | None:
    """90s, 30m, 2h or 1d in seconds; None for None and anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", time or "")
    if found is None or not math.isfinite(float(found[1])) or float(found[1]) <= 0:
        return None
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


@dataclass(frozen=True, kw_only=True)
class RunSettings(Settings):
    """The settings of all training runs, except their data.

    Args:
        model: What to train: a directory, .gguf file, zoo name or hub id.
        method: Which weights are trained, and how.
        train: How to train.
        out_dir: Directory of the run; `final/` in it holds the result.
        resume: auto continues from the newest checkpoint in out_dir, if there is one; or name one (step-000100).
        overwrite: Replace the run in out_dir.
    """

    if TYPE_CHECKING:
        data: Any

    model: str
    method: MethodSettings = field(default_factory=MethodSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    out_dir: str = "out/run"
    seed: int = 1337
    device: str = "auto"
    resume: str | None = None
    overwrite: bool = False
    ignore_fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        as_tuples(self, "ignore_fields")
        problems = []
        if not 0 <= self.seed < 2**32:
            problems.append(f"seed={self.seed} must lie in [0, 2**32)")
        if self.resume is not None and self.overwrite:
            problems.append("resume continues a run and overwrite replaces it; give one of them")
        raise_problems("Run settings", problems)


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(RunSettings):
    """One finetuning run, as saved to `settings.yaml` and read by `litlm finetune --config`.

    Args:
        data: Training data.
        new_tokens: Texts to add to the vocabulary as single tokens; the embeddings grow if necessary.
    """

    data: DataSettings
    new_tokens: tuple[str, ...] = ()
    out_dir: str = "out/finetune"

    def __post_init__(self) -> None:
        super().__post_init__()
        as_tuples(self, "new_tokens")


PRETRAIN_TRAIN = TrainSettings(
    batch_size=32,
    micro_batch_size=8,
    lr=6e-4,
    min_lr=0.1,
    warmup_steps=100,
    weight_decay=0.1,
    val_interval=200,
    save_interval=1000,
)


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(RunSettings):
    """One pretraining run, as saved to `settings.yaml` and read by `litlm pretrain --config`.

    Args:
        model: What to build: a zoo name, a config.json or its directory, or a YAML file with fields of Config.
        data: Training data.
        from_weights: Start from the weights of `model` instead of random ones.
        model_args: Fields of the config to change, such as {n_layer: 6, n_embd: 384}.
        scale_residual: Initialize weights that write into the residual stream with init_std / sqrt(2 n_layer), as in
            GPT-2; others have the config's init_std.
        tokenizer: A model or tokenizer.json; None for the data's, or the model's.
        method: full, with parameters to freeze.
    """

    data: TextData
    from_weights: bool = False
    model_args: dict[str, Any] = field(default_factory=dict)
    scale_residual: bool = True
    tokenizer: str | None = None
    method: MethodSettings = field(default_factory=lambda: MethodSettings(name="full"))
    train: TrainSettings = field(default_factory=lambda: PRETRAIN_TRAIN)
    out_dir: str = "out/pretrain"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.from_weights and self.model_args:
            raise ValueError(f"model_args={self.model_args} can't be changed with from_weights; leave out one of them")


@dataclass(frozen=True, kw_only=True)
class PreferenceSettings:
    """The loss of preference optimization.

    Args:
        loss: dpo (Rafailov et al. 2023), ipo (Azar et al. 2023), cdpo (dpo with noisy labels), orpo (Hong et al. 2024;
            without a reference model).
        beta: Strength of the constraint to the reference model. orpo: weight of the odds ratio.
        label_smoothing: cdpo: probability that a pair's label is wrong.
    """

    loss: Literal["dpo", "ipo", "cdpo", "orpo"] = "dpo"
    beta: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        problems = []
        if not self.beta > 0:
            problems.append(f"beta={self.beta} must be positive")
        if not 0 <= self.label_smoothing < 0.5:
            problems.append(f"label_smoothing={self.label_smoothing} must lie in [0, 0.5)")
        if self.loss == "cdpo" and self.label_smoothing == 0:
            problems.append("loss=cdpo needs label_smoothing above 0, such as 0.1")
        if self.loss != "cdpo" and self.label_smoothing:
            problems.append(f"label_smoothing={self.label_smoothing} means nothing to loss={self.loss}; use cdpo")
        raise_problems("Preference settings", problems)


DPO_TRAIN = TrainSettings(lr=5e-5, batch_size=8, micro_batch_size=1)


@dataclass(frozen=True, kw_only=True)
class DPOSettings(RunSettings):
    """One run of preference optimization, as saved to `settings.yaml` and read by `litlm dpo --config`.

    Args:
        data: Preference pairs.
        method: Which weights are trained, and how; with adapters, the model without them is the reference.
        preference: The loss.
    """

    data: PreferenceData
    preference: PreferenceSettings = field(default_factory=PreferenceSettings)
    train: TrainSettings = field(default_factory=lambda: DPO_TRAIN)
    out_dir: str = "out/dpo"
