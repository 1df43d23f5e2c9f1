"""The artefact: layer IR, integer reference, file formats with their runtimes, and how far they agree."""

from leanax.deploy import formats, reference
from leanax.deploy.compare import Mismatch, compare, parity
from leanax.deploy.files import file_format, file_formats, format_of, open_file
from leanax.deploy.formats import Format, Latency, Runner, litert
from leanax.deploy.ir import Network
from leanax.deploy.lift import lift
from leanax.deploy.preprocessing import Preprocessing
from leanax.deploy.size import Sizes, sizes

__all__ = [
  "Format",
  "Latency",
  "Mismatch",
  "Network",
  "Preprocessing",
  "Runner",
  "Sizes",
  "compare",
  "file_format",
  "file_formats",
  "format_of",
  "formats",
  "lift",
  "litert",
  "open_file",
  "parity",
  "reference",
  "sizes",
]
