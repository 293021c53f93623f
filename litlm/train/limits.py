"""When a run ends, and its progress: by steps, tokens, time or epochs, whichever limit comes first."""

from __future__ import annotations

import math

from litlm.settings import TrainSettings


class Limits:
    """The limits in the settings; one epoch if there is none. Raises ValueError if there are no examples.

    `step`, `tokens` and `seconds` are counted from the very start of a run, also if it was resumed.
    """

    def __init__(self, settings: TrainSettings, n_examples: int) -> None:
        if n_examples < 1:
            raise ValueError("there is nothing to learn from: the data has no examples")
        self.max_steps, self.max_tokens, self.max_time = settings.max_steps, settings.max_tokens, settings.max_time
        self.max_seconds = settings.seconds
        none = self.max_steps is None and self.max_tokens is None and self.max_seconds is None
        self.epochs = 1 if none and settings.epochs is None else settings.epochs
        # The last step of a run by epochs may reach into the next one.
        self.epoch_steps = None if self.epochs is None else math.ceil(self.epochs * n_examples / settings.batch_size)

    def steps(self) -> int | None:
        """Optimizer steps of the whole run, or None if tokens or time may end it earlier."""
        if self.max_tokens is not None or self.max_seconds is not None:
            return None
        return min(n for n in (self.max_steps, self.epoch_steps) if n is not None)

    def progress(self, step: int, tokens: int, seconds: float) -> float:
        """The finished share of the run, in [0, 1], by the limit that is nearest."""
        return min(1.0, max(share for share, _ in self._shares(step, tokens, seconds)))

    def reached(self, step: int, tokens: int, seconds: float) -> bool:
        """Whether the run is over."""
        return self.progress(step, tokens, seconds) >= 1

    def why(self, step: int, tokens: int, seconds: float) -> str:
        """The limit that is nearest (or reached), such as "max_steps=100"."""
        return max(self._shares(step, tokens, seconds), key=lambda pair: pair[0])[1]

    def _shares(self, step: int, tokens: int, seconds: float) -> list[tuple[float, str]]:
        epochs = f"epochs={self.epochs} ({self.epoch_steps} step{'' if self.epoch_steps == 1 else 's'})"
        limits = (
            (step, self.max_steps, f"max_steps={self.max_steps}"),
            (tokens, self.max_tokens, f"max_tokens={self.max_tokens}"),
            (seconds, self.max_seconds, f"max_time={self.max_time}"),
            (step, self.epoch_steps, epochs),
        )
        return [(used / limit, text) for used, limit, text in limits if limit is not None]
