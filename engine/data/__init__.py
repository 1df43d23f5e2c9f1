"""The data room: sets as uint8 arrays, the order of batches, augmentation and preprocessing inside jit.

```python
data = load("digits")                                   # host arrays: data.train, data.validation, data.test
```
"""

from engine.data.loading import load
from engine.data.splits import Dataset, Split, device_arrays, make_split

__all__ = ["load", "Dataset", "Split", "make_split", "device_arrays"]
