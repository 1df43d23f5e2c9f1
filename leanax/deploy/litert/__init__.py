"""LiteRT (.tflite): the writer and the real runtime."""

from leanax.deploy.litert.runtime import Latency, Model, constants
from leanax.deploy.litert.writer import write

__all__ = ["Latency", "Model", "constants", "write"]
