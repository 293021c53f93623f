"""Checkpoints that a run goes on from: `step-000100/` holds what `LLM.load` takes, and in `training/` everything else.

A checkpoint is written under a temporary name and renamed when it is whole, so what is called `step-...` is complete: a
run killed at any moment, also in a save, goes on from the last one, to the last bit on a CPU. No pickle: tensors are
safetensors, the rest is JSON.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from litlm.checkpoint.run_folder import STEP
from litlm.io.errors import error_reason
from litlm.io.reading import check_readable
from litlm.io.writing import fsync, writing

STATE, OPTIMIZER, WEIGHTS, RANDOM = "state.json", "optimizer.safetensors", "weights.safetensors", "random.safetensors"


class Checkpoints:
    """The checkpoints in a run's directory.

    export: writes what people use (an adapter, a model) into a folder. keep: how many are kept, besides the best.
    every: the newest one whose step is a multiple of this is kept as well, for a run that rolls back to it.
    """

    def __init__(
        self, out_dir: Path, export: Callable[[Path], None], *, keep: int = 2, every: int | None = None
    ) -> None:
        self.out_dir, self.export, self.keep, self.every = out_dir, export, keep, every

    def steps(self) -> dict[int, Path]:
        """The complete checkpoints, by step."""
        found = {int(m[1]): p for p in self.out_dir.glob("step-*") if (m := STEP.fullmatch(p.name))}
        return {step: found[step] for step in sorted(found) if (found[step] / "training" / STATE).is_file()}

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        optimizer: tuple[Mapping[str, Tensor], Any],
        *,
        best: int | None = None,
    ) -> Path:
        """Write the checkpoint of a step and remove those that are not kept any more.

        state: JSON-able. weights: the trained tensors. optimizer: its tensors and the rest. best: the step to keep.
        """
        path = self.out_dir / f"step-{step:06d}"
        part = self.out_dir / f".{path.name}.part"
        try:
            shutil.rmtree(part, ignore_errors=True)
            inner = part / "training"
            inner.mkdir(parents=True)
            self.export(part)
            save_file({k: v.detach().cpu().contiguous() for k, v in weights.items()}, inner / WEIGHTS)
            save_file({k: v.detach().cpu().contiguous() for k, v in optimizer[0].items()}, inner / OPTIMIZER)
            tensors, rest = random_states()
            save_file(tensors, inner / RANDOM)
            text = json.dumps(dict(state=state, optimizer=optimizer[1], random=rest))
            (inner / STATE).write_text(text, encoding="utf-8")
            for file in (p for p in part.rglob("*") if p.is_file()):
                fsync(file)
            if path.exists():  # of the same step, saved once more
                os.replace(path, path.with_name(f".{path.name}.before"))
            os.replace(part, path)
            shutil.rmtree(path.with_name(f".{path.name}.before"), ignore_errors=True)
        except (OSError, SafetensorError, ValueError) as e:  # a ValueError is export's, about one of its files
            raise ValueError(
                f"checkpoint {path} could not be written ({error_reason(e)}); earlier ones are untouched"
            ) from e
        finally:
            shutil.rmtree(part, ignore_errors=True)
        self.prune(best)
        return path

    def prune(self, best: int | None = None) -> None:
        """Remove what is not kept any more. A run that was killed before it could do so does it when it goes on."""
        every = self.steps()
        target = max((step for step in every if self.every and step % self.every == 0), default=None)
        for old in list(every)[: -self.keep]:
            if old not in (best, target):
                self.remove(every[old])

    def remove(self, path: Path) -> None:
        """Take a checkpoint away: its name goes first, so that half of one is never found."""
        doomed = path.with_name(f".{path.name}.old")
        shutil.rmtree(doomed, ignore_errors=True)
        with writing(path):
            os.replace(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def clear(self) -> None:
        """Remove them all."""
        for path in [*self.steps().values()]:
            self.remove(path)

    def set_aside(self, *, after: Path) -> None:
        """Rename the checkpoints that are later than this one: the run takes another way from here."""
        every = self.steps()
        here = next(step for step, path in every.items() if path.resolve() == after.resolve())
        for step, path in every.items():
            if step > here:
                left = path.with_name(f"left-{path.name}")
                shutil.rmtree(left, ignore_errors=True)
                with writing(path):
                    os.replace(path, left)

    def clean(self) -> None:
        """Remove what killed runs left half written, also beside the checkpoints."""
        for before in self.out_dir.glob(".step-*.before"):
            if (path := before.with_name(before.name[1 : -len(".before")])).exists():
                shutil.rmtree(before, ignore_errors=True)
            else:
                with writing(path):
                    os.replace(before, path)
        for left in [*self.out_dir.glob(".*.part"), *self.out_dir.glob(".step-*.old")]:
            shutil.rmtree(left, ignore_errors=True)


def load_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], tuple[dict[str, Tensor], Any]]:
    """State, weights and optimizer as `Checkpoints.save` got them; the random states are set to what they were."""
    inner = path / "training"
    if not (inner / STATE).is_file():
        raise ValueError(f"{path} is no checkpoint of a run: it has no training/{STATE}")
    for name in (STATE, WEIGHTS, OPTIMIZER, RANDOM):
        if (inner / name).exists():
            check_readable(inner / name)
    try:
        content = json.loads((inner / STATE).read_text(encoding="utf-8"))
        weights, optimizer, tensors = (load_file(inner / name) for name in (WEIGHTS, OPTIMIZER, RANDOM))
        state, info = content["state"], content["optimizer"]
        restore_random(tensors, content["random"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as e:
        raise ValueError(f"checkpoint {path} is damaged ({e}); resume from another: --resume DIR") from None
    return state, weights, (optimizer, info)


def put_weights(path: Path, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Copy the weights of a checkpoint into the parameters that are trained now; they must be the same ones."""
    problems = [f"{name} is trained now, but not in the checkpoint" for name in wanted.keys() - found.keys()]
    problems += [f"{name} is in the checkpoint, but not trained now" for name in found.keys() - wanted.keys()]
    problems += [
        f"{name} is {list(wanted[name].shape)} now and {list(found[name].shape)} in the checkpoint"
        for name in wanted.keys() & found.keys()
        if wanted[name].shape != found[name].shape
    ]
    if problems:
        problems.sort()
        shown = problems[:10] + ([f"... and {len(problems) - 10} more"] if len(problems) > 10 else [])
        raise ValueError(
            f"checkpoint {path} is of another method, or of a model of another shape; resume with the settings of its "
            "run (settings.yaml), or start anew in another --out_dir:\n" + "\n".join(f"- {p}" for p in shown)
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(found[name])


def random_states() -> tuple[dict[str, Tensor], Any]:
    """Where all random generators stand."""
    kind, keys, *rest = np.random.get_state()
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64))}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    return tensors, {"numpy": [str(kind), *(float(x) for x in rest)], "python": random.getstate()}


def restore_random(tensors: Mapping[str, Tensor], rest: Any) -> None:
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
    kind, at, has, cached = rest["numpy"]
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), int(at), int(has), cached))
    version, keys, gauss = rest["python"]
    random.setstate((version, tuple(keys), gauss))
