"""Between batches and logits: the network, its configuration and weights, the runner and the sampler."""
