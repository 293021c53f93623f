"""Generation: the decoding loop and its sampler."""
