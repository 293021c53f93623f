"""PyTorch's optimizers by name, and their state as tensors and JSON, so that a checkpoint needs no pickle.

The optimizer knows its parameters by name, and a saved state is matched by these names. Muon beside AdamW, and one
optimizer per parameter, look like a single torch.optim.Optimizer from outside (`CombinedOptimizer`).
"""

from __future__ import annotations

import difflib
import inspect
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from litlm.ops.cross_entropy import has_triton
from litlm.settings import TrainSettings
from litlm.settings.base import raise_problems
from litlm.train.precision import MasterWeights

_UNSUITABLE = ("lbfgs", "sparseadam")  # need the loss again within a step; need sparse gradients
_NOT_ARGS = ("params", "lr", "weight_decay")  # arguments that are settings of their own

NamedParameters = dict[str, nn.Parameter]


class HasParameters(Protocol):
    """A model, or anything else with named parameters."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Each parameter with its name."""
        ...


def make_optimizer(model: HasParameters, settings: TrainSettings) -> Optimizer:
    """The optimizer of all parameters that require a gradient. The trainer sets the learning rate before each step.

    Raises ValueError for an unknown optimizer, or arguments that it does not take.
    """
    if settings.optimizer_in_backward:
        optimizer: Optimizer = StepInBackward(model, settings)
    else:
        parts = _parts(_trainable(model), settings)
        if isinstance(model, MasterWeights) and _suits_kernel(model, settings):
            return MixedAdamW(parts[0], model)
        optimizer = parts[0] if len(parts) == 1 else CombinedOptimizer(parts)
    if isinstance(model, MasterWeights):
        optimizer.register_step_post_hook(lambda *_: model.copy_to_model())
    return optimizer


class CombinedOptimizer(Optimizer):
    """Several optimizers that look like one: all of their parameter groups, and one state that they share."""

    def __init__(self, parts: list[Optimizer]) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in _named_groups(part)], {})
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()  # load_state_dict has made new groups and a new state

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """A step of each."""
        for part in self.parts:
            part.step()


class StepInBackward(CombinedOptimizer):
    """Updates each parameter as soon as its gradient arrives, and frees the gradient: they are never all in memory.

    So the learning rate must be set before the backward pass, whose loss must be that of the whole step. `step` has
    nothing left to do. `remove_hooks()` ends it, and so does deleting the optimizer.
    """

    def __init__(self, model: HasParameters, settings: TrainSettings) -> None:
        named = _trainable(model)
        super().__init__([part for name, p in named.items() for part in _parts({name: p}, settings)])
        pairs = zip(named.values(), self.parts, strict=True)
        hooks = [p.register_post_accumulate_grad_hook(_stepper(part)) for p, part in pairs]
        self.remove_hooks = weakref.finalize(self, lambda: [hook.remove() for hook in hooks])

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Nothing is left to do."""


def _stepper(part: Optimizer) -> Any:
    def step(parameter: Tensor) -> None:
        part.step()
        parameter.grad = None

    return step


class MixedAdamW(torch.optim.AdamW):
    """AdamW for the fp32 copies of `MasterWeights` that moves the fewest bytes: one kernel updates a copy and its
    state, and rounds it into the model. Gradients may be bf16. Its state is that of torch's fused AdamW.

    clip_coef: what gradients are multiplied by in the next step, which resets it. found_inf: see `skip_step_if`.
    """

    def __init__(self, like: torch.optim.Optimizer, masters: MasterWeights) -> None:
        super().__init__(_named_groups(like), fused=True)
        self.masters = masters
        self.clip_coef: Tensor | None = None
        self.found_inf: Tensor | None = None
        masters.keep_bf16_grads = True

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the copies and the model."""
        from litlm.ops.adamw import adamw_

        for group in self.param_groups:
            params = [p for p in group["params"] if self.masters.gradient(p) is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                    self.state[p]["exp_avg"] = torch.zeros_like(p)
                    self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
            states = [self.state[p] for p in params]
            adamw_(
                params,
                [grad.contiguous() for p in params if (grad := self.masters.gradient(p)) is not None],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [state["step"] for state in states],
                [self.masters.model_params.get(p) for p in params],
                **{key: group[key] for key in ("lr", "betas", "eps", "weight_decay")},
                clip_coef=self.clip_coef,
                found_inf=self.found_inf,
            )
        self.clip_coef = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop all gradients."""
        super().zero_grad(set_to_none)
        self.masters.bf16_grads.clear()


def _suits_kernel(masters: MasterWeights, settings: TrainSettings) -> bool:
    """Whether `MixedAdamW` does what the settings ask for."""
    params = [p for _, p in masters.named_parameters()]
    return (
        settings.optimizer.lower() == "adamw"
        and settings.optimizer_args.keys() <= {"betas", "eps"}
        and bool(masters.model_params)
        and all(p.dtype == torch.float32 and p.is_contiguous() for p in params)
        and all(p.is_contiguous() for p in masters.model_params.values())
        and params[0].device.type == "cuda"
        and len({p.device for p in params}) == 1
        and has_triton()
    )


@contextmanager
def hooks_removed(*owners: Any) -> Iterator[None]:
    """After the block, the hooks of weights and optimizers are gone; otherwise the model would go on learning."""
    try:
        yield
    finally:
        for owner in owners:
            if hasattr(owner, "remove_hooks"):
                owner.remove_hooks()


def can_skip_on_device(optimizer: Optimizer) -> bool:
    """Whether a tensor on the device can make a step change nothing, so that the host need not wait for it."""
    optimizer = _unwrap(optimizer)
    # Not torch's fused SGD: if its first step is skipped, its momentum stays uninitialized memory.
    return not isinstance(optimizer, StepInBackward) and all(
        isinstance(part, torch.optim.Adam)
        and all(group["fused"] and p.device.type == "cuda" for group in part.param_groups for p in group["params"])
        for part in _parts_of(optimizer)
    )


def skip_step_if(optimizer: Optimizer, bad: Tensor) -> None:
    """Until the next call, steps change nothing if `bad` (0-dim, fp32, on the device) is 1.

    Only for optimizers that `can_skip_on_device`.
    """
    for part in _parts_of(_unwrap(optimizer)):
        part.found_inf = bad  # type: ignore[attr-defined]  # torch's fused optimizers read it too


def clip_gradients(optimizer: Optimizer, params: Iterable[Tensor], max_norm: float | None) -> Tensor | None:
    """Scale all gradients so that their norm is at most `max_norm`. Returns the norm that they had (0-dim, fp32, on the
    device), or None if the gradients are gone already. A `MixedAdamW` scales them when it steps.
    """
    optimizer = _unwrap(optimizer)
    if isinstance(optimizer, MixedAdamW):
        grads = optimizer.masters.gradients()
        if not grads:
            return None
        norm = _norm(grads)
        optimizer.clip_coef = None if max_norm is None else (max_norm / (norm + 1e-6)).clamp(max=1.0)
        return norm
    params = [p for p in params if p.grad is not None]
    if not params:
        return None
    norm = torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])
    if max_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(params, max_norm, norm)
    return norm.float()


@torch.no_grad()
def _norm(grads: list[Tensor]) -> Tensor:
    """The norm of all gradients, 0-dim, summed in fp32 for any dtype."""
    norms: list[Tensor] = []
    for dtype in dict.fromkeys(grad.dtype for grad in grads):
        of_dtype = [grad for grad in grads if grad.dtype == dtype]
        norms += torch._foreach_norm(of_dtype, 2, dtype=torch.float32)  # pyright: ignore[reportPrivateImportUsage]
    return torch.linalg.vector_norm(torch.stack(norms))


def check_optimizer(settings: TrainSettings) -> None:
    """Raises the ValueError of `make_optimizer` for the optimizer's name and arguments."""
    _check_args(_classes(settings.optimizer), settings)


def _trainable(model: HasParameters) -> NamedParameters:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not named:
        raise ValueError("there is nothing to train: no parameter of the model requires a gradient")
    return named


def _is_matrix(name: str, p: Tensor) -> bool:
    """Biases of stacked experts (E, out), norms with one weight per head (H, D) and a depthwise convolution's kernels
    (C, W) have two dimensions but are not."""
    return p.ndim >= 2 and not name.endswith(("bias", "norm.weight", "conv.weight"))


def _parts(named: NamedParameters, settings: TrainSettings) -> list[Optimizer]:
    classes = _classes(settings.optimizer)
    _check_args(classes, settings)
    if classes[0] is torch.optim.Muon:
        # For the matrices inside the layers. torch's Muon takes no stacks of them, such as experts (E, out, in).
        first = {n: p for n, p in named.items() if ".layers." in f".{n}" and p.ndim == 2 and _is_matrix(n, p)}
    elif len(classes) == 2:
        # A block of neighboring values shares its 8-bit scale, but rows of an embedding occur with different frequency.
        first = {n: p for n, p in named.items() if not n.endswith(("embed.weight", "embed.lora.B"))}
    else:
        first = named
    rest = {n: p for n, p in named.items() if n not in first}
    return [_build(cls, part, settings) for cls, part in zip(classes, (first, rest), strict=False) if part]


def _classes(name: str) -> tuple[type[Optimizer], ...]:
    """The class of that name; for muon and adamw8bit also the class for the parameters that they don't suit."""
    key = name.lower()
    if key == "muon":
        return torch.optim.Muon, torch.optim.AdamW
    if key == "adamw8bit":
        try:
            from bitsandbytes.optim.adamw import AdamW, AdamW8bit
        except ImportError as e:
            raise ValueError("optimizer=adamw8bit needs bitsandbytes: pip install bitsandbytes") from e
        return AdamW8bit, AdamW
    known = {n.lower(): c for n, c in vars(torch.optim).items() if isinstance(c, type) and issubclass(c, Optimizer)}
    known = {n: c for n, c in known.items() if c is not Optimizer and n not in _UNSUITABLE}
    if key in known:
        return (known[key],)
    names = sorted({"adamw8bit", *known})
    if key in _UNSUITABLE:
        raise ValueError(f"optimizer={name} doesn't work with ordinary training steps; use one of {', '.join(names)}")
    close = difflib.get_close_matches(key, names)
    hint = f" (did you mean {' or '.join(close)}?)" if close else ""
    raise ValueError(f"optimizer={name!r} is unknown{hint}; there are {', '.join(names)}")


def _arguments(cls: type[Optimizer]) -> list[str]:
    return list(inspect.signature(cls).parameters)


def _check_args(classes: tuple[type[Optimizer], ...], settings: TrainSettings) -> None:
    allowed = [arg for cls in classes for arg in _arguments(cls) if arg not in _NOT_ARGS]
    names = " and ".join(cls.__name__ for cls in classes)
    problems = [
        f"{arg} is a setting of its own, not one of optimizer_args"
        if arg in ("lr", "weight_decay")
        else f"optimizer_args has {arg}, which is no argument of {names}; there are {', '.join(dict.fromkeys(allowed))}"
        for arg in settings.optimizer_args
        if arg not in allowed
    ]
    if settings.weight_decay and not any("weight_decay" in _arguments(cls) for cls in classes):
        problems.append(f"weight_decay={settings.weight_decay} means nothing to {names}; set it to 0")
    raise_problems(f"Arguments of optimizer={settings.optimizer}", problems)


def _build(cls: type[Optimizer], named: NamedParameters, settings: TrainSettings) -> Optimizer:
    args: dict[str, Any] = {}
    if cls is torch.optim.AdamW and not {"foreach", "differentiable"} & settings.optimizer_args.keys():
        args["fused"] = True
    if cls is torch.optim.Muon:
        args["adjust_lr_fn"] = "match_rms_adamw"  # updates as large as AdamW's, so that one lr suits both
    arguments = _arguments(cls)
    for key, value in settings.optimizer_args.items():
        if key in arguments:
            args[key] = tuple(value) if isinstance(value, list) else value
    matrices = [(n, p) for n, p in named.items() if _is_matrix(n, p)]
    vectors = [(n, p) for n, p in named.items() if not _is_matrix(n, p)]
    groups: list[dict[str, Any]] = [{"params": params} for params in (matrices, vectors) if params]
    if "weight_decay" in arguments:
        for group in groups:
            group["weight_decay"] = settings.weight_decay if group["params"] is matrices else 0.0
    try:
        return cls(groups, lr=0.0 if settings.lr == "find" else settings.lr, **args)  # type: ignore[call-arg]
    except (TypeError, ValueError, RuntimeError) as e:
        raise ValueError(f"{cls.__name__} refuses optimizer_args={settings.optimizer_args}: {e}") from e


def optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's state: tensors for a safetensors file (not copies), and the rest for JSON. The options of its
    parameter groups (lr, betas, ...) are not part of it: they come from the settings.

    Raises ValueError if the state holds anything else.
    """
    optimizer = _unwrap(optimizer)
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    on_cpu, stored = set(), set()
    for name, p in _named(optimizer):
        for key, value in optimizer.state.get(p, {}).items():
            if isinstance(value, Tensor):
                value = value.detach()
                # bitsandbytes' code books are one shared tensor, and a safetensors file can't hold a tensor twice.
                address = value.untyped_storage().data_ptr()
                tensors[f"{key}/{name}"] = value.clone() if address in stored else value.contiguous()
                stored.add(address)
                if value.device.type == "cpu" != p.device.type:
                    on_cpu.add(key)
            elif value is None or isinstance(value, (bool, int, float, str)):
                scalars.setdefault(name, {})[key] = value
            else:
                raise ValueError(
                    f"the state of {_class_names(optimizer)} can't be saved: {key} is a {type(value).__name__}"
                )
    return tensors, {
        "optimizer": _class_names(optimizer),
        "shapes": {name: list(p.shape) for name, p in _named(optimizer)},
        "tensors": list(tensors),
        "scalars": scalars,
        "on_cpu": sorted(on_cpu),
    }


def load_optimizer_state(optimizer: Optimizer, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
    """Restore what `optimizer_state` returned, bit for bit; tensors have any shape.

    Raises ValueError, and changes nothing, if it does not fit.
    """
    optimizer = _unwrap(optimizer)
    params, shapes = dict(_named(optimizer)), info["shapes"]
    problems = []
    if info["optimizer"] != _class_names(optimizer):
        problems.append(f"it is that of {info['optimizer']}, but this run uses {_class_names(optimizer)}")
    problems += [f"{name} is trained, but the state doesn't have it" for name in params if name not in shapes]
    problems += [f"{name} is in the state, but not trained" for name in shapes if name not in params]
    problems += [
        f"{name} has shape {list(p.shape)}, in the state {shapes[name]}"
        for name, p in params.items()
        if name in shapes and list(p.shape) != list(shapes[name])
    ]
    problems += [f"the tensor {key} is missing" for key in info["tensors"] if key not in tensors]
    problems += [f"the tensor {key} does not belong to it" for key in tensors if key not in info["tensors"]]
    if len(problems) > 20:
        problems = [*problems[:20], f"... and {len(problems) - 20} more"]
    raise_problems("The optimizer's saved state is", problems)

    # The settings may have changed: another precision, or an optimizer that counts its steps on another device.
    groups = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    steps_on_device = {p for p, group in groups if group.get("fused") or group.get("capturable")}
    torch_parts = [part for part in _parts_of(optimizer) if isinstance(part, torch.optim.Adam | torch.optim.Muon)]
    in_own_dtype = {p for part in torch_parts for group in part.param_groups for p in group["params"]}
    optimizer.state.clear()
    for name, values in info["scalars"].items():
        optimizer.state[params[name]].update(values)
    for full, value in tensors.items():
        key, _, name = full.partition("/")
        p = params[name]
        on_cpu = p not in steps_on_device if key == "step" and p in in_own_dtype else key in info["on_cpu"]
        device = torch.device("cpu") if on_cpu else p.device
        if value.shape == p.shape:  # fused kernels need the parameter's strides
            dtype = p.dtype if p in in_own_dtype else value.dtype
            value = torch.empty_like(p, dtype=dtype, device=device, requires_grad=False).copy_(value)
        else:
            value = value.to(device, copy=True)
        optimizer.state[p][key] = value


def _unwrap(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside Fabric's."""
    return getattr(optimizer, "optimizer", optimizer)


def _parts_of(optimizer: Optimizer) -> list[Optimizer]:
    return optimizer.parts if isinstance(optimizer, CombinedOptimizer) else [optimizer]


def _class_names(optimizer: Optimizer) -> str:
    classes = (torch.optim.AdamW if isinstance(part, MixedAdamW) else type(part) for part in _parts_of(optimizer))
    return " + ".join(sorted({cls.__name__ for cls in classes}))


def _named_groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Groups from which another optimizer can be made."""
    return [{**g, "params": list(zip(g["param_names"], g["params"], strict=True))} for g in optimizer.param_groups]


def _named(optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    for group in optimizer.param_groups:
        yield from zip(group["param_names"], group["params"], strict=True)
