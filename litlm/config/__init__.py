"""What a model is: frozen dataclasses, no torch."""

from litlm.config.layers import AttentionConfig as AttentionConfig
from litlm.config.layers import DynamicScaling as DynamicScaling
from litlm.config.layers import GateConfig as GateConfig
from litlm.config.layers import GatedDeltaConfig as GatedDeltaConfig
from litlm.config.layers import IndexConfig as IndexConfig
from litlm.config.layers import LatentConfig as LatentConfig
from litlm.config.layers import LayerConfig as LayerConfig
from litlm.config.layers import LinearScaling as LinearScaling
from litlm.config.layers import Llama3Scaling as Llama3Scaling
from litlm.config.layers import LongRopeScaling as LongRopeScaling
from litlm.config.layers import MLPConfig as MLPConfig
from litlm.config.layers import MoEConfig as MoEConfig
from litlm.config.layers import NormConfig as NormConfig
from litlm.config.layers import QKNormConfig as QKNormConfig
from litlm.config.layers import RopeConfig as RopeConfig
from litlm.config.layers import RopeScaling as RopeScaling
from litlm.config.layers import ShortConvConfig as ShortConvConfig
from litlm.config.layers import StateSpec as StateSpec
from litlm.config.layers import TemperatureConfig as TemperatureConfig
from litlm.config.layers import YarnScaling as YarnScaling
from litlm.config.layers import index_limit as index_limit
from litlm.config.layers import yarn_attention_factor as yarn_attention_factor
from litlm.config.model import Config as Config
