"""`LLM`: a model with its tokenizer and prompt style, for people and notebooks.

llm = LLM.load("smollm2-135m-instruct")
print(llm.chat([{"role": "user", "content": "What is the capital of France?"}]))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from litlm.config import Config
from litlm.generate import decode
from litlm.model import GPT
from litlm.settings import SamplingSettings

if TYPE_CHECKING:
    from litlm.prompts import PromptStyle
    from litlm.tokenizer import Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPES |= {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """`auto` is the best there is: CUDA, then Apple's MPS, then the CPU."""
    if str(device) != "auto":
        try:
            chosen = torch.device(device)
        except RuntimeError:
            raise ValueError(f"device={str(device)!r} is unknown; use auto, cuda, cuda:1, mps or cpu") from None
        lacks_cuda = chosen.type == "cuda" and not torch.cuda.is_available()
        if lacks_cuda or (chosen.type == "mps" and not torch.backends.mps.is_available()):
            raise ValueError(f"device={str(device)!r} is not available to this PyTorch ({torch.__version__}); use cpu")
        return chosen
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(dtype: str | torch.dtype, stored: str, device: torch.device, *, quantized: bool) -> torch.dtype:
    """`auto` is the checkpoint's own; for a quantized file bfloat16 on an accelerator and float32 on a CPU."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        if quantized:
            return torch.float32 if device.type == "cpu" else torch.bfloat16
        return DTYPES[stored]
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is unknown; use auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


@dataclass
class LLM:
    """A language model ready to use. `model` is the plain `GPT`, `config` its Config."""

    model: GPT
    config: Config
    source: str = ""
    style_name: str | None = None
    _tokenizer: Tokenizer | None = None
    _no_tokenizer: str = "this model was made without a tokenizer; set llm.tokenizer"
    _style: PromptStyle | None = field(default=None, repr=False)

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        adapter: str | Path | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
    ) -> LLM:
        """Load a directory, a .gguf file, a zoo name or a hub id; `adapter` is a directory in PEFT's format."""
        from litlm.checkpoint.base import load_model
        from litlm.download import resolve
        from litlm.tokenizer import Tokenizer
        from litlm.zoo import find_model

        place, info = pick_device(device), find_model(str(source))
        path = resolve(source)
        tokenizer, missing = None, ""
        if path.suffix == ".gguf":
            from litlm.checkpoint.gguf import GGUFSource

            weights = GGUFSource(path)
            config = weights.config
            try:
                tokenizer = Tokenizer.from_gguf(weights.metadata)
            except ValueError as e:
                missing = str(e)
        else:
            from litlm.checkpoint.hf import SafetensorsSource

            config = Config.from_hf(path)
            weights = SafetensorsSource(path)
            try:
                tokenizer = Tokenizer.from_dir(path)
            except ValueError as e:
                missing = str(e)
        kind = pick_dtype(dtype, config.dtype, place, quantized=path.suffix == ".gguf")
        model = load_model(config, weights, device=place, dtype=kind)
        llm = cls(model, config, source=str(source), style_name=info.style if info else None)
        llm._tokenizer, llm._no_tokenizer = tokenizer, missing
        if adapter is not None:
            from litlm.checkpoint.peft import load_adapter

            load_adapter(model, adapter)
        return llm

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; a ValueError says what is missing where the checkpoint has none."""
        if self._tokenizer is None:
            raise ValueError(self._no_tokenizer)
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._style = tokenizer, None

    @property
    def style(self) -> PromptStyle:
        """How conversations become prompts: the checkpoint's own template, else the zoo's style, else plain text."""
        if self._style is None:
            from litlm.prompts import style_for

            self._style = style_for(self.tokenizer, self.style_name)
        return self._style

    def generate(
        self,
        prompt: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] = (),
        seed: int | None = None,
        ignore_eos: bool = False,
        stream: bool = False,
        return_ids: bool = False,
    ) -> Any:
        """Continue a text (or token ids). A list of prompts gives a list of answers, each as it would be alone.

        Greedy by default. stream=True gives an iterator of text pieces (ids with return_ids) for one prompt.
        return_ids=True gives the new token ids instead of text, the end token included.
        """
        settings = SamplingSettings(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            seed=seed,
            ignore_eos=ignore_eos,
        )
        prompts, single = self._prompts(prompt)
        return self._answer(prompts, single, settings, stream, return_ids)

    def chat(self, messages: Sequence[Mapping[str, Any]], **sampling: Any) -> Any:
        """Answer a conversation: [{"role": "user", "content": "..."}, ...]. Takes what `generate` takes."""
        stop = sampling.pop("stop", ())
        sampling["stop"] = (*((stop,) if isinstance(stop, str) else stop), *self._text_stops())
        return self.generate(self.style.encode(list(messages), self.tokenizer), **sampling)

    def save(self, out_dir: str | Path) -> None:
        """Write a directory that `LLM.load`, transformers and vLLM read as it is. Adapters are merged into the copy."""
        from litlm.checkpoint.hf import save_weights
        from litlm.transforms.lora import merged_state

        out_dir = Path(out_dir)
        save_weights(merged_state(self.model), self.config, out_dir)
        if self._tokenizer is not None:
            self._tokenizer.save(out_dir)

    def _prompts(self, prompt: Any) -> tuple[list[list[int]], bool]:
        if isinstance(prompt, str):
            return [self.tokenizer.encode(prompt)], True
        items = list(prompt)
        if not items:
            raise ValueError("the prompt is empty; give a text, token ids, or a list of either")
        if all(isinstance(item, int) for item in items):
            return [items], True
        return [self.tokenizer.encode(item) if isinstance(item, str) else list(item) for item in items], False

    def _text_stops(self) -> tuple[str, ...]:
        """The style's ends of an answer that are no single end token of the checkpoint."""
        ends = {self.tokenizer.id_to_token(i) for i in self._stop_ids()}
        return tuple(stop for stop in self.style.stop if stop not in ends)

    def _stop_ids(self) -> frozenset[int]:
        ids = set(self.config.eos_token_ids)
        if self._tokenizer is not None:
            ids |= set(self._tokenizer.eos_ids)
        return frozenset(ids)

    def _answer(
        self, prompts: list[list[int]], single: bool, settings: SamplingSettings, stream: bool, return_ids: bool
    ) -> Any:
        if settings.stop and self._tokenizer is None:
            raise ValueError(f"stop={settings.stop} needs a tokenizer: {self._no_tokenizer}")
        if stream:
            if not single:
                raise ValueError("stream=True takes one prompt at a time; drop it to get a list of answers")
            return self._stream(prompts[0], settings, return_ids)
        texts = None if return_ids and not settings.stop else [_Text(self.tokenizer, settings.stop) for _ in prompts]
        answers: list[list[Any]] = [[] for _ in prompts]
        for row, token, piece in self._events(prompts, settings, texts):
            answers[row].append(token if return_ids else piece)
        out = answers if return_ids else ["".join(pieces) for pieces in answers]
        return out[0] if single else out

    def _stream(self, prompt: list[int], settings: SamplingSettings, return_ids: bool) -> Iterator[Any]:
        texts = None if return_ids and not settings.stop else [_Text(self.tokenizer, settings.stop)]
        for _, token, piece in self._events([prompt], settings, texts):
            if return_ids and token is not None:
                yield token
            elif piece:
                yield piece

    def _events(
        self, prompts: list[list[int]], settings: SamplingSettings, texts: list[_Text] | None
    ) -> Iterator[tuple[int, int, str]]:
        """Each new token with its row and the text that it made certain."""
        steps = decode(self.model, prompts, settings, stop_ids=self._stop_ids())
        ended: set[int] = set()
        tokens = next(steps)
        while True:
            following: list[int | None] | None
            for row, token in enumerate(tokens):
                if token is not None and texts is not None and texts[row].push(token):
                    ended.add(row)
            try:
                following = steps.send(ended)
            except StopIteration:
                following = None
            for row, token in enumerate(tokens):
                if token is not None:
                    last = following is None or following[row] is None
                    yield row, token, "" if texts is None else texts[row].take(final=last)
            if following is None:
                return
            tokens = following


class _Text:
    """One answer's text as it grows. What might be the start of a stop text is held back until that is decided."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
        self._pieces = tokenizer.stream(skip_special_tokens=True)
        self._stop, self._held, self._stopped = stop, "", False

    def push(self, token: int) -> bool:
        """Add a token; True once a stop text has appeared."""
        self._find_stop(self._pieces.push(token))
        return self._stopped

    def take(self, *, final: bool) -> str:
        """The text that is certain by now; all that is left where the answer is over."""
        if final:
            self._find_stop(self._pieces.flush())
        keep = 0 if final or self._stopped else max((_overlap(self._held, stop) for stop in self._stop), default=0)
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out

    def _find_stop(self, piece: str) -> None:
        if self._stopped:
            return
        self._held += piece
        found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:
            self._stopped, self._held = True, self._held[: min(found)]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that could be the start of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
