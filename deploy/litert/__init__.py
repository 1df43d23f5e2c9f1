"""LiteRT (.tflite): the writer and the real runtime."""

from deploy.litert.runtime import Latency, Model, constants
from deploy.litert.writer import write

__all__ = ["Latency", "Model", "constants", "write"]
