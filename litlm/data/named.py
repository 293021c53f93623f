"""Datasets with a short name: their hub ids, record keys and licences.

Any other dataset is read by its hub id. Nothing here is fetched. `n_examples` is approximate, of the training split.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Task = Literal["sft", "preference", "text"]


@dataclass(frozen=True)
class NamedDataset:
    """A dataset on the hub.

    hub_id, config: arguments of `datasets.load_dataset`. task: finetuning ("sft"), preference pairs ("preference") or
    pretraining ("text"). record_keys: for users. split: the training split. rename_columns: the dataset's column -> the
    key of `record_formats`. files: split -> file, for repositories with a loading script, which the `datasets` library
    refuses. text_key: the column to pretrain on.
    """

    name: str
    hub_id: str
    record_keys: str
    licence: str
    n_examples: int
    task: Task = "sft"
    config: str | None = None
    split: str = "train"
    rename_columns: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    text_key: str = "text"
    gated: bool = False


_ALPACA, _CHAT, _SHAREGPT = "instruction, input, output", "messages", "conversations"
_DATASETS = (
    NamedDataset("alpaca", "tatsu-lab/alpaca", _ALPACA, "cc-by-nc-4.0", 52_002),
    NamedDataset("alpaca-2k", "mhenrichsen/alpaca_2k_test", _ALPACA, "apache-2.0", 2_000),
    NamedDataset("alpaca-cleaned", "yahma/alpaca-cleaned", _ALPACA, "cc-by-4.0", 51_760),
    NamedDataset("alpaca-gpt4", "vicgalle/alpaca-gpt4", _ALPACA, "cc-by-nc-4.0", 52_002),
    NamedDataset("deita", "HuggingFaceH4/deita-10k-v0-sft", _CHAT, "mit", 9_500, split="train_sft"),
    NamedDataset("dolly", "databricks/databricks-dolly-15k", "instruction, context, response", "cc-by-sa-3.0", 15_011),
    NamedDataset(
        "flan", "Muennighoff/flan", "inputs, targets", "see the tasks", 2_770_000,
        rename_columns={"inputs": "prompt", "targets": "completion"},
    ),
    NamedDataset("gsm8k", "openai/gsm8k", "question, answer", "mit", 7_473, config="main"),
    NamedDataset(
        "lima", "GAIR/lima", _SHAREGPT, "other (non-commercial)", 1_030, gated=True,
        files={"train": "train.jsonl", "test": "test.jsonl"},
    ),
    NamedDataset(
        "longform", "akoksal/LongForm", "input, output", "mit", 23_652,
        rename_columns={"input": "prompt", "output": "completion"},
    ),
    NamedDataset("no-robots", "HuggingFaceH4/no_robots", _CHAT, "cc-by-nc-4.0", 9_500),
    NamedDataset("oasst", "timdettmers/openassistant-guanaco", "text", "apache-2.0", 9_846),
    NamedDataset("openhermes", "teknium/OpenHermes-2.5", _SHAREGPT, "see the sources", 1_001_551),
    NamedDataset("slimorca", "Open-Orca/SlimOrca", _SHAREGPT, "mit", 517_982),
    NamedDataset("smoltalk", "HuggingFaceTB/smoltalk", _CHAT, "apache-2.0", 1_043_917, config="all"),
    NamedDataset("tulu3", "allenai/tulu-3-sft-mixture", _CHAT, "odc-by", 939_343),
    NamedDataset("ultrachat", "HuggingFaceH4/ultrachat_200k", _CHAT, "mit", 207_865, split="train_sft"),
    NamedDataset(
        "ultrafeedback", "HuggingFaceH4/ultrafeedback_binarized", "prompt, chosen, rejected", "mit", 61_135,
        "preference", split="train_prefs",
    ),
    NamedDataset("fineweb-edu", "HuggingFaceFW/fineweb-edu", "text", "odc-by", 9_670_000, "text", config="sample-10BT"),
    NamedDataset("openwebtext", "Skylion007/openwebtext", "text", "cc0-1.0", 8_013_769, "text"),
    NamedDataset("tinystories", "roneneldan/TinyStories", "text", "cdla-sharing-1.0", 2_119_719, "text"),
)  # fmt: skip
_BY_NAME = {dataset.name: dataset for dataset in _DATASETS}


def list_datasets(task: Task | None = None) -> list[NamedDataset]:
    """All named datasets, or those for one task."""
    return [dataset for dataset in _DATASETS if task in (None, dataset.task)]


def find_dataset(name: str) -> NamedDataset | None:
    """The dataset of that name, in any case and with `-` or `_`; None if there is none."""
    return _BY_NAME.get(_normalize(name))


def closest_names(name: str) -> list[str]:
    """Up to three names that resemble `name`, the closest first."""
    return difflib.get_close_matches(_normalize(name), _BY_NAME, n=3, cutoff=0.5)


def _normalize(name: str) -> str:
    return name.lower().replace("_", "-")
