"""Datasets that have a short name: where they are on the Hugging Face hub, and what their records hold.

A table of facts. Nothing here is fetched, and nothing but these names depends on it: any other dataset is read by its
hub id. `n_examples` is about how many there are in the split that is trained on.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["sft", "preference", "text"]


@dataclass(frozen=True, kw_only=True)
class NamedDataset:
    """A dataset on the hub.

    hub_id, config: what `datasets.load_dataset` is asked for. kind: what it is for: finetuning ("sft"), pairs of a
    better and a worse answer ("preference"), pretraining ("text"). form: its columns. split: what "train" means here.
    columns: its names of columns -> the ones that are read, where they are not among the usual. files: split -> its
    file, for repositories that the `datasets` library refuses because they hold a loading script. text_key: the column
    to pretrain on.
    """

    name: str
    hub_id: str
    kind: Kind
    form: str
    licence: str
    n_examples: int
    config: str | None = None
    split: str = "train"
    columns: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    text_key: str = "text"
    gated: bool = False


def _sft(name: str, hub_id: str, form: str, licence: str, n_examples: int, **more) -> NamedDataset:
    return NamedDataset(name=name, hub_id=hub_id, kind="sft", form=form, licence=licence, n_examples=n_examples, **more)


def _text(name: str, hub_id: str, licence: str, n_examples: int, **more) -> NamedDataset:
    return NamedDataset(
        name=name, hub_id=hub_id, kind="text", form="text", licence=licence, n_examples=n_examples, **more
    )


_ALPACA, _CHAT, _SHAREGPT = "instruction, input, output", "messages", "conversations"
_DATASETS = (
    _sft("alpaca", "tatsu-lab/alpaca", _ALPACA, "cc-by-nc-4.0", 52_002),
    _sft("alpaca-2k", "mhenrichsen/alpaca_2k_test", _ALPACA, "apache-2.0", 2_000),
    _sft("alpaca-cleaned", "yahma/alpaca-cleaned", _ALPACA, "cc-by-4.0", 51_760),
    _sft("alpaca-gpt4", "vicgalle/alpaca-gpt4", _ALPACA, "cc-by-nc-4.0", 52_002),
    _sft("deita", "HuggingFaceH4/deita-10k-v0-sft", _CHAT, "mit", 9_500, split="train_sft"),
    _sft("dolly", "databricks/databricks-dolly-15k", "instruction, context, response", "cc-by-sa-3.0", 15_011),
    _sft(
        "flan", "Muennighoff/flan", "inputs, targets", "see the tasks", 2_770_000,
        columns={"inputs": "prompt", "targets": "completion"},
    ),
    _sft("gsm8k", "openai/gsm8k", "question, answer", "mit", 7_473, config="main"),
    _sft(
        "lima", "GAIR/lima", _SHAREGPT, "other (non-commercial)", 1_030, gated=True,
        files={"train": "train.jsonl", "test": "test.jsonl"},
    ),
    _sft(
        "longform", "akoksal/LongForm", "input, output", "mit", 23_652,
        columns={"input": "prompt", "output": "completion"},
    ),
    _sft("no-robots", "HuggingFaceH4/no_robots", _CHAT, "cc-by-nc-4.0", 9_500),
    _sft("oasst", "timdettmers/openassistant-guanaco", "text", "apache-2.0", 9_846),
    _sft("openhermes", "teknium/OpenHermes-2.5", _SHAREGPT, "see the sources", 1_001_551),
    _sft("slimorca", "Open-Orca/SlimOrca", _SHAREGPT, "mit", 517_982),
    _sft("smoltalk", "HuggingFaceTB/smoltalk", _CHAT, "apache-2.0", 1_043_917, config="all"),
    _sft("tulu3", "allenai/tulu-3-sft-mixture", _CHAT, "odc-by", 939_343),
    _sft("ultrachat", "HuggingFaceH4/ultrachat_200k", _CHAT, "mit", 207_865, split="train_sft"),
    NamedDataset(
        name="ultrafeedback", hub_id="HuggingFaceH4/ultrafeedback_binarized", kind="preference",
        form="prompt, chosen, rejected", licence="mit", n_examples=61_135, split="train_prefs",
    ),
    _text("fineweb-edu", "HuggingFaceFW/fineweb-edu", "odc-by", 9_670_000, config="sample-10BT"),
    _text("openwebtext", "Skylion007/openwebtext", "cc0-1.0", 8_013_769),
    _text("tinystories", "roneneldan/TinyStories", "cdla-sharing-1.0", 2_119_719),
)  # fmt: skip
_BY_NAME = {dataset.name: dataset for dataset in _DATASETS}


def list_datasets(kind: Kind | None = None) -> list[NamedDataset]:
    """All of them, or those of one kind."""
    return [dataset for dataset in _DATASETS if kind in (None, dataset.kind)]


def find_dataset(name: str) -> NamedDataset | None:
    """The dataset of that name, however it is capitalized and whether `-` or `_` is written."""
    return _BY_NAME.get(_plain(name))


def close_names(name: str) -> list[str]:
    """Names that look like `name`, the closest first."""
    return difflib.get_close_matches(_plain(name), _BY_NAME, n=3, cutoff=0.5)


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")
