"""LiteRT (.tflite): files for phones and embedded devices, and the runtime that runs them (package ai-edge-litert)."""

from leanax.deploy.formats.litert.format import litert
from leanax.deploy.formats.litert.tables import constants

__all__ = ["constants", "litert"]
