"""Training. `fit(model, data)` is the loop; `finetune`, `pretrain` and `dpo` are whole runs, from settings to files."""

from litlm.train.loop import Result, fit
from litlm.train.methods import apply_method
from litlm.train.run import dpo, finetune, pretrain

__all__ = ["Result", "apply_method", "dpo", "finetune", "fit", "pretrain"]
