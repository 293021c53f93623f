"""Checkpoints of a run: `step-000100/` holds what `LLM.load` takes, and in `training/` the state to resume from.

A checkpoint is written under a temporary name and renamed when it is complete. A run that was killed, even in a save,
resumes from the last one, bit for bit on a CPU. No pickle: tensors are safetensors, the rest is JSON.
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

from litlm.checkpoint.base import bullet_list
from litlm.checkpoint.run_folder import STEP
from litlm.io.errors import error_reason
from litlm.io.reading import check_readable
from litlm.io.writing import fsync, writing

STATE, OPTIMIZER, WEIGHTS, RANDOM = "state.json", "optimizer.safetensors", "weights.safetensors", "random.safetensors"


class Checkpoints:
    """The checkpoints in a run's directory.

    export: writes the model or adapter for `LLM.load` into a folder. keep: how many of the latest are kept, besides the
    best. keep_every: the latest one whose step is a multiple of this is kept as well, to roll back to.
    """

    def __init__(
        self, out_dir: Path, export: Callable[[Path], None], *, keep: int = 2, keep_every: int | None = None
    ) -> None:
        self.out_dir, self.export, self.keep, self.keep_every = out_dir, export, keep, keep_every

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
        """Write the checkpoint of a step and remove those that aren't kept.

        state: JSON-able. weights: the trained tensors, of any shapes. optimizer: its tensors, and the rest (JSON-able).
        best: the best step so far. Raises ValueError if it can't be written.
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
            tensors, rest = get_random_states()
            save_file(tensors, inner / RANDOM)
            text = json.dumps(dict(state=state, optimizer=optimizer[1], random=rest))
            (inner / STATE).write_text(text, encoding="utf-8")
            for file in (p for p in part.rglob("*") if p.is_file()):
                fsync(file)
            if path.exists():  # the same step again
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
        """Remove all checkpoints but the latest, the best, and the one to roll back to."""
        paths = self.steps()
        rollback = max((step for step in paths if self.keep_every and step % self.keep_every == 0), default=None)
        for step in list(paths)[: -self.keep]:
            if step not in (best, rollback):
                self.remove(paths[step])

    def remove(self, path: Path) -> None:
        """Remove a checkpoint; it is renamed first, so that none is ever half removed."""
        doomed = path.with_name(f".{path.name}.old")
        shutil.rmtree(doomed, ignore_errors=True)
        with writing(path):
            os.replace(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def remove_all(self) -> None:
        """Remove all checkpoints."""
        for path in [*self.steps().values()]:
            self.remove(path)

    def archive_later_than(self, checkpoint: Path) -> None:
        """Rename later checkpoints to left-step-..., for a run that resumes from an earlier one."""
        paths = self.steps()
        resumed = next(step for step, path in paths.items() if path.resolve() == checkpoint.resolve())
        for step, path in paths.items():
            if step > resumed:
                archived = path.with_name(f"left-{path.name}")
                shutil.rmtree(archived, ignore_errors=True)
                with writing(path):
                    os.replace(path, archived)

    def remove_partial(self) -> None:
        """Remove what killed runs left half written in the run's folder."""
        for before in self.out_dir.glob(".step-*.before"):
            if (path := before.with_name(before.name[1 : -len(".before")])).exists():
                shutil.rmtree(before, ignore_errors=True)
            else:
                with writing(path):
                    os.replace(before, path)
        for left in [*self.out_dir.glob(".*.part"), *self.out_dir.glob(".step-*.old")]:
            shutil.rmtree(left, ignore_errors=True)


def load_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], tuple[dict[str, Tensor], Any]]:
    """State, weights and optimizer as given to `Checkpoints.save`, tensors in their shapes; sets the random states.

    Raises ValueError if the checkpoint is incomplete or damaged.
    """
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
        set_random_states(tensors, content["random"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as e:
        raise ValueError(f"checkpoint {path} is damaged ({e}); resume from another: --resume DIR") from None
    return state, weights, (optimizer, info)


def restore_weights(path: Path, parameters: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy a checkpoint's weights into the trained parameters.

    Raises ValueError if the two don't have the same names and shapes.
    """
    problems = [f"{name} is trained now, but not in the checkpoint" for name in parameters.keys() - saved.keys()]
    problems += [f"{name} is in the checkpoint, but not trained now" for name in saved.keys() - parameters.keys()]
    problems += [
        f"{name} is {list(parameters[name].shape)} now and {list(saved[name].shape)} in the checkpoint"
        for name in parameters.keys() & saved.keys()
        if parameters[name].shape != saved[name].shape
    ]
    if problems:
        raise ValueError(
            f"checkpoint {path} is of another method, or of a model of another shape; resume with the settings of its "
            f"run (settings.yaml), or start anew in another --out_dir:\n{bullet_list(sorted(problems), limit=10)}"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])


def get_random_states() -> tuple[dict[str, Tensor], Any]:
    """The states of Python's, numpy's and torch's random generators: tensors, (N,), and the rest as JSON-able."""
    algorithm, keys, *rest = np.random.get_state()
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64))}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    return tensors, {"numpy": [str(algorithm), *(float(x) for x in rest)], "python": random.getstate()}


def set_random_states(tensors: Mapping[str, Tensor], rest: Any) -> None:
    """Set the random generators to what `get_random_states` gave; tensors: (N,) each."""
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
    algorithm, position, has_gauss, gauss = rest["numpy"]
    keys = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state((algorithm, keys, int(position), int(has_gauss), gauss))
    version, keys, gauss = rest["python"]
    random.setstate((version, tuple(keys), gauss))
