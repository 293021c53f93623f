"""`LLM`: a model with its tokenizer and prompt style, for people and notebooks.

llm = LLM.load("smollm2-135m-instruct")
print(llm.chat([{"role": "user", "content": "What is the capital of France?"}]))
"""

from __future__ import annotations

import contextlib
import copy
import json
import sys
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from litlm.config import Config
from litlm.generate.decode import check_prompts, decode
from litlm.io.reading import model_directory, read_json
from litlm.model import GPT
from litlm.settings import SamplingSettings

if TYPE_CHECKING:
    from litlm.prompts import PromptStyle
    from litlm.tokenizer import Tokenizer

GENERATION, STYLE = "generation_config.json", "prompt_style"  # the second is a key of our own in the first
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPES |= {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """`auto` is the best there is: CUDA, then Apple's MPS, then the CPU."""
    if str(device) != "auto":
        try:
            chosen = torch.device(device)
        except RuntimeError:
            raise ValueError(f"device={str(device)!r} is unknown; use auto, cuda, cuda:1, mps or cpu") from None
        lacks_cuda = chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count()
        if lacks_cuda or (chosen.type == "mps" and not torch.backends.mps.is_available()):
            raise ValueError(f"device={str(device)!r} is not available to this PyTorch ({torch.__version__}); use cpu")
        return chosen
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(dtype: str | torch.dtype, stored: str, device: torch.device, *, quantized: bool) -> torch.dtype:
    """`auto` is the checkpoint's own; for a quantized file bfloat16 on an accelerator and float32 on a CPU.

    A float16 checkpoint runs in float32 on a CPU, which is slow and coarse at float16.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        if device.type == "cpu" and (quantized or stored == "float16"):
            return torch.float32
        if quantized:
            return torch.bfloat16
        return DTYPES[stored]
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is unknown; use auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


@dataclass
class LLM:
    """A language model ready to use. `model` is the plain `GPT`, `config` its Config.

    source: what it was loaded from. adapter: and which adapter was put on it.
    """

    model: GPT
    config: Config
    source: str = ""
    style_name: str | None = None
    adapter: str = ""
    _tokenizer: Tokenizer | None = None
    _no_tokenizer: str = "this model was made without a tokenizer; set llm.tokenizer"
    _style: PromptStyle | None = field(default=None, repr=False)
    _style_of: tuple[str | None] | None = field(default=None, init=False, repr=False)  # the template that gave _style
    _turn_ends: frozenset[int] | None = field(default=None, init=False, repr=False)
    _generation: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        adapter: str | Path | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        quantize: str | None = None,
        compile: bool = False,
        ignore_fields: Collection[str] = (),
    ) -> LLM:
        """Load a directory, a .gguf file, a zoo name or a hub id.

        A training run's directory stands for its final/, or its newest checkpoint while there is none.
        adapter: a directory in PEFT's format; one given as the source itself is put on the model that it names. Its own
        tokenizer, chat template and end tokens go before the model's.
        quantize: keep the weights in fewer bits: nf4, nf4-dq, fp4, fp4-dq or int8.
        compile: decode one prompt at a time with compiled layers on a CPU, for some seconds of compiling at first.
        ignore_fields: fields of config.json that litlm does not understand and that don't matter, as you know.
        """
        from litlm.checkpoint.base import load_model
        from litlm.checkpoint.download import resolve
        from litlm.tokenizer import Tokenizer
        from litlm.zoo import find_model

        if quantize is not None:
            from litlm.transforms.quantize import check_qtype

            check_qtype(quantize)
        place, info = pick_device(device), find_model(str(source))
        path = resolve(source)
        adapter = adapter and model_directory(Path(adapter))
        if adapter is None and (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
            from litlm.checkpoint.peft import base_of

            options: dict[str, Any] = dict(device=device, dtype=dtype, quantize=quantize, compile=compile)
            return cls.load(base_of(path), adapter=path, ignore_fields=ignore_fields, **options)
        tokenizer, missing, noted_style = None, "", None
        quantized = path.suffix.lower() == ".gguf"
        generation: dict[str, Any] = {}
        if ignore_fields and not (path / "config.json").is_file():
            raise ValueError(f"ignore_fields={list(ignore_fields)} is for a config.json, which {path} does not have")
        if quantized:
            from litlm.checkpoint.gguf import GGUFSource

            weights = GGUFSource(path)
            config = weights.config
            try:
                tokenizer = Tokenizer.from_gguf(weights.metadata)
            except ValueError as e:
                missing = str(e)
        else:
            from litlm.checkpoint.hf import open_directory
            from litlm.checkpoint.litgpt import LitGPTSource, is_litgpt

            if is_litgpt(path):
                weights = LitGPTSource(path)
                config, noted_style = weights.config, weights.style
            else:
                config, weights, notes = open_directory(path, ignore_fields)
                for note in notes:
                    print(f"litlm: {path}: {note}", file=sys.stderr)
            generation = _read_generation(path / GENERATION)
            try:
                tokenizer = Tokenizer.from_dir(path)
            except ValueError as e:
                missing = str(e)
        kind = pick_dtype(dtype, config.dtype, place, quantized=quantized)
        model = load_model(config, weights, device=place, dtype=kind, quantize=quantize)
        llm = cls(model, model.config, source=str(source), style_name=info.style if info else None)
        llm._tokenizer, llm._no_tokenizer, llm._generation = tokenizer, missing, generation
        if noted_style is not None:
            from litlm.prompts import get_style

            llm.style = get_style(noted_style)  # what it was finetuned on, so before the tokenizer's own template
        if adapter is not None:
            from litlm.checkpoint.peft import load_adapter

            load_adapter(model, adapter)
            llm.adapter = str(adapter)
            llm.config = model.config  # new tokens may have made it larger
            llm._take_chat_format(Path(adapter))
        if compile:
            from litlm.transforms.compile import compile_decoding

            compile_decoding(model)
        return llm

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; a ValueError says what is missing where the checkpoint has none."""
        if self._tokenizer is None:
            raise ValueError(self._no_tokenizer)
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._style, self._turn_ends = tokenizer, None, None

    @property
    def style(self) -> PromptStyle:
        """How conversations become prompts, which `save` keeps. As it was set or saved, the adapter's before the
        model's; else the checkpoint's own template, else the zoo's style, else plain text.
        """
        if self._style is None or self._is_older_than_the_template():
            from litlm.prompts import style_for

            style = style_for(self.tokenizer, self.style_name, self._generation.get(STYLE))
            self._style, self._style_of, self._turn_ends = style, (self._template(),), None
        return self._style

    def _template(self) -> str | None:
        return None if self._tokenizer is None else self._tokenizer.chat_templates.get("default")

    def _is_older_than_the_template(self) -> bool:
        """Whether `style` came from a chat template that is another by now: `tokenizer.chat_template` can be set."""
        return self._style_of is not None and self._style_of != (self._template(),)

    @style.setter
    def style(self, style: PromptStyle) -> None:
        from litlm.prompts import TemplateStyle

        self._style, self._style_of, self._turn_ends = style, None, None
        is_template = isinstance(style, TemplateStyle)
        self._generation = self._generation | {STYLE: None if is_template else style.name}
        if is_template and self._tokenizer is not None:
            self._tokenizer, self._style_of = _with_template(self._tokenizer, style.source), (style.source,)

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

        Greedy by default. stream=True gives a `Stream` of text pieces (ids with return_ids) for one prompt.
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

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        style: PromptStyle | None = None,
        **sampling: Any,
    ) -> Any:
        """Answer a conversation: [{"role": "user", "content": "..."}, ...]. Takes what `generate` takes.

        tools: JSON schemas of functions that the model may call. template_kwargs: switches of its chat template, such
        as {"enable_thinking": False}. style: another way to ask than the model's own.
        """
        style = style or self.style
        given: dict[str, Any] = dict(tools=tools, template_kwargs=template_kwargs)
        given = {key: value for key, value in given.items() if value is not None}
        if not sampling.get("ignore_eos"):
            stop = sampling.get("stop", ())
            sampling["stop"] = (*((stop,) if isinstance(stop, str) else stop), *style.stop)
        return self.generate(style.encode(list(messages), self.tokenizer, **given), **sampling)

    def save(self, out_dir: str | Path) -> None:
        """Write a directory that `LLM.load`, transformers and vLLM read as it is. Adapters are merged into the copy.

        Weights that are kept quantized are written unpacked, in the model's dtype: with the values that they compute.
        A model that is there already, also the one that was loaded, is replaced: all of it or, where that fails,
        nothing. The directory of an adapter is refused.
        """
        from litlm.checkpoint.hf import REPLACED, refuse_adapter
        from litlm.io.writing import atomic_folder, clear_parts, locked
        from litlm.tokenizer import FILES

        out_dir = Path(out_dir)
        refuse_adapter(out_dir)
        with locked(out_dir):
            clear_parts(out_dir)
            with atomic_folder(out_dir, (*REPLACED, *(FILES if self._tokenizer is not None else ()))) as part:
                self._write(part)

    def _write(self, out_dir: Path) -> None:
        from litlm.checkpoint.hf import save_weights
        from litlm.transforms.adapter import refuse_to_merge
        from litlm.transforms.lora import merged_state
        from litlm.transforms.resize import tied_again

        refuse_to_merge(self.model)
        save_weights(*tied_again(self.model, merged_state(self.model), self.config), out_dir)
        self.save_chat_format(out_dir)

    def save_chat_format(self, out_dir: str | Path) -> None:
        """Write how the model is asked and what ends its answers, for `LLM.load` and for other tools: the tokenizer,
        `style` as a chat template, and all end tokens in generation_config.json. `save` does; adapters get it too.

        A style that cannot be written as a template is noted by its name, which only litlm knows: `chat_note` says so.
        """
        from litlm.io.writing import write_text

        out_dir = Path(out_dir)
        # A checkpoint may name more end tokens here than config.json does.
        generation = {"bos_token_id": self.config.bos_token_id} | self._generation
        generation["eos_token_id"] = sorted(self._stop_ids()) or None
        if self._tokenizer is not None:
            tokenizer, name = self._exported()
            tokenizer.save(out_dir)
            generation[STYLE] = name
        if generation.get(STYLE) is None:
            generation.pop(STYLE, None)
        write_text(out_dir / GENERATION, json.dumps(generation, indent=2) + "\n")

    def chat_note(self) -> str | None:
        """What to know about how the model is asked, once it is saved: None if other tools will do it as litlm does."""
        tokenizer, name = (None, None) if self._tokenizer is None else self._exported()
        if tokenizer is None or name is None or tokenizer.chat_template is not None:
            return None
        return (
            f"prompt style {name!r} is not written as a chat template: litlm finds it again by its name, other tools "
            "can't ask in it"
        )

    def _exported(self) -> tuple[Tokenizer, str | None]:
        """The tokenizer with `style` as its chat template, and the style's name, where it has one to be noted."""
        from litlm.prompts import TemplateStyle
        from litlm.prompts.jinja import chat_template

        tokenizer, noted = self.tokenizer, self._generation.get(STYLE)
        try:
            style = self.style
        except ValueError:  # it is unknown here, or broken: kept as it came
            return tokenizer, noted
        named = style.name in (noted, self.style_name)  # else it is the tokenizer's own, or plain for want of any
        if isinstance(style, TemplateStyle) or not named:
            return tokenizer, noted
        return _with_template(tokenizer, chat_template(style, tokenizer)), style.name

    def _take_chat_format(self, adapter: Path) -> None:
        """What an adapter's directory says about it goes before what the model's does."""
        from litlm.tokenizer import Tokenizer, chat_templates_in, holds_tokenizer

        generation, templates, base = (
            _read_generation(adapter / GENERATION),
            chat_templates_in(adapter),
            self._tokenizer,
        )
        own = Tokenizer.from_dir(adapter) if holds_tokenizer(adapter) else copy.copy(base)
        if templates or STYLE in generation:
            self._generation.pop(STYLE, None)
            self._style = None
        elif base is not None:
            templates = base.chat_templates
        if own is not None:
            own.chat_templates = templates
        self._tokenizer, self._turn_ends = own, None
        self._generation |= generation

    def _prompts(self, prompt: Any) -> tuple[list[list[int]], bool]:
        if isinstance(prompt, str):
            return [self.tokenizer.encode(prompt)], True
        try:
            items = prompt.tolist() if isinstance(prompt, torch.Tensor) else list(prompt)
            if items and all(isinstance(item, Integral) for item in items):
                return [list(map(int, items))], True
            rows = [self.tokenizer.encode(item) if isinstance(item, str) else _ids(item) for item in items]
        except TypeError:
            raise ValueError("the prompt must be a text, token ids, or a list of either") from None
        if not rows:
            raise ValueError("the prompt is empty; give a text, token ids, or a list of either")
        return rows, False

    def _stop_ids(self) -> frozenset[int]:
        """What ends an answer: all that config, generation_config and tokenizer name, and what the style ends turns
        with, which some checkpoints forget (a base model's eos_token beside the chat's template).
        """
        noted = self._generation.get("eos_token_id")
        ids = {*self.config.eos_token_ids, *(noted if isinstance(noted, list) else [noted])} - {None}
        if self._tokenizer is None:
            return frozenset(ids)
        if self._turn_ends is None or self._is_older_than_the_template():
            from litlm.prompts.jinja import turn_ends

            ends: frozenset[int] = frozenset()
            with contextlib.suppress(ValueError):  # a style that is unknown or broken is said when it is used
                ends = turn_ends(self.style, self._tokenizer)
            self._turn_ends = ends
        return frozenset(ids.union(self._tokenizer.eos_ids, self._turn_ends))

    def _answer(
        self, prompts: list[list[int]], single: bool, settings: SamplingSettings, stream: bool, return_ids: bool
    ) -> Any:
        if stream and not single:
            raise ValueError("stream=True takes one prompt at a time; drop it to get a list of answers")
        if settings.stop and self._tokenizer is None:
            raise ValueError(f"stop={settings.stop} needs a tokenizer: {self._no_tokenizer}")
        check_prompts(prompts, self.model.config.vocab_size, self.model.config.max_seq_len, self._tokenizer)
        ends = frozenset() if settings.ignore_eos else self._stop_ids()
        # Special tokens are not written out, so a stop text that is one is looked for among the ids.
        special = {s: i for s in settings.stop if (i := self.tokenizer.token_to_id(s)) in self.tokenizer.special_ids}
        ends |= frozenset(special.values())
        stop = tuple(text for text in settings.stop if text not in special)
        texts = None if return_ids and not stop else [_Text(self.tokenizer, stop) for _ in prompts]
        events = _events(decode(self.model, prompts, settings, stop_ids=ends), texts, ends)
        if stream:
            return Stream(events, ends, texts[0] if texts else None, return_ids)
        answers: list[list[Any]] = [[] for _ in prompts]
        for row, token, piece in events:
            if not return_ids:
                answers[row].append(piece)
            elif token is not None:
                answers[row].append(token)
        out = answers if return_ids else ["".join(pieces) for pieces in answers]
        return out[0] if single else out


def _with_template(tokenizer: Tokenizer, template: str | None) -> Tokenizer:
    changed = copy.copy(tokenizer)
    changed.chat_template = None  # those with other names are another style's
    changed.chat_template = template
    return changed


class Stream(Iterator[Any]):
    """One answer as it comes: an iterator of text pieces, or of ids.

    token_ids: the new tokens so far, the end token included. finish_reason: None while it lasts, then "stop" after an
    end token or a stop text, "length" at max_new_tokens or the end of the context.
    """

    def __init__(
        self,
        events: Generator[tuple[int, int | None, str], None, None],
        ends: Collection[int],
        text: _Text | None,
        return_ids: bool,
    ) -> None:
        self._events, self._ends, self._text, self._return_ids = events, ends, text, return_ids
        self._closed = False
        self.token_ids: list[int] = []
        self.finish_reason: Literal["stop", "length"] | None = None

    def __next__(self) -> Any:
        for _, token, piece in self._events:
            if token is not None:
                self.token_ids.append(token)
            item = token if self._return_ids else piece
            if item is not None and item != "":
                return item
        if self._closed:
            raise StopIteration
        stopped = self.token_ids[-1] in self._ends or (self._text is not None and self._text.stopped)
        self.finish_reason = "stop" if stopped else "length"
        raise StopIteration

    def close(self) -> None:
        """End the answer here; its cache is freed."""
        self._events.close()
        self._closed = True


def _read_generation(file: Path) -> dict[str, Any]:
    """How the checkpoint is meant to be sampled: kept for `save`; litlm itself uses only its end tokens."""
    return read_json(file) if file.is_file() else {}


def _ids(row: Any) -> list[int]:
    row = row.tolist() if isinstance(row, torch.Tensor) else list(row)
    if not all(isinstance(token, Integral) for token in row):
        raise TypeError
    return list(map(int, row))


def _events(
    steps: Generator[list[int | None], Collection[int], None], texts: list[_Text] | None, ends: Collection[int]
) -> Generator[tuple[int, int | None, str], None, None]:
    """Each new token with its row and the text that it made certain; in the end, without tokens, what was held back."""
    over: set[int] = set()
    tokens: list[int | None] | None = next(steps)
    while tokens is not None:
        for row, token in enumerate(tokens):
            piece = ""
            if token is not None and token not in ends and texts is not None:
                piece = texts[row].push(token)
                if texts[row].stopped:
                    over.add(row)
            if token is not None:
                yield row, token, piece
        try:
            tokens = steps.send(over)
        except StopIteration:
            tokens = None
    for row, text in enumerate(texts or ()):
        yield row, None, text.finish()


class _Text:
    """One answer's text as it grows. What might be the start of a stop text is held back until that is decided."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
        self._pieces = tokenizer.stream(skip_special_tokens=True)
        self._stop, self._held, self.stopped = stop, "", False

    def push(self, token: int) -> str:
        """Add a token; the text that is certain now. `stopped` becomes true once a stop text has appeared."""
        return self._add(self._pieces.push(token), final=False)

    def finish(self) -> str:
        """All that is left when the answer is over."""
        return self._add(self._pieces.flush(), final=True)

    def _add(self, piece: str, *, final: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + piece
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = 0 if final else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that could be the start of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
