"""Settings: the dataclasses behind every command's options, YAML recipes and the Python API. No torch.

Each validates itself and reports all problems at once. `--help` shows the fields' descriptions; those that several
classes share are in `Settings`.
"""

from litlm.settings.base import Settings
from litlm.settings.commands import (
    QUICKSTART_TRAIN,
    ChatCommand,
    CompletionCommand,
    DescribeCommand,
    DownloadCommand,
    GenerateCommand,
    MergeCommand,
    ModelCommand,
    ModelsCommand,
    NewFamilyCommand,
    PlotCommand,
    QuickstartCommand,
    TrainTokenizerCommand,
)
from litlm.settings.data import DataSettings, PreferenceData, PrepareCommand, TextData
from litlm.settings.sampling import SamplingSettings
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
    "QUICKSTART_TRAIN", "ChatCommand", "CompletionCommand", "DPOSettings", "DataSettings", "DescribeCommand",
    "DownloadCommand", "FinetuneSettings", "GenerateCommand", "MergeCommand", "MethodSettings", "ModelCommand",
    "ModelsCommand", "NewFamilyCommand", "PlotCommand", "PreferenceData", "PreferenceSettings", "PrepareCommand",
    "PretrainSettings", "QuickstartCommand", "RunSettings", "SamplingSettings", "Settings", "TextData", "TrainSettings",
    "TrainTokenizerCommand",
]  # fmt: skip
