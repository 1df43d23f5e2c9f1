"""Data: sets as uint8 arrays, the order of batches, and augmentation and preprocessing inside jit.

```python
data = load("digits")                                      # host arrays: data.train, data.validation, data.test
spec = Input(batch_size=256, seed=0, preprocess=measure(data.train), augment=Augment(crop=1))
arrays = device_arrays(data.train)
batch = jax.jit(train_batch_at, static_argnums=2)(arrays, step, spec)      # a function of the step alone
```
"""

from leanax.engine.data.augment import Augment
from leanax.engine.data.batches import Input, eval_batch_at, examples_at, train_batch_at, view_of
from leanax.engine.data.loading import is_own, load, parameters
from leanax.engine.data.order import batch_at, batch_rows, epoch_of, permutation, steps_per_epoch
from leanax.engine.data.preprocess import Preprocess, measure, normalise
from leanax.engine.data.splits import Dataset, Split, device_arrays, make_split

__all__ = [
  "load",
  "parameters",
  "is_own",
  "Dataset",
  "Split",
  "make_split",
  "device_arrays",
  "Preprocess",
  "measure",
  "normalise",
  "Augment",
  "Input",
  "train_batch_at",
  "eval_batch_at",
  "examples_at",
  "view_of",
  "permutation",
  "batch_rows",
  "batch_at",
  "epoch_of",
  "steps_per_epoch",
]
