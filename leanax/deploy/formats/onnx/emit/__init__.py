"""One emitter per layer: the ONNX nodes that compute it, in one file per family."""
