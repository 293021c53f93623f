"""What a forward pass attends to: a causal row, packed documents, or a KV cache."""

from litlm.context.base import Context as Context
from litlm.context.base import LayerContext as LayerContext
from litlm.context.cache import KVCache as KVCache
from litlm.context.causal import Causal as Causal
from litlm.context.packed import Packed as Packed
