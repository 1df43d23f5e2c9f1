"""Products of two values that depend on the input."""

from collections.abc import Callable

from leanax.deploy.lifting.drafts import Lifter
from leanax.graph.program import Node

TABLE: dict[str, Callable[[Lifter, Node], None]] = {}
