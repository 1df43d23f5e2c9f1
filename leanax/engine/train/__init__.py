"""Training: the state, the step, optimizers, parallel modes and the loop."""
