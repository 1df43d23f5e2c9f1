"""ONNX (.onnx): files for onnxruntime and what else reads the format (packages onnx and onnxruntime)."""

from leanax.deploy.formats.onnx.format import onnx

__all__ = ["onnx"]
