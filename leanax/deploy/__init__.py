"""The artefact: layer IR, integer reference, the LiteRT writer and runtime, and how far they agree."""

from leanax.deploy import litert, reference
from leanax.deploy.compare import Mismatch, compare, parity
from leanax.deploy.ir import Network, Preprocessing
from leanax.deploy.lift import lift
from leanax.deploy.size import Sizes, sizes

__all__ = ["Mismatch", "Network", "Preprocessing", "Sizes", "compare", "lift", "litert", "parity", "reference", "sizes"]
