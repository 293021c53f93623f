"""`LLM`: a model with its tokenizer and prompt style, for people and notebooks.

llm = LLM.load("smollm2-135m-instruct")
print(llm.chat([{"role": "user", "content": "What is the capital of France?"}]))
"""

from __future__ import annotations

import contextlib
import copy
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from litlm.checkpoint.run_folder import is_adapter, model_directory
from litlm.config import Config
from litlm.generate.decode import check_prompts, decode
from litlm.generate.stream import Detokenizer, Stream, text_events
from litlm.io.reading import read_json
from litlm.model import GPT
from litlm.settings import SamplingSettings

if TYPE_CHECKING:
    from litlm.checkpoint.base import WeightSource
    from litlm.prompts import PromptStyle
    from litlm.tokenizer import Tokenizer

GENERATION, STYLE = "generation_config.json", "prompt_style"  # the file, and a key in it that only litlm uses
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPES |= {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """The device; `auto` is CUDA if available, then MPS, then the CPU. Raises ValueError if it is not available."""
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
    """The dtype to run in. `auto` is the checkpoint's (`stored`); for a quantized file bfloat16, on a CPU float32.

    float16 checkpoints run in float32 on a CPU, where float16 is slow and less accurate. Raises ValueError for an
    unknown name.
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
    """A language model ready to use: `model` is the plain `GPT`, `config` its Config.

    source: what it was loaded from. adapter: the directory of its adapter, if it has one. style_name: the prompt style
    of the zoo's table.
    """

    model: GPT
    config: Config
    source: str = ""
    style_name: str | None = None
    adapter: str = ""
    _tokenizer: Tokenizer | None = None
    _tokenizer_error: str = "this model has no tokenizer; set llm.tokenizer"
    _style: PromptStyle | None = field(default=None, repr=False)
    # In a tuple: the chat template that `_style` came from, (None,) if there was none.
    _style_template: tuple[str | None] | None = field(default=None, init=False, repr=False)
    _style_end_ids: frozenset[int] | None = field(default=None, init=False, repr=False)
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
        """Load a directory, a .gguf file, a zoo name or a hub id. Raises ValueError for what can't be loaded.

        A training run's directory stands for its final/, or for its newest checkpoint while there is none.
        adapter: the directory of an adapter (LoRA in PEFT's format, LLaMA-Adapter in litlm's), which may also be the
        source itself: then its base model is loaded. The adapter's tokenizer, chat template and end tokens take
        precedence over the model's.
        quantize: nf4, nf4-dq, fp4, fp4-dq or int8.
        compile: compile the layers for decoding one prompt at a time on a CPU, which takes some seconds at first.
        ignore_fields: fields of config.json to ignore although litlm does not know them.
        """
        from litlm.checkpoint.base import load_model
        from litlm.checkpoint.download import resolve
        from litlm.checkpoint.peft import base_of, read_adapter_config
        from litlm.zoo import find_model

        if quantize is not None:
            from litlm.transforms.quantize import check_qtype

            check_qtype(quantize)
        # Whatever can be refused without the model is refused before it is downloaded.
        device = pick_device(device)
        pick_dtype(dtype, "float32", device, quantized=False)
        if adapter is not None:
            adapter = model_directory(Path(adapter))
            read_adapter_config(adapter)
        path = resolve(source)
        if adapter is None and is_adapter(path):
            adapter, source = path, base_of(path)
            path = resolve(source)
        info = find_model(str(source))
        weights, config, style = _open_weights(path, ignore_fields)
        generation = _read_generation_config(path)
        tokenizer, tokenizer_error = _read_tokenizer(path, weights)
        dtype = pick_dtype(dtype, config.dtype, device, quantized=_is_gguf(path))
        model = load_model(config, weights, device=device, dtype=dtype, quantize=quantize)
        llm = cls(model, model.config, source=str(source), style_name=info.style if info else None)
        llm._tokenizer, llm._tokenizer_error, llm._generation = tokenizer, tokenizer_error, generation
        if style is not None:
            from litlm.prompts import get_style

            llm.style = get_style(style)  # before the tokenizer's template: the model was finetuned in this style
        if adapter is not None:
            llm._load_adapter(Path(adapter))
        if compile:
            from litlm.transforms.compile import compile_decoding

            compile_decoding(model)
        return llm

    def _load_adapter(self, path: Path) -> None:
        from litlm.checkpoint.adapter import base_note
        from litlm.checkpoint.peft import load_adapter

        if note := base_note(self.model, path):
            print(f"litlm: {note}", file=sys.stderr)
        load_adapter(self.model, path)
        self.adapter = str(path)
        self.config = self.model.config  # new tokens may have made it larger
        self._load_chat_format(path)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises ValueError if the checkpoint has none, and says why."""
        if self._tokenizer is None:
            raise ValueError(self._tokenizer_error)
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._style, self._style_end_ids = tokenizer, None, None

    @property
    def style(self) -> PromptStyle:
        """How conversations become prompts; `save` stores it. In order of precedence: the style that was set, the
        adapter's, the one saved with the model, the checkpoint's chat template, the zoo's, plain text.
        """
        if self._style is None or self._style_is_stale():
            from litlm.prompts import style_for

            style = style_for(self.tokenizer, self.style_name, self._generation.get(STYLE))
            self._style, self._style_template, self._style_end_ids = style, (self._template(),), None
        return self._style

    @style.setter
    def style(self, style: PromptStyle) -> None:
        from litlm.prompts import TemplateStyle

        self._style, self._style_template, self._style_end_ids = style, None, None
        self._generation = self._generation | {STYLE: None if isinstance(style, TemplateStyle) else style.name}
        if isinstance(style, TemplateStyle) and self._tokenizer is not None:
            self._tokenizer, self._style_template = _with_template(self._tokenizer, style.source), (style.source,)
            if style.tool_use_template is not None:
                self._tokenizer.chat_templates["tool_use"] = style.tool_use_template

    def _template(self) -> str | None:
        return None if self._tokenizer is None else self._tokenizer.chat_templates.get("default")

    def _style_is_stale(self) -> bool:
        """Whether `_style` came from a chat template that has been replaced since (`tokenizer.chat_template = …`)."""
        return self._style_template is not None and self._style_template != (self._template(),)

    def generate(
        self,
        prompt: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]],
        settings: SamplingSettings | None = None,
        *,
        stream: bool = False,
        return_ids: bool = False,
        continue_text: bool = True,
        **sampling: Any,
    ) -> Any:
        """Continue a text (or token ids). A list of prompts gives a list of answers, each as it would be alone.

        Greedy by default. sampling: fields of `SamplingSettings`, such as max_new_tokens, in place of or on top of
        `settings`. stream=True gives a `Stream` of text pieces (ids with return_ids) for one prompt. return_ids=True
        gives the new token ids instead of text, the end token included. continue_text=False gives text that stands
        alone: without the space that SentencePiece writes before a first word. Raises ValueError for prompts and
        settings it can't use.
        """
        settings = (settings or SamplingSettings()).changed(**sampling)
        prompts, single = self._encode_prompts(prompt)
        if stream and not single:
            raise ValueError("stream=True takes one prompt at a time; drop it to get a list of answers")
        if settings.stop and self._tokenizer is None:
            raise ValueError(f"stop={settings.stop} needs a tokenizer: {self._tokenizer_error}")
        check_prompts(prompts, self.model.config.vocab_size, self.model.config.max_seq_len, self._tokenizer)
        end_ids = frozenset() if settings.ignore_eos else self._stop_ids()
        # Special tokens are not part of the text, so stop texts that are special tokens are compared by id.
        special = {s: i for s in settings.stop if (i := self.tokenizer.token_to_id(s)) in self.tokenizer.special_ids}
        end_ids |= frozenset(special.values())
        stop = tuple(text for text in settings.stop if text not in special)
        before = prompts if continue_text else [[] for _ in prompts]
        texts = None if return_ids and not stop else [Detokenizer(self.tokenizer, stop, ids) for ids in before]
        events = text_events(decode(self.model, prompts, settings, stop_ids=end_ids), texts, end_ids)
        if stream:
            return Stream(events, end_ids, texts[0] if texts else None, return_ids)
        answers: list[list[Any]] = [[] for _ in prompts]
        for row, token, piece in events:
            if not return_ids:
                answers[row].append(piece)
            elif token is not None:
                answers[row].append(token)
        out = answers if return_ids else ["".join(pieces) for pieces in answers]
        return out[0] if single else out

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        settings: SamplingSettings | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        style: PromptStyle | None = None,
        stream: bool = False,
        return_ids: bool = False,
        **sampling: Any,
    ) -> Any:
        """Answer a conversation: [{"role": "user", "content": "..."}, ...]. Otherwise like `generate`.

        tools: JSON schemas of functions that the model may call. template_kwargs: variables of its chat template, such
        as {"enable_thinking": False}. style: a prompt style in place of the model's own.
        """
        settings, style = (settings or SamplingSettings()).changed(**sampling), style or self.style
        if not settings.ignore_eos:
            settings = settings.changed(stop=(*settings.stop, *style.stop))
        options: dict[str, Any] = dict(tools=tools, template_kwargs=template_kwargs)
        options = {key: value for key, value in options.items() if value is not None}
        prompt = style.encode(list(messages), self.tokenizer, **options)
        return self.generate(prompt, settings, stream=stream, return_ids=return_ids, continue_text=False)

    def save(self, out_dir: str | Path) -> None:
        """Write a directory that `LLM.load`, transformers and vLLM read. Adapters are merged, quantized weights are
        dequantized to the model's dtype.

        Replaces a model in `out_dir` (which may be the one that was loaded) completely or, if writing fails, not at
        all. Raises ValueError if that fails, or if `out_dir` holds an adapter or is the folder of a training run.
        """
        from litlm.checkpoint.hf import refuse_adapter_or_run
        from litlm.io.lock import locked

        out_dir = Path(out_dir)
        refuse_adapter_or_run(out_dir)
        with locked(out_dir):
            self.save_locked(out_dir)

    def save_locked(self, out_dir: Path) -> None:
        """`save` for callers that hold the lock of `out_dir` already."""
        from litlm.checkpoint.hf import REPLACED
        from litlm.io.writing import atomic_folder, clear_parts
        from litlm.tokenizer import TOKENIZER_FILES

        clear_parts(out_dir)
        with atomic_folder(out_dir, (*REPLACED, *(TOKENIZER_FILES if self._tokenizer is not None else ()))) as part:
            self._write(part)

    def _write(self, out_dir: Path) -> None:
        from litlm.checkpoint.hf import save_weights
        from litlm.transforms.lora import merged_state, refuse_to_merge
        from litlm.transforms.resize import tied_again

        refuse_to_merge(self.model)
        save_weights(*tied_again(self.model, merged_state(self.model), self.config), out_dir)
        self.save_chat_format(out_dir)

    def save_chat_format(self, out_dir: str | Path) -> None:
        """Write the tokenizer, `style` as a chat template, and all end tokens in generation_config.json, for
        `LLM.load` and for other tools. Part of `save`; adapters get these files too.

        A style that can't be written as a template is stored by its name, which only litlm knows; see `chat_note`.
        """
        from litlm.io.writing import write_text

        out_dir = Path(out_dir)
        # A checkpoint may name more end tokens here than config.json does.
        generation = {"bos_token_id": self.config.bos_token_id} | self._generation
        generation["eos_token_id"] = sorted(self._stop_ids()) or None
        if self._tokenizer is not None:
            tokenizer, style_name = self._tokenizer_with_style()
            tokenizer.save(out_dir)
            generation[STYLE] = style_name
        if generation.get(STYLE) is None:
            generation.pop(STYLE, None)
        write_text(out_dir / GENERATION, json.dumps(generation, indent=2) + "\n")

    def chat_note(self) -> str | None:
        """A warning if other tools can't use the saved model's prompt style, else None."""
        tokenizer, style_name = (None, None) if self._tokenizer is None else self._tokenizer_with_style()
        if tokenizer is None or style_name is None or tokenizer.chat_template is not None:
            return None
        return (
            f"prompt style {style_name!r} can't be written as a chat template: litlm finds it again by its name, other "
            "tools can't use it"
        )

    def style_note(self) -> str | None:
        """A warning if `style` writes special tokens that the tokenizer does not have, else None."""
        try:
            missing = self.style.missing_tokens(self.tokenizer)
        except ValueError:  # no tokenizer, or an unknown or broken style: reported when it is used
            return None
        if not missing:
            return None
        which, them = ("which is no token", "it") if len(missing) == 1 else ("which are no tokens", "them")
        return (
            f"prompt style {self.style.name!r} writes {', '.join(missing)}, {which} of this tokenizer but loose "
            f"characters; add {them} with finetune --new_tokens, or choose another style"
        )

    def _tokenizer_with_style(self) -> tuple[Tokenizer, str | None]:
        """The tokenizer with `style` as its chat template, and the style's name if it has to be stored too."""
        from litlm.prompts import TemplateStyle
        from litlm.prompts.jinja import chat_template

        tokenizer, stored = self.tokenizer, self._generation.get(STYLE)
        try:
            style = self.style
        except ValueError:  # unknown here, or broken: leave it as it was loaded
            return tokenizer, stored
        named = style.name in (stored, self.style_name)  # else it comes from the tokenizer, or is the default
        if isinstance(style, TemplateStyle) or not named:
            return tokenizer, stored
        return _with_template(tokenizer, chat_template(style, tokenizer)), style.name

    def _load_chat_format(self, adapter: Path) -> None:
        """Use the tokenizer, chat templates and end tokens in an adapter's directory in place of the model's."""
        from litlm.tokenizer import Tokenizer, has_tokenizer_files, read_chat_templates

        generation, templates = _read_generation_config(adapter), read_chat_templates(adapter)
        tokenizer = Tokenizer.from_dir(adapter) if has_tokenizer_files(adapter) else copy.copy(self._tokenizer)
        if templates or STYLE in generation:
            self._generation.pop(STYLE, None)
            self._style = None
        elif self._tokenizer is not None:
            templates = self._tokenizer.chat_templates
        if tokenizer is not None:
            tokenizer.chat_templates = templates
        self._tokenizer, self._style_end_ids = tokenizer, None
        self._generation |= generation

    def _encode_prompts(self, prompt: Any) -> tuple[list[list[int]], bool]:
        """Token ids of each prompt, and whether it is a single one."""
        if isinstance(prompt, str):
            return [self.tokenizer.encode(prompt)], True
        try:
            items = prompt.tolist() if isinstance(prompt, torch.Tensor) else list(prompt)
            if items and all(isinstance(item, Integral) for item in items):
                return [list(map(int, items))], True
            rows = [self.tokenizer.encode(item) if isinstance(item, str) else _token_ids(item) for item in items]
        except TypeError:
            raise ValueError("the prompt must be a text, token ids, or a list of either") from None
        if not rows:
            raise ValueError("the prompt is empty; give a text, token ids, or a list of either")
        return rows, False

    def _stop_ids(self) -> frozenset[int]:
        """All end tokens of config, generation_config and tokenizer, and those of the prompt style, which some
        checkpoints omit (a base model's eos_token beside a chat template).
        """
        stored = self._generation.get("eos_token_id")
        ids = {*self.config.eos_token_ids, *(stored if isinstance(stored, list) else [stored])} - {None}
        if self._tokenizer is None:
            return frozenset(ids)
        if self._style_end_ids is None or self._style_is_stale():
            from litlm.prompts.jinja import end_of_turn_ids

            end_ids: frozenset[int] = frozenset()
            with contextlib.suppress(ValueError):  # an unknown or broken style is reported when it is used
                end_ids = end_of_turn_ids(self.style, self._tokenizer)
            self._style_end_ids = end_ids
        return frozenset(ids.union(self._tokenizer.eos_ids, self._style_end_ids))


def _open_weights(path: Path, ignore_fields: Collection[str]) -> tuple[WeightSource, Config, str | None]:
    """A checkpoint's weights, not read yet, its config, and the prompt style that LitGPT noted in it."""
    if ignore_fields and not (path / "config.json").is_file():
        raise ValueError(f"ignore_fields={list(ignore_fields)} is for a config.json, which {path} does not have")
    if _is_gguf(path):
        from litlm.checkpoint.gguf import GGUFSource

        weights = GGUFSource(path)
        return weights, weights.config, None
    from litlm.checkpoint.hf import open_directory
    from litlm.checkpoint.litgpt import LitGPTSource, is_litgpt

    if is_litgpt(path):
        weights = LitGPTSource(path)
        return weights, weights.config, weights.style
    config, weights, notes = open_directory(path, ignore_fields)
    for note in notes:
        print(f"litlm: {path}: {note}", file=sys.stderr)
    return weights, config, None


def _read_tokenizer(path: Path, weights: Any) -> tuple[Tokenizer | None, str]:
    """The checkpoint's tokenizer, or None and the reason why there is none."""
    from litlm.tokenizer import Tokenizer

    try:
        return Tokenizer.from_gguf(weights.metadata) if _is_gguf(path) else Tokenizer.from_dir(path), ""
    except ValueError as e:
        return None, str(e)


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def _read_generation_config(folder: Path) -> dict[str, Any]:
    """The checkpoint's generation_config.json. `save` writes it back; litlm itself uses only its end tokens."""
    file = folder / GENERATION
    return read_json(file) if file.is_file() else {}


def _with_template(tokenizer: Tokenizer, template: str | None) -> Tokenizer:
    """A copy of the tokenizer with this chat template only; named templates belong to the style before."""
    changed = copy.copy(tokenizer)
    changed.chat_template = None
    changed.chat_template = template
    return changed


def _token_ids(row: Any) -> list[int]:
    """A list, array or tensor of token ids as a list. Raises TypeError for anything else."""
    row = row.tolist() if isinstance(row, torch.Tensor) else list(row)
    if not all(isinstance(token, Integral) for token in row):
        raise TypeError
    return list(map(int, row))
