"""One emitter per layer: the LiteRT operators that compute it, in one file per family."""
