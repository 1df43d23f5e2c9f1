"""File formats: how a layer network is written and run, one file or folder per format."""

from leanax.deploy.formats.base import Format, Latency, Runner
from leanax.deploy.formats.litert import litert
from leanax.deploy.formats.onnx import onnx

__all__ = ["Format", "Latency", "Runner", "litert", "onnx"]
