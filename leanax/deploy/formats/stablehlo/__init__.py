"""StableHLO (.stablehlo): a model's own function as a program for XLA, beside its weights (package flatbuffers)."""

from leanax.deploy.formats.stablehlo.format import stablehlo

__all__ = ["stablehlo"]
