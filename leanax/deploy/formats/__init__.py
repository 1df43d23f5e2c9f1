"""File formats: how a model is written and run, one file or folder per format."""

from leanax.deploy.formats.base import Format, Latency, Model, Runner
from leanax.deploy.formats.litert import litert
from leanax.deploy.formats.onnx import onnx
from leanax.deploy.formats.stablehlo import stablehlo

__all__ = ["Format", "Latency", "Model", "Runner", "litert", "onnx", "stablehlo"]
