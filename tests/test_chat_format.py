"""How a model is asked, and what ends its answers, stays with what training leaves: for litlm and for transformers."""

from __future__ import annotations

import io
import json
import shlex
import shutil
from datetime import date, datetime
from pathlib import Path
from typing import Any

import jinja2
import pytest
import tiny
from conversations import fix_clock
from tokenizers import Tokenizer as Core
from tokenizers import processors
from transformers import AutoTokenizer, GenerationConfig
from transformers.utils.chat_template_utils import render_jinja_template

import litlm.prompts.jinja
from litlm.cli.main import main
from litlm.data.sft import load_sft
from litlm.llm import LLM
from litlm.prompts import (
    Plain,
    PromptStyle,
    TemplateStyle,
    get_style,
)
from litlm.prompts.base import _STYLES
from litlm.prompts.jinja import chat_template, end_of_turn_ids
from litlm.settings import (
    DataSettings,
    DPOSettings,
    FinetuneSettings,
    MethodSettings,
    PreferenceData,
    PretrainSettings,
    SamplingSettings,
    TextData,
    TrainSettings,
)
from litlm.tokenizer import Tokenizer
from litlm.train.run import dpo, finetune, pretrain

ASKED = [{"role": "user", "content": "What is the capital of France?"}]
CHATML = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
OTHER = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
STEPS = TrainSettings(max_steps=1, batch_size=2, micro_batch_size=2, save_interval=1)


def bare(folder: Path, **more: Any) -> Path:
    """A base model: no template, and a plain end token. more: of tokenizer_config.json."""
    path = Path(shutil.copytree(tiny.folder(), folder))
    config = json.loads((path / "tokenizer_config.json").read_text()) | {"eos_token": "<|endoftext|>"} | more
    if "chat_template" not in more:
        del config["chat_template"]
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    for name in ("config.json", "generation_config.json"):
        (path / name).write_text(json.dumps(json.loads((path / name).read_text()) | {"eos_token_id": 0}))
    return path


def records(folder: Path) -> str:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"ab {i}", "completion": "ba"}) + "\n" for i in range(4)))
    return str(path)


def asks(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[str], frozenset[int]]:
    """What `chat` gives the model, the texts that stop it, and the tokens that do."""
    seen: list[Any] = []

    def decode(model: Any, prompts: Any, settings: Any, *, stop_ids: Any) -> Any:
        seen.extend((prompts[0], settings.stop, stop_ids))
        yield None

    with monkeypatch.context() as patched:
        patched.setattr("litlm.llm.decode", decode)
        llm.chat(ASKED)
    ids, stop, ends = seen
    return llm.tokenizer.decode(ids), list(stop), ends


# --- styles as chat templates ---------------------------------------------------------------------------------------
def rendered(template: str, messages: list[dict[str, Any]], prompt: bool) -> str:
    return render_jinja_template([messages], chat_template=template, add_generation_prompt=prompt)[0][0]


@pytest.mark.parametrize(
    "style", [cls() for _, cls in sorted(_STYLES.items()) if cls.__module__.startswith("litlm.")], ids=lambda s: s.name
)
def test_transformers_runs_the_template_of_every_style(style: PromptStyle, monkeypatch: pytest.MonkeyPatch) -> None:
    fix_clock(monkeypatch)
    template = chat_template(style, tiny.shared().tokenizer)
    assert template is not None
    messages = [*ASKED, {"role": "assistant", "content": "Paris\n"}, *ASKED]
    for prompt in (True, False):
        assert rendered(template, messages, prompt) == style.format(messages, add_generation_prompt=prompt)
    if style.name != "plain":
        with pytest.raises(jinja2.TemplateError, match="roles are|take turns"):
            rendered(template, [{"role": "narrator", "content": "x"}], True)


def test_a_style_in_python_has_no_template_of_its_parents() -> None:
    class Loud(type(get_style("chatml"))):  # type: ignore[misc]
        def render(self, messages: Any, add_generation_prompt: bool) -> str:
            return super().render(messages, add_generation_prompt).upper()

    class Both(Loud):
        def jinja(self) -> str:
            return "{{ messages[0].content }}"

        def render(self, messages: Any, add_generation_prompt: bool) -> str:
            return messages[0]["content"]

    class Marked(type(get_style("llama2"))):  # type: ignore[misc]
        prefix = "!"

    tokenizer = tiny.shared().tokenizer
    assert [chat_template(style, tokenizer) for style in (Loud(), PromptStyle())] == [None] * 2
    assert Loud().format(ASKED) == CHATML.upper()
    for style in (Both(), Marked()):
        assert rendered(str(chat_template(style, tokenizer)), ASKED, True) == style.format(ASKED)
    assert Marked().format(ASKED).startswith("!<s>[INST]")


@pytest.mark.parametrize("name", ["alpaca", "plain", "vicuna", "starcoder2", "llama2", "phi-2"])
def test_token_ids_are_those_of_transformers_with_the_bos_that_a_style_leaves_to_the_tokenizer(
    name: str, tmp_path: Path
) -> None:
    path = bare(tmp_path / "base", bos_token="<|im_start|>")
    core = Core.from_file(str(path / "tokenizer.json"))
    core.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<|im_start|> $A", pair="$A $B", special_tokens=[("<|im_start|>", 1)]
    )
    core.save(str(path / "tokenizer.json"))
    llm = LLM.load(path, device="cpu")
    llm.style = get_style(name)
    llm.save(tmp_path / "saved")
    again, theirs = LLM.load(tmp_path / "saved", device="cpu"), AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again.style.name == name
    ids = theirs.apply_chat_template(ASKED, add_generation_prompt=True)["input_ids"]
    assert list(ids) == again.style.encode(ASKED, again.tokenizer)
    assert (ids[0] == 1) == get_style(name).adds_bos


# --- what training leaves -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["full", "lora", "adapter", "adapter_v2"])
def test_a_model_is_asked_as_it_was_trained(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, out = bare(tmp_path / "base"), tmp_path / "run"
    data = DataSettings(path=records(tmp_path), val_fraction=0.0, style="chatml")
    layers = dict(start_layer=0) if method.startswith("adapter") else {}
    own = MethodSettings(name=method, **layers)  # type: ignore[arg-type]
    finetune(FinetuneSettings(model=str(base), data=data, method=own, train=STEPS, out_dir=str(out)), quiet=True)
    places = [LLM.load(out / "final", device="cpu"), LLM.load(out / "step-000001", device="cpu")]
    if method != "full":
        places.append(LLM.load(base, adapter=out / "final", device="cpu"))
    if method in ("full", "lora"):
        places[0].save(tmp_path / "saved")
        places.append(LLM.load(tmp_path / "saved", device="cpu"))
        theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
        assert theirs.apply_chat_template(ASKED, add_generation_prompt=True, tokenize=False) == CHATML
        assert GenerationConfig.from_pretrained(tmp_path / "saved").eos_token_id == [0, 2]
    for llm in places:
        text, stop, ends = asks(llm, monkeypatch)
        assert (text, stop, ends) == (CHATML, ["<|im_end|>"], {0, 2})
        assert llm.style.name == "chatml"


def test_preference_training_and_pretraining_leave_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = bare(tmp_path / "base")
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "ab", "chosen": "ba", "rejected": "bb"}) + "\n")
    data = PreferenceData(path=str(pairs), val_fraction=0.0, style="chatml")
    out = tmp_path / "dpo"
    settings = DPOSettings(
        model=str(base), data=data, method=MethodSettings(name="full"), train=STEPS, out_dir=str(out)
    )
    dpo(settings, quiet=True)
    assert asks(LLM.load(out / "final", device="cpu"), monkeypatch) == (CHATML, ["<|im_end|>"], {0, 2})
    (tmp_path / "text.txt").write_text("ab ba " * 200)
    text = TextData(path=(str(tmp_path / "text.txt"),), max_len=16, val_fraction=0.0)
    settings = PretrainSettings(
        model=str(out / "final"), from_weights=True, data=text, train=STEPS, out_dir=str(tmp_path / "text")
    )
    pretrain(settings, quiet=True)
    assert asks(LLM.load(tmp_path / "text" / "final", device="cpu"), monkeypatch) == (CHATML, ["<|im_end|>"], {0, 2})


@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_a_run_says_to_go_on_with_asks_as_it_was_trained(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a relative path with a blank in it, in a style that ends answers with a text instead of a token."""
    bare(tmp_path / "my base")
    data = records(tmp_path)
    monkeypatch.chdir(tmp_path)
    main(
        ["finetune", "my base", "--data", data, "--data.style", "alpaca", "--data.val_fraction", "0",
         "--out_dir", "my out", "--method", method, "--train.max_steps", "1", "--train.batch_size", "2"]
    )  # fmt: skip
    commands = [shlex.split(line)[1:] for line in capsys.readouterr().out.splitlines() if line.startswith("  litlm ")]
    assert [command[0] for command in commands] == (["chat"] if method == "full" else ["chat", "merge"])
    if method == "lora":
        main(commands.pop())
        go_on = capsys.readouterr().out.partition("Continue with: litlm ")[2]
        commands.append(shlex.split(go_on))
    seen: list[Any] = []
    generate = LLM.generate

    def watched(llm: LLM, ids: Any, settings: SamplingSettings, **options: Any) -> Any:
        seen.append((llm.tokenizer.decode(ids), settings.stop))
        return generate(llm, ids, settings, **options, max_new_tokens=1)

    monkeypatch.setattr(LLM, "generate", watched)
    for command in commands:
        monkeypatch.setattr("sys.stdin", io.StringIO("ab?\n"))
        main(command)
    assert seen == [(get_style("alpaca").format([{"role": "user", "content": "ab?"}]), ("### Instruction:",))] * len(
        commands
    )


def test_a_template_in_the_base_is_replaced_by_the_style(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = bare(tmp_path / "base", chat_template=OTHER)
    (base / "chat_template.jinja").write_text(OTHER)
    for name in ("chatml", "plain"):
        llm = LLM.load(base, device="cpu")
        llm.style = get_style(name)
        llm.save(tmp_path / name)
        theirs = AutoTokenizer.from_pretrained(tmp_path / name)
        expected = get_style(name).format(ASKED)
        assert theirs.apply_chat_template(ASKED, add_generation_prompt=True, tokenize=False) == expected
        assert asks(LLM.load(tmp_path / name, device="cpu"), monkeypatch)[0] == expected
    llm = LLM.load(tmp_path / "plain", device="cpu")
    llm.style = TemplateStyle(OTHER)
    llm.save(tmp_path / "plain")
    again = LLM.load(tmp_path / "plain", device="cpu")
    assert (again.style.name, again.tokenizer.chat_template) == ("template", OTHER)
    again.save(tmp_path / "again")  # and what nobody changes stays as it is
    for file in ("tokenizer_config.json", "chat_template.jinja", "tokenizer.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()


def test_a_style_goes_before_all_templates_of_the_base_which_otherwise_stay(tmp_path: Path) -> None:
    named = [{"name": name, "template": name + OTHER} for name in ("default", "tool_use")]
    for kind in ("list", "files"):
        base = bare(tmp_path / kind, **({"chat_template": named} if kind == "list" else {}))
        if kind == "files":
            AutoTokenizer.from_pretrained(tmp_path / "list").save_pretrained(base)
            assert (base / "additional_chat_templates" / "tool_use.jinja").is_file()
        llm = LLM.load(base, device="cpu")
        llm.save(tmp_path / f"{kind} kept")
        assert AutoTokenizer.from_pretrained(tmp_path / f"{kind} kept").chat_template == {
            "default": "default" + OTHER, "tool_use": "tool_use" + OTHER,
        }  # fmt: skip
        llm.style = get_style("chatml")
        llm.save(tmp_path / f"{kind} kept")
        assert AutoTokenizer.from_pretrained(tmp_path / f"{kind} kept").chat_template == get_style("chatml").jinja()


def test_a_template_that_came_later_goes_before_the_noted_style(tmp_path: Path) -> None:
    llm = LLM.load(bare(tmp_path / "base"), device="cpu")
    llm.style = get_style("alpaca")
    llm.save(tmp_path / "saved")
    (tmp_path / "saved" / "chat_template.jinja").write_text(OTHER)
    assert LLM.load(tmp_path / "saved", device="cpu").style.format(ASKED).startswith("[user]What")


def test_the_style_follows_the_tokenizers_template(tmp_path: Path) -> None:
    llm = LLM.load(bare(tmp_path / "base", chat_template=OTHER))
    assert llm.style.format(ASKED) == rendered(OTHER, ASKED, True)
    other = "Q: {{ messages[0].content }}<|im_start|>"
    llm.tokenizer.chat_template = other
    assert llm.style.format(ASKED) == "Q: What is the capital of France?<|im_start|>"
    llm.save(tmp_path / "saved")
    assert LLM.load(tmp_path / "saved").style.format(ASKED) == llm.style.format(ASKED)
    plain = LLM.load(bare(tmp_path / "plain"))
    assert plain.style.name == "plain"
    plain.tokenizer.chat_template = other
    assert plain.style.format(ASKED) == llm.style.format(ASKED)


def test_the_zoos_style_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM.load(bare(tmp_path / "base"), device="cpu")
    llm.style_name = "chatml"
    llm.save(tmp_path / "saved")
    assert asks(LLM.load(tmp_path / "saved", device="cpu"), monkeypatch) == (CHATML, ["<|im_end|>"], {0, 2})
    LLM.load(tmp_path / "base", device="cpu").save(tmp_path / "nothing")
    assert "prompt_style" not in json.loads((tmp_path / "nothing" / "generation_config.json").read_text())
    assert Tokenizer.from_dir(tmp_path / "nothing").chat_template is None


def test_a_style_of_ones_own_is_found_by_its_name_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("litlm.prompts.base._STYLES", styles := dict(_STYLES))

    class Own(Plain):
        name = "own"
        stop = ("END",)

        def render(self, messages: Any, add_generation_prompt: bool) -> str:
            return "Q: " + super().render(messages, add_generation_prompt)

    base = bare(tmp_path / "base", chat_template=OTHER)
    llm = LLM.load(base, device="cpu")
    assert llm.chat_note() is None
    llm.style = Own()
    assert "other tools" in str(llm.chat_note())
    llm.save(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template is None
    del styles["own"]
    again = LLM.load(tmp_path / "saved", device="cpu")
    assert again.generate("ab", max_new_tokens=1) is not None
    with pytest.raises(ValueError, match="trained in prompt style 'own', which is not defined: import"):
        again.chat(ASKED)
    again.save(tmp_path / "twice")
    styles["own"] = Own
    text, stop, _ = asks(LLM.load(tmp_path / "twice", device="cpu"), monkeypatch)
    assert (text, stop) == ("Q: What is the capital of France?", ["END"])


# --- the ends of answers --------------------------------------------------------------------------------------------
def test_the_end_of_a_templates_turns_stops_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Llama 3 had it at first: eos_token is another than what its template ends turns with."""
    base = bare(tmp_path / "base", chat_template=tiny.TEMPLATE)
    llm = LLM.load(base, device="cpu")
    assert llm.tokenizer.eos_ids == (0,)
    assert asks(llm, monkeypatch)[2] == {0, 2}
    llm.save(tmp_path / "saved")
    assert GenerationConfig.from_pretrained(tmp_path / "saved").eos_token_id == [0, 2]


@pytest.mark.parametrize("name", ["chatml", "qwen3", "alpaca", "deepseek-r1", "gemma4", "glm4"])
def test_the_ends_are_the_tokens_that_examples_end_with(name: str, tmp_path: Path) -> None:
    """What the data has learned last, found without it; and stop texts that are tokens."""
    core = Core.from_file(str(tiny.folder() / "tokenizer.json"))
    core.add_special_tokens(["<turn|>", "<｜end▁of▁sentence｜>", "<|user|>"])
    core.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    tokenizer, style = Tokenizer.from_dir(tmp_path), get_style(name)
    data, _ = load_sft(DataSettings(path=records(tmp_path), val_fraction=0.0), tokenizer, style, 256)
    example = data[0]
    last = max(i for i, learned in enumerate(example.learn) if learned)
    ends = end_of_turn_ids(style, tokenizer)
    assert example.ids[last] in ends | {tokenizer.eos_id}
    assert {tokenizer.id_to_token(i) for i in ends} == {
        "chatml": {"<|im_end|>"}, "qwen3": {"<|im_end|>"}, "alpaca": {"<|endoftext|>"}, "gemma4": {"<turn|>"},
        "deepseek-r1": {"<｜end▁of▁sentence｜>"}, "glm4": {"<|user|>", "<|endoftext|>"},
    }[name]  # fmt: skip


def test_chat_passes_tools_and_switches_to_the_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{% for t in tools or [] %}{{ t.function.name }};{% endfor %}{{ mood }};" + tiny.TEMPLATE
    base = bare(tmp_path / "base", chat_template=template)
    llm, theirs = LLM.load(base, device="cpu"), AutoTokenizer.from_pretrained(base)
    tools = [{"type": "function", "function": {"name": "ab", "parameters": {}}}]
    seen: list[Any] = []
    monkeypatch.setattr(llm, "generate", lambda ids, settings, **options: seen.append((ids, settings, options)))
    llm.chat(ASKED, tools=tools, template_kwargs={"mood": "calm"}, max_new_tokens=3)
    expected = theirs.apply_chat_template(ASKED, tools=tools, mood="calm", add_generation_prompt=True)["input_ids"]
    assert seen == [
        (
            list(expected),
            SamplingSettings(max_new_tokens=3),
            {"stream": False, "return_ids": False, "continue_text": False},
        )
    ]
    with pytest.raises(ValueError, match="does not use temper"):
        llm.chat(ASKED, template_kwargs={"temper": "calm"})
    with pytest.raises(ValueError, match="can't write tools"):
        llm.chat(ASKED, style=get_style("chatml"), tools=tools)


# --- adapters -------------------------------------------------------------------------------------------------------
def adapter(base: Path, folder: Path) -> Path:
    from litlm.checkpoint.peft import save_adapter
    from litlm.transforms.lora import apply_lora

    llm = LLM.load(base, device="cpu")
    apply_lora(llm.model, MethodSettings(name="lora"))
    save_adapter(llm.model, folder, base=str(base))
    return folder


def test_an_adapters_template_and_ends_go_before_its_bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL, axolotl and Unsloth write tokenizer and template beside the adapter; PEFT itself writes neither."""
    llm = LLM.load(bare(tmp_path / "plain base"), device="cpu")
    llm.style = get_style("alpaca")
    llm.save(tmp_path / "base")
    alpaca = get_style("alpaca").format(ASKED)
    own = adapter(tmp_path / "base", tmp_path / "adapter")
    load = lambda: [LLM.load(own, device="cpu"), LLM.load(tmp_path / "base", adapter=own, device="cpu")]  # noqa: E731
    for llm in load():
        assert asks(llm, monkeypatch) == (alpaca, ["### Instruction:"], {0})
    theirs = AutoTokenizer.from_pretrained(tmp_path / "plain base", eos_token="<|im_end|>")
    theirs.save_pretrained(own)
    for llm in load():  # still nothing said of a template
        assert asks(llm, monkeypatch) == (alpaca, ["### Instruction:"], {0, 2})
    theirs.chat_template = tiny.TEMPLATE
    theirs.save_pretrained(own)
    assert (own / "chat_template.jinja").is_file()
    for llm in load():
        assert asks(llm, monkeypatch) == (CHATML, [], {0, 2})
        assert llm.style.name == "template"
    llm.save(tmp_path / "merged")
    assert asks(LLM.load(tmp_path / "merged", device="cpu"), monkeypatch) == (CHATML, [], {0, 2})
    for file in own.glob("tokenizer*"):
        file.unlink()
    for llm in load():  # a template alone
        assert asks(llm, monkeypatch)[0] == CHATML


def test_a_base_that_has_moved_is_named_with_the_way_out(tmp_path: Path) -> None:
    base = bare(tmp_path / "base")
    own = adapter(base, tmp_path / "adapter")
    base.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=f"belongs to the model in {base}, which is not there any more.*--base MODEL"):
        LLM.load(own)
    main(["merge", str(own), "--base", str(tmp_path / "moved"), "--out_dir", str(tmp_path / "merged")])
    assert (tmp_path / "merged" / "config.json").is_file()


# --- the date -------------------------------------------------------------------------------------------------------
class Clock(datetime):
    day = 1

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime(2026, 1, cls.day, 13, 30)


DATED = "{{ strftime_now('%d %b %Y %H:%M') }}" + tiny.TEMPLATE


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> type[Clock]:
    monkeypatch.setattr(litlm.prompts.jinja, "datetime", Clock)
    monkeypatch.setattr(Clock, "day", 1)
    return Clock


@pytest.mark.parametrize("name", ["llama3.2", "granite-3.3", "gpt-oss", "apertus", "template"])
def test_a_style_writes_the_day_it_is_told(name: str, clock: type[Clock]) -> None:
    style = TemplateStyle(DATED) if name == "template" else get_style(name)
    now = style.format(ASKED)
    on = style.with_date("2024-02-29")
    clock.day = 2
    assert style.format(ASKED) != now  # nothing keeps the day that the style was made on
    texts = {"llama3.2": "29 Feb 2024", "granite-3.3": "February 29, 2024", "template": "29 Feb 2024 00:00"}
    assert texts.get(name, "2024-02-29") in on.format(ASKED)
    assert on.format(ASKED) == style.with_date(date(2024, 2, 29)).format(ASKED)
    assert on.with_date(None).format(ASKED) == style.format(ASKED)
    assert chat_template(on, tiny.shared().tokenizer) == chat_template(style, tiny.shared().tokenizer)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_a_run_keeps_its_date(kind: str, tmp_path: Path, clock: type[Clock], monkeypatch: pytest.MonkeyPatch) -> None:
    base, out = bare(tmp_path / "base", chat_template=DATED), tmp_path / "run"
    path = tmp_path / "data.jsonl"
    answers = {"completion": "ba"} if kind == "sft" else {"chosen": "ba", "rejected": "bb"}
    path.write_text("".join(json.dumps({"prompt": f"ab {i}", **answers}) + "\n" for i in range(6)))
    seen: list[str] = []
    chat = LLM.chat
    monkeypatch.setattr(LLM, "chat", lambda llm, messages, **more: seen.append(more["style"].format(messages)) or "")

    def go(steps: int, resume: str | None, **data: Any) -> Any:
        options: dict[str, Any] = dict(
            model=str(base), method=MethodSettings(name="lora", r=2), out_dir=str(out), resume=resume,
            train=TrainSettings(max_steps=steps, batch_size=2, save_interval=1, val_interval=1, samples=("ab",)),
        )  # fmt: skip
        if kind == "sft":
            return finetune(
                FinetuneSettings(data=DataSettings(path=str(path), val_fraction=0.3, **data), **options), quiet=True
            )
        return dpo(DPOSettings(data=PreferenceData(path=str(path), val_fraction=0.3, **data), **options), quiet=True)

    go(1, None)
    clock.day = 2
    go(2, "auto")
    assert "date: '2026-01-01'" in (out / "settings.yaml").read_text()
    assert {text.partition("<")[0] for text in seen} == {"01 Jan 2026 00:00"}
    with pytest.raises(ValueError, match="tokens are others"):
        go(3, "auto", date="2026-01-02")
    monkeypatch.setattr(LLM, "chat", chat)
    assert asks(LLM.load(base, adapter=out / "final", device="cpu"), monkeypatch)[0].startswith("02 Jan 2026 13:30")


def test_a_date_that_is_none_is_refused() -> None:
    for kind in (DataSettings, PreferenceData):
        with pytest.raises(ValueError, match="date='tomorrow' must be a date as 2026-07-26 is"):
            kind(path="x", date="tomorrow")
