"""What users may set: the dataclasses behind every command's options, YAML recipes and the Python API. No torch.

Each checks itself and reports all its problems at once. Field docstrings become the help texts of the commands.
"""

from litlm.settings.base import SamplingSettings
from litlm.settings.commands import (
    QUICKSTART_TRAIN,
    ChatCommand,
    CompletionCommand,
    DescribeCommand,
    DownloadCommand,
    GenerateCommand,
    MergeCommand,
    ModelsCommand,
    NewFamilyCommand,
    PlotCommand,
    QuickstartCommand,
    TrainTokenizerCommand,
)
from litlm.settings.data import DataSettings, PreferenceData, PrepareCommand, TextData
from litlm.settings.train import (
    DPOSettings,
    FinetuneSettings,
    MethodSettings,
    PreferenceSettings,
    PretrainSettings,
    RunSettings,
    TrainSettings,
)

__all__ = [
    "QUICKSTART_TRAIN",
    "ChatCommand",
    "CompletionCommand",
    "DPOSettings",
    "DataSettings",
    "DescribeCommand",
    "DownloadCommand",
    "FinetuneSettings",
    "GenerateCommand",
    "MergeCommand",
    "MethodSettings",
    "ModelsCommand",
    "NewFamilyCommand",
    "PlotCommand",
    "PreferenceData",
    "PreferenceSettings",
    "PrepareCommand",
    "PretrainSettings",
    "QuickstartCommand",
    "RunSettings",
    "SamplingSettings",
    "TextData",
    "TrainSettings",
    "TrainTokenizerCommand",
]
