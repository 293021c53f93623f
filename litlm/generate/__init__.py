"""Generation: the readable decode loop and its sampler."""
