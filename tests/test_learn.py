"""benchmarks/learn.py: its parts against independent formulas and transformers; slow: that the real model learns."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tiny
import torch


def _load() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "learn.py"
    spec = importlib.util.spec_from_file_location("learn", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["learn"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


learn = _load()

# --- words ------------------------------------------------------------------------------------------------------------
DATA = """\
  1 This file is the licence.
00000100 05 n 02 canine 0 canid 0 001 ~ 00000200 n 0000 | any of various fissiped mammals; "they bark"
00000200 05 n 02 dog 0 domestic_dog 0 002 @ 00000100 n 0000 ~ 00000300 n 0000 | (zoology) a tame animal that barks ; "a"
00000300 05 n 01 poodle 0 002 @ 00000200 n 0000 + 00000200 n 0101 | one of a breed with curly hair (or wool), not large
00000400 15 n 01 Paris 0 001 @i 00000500 n 0000 | the largest city of all France; a capital
00000500 06 n 0a a 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 lamp 0 000 | an artificial source of visible light
00000600 06 n 01 bank 1 000 | a building where money is kept safe
00000700 17 n 01 bank 0 000 | sloping land beside a body of water
00000800 04 n 01 handshaking 0 000 | the grasping of a hand
00000900 04 n 01 jump 0 000 | leaping up
"""
INDEX = """\
  1 This file is the licence.
bank n 2 0 2 1 00000700 00000600
canine n 1 1 ~ 1 0 00000100
dog n 1 2 @ ~ 1 1 00000200
domestic_dog n 1 2 @ ~ 1 0 00000200
handshaking n 1 0 1 1 00000800
jump n 1 0 1 1 00000900
lamp n 1 0 1 1 00000500
paris n 1 1 @i 1 1 00000400
poodle n 1 2 @ + 1 0 00000300
"""


def test_nouns_are_read_in_their_first_sense(tmp_path: Path) -> None:
    (tmp_path / "data.noun").write_text(DATA)
    (tmp_path / "index.noun").write_text(INDEX)
    found = {e.word: e for e in learn.read_nouns(tmp_path)}
    # Not Paris (a name), handshaking (its definition says hand), jump (too short).
    assert list(found) == ["bank", "canine", "dog", "lamp", "poodle"]
    assert {w: e.definition for w, e in found.items()} == {
        "bank": "Sloping land beside a body of water.",
        "canine": "Any of various fissiped mammals.",
        "dog": "A tame animal that barks.",
        "lamp": "An artificial source of visible light.",
        "poodle": "One of a breed with curly hair, not large.",
    }
    assert [e.word for e in found.values() if e.common] == ["bank", "dog", "lamp"]
    assert found["dog"].synonyms == {"dog", "domestic_dog"}
    assert found["dog"].related == {"00000100", "00000300"}
    assert found["poodle"].related == {"00000200"}
    assert len(found["lamp"].synonyms) == 10
    assert (found["dog"].kind, found["dog"].synset) == ("05", "00000200")


def test_a_missing_wordnet_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.noun is not there; install Debian's package wordnet-base"):
        learn.read_nouns(tmp_path)


def _entries(n: int = 200) -> list[Any]:
    """Invented words of two kinds; neighbours share a name, and each is right above the next one but one."""
    return [
        learn.Entry(
            f"w{i:03}", f"Meaning{'s' * (i // 4)} of {'one ' * (i % 5)}thing.", f"{i % 2}", str(i),
            frozenset({f"w{i:03}", f"s{i // 2}"}), frozenset({str(i + 2)}), i % 10 != 9,
        )
        for i in range(n)
    ]  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1])
def test_items_hold_out_words_and_offer_like_definitions(seed: int) -> None:
    entries = _entries()
    by_word, by_text = {e.word: e for e in entries}, {e.definition: e for e in entries}
    assert len(by_text) == len(entries)
    data = learn.build(entries, 60, 30, seed)
    assert data == learn.build(entries, 60, 30, seed) != learn.build(entries, 60, 30, seed + 1)
    assert (len(data["train"]), len(data["items"])) == (60, 30)
    word = lambda record: record["question"].removeprefix("What is ").removesuffix("?")  # noqa: E731
    held = set()
    for item in data["items"]:
        right, *wrong = [by_text[text] for text in item["choices"]]
        assert right.word == word(item)
        assert right.common
        assert len({right.word, *(e.word for e in wrong)}) == 4
        for e in wrong:
            assert e.kind == right.kind
            assert abs(len(e.definition.split()) - len(right.definition.split())) <= 1
            assert not e.synonyms & right.synonyms
            assert abs(int(e.synset) - int(right.synset)) != 2
        held |= {right, *wrong}
    learned = {by_word[word(pair)] for pair in data["train"]}
    assert all(pair["answer"] == by_word[word(pair)].definition for pair in data["train"])
    names = set().union(*(e.synonyms for e in held))
    assert not any(e.synonyms & names for e in learned)
    assert not {e.definition for e in learned} & {e.definition for e in held}


def test_too_many_items_are_refused() -> None:
    with pytest.raises(ValueError, match="items=150 are more than can be made of these words: "):
        learn.build(_entries(), 10, 150)


# --- scores -----------------------------------------------------------------------------------------------------------
ITEMS = [
    dict(system="Define.", question="What is fox?", choices=["A quick dog.", "The abba", "Jumps over the lazy", "b"]),
    dict(system="Define.", question="What is Paris?", choices=["The capital of France.", "café 🙂", "Fox.", "Dog"]),
    dict(system="Say it.", question="ab", choices=["ba", "0123", "What is the capital?", "over and over and over"]),
]  # fmt: skip


@pytest.mark.parametrize(("seed", "batch"), [(0, 1), (1, 2), (2, 8)])
def test_answers_that_share_a_question_score_as_in_transformers(seed: int, batch: int) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny.folder("llama", seed)
    scores = learn.score(tiny.shared("llama", seed), ITEMS, batch=batch)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    for item, got in zip(ITEMS, scores, strict=True):
        asked = [dict(role="system", content=item["system"]), dict(role="user", content=item["question"])]
        prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        for n, text in enumerate(item["choices"]):
            start = len(tokenizer(prompt)["input_ids"])
            ids = tokenizer(prompt + text + "<|im_end|>")["input_ids"]
            with torch.no_grad():
                logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            expected = sum(logs[t - 1, ids[t]].item() for t in range(start, len(ids)))
            assert got["sum"][n] == pytest.approx(expected, rel=2e-5)
            assert got["count"][n] == len(ids) - start


def test_the_best_is_by_mean_or_by_sum_and_a_tie_is_wrong() -> None:
    longer = dict(sum=[-6.0, -5.0, -9.0, -9.0], count=[6.0, 2.0, 3.0, 3.0])
    tie = dict(sum=[-2.0, -2.0, -3.0, -3.0], count=[2.0, 2.0, 2.0, 2.0])
    best = dict(sum=[-1.0, -2.0, -3.0, -3.0], count=[2.0, 2.0, 2.0, 2.0])
    assert learn.right([longer, tie, best]) == [True, False, True]
    assert learn.right([longer, tie, best], by="sum") == [False, False, True]


# --- what the scores say ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (0, 1), (3, 3), (2, 9), (11, 1), (4, 5), (0, 12)])
def test_mcnemar_counts_all_ways_in_which_chance_is_as_far_off(lost: int, gained: int) -> None:
    before = [True] * 7 + [False] * 5 + [True] * lost + [False] * gained
    after = [True] * 7 + [False] * 5 + [False] * lost + [True] * gained
    n, off = lost + gained, abs(lost - gained)
    ways = [abs(n - 2 * sum(signs)) >= off for signs in itertools.product((0, 1), repeat=n)]
    found = learn.mcnemar(before, after)
    assert found["p"] == pytest.approx(sum(ways) / len(ways), rel=1e-12)
    assert (found["lost"], found["gained"]) == (lost, gained)
    assert found["before"] == pytest.approx((7 + lost) / (12 + n))
    assert found["after"] == pytest.approx((7 + gained) / (12 + n))


def test_mcnemar_of_many_items_is_near_the_normal_distribution() -> None:
    before, after = [True] * 400 + [False] * 480, [False] * 400 + [True] * 480
    z = (80 - 1) / math.sqrt(880)  # with a continuity correction
    assert learn.mcnemar(before, after)["p"] == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.02)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_interval_of_the_loss_is_that_of_a_ratio(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(4, 15, (400,), generator=generator).double()
    before = counts * (3 + torch.randn(400, generator=generator, dtype=torch.float64))
    after = before - counts * (0.2 + 0.5 * torch.randn(400, generator=generator, dtype=torch.float64))
    found = learn.bootstrap(before, after, counts, times=4000)
    change = (after - before).sum() / counts.sum()
    spread = ((after - before - change * counts).square().mean() / 400).sqrt() / counts.mean()
    assert found["after"] - found["before"] == pytest.approx(change.item(), abs=1e-12)
    assert found["change"] == pytest.approx(change.item(), abs=1e-12)
    assert found["low"] == pytest.approx((change - 1.96 * spread).item(), abs=0.15 * spread.item())
    assert found["high"] == pytest.approx((change + 1.96 * spread).item(), abs=0.15 * spread.item())


@pytest.mark.parametrize("n", [8, 11])
def test_the_control_asks_about_other_words(n: int) -> None:
    items = [dict(system="s", question=f"q{i}", choices=[f"c{i}"]) for i in range(n)]
    found = learn.control(items)
    assert [item["choices"] for item in found] == [["c0"], ["c1"]]
    assert not {item["question"] for item in found} & {"q0", "q1"}


# --- whole runs -------------------------------------------------------------------------------------------------------
def _args(*words: object) -> Any:
    return learn.parser().parse_args([*map(str, words), "--device", "cpu", "--quiet"])


def test_a_run_goes_on_where_it_was_and_says_what_the_pieces_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from litlm.train import run

    data = learn.build(_entries(), 24, 12)
    words = ["--model", tiny.folder(), "--work", tmp_path, "--dtype", "float32", "--lr", 3e-3, "--batch-size", 4]
    words += ["--items", 12, "--pairs", 24]
    found = learn.experiment(_args(*words), data)
    assert found["steps"] == 6
    assert found["loss"]["change"] < 0  # it learned how a definition looks
    before = json.loads((tmp_path / "before.json").read_text())["scores"]
    after = json.loads((tmp_path / "after.json").read_text())["scores"]
    losses = [sum(-s["sum"][0] for s in some) / sum(s["count"][0] for s in some) for some in (before, after)]
    assert [found["loss"]["before"], found["loss"]["after"]] == pytest.approx(losses, rel=1e-9)

    def never(*args: object, **options: object) -> None:
        raise AssertionError("trained twice")

    monkeypatch.setattr(run, "finetune", never)
    (tmp_path / "after.json").unlink()
    (tmp_path / "control.json").unlink()
    again = learn.experiment(_args(*words), data)
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in found.items() if k != "seconds"}
    assert found["control"]["items"] == 3
    assert "held-out loss" in learn.table(again)
    with pytest.raises(ValueError, match="holds a run with other settings or data"):
        learn.experiment(_args(*words, "--epochs", 2), data)
    with pytest.raises(ValueError, match="the data has 12 items and 24 pairs; items=13 and"):
        learn.experiment(_args(*words, "--items", 13), data)


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed one, or Debian's package unpacked; where there is neither, the error says what to do."""
    installed = Path("/usr/share/wordnet")
    if installed.is_dir() or not shutil.which("apt-get"):
        return installed
    root = Path(os.environ.get("LITLM_CACHE") or Path.home() / ".cache" / "litlm") / "test-packages"
    target = root / "wordnet-base"
    if not target.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        place = tmp_path_factory.mktemp("wordnet")
        subprocess.run(["apt-get", "download", "wordnet-base"], cwd=place, check=True, capture_output=True)
        subprocess.run(["dpkg", "-x", str(next(place.glob("*.deb"))), str(place / "files")], check=True)
        shutil.move(place / "files", target)
    return target / "usr" / "share" / "wordnet"


@pytest.mark.slow
def test_the_real_model_learns_definitions(wordnet: Path, tmp_path: Path) -> None:
    data = learn.build(learn.read_nouns(wordnet), 400, 200)
    found = learn.experiment(_args("--work", tmp_path, "--items", 200, "--pairs", 400), data)
    assert found["loss"]["high"] < -0.1
    assert found["accuracy_by_mean"]["before"] > 0.4  # chance is 0.25
    assert found["accuracy_by_mean"]["after"] > found["accuracy_by_mean"]["before"]
    assert found["accuracy_by_mean"]["p"] < 0.05
