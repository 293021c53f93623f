"""Does finetuning teach? SmolLM2-135M-Instruct learns what nouns mean; what it is scored on are nouns it never saw.

    python benchmarks/learn.py --prepare words.json                     needs WordNet; no model
    python benchmarks/learn.py --data words.json --items 1000 --pairs 3000 --out RESULT.json

WordNet is Debian's package wordnet-base; without installing it: `apt-get download wordnet-base`, `dpkg -x FILE DIR`,
and --wordnet DIR/usr/share/wordnet. Pairs are "What is X?" and the first definition of X. An item asks the same about a
held-out noun and offers four definitions: its own and those of three other held-out nouns, of the same kind (WordNet's
lexicographer file) and nearly as long. No held-out noun, synonym of it or definition is among the pairs.

An answer's score is the mean log-probability of its tokens, the end of the turn included, after the question in the
model's chat template; an item is right if the right answer scores above all others (a tie is wrong). Accuracy by the
sum is reported beside it. The four answers stand in one row behind one question, and don't see each other, so the
question is read once. p is McNemar's exact test on the items whose outcome changed; the change of the loss has a paired
bootstrap interval. As a control, the finetuned model gets a quarter of the items with the questions of other words: if
definitions gave themselves away, it would beat chance there. Each piece is kept in --work, so a run that was stopped
goes on with the same command.

Elsewhere: --model takes a .gguf file or a directory (`LLM.load(...).save(DIR)`), --data needs no network.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import platform
import random
import re
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from litlm.context import Context, LayerContext
from litlm.ops.sdpa import AttentionSpec, attention

if TYPE_CHECKING:
    from litlm.llm import LLM
    from litlm.settings import FinetuneSettings

MODEL = "smollm2-135m-instruct"
SYSTEM = "Define the word."
CHOICES = 4


# --- words and what they mean -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Entry:
    """A noun in its first sense. synonyms: all words of the synset. related: the synsets right above and below it.
    common: it occurs in the texts that WordNet's makers tagged."""

    word: str
    definition: str
    kind: str
    synset: str
    synonyms: frozenset[str]
    related: frozenset[str]
    common: bool = True


def read_nouns(folder: Path) -> list[Entry]:
    """Nouns of WordNet's data.noun and index.noun, sorted: one for each synset that is the first sense of one.

    Left out are names, and definitions that are very short or long, are not plain text, or hold the word itself.
    """
    for name in ("data.noun", "index.noun"):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder / name} is not there; install Debian's package wordnet-base, or unpack it (apt-get download "
                "wordnet-base; dpkg -x FILE DIR) and give --wordnet DIR/usr/share/wordnet"
            )
    first: dict[str, str] = {}  # word: its first sense
    common = set()
    for line in _lines(folder / "index.noun"):
        fields = line.split()
        pointers = int(fields[3])
        first[fields[0]] = fields[6 + pointers]
        if int(fields[5 + pointers]) > 0:
            common.add(fields[0])
    entries = []
    for line in _lines(folder / "data.noun"):
        facts, _, gloss = line.partition(" | ")
        fields = facts.split()
        n = int(fields[3], 16)
        words, pointers = fields[4 : 4 + 2 * n : 2], fields[5 + 2 * n :]
        definition = clean(gloss)
        for word in words:
            if re.fullmatch("[a-z]{3,}", word) and first.get(word) == fields[0] and fits(word, definition):
                # of each pointer a symbol, an offset and two more fields
                related = frozenset(pointers[i + 1] for i in range(0, len(pointers), 4) if pointers[i][0] in "@~")
                synonyms = frozenset(w.lower() for w in words)
                entries.append(Entry(word, definition, fields[1], fields[0], synonyms, related, word in common))
                break
    return sorted(entries, key=lambda e: e.word)


def _lines(path: Path) -> Iterable[str]:
    # The licence stands at the top of each file, in lines that begin with blanks.
    return (line for line in path.read_text(encoding="utf-8").splitlines() if line and line[0] != " ")


def clean(gloss: str) -> str:
    """The first definition of a gloss as a sentence, without remarks in parentheses and examples."""
    text = re.sub(r"\([^()]*\)", " ", gloss).split(";")[0].split('"')[0]
    text = " ".join(text.split()).strip(" ,.:")
    text = re.sub(r" ([,.])", r"\1", text)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def fits(word: str, definition: str) -> bool:
    words = definition.rstrip(".").split()
    plain = re.fullmatch(r"[A-Z][A-Za-z ,'-]*\.", definition) is not None
    return plain and 4 <= len(words) <= 12 and not any(_gives_away(w.lower(), word) for w in words)


def _gives_away(said: str, word: str) -> bool:
    """Whether the two begin alike, or a part of the word is said ("grasping a hand" for handshaking)."""
    return said[:4] == word[:4] or (len(said) > 3 and said[:4] in word)


def build(entries: Sequence[Entry], pairs: int, items: int, seed: int = 0) -> dict[str, Any]:
    """The pairs to learn (at most `pairs`) and the four-way items about other words, as records.

    Items, and pairs as long as there are enough, are about common words. An item's right answer is its first choice.
    """
    rng = random.Random(seed)
    order = list(entries)
    rng.shuffle(order)
    order.sort(key=lambda e: not e.common)
    n = sum(e.common for e in order)
    held = order[: min(round(1.25 * items) + 20, n // 2)]
    asked = []
    for entry in held:
        others = [e for e in held if _comparable(entry, e)]
        if len(asked) < items and len(others) >= CHOICES - 1:
            wrong = rng.sample(others, CHOICES - 1)
            asked.append(_question(entry.word) | dict(choices=[entry.definition, *(e.definition for e in wrong)]))
    if len(asked) < items:
        raise ValueError(f"items={items} are more than can be made of these words: {len(asked)}")
    names = {name for e in held for name in e.synonyms}
    definitions = {e.definition for e in held}
    learned = [e for e in order[len(held) :] if not e.synonyms & names and e.definition not in definitions]
    return dict(train=[_question(e.word) | dict(answer=e.definition) for e in learned[:pairs]], items=asked)


def _question(word: str) -> dict[str, Any]:
    return dict(system=SYSTEM, question=f"What is {word}?")


def _comparable(a: Entry, b: Entry) -> bool:
    apart = not a.synonyms & b.synonyms and b.synset not in a.related and a.synset not in b.related
    similar = a.kind == b.kind and abs(len(a.definition.split()) - len(b.definition.split())) <= 1
    return a.synset != b.synset and a.definition != b.definition and apart and similar


# --- scores -----------------------------------------------------------------------------------------------------------
class Branches(Context, LayerContext):
    """Rows of one question and several answers to it: each answer sees the question and itself.

    branch: (B, T), 0 for the question, then 1, 2, ... ; padding is one more answer.
    """

    def __init__(self, branch: Tensor, positions: Tensor) -> None:
        self.branch, self.positions = branch, positions

    def begin(self, batch: int, length: int, device: torch.device, lengths: Sequence[int] | None = None) -> Tensor:
        assert self.branch.shape == (batch, length), f"{tuple(self.branch.shape)} for {(batch, length)}"
        same = (self.branch[:, None] == self.branch[:, :, None]) | (self.branch[:, None] == 0)
        self._mask = (same & torch.ones(length, length, dtype=torch.bool).tril())[:, None].to(device)
        return self.positions.to(device)

    def layer(self, i: int) -> LayerContext:
        return self

    def attend(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        spec: AttentionSpec,
        *,
        cache_entry: Any = None,
        **sinks_and_slopes: Any,
    ) -> Tensor:
        if k is None or v is None or spec.window or spec.chunk:
            raise ValueError("scoring is for models whose layers all see the whole context; use another model")
        return attention(q, k, v, spec, mask=self._mask, **sinks_and_slopes)


@dataclass(frozen=True)
class Row:
    """One question and its answers as tokens: what stands in the row, what is to be predicted there, and by whom."""

    tokens: list[int]
    targets: list[int]
    branch: list[int]
    positions: list[int]
    counts: list[int]


def encode(llm: LLM, item: dict[str, Any]) -> Row:
    """The template decides what of an answer is said by the model: its words and the end of the turn."""
    from litlm.data.base import IGNORE
    from litlm.data.sft import Encoder, parse

    question = {key: item[key] for key in ("system", "question")}
    encoder = Encoder(llm.tokenizer, llm.style)
    examples = [encoder(parse(question | dict(answer=text))) for text in item["choices"]]
    start = examples[0].learn.index(True)
    prompt = examples[0].ids[:start]
    row = Row(prompt[:-1], [IGNORE] * (start - 1), [0] * (start - 1), list(range(start - 1)), [])
    for number, example in enumerate(examples, 1):
        end = len(example.learn) - example.learn[::-1].index(True)
        answer = example.ids[start:end]
        assert example.ids[:start] == prompt, "the question's tokens depend on the answer"
        assert all(example.learn[start:end]), "an answer is one piece"
        # The question's last token predicts each answer's first, so each has a copy of it.
        row.tokens.extend([prompt[-1], *answer[:-1]])
        row.targets.extend(answer)
        row.branch.extend([number] * len(answer))
        row.positions.extend(range(start - 1, start - 1 + len(answer)))
        row.counts.append(len(answer))
    return row


def score(llm: LLM, items: Sequence[dict[str, Any]], *, batch: int = 8) -> list[dict[str, list[float]]]:
    """For each item the summed log-probability of each answer (`sum`), and the answers' numbers of tokens (`count`)."""
    from tqdm import tqdm

    from litlm.data.base import IGNORE
    from litlm.train.loss import model_token_losses

    rows = [encode(llm, item) for item in items]
    device = llm.model.embed.weight.device
    out: list[dict[str, list[float]]] = [{} for _ in rows]
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].tokens))
    for start in tqdm(range(0, len(order), batch), desc="Scoring", unit=" batches", delay=2, disable=None):
        part = [rows[i] for i in order[start : start + batch]]
        tokens, targets = _fill([r.tokens for r in part], 0), _fill([r.targets for r in part], IGNORE)
        branch, positions = _fill([r.branch for r in part], CHOICES + 1), _fill([r.positions for r in part], 0)
        with torch.inference_mode():
            hidden = llm.model(tokens.to(device), output="hidden", context=Branches(branch, positions))
            losses = model_token_losses(llm.model, hidden, targets.to(device)).double().cpu()
        for i, row, which, loss in zip(order[start : start + batch], part, branch, losses, strict=True):
            sums = [-loss[which == n + 1].sum().item() for n in range(len(row.counts))]
            out[i] = dict(sum=sums, count=[float(n) for n in row.counts])
    return out


def _fill(rows: list[list[int]], value: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


# --- what the scores say ----------------------------------------------------------------------------------------------
def right(scores: Iterable[dict[str, list[float]]], *, by: str = "mean") -> list[bool]:
    """Whether the first answer is strictly the best, by the mean or the sum of its log-probabilities."""
    out = []
    for s in scores:
        values = [a / n for a, n in zip(s["sum"], s["count"], strict=True)] if by == "mean" else s["sum"]
        out.append(values[0] > max(values[1:]))
    return out


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> dict[str, Any]:
    """Paired outcomes. With n items whose outcome changed and k the smaller of lost and gained,
    p = min(1, 2 sum_{i <= k} C(n, i) / 2^n): two-sided, exact, for "a change is as often a gain as a loss"."""
    pairs = list(zip(before, after, strict=True))
    lost, gained = pairs.count((True, False)), pairs.count((False, True))
    n, k = lost + gained, min(lost, gained)
    p = min(Fraction(1), 2 * Fraction(sum(math.comb(n, i) for i in range(k + 1)), 2**n))
    return dict(before=sum(before) / len(before), after=sum(after) / len(after), lost=lost, gained=gained, p=float(p))


def bootstrap(before: Tensor, after: Tensor, counts: Tensor, *, times: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """The loss for each token before and after, from summed losses of each item, and the 95% interval of the
    difference: items are drawn with replacement, each with both its losses."""
    n = len(counts)
    generator = torch.Generator().manual_seed(seed)
    changes = []
    for _ in range(times):
        drawn = torch.randint(n, (n,), generator=generator)
        changes.append(((after - before)[drawn].sum() / counts[drawn].sum()).item())
    low, high = torch.tensor(changes, dtype=torch.float64).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    sums = [(losses.sum() / counts.sum()).item() for losses in (before, after)]
    return dict(before=sums[0], after=sums[1], change=sums[1] - sums[0], low=low, high=high)


def control(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first quarter of the items, each with the question of one that is half of them further."""
    n = len(items)
    return [items[i] | dict(question=items[i + n // 2]["question"]) for i in range(n // 4)]


def compare(before: Sequence[dict[str, list[float]]], after: Sequence[dict[str, list[float]]]) -> dict[str, Any]:
    """All figures. The loss is that of the right answers."""
    first = lambda scores, key: torch.tensor([s[key][0] for s in scores], dtype=torch.float64)  # noqa: E731
    loss = bootstrap(-first(before, "sum"), -first(after, "sum"), first(before, "count"))
    tests = {f"accuracy_by_{by}": mcnemar(right(before, by=by), right(after, by=by)) for by in ("mean", "sum")}
    return dict(items=len(before), loss=loss) | tests


# --- a run ------------------------------------------------------------------------------------------------------------
def finetune_settings(args: argparse.Namespace, train: Path, out_dir: Path) -> FinetuneSettings:
    from litlm.settings import DataSettings, FinetuneSettings, MethodSettings, TrainSettings

    precision: Any = {"float32": "32-true", "bfloat16": "bf16-true"}[args.dtype]
    return FinetuneSettings(
        model=str(args.model),
        data=DataSettings(path=str(train), val_fraction=0),
        method=MethodSettings(r=args.r, alpha=2.0 * args.r),
        train=TrainSettings(
            epochs=args.epochs, lr=args.lr, batch_size=args.batch_size, micro_batch_size=args.micro_batch_size,
            warmup_steps=5, precision=precision, compile=False, save_interval=20, keep=1,
        ),
        out_dir=str(out_dir), device=args.device, seed=args.seed, resume="auto",
    )  # fmt: skip


def experiment(args: argparse.Namespace, data: dict[str, Any]) -> dict[str, Any]:
    """Scores before, finetuning, scores after. What is done already is read from `args.work`."""
    from litlm.llm import LLM
    from litlm.train.run import finetune

    if args.items > len(data["items"]) or args.pairs > len(data["train"]):
        raise ValueError(
            f"the data has {len(data['items'])} items and {len(data['train'])} pairs; items={args.items} and "
            f"pairs={args.pairs} are more: make it anew with --prepare"
        )
    items, train = data["items"][: args.items], data["train"][: args.pairs]
    work = Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    (work / "train.json").write_text(json.dumps(train, indent=0) + "\n", encoding="utf-8")
    settings = finetune_settings(args, work / "train.json", work / "finetune")
    digest = hashlib.sha256(json.dumps([items, train]).encode()).hexdigest()
    plan = json.loads(json.dumps(dict(settings=asdict(settings), dtype=args.dtype, items=args.items, sha256=digest)))
    if piece(work / "plan.json", lambda: plan) != plan:
        raise ValueError(f"{work} holds a run with other settings or data; name another --work or remove it")

    def scores(items: Sequence[dict[str, Any]], adapter: Path | None) -> dict[str, Any]:
        llm = LLM.load(args.model, adapter=adapter, device=args.device, dtype=args.dtype)
        start = time.monotonic()
        found = score(llm, items)
        return dict(seconds=round(time.monotonic() - start, 1), scores=found)

    def learn() -> dict[str, Any]:
        start = time.monotonic()
        result = finetune(settings, quiet=args.quiet)
        if not (work / "finetune" / "final").is_dir():
            raise SystemExit("stopped; the same command goes on")
        return dict(seconds=round(time.monotonic() - start, 1), steps=result.steps)

    before = piece(work / "before.json", lambda: scores(items, None))
    learned = piece(work / "learned.json", learn)
    final = work / "finetune" / "final"
    after = piece(work / "after.json", lambda: scores(items, final))
    other = piece(work / "control.json", lambda: scores(control(items), final))
    pieces = dict(before=before, finetune=learned, after=after, control=other)
    hits = right(other["scores"])
    return compare(before["scores"], after["scores"]) | dict(
        control=dict(items=len(hits), accuracy_by_mean=sum(hits) / max(1, len(hits))), pairs=args.pairs,
        steps=learned["steps"], seconds={name: made["seconds"] for name, made in pieces.items()}, data_sha256=digest,
        dtype=args.dtype, settings=plan["settings"],
    )  # fmt: skip


def piece(path: Path, make: Any) -> Any:
    """What the file holds; it is made and written first if it isn't there."""
    if not path.is_file():
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(make()), encoding="utf-8")
        os.replace(part, path)
    return json.loads(path.read_text(encoding="utf-8"))


def machine() -> dict[str, Any]:
    versions = {}
    for name in ("litlm", "torch", "lightning", "tokenizers"):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    info = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    cpu = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), platform.machine())
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return dict(
        date=time.strftime("%Y-%m-%d"), cpu=cpu, cores=os.cpu_count(), gpu=gpu, threads=torch.get_num_threads(),
        python=platform.python_version(), packages=versions,
        command=" ".join(["python benchmarks/learn.py", *sys.argv[1:]]),
    )  # fmt: skip


def table(found: dict[str, Any]) -> str:
    loss = found["loss"]
    lines = [f"{'':28}{'before':>9}{'after':>9}"]
    lines += [f"{'held-out loss, nats a token':28}{loss['before']:9.4f}{loss['after']:9.4f}"]
    lines[-1] += f"   change {loss['change']:+.4f} [{loss['low']:+.4f}, {loss['high']:+.4f}]"
    for by in ("mean", "sum"):
        a = found[f"accuracy_by_{by}"]
        lines.append(
            f"{f'four-way accuracy, by {by}':28}{a['before']:9.1%}{a['after']:9.1%}   +{a['gained']} -{a['lost']} of "
            f"{found['items']:,} items, p = {a['p']:.2g}"
        )
    c = found["control"]
    lines.append(
        f"{'control: other questions':28}{'':9}{c['accuracy_by_mean']:9.1%}   {c['items']} items, chance is 25%"
    )
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", type=Path, metavar="FILE", help="write pairs and items here, and stop")
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"), help="folder of data.noun")
    parser.add_argument("--data", type=Path, metavar="FILE", help="what --prepare wrote; without it, it is made")
    parser.add_argument("--out", type=Path, metavar="RESULT.json")
    parser.add_argument("--work", type=Path, default=Path("out/learn"), help="where the pieces of a run are kept")
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=3000)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--micro-batch-size", type=int, default=16)
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quiet", action="store_true")
    return parser


def main() -> None:
    args = parser().parse_args()
    if args.data:
        data = json.loads(args.data.read_text(encoding="utf-8"))
    else:
        data = build(read_nouns(args.wordnet), args.pairs, args.items)
    if args.prepare:
        args.prepare.write_text(json.dumps(data, indent=0) + "\n", encoding="utf-8")
        return print(f"{len(data['train']):,} pairs and {len(data['items']):,} items in {args.prepare}")
    found = experiment(args, data)
    print(table(found))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(machine() | found, indent=1) + "\n", encoding="utf-8")
        print(f"Written to {args.out}")
    return None


if __name__ == "__main__":
    main()
