"""The model: one decoder-only transformer whose parts are chosen by its config."""

from litlm.model.attention import Attention as Attention
from litlm.model.gpt import GPT as GPT
from litlm.model.gpt import DecoderLayer as DecoderLayer
from litlm.model.latent import LatentAttention as LatentAttention
