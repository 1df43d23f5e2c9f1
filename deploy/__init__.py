"""The artefact: layer IR, integer reference, the LiteRT writer and runtime, and how far they agree."""

from deploy import litert, reference
from deploy.compare import Mismatch, compare, parity
from deploy.ir import Network, Preprocessing
from deploy.lift import lift
from deploy.size import Sizes, sizes

__all__ = ["Mismatch", "Network", "Preprocessing", "Sizes", "compare", "lift", "litert", "parity", "reference", "sizes"]
