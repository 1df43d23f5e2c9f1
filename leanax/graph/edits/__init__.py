"""The kinds of edits of a traced function, one file each.

A kind has a function that makes it, Net -> Net, which needs the numbers, and three that it is applied by:

apply(fn, edits, shapes) -> fn2: needs the shapes of fn's variables alone.
after(fn, edits, shapes, inputs) -> shapes2: of the variables of fn2.
joins(edits, other) -> bool: whether these and the next edit of the kind are applied in one trace.

A kind after which no other edit may come has a text LAST, which says what to do instead. Kinds of other packages, such
as `quant.edit`, are handed to `Net.edited`.
"""

from types import ModuleType

from leanax.graph.edits import add_bias, depthwise, fold_batch_norm, keep_channels, permute, replace_head, scale

KINDS: dict[str, ModuleType] = {
  "add_bias": add_bias,
  "depthwise": depthwise,
  "fold_batch_norm": fold_batch_norm,
  "keep_channels": keep_channels,
  "permute": permute,
  "replace_head": replace_head,
  "scale": scale,
}
