"""Packed files: a container of our own for masks and codes, entropy-coded, which gives back every bit.

A leaf that lies on a grid is stored as codes, near the entropy of their histogram, so that what is pruned costs next to
nothing; other leaves as the bytes of what is not zero. The header is JSON: nothing in a file is code.
`header` has the layout of the bytes, `arrays` and `streams` that of an array, `rans` the coder.
"""

from leanax.deploy.packed.container import Packed, pack, unpack
from leanax.deploy.packed.nets import pack_net, stored_grids, unpack_net

__all__ = ["Packed", "pack", "pack_net", "stored_grids", "unpack", "unpack_net"]
