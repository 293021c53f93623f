"""Training. `finetune(settings)` is a whole run, `fit(...)` the loop inside it."""

# Eager, so that `litlm.train.fit` is the function: importing a submodule later would not rebind the name.
from litlm.train.fit import Result, finetune, fit

__all__ = ["Result", "finetune", "fit"]
