"""The checker of annotations that `pytest --check-types` puts on every function of ours."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException

# An int is welcome where a float is asked for, as static checkers have it.
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Callable[..., Any]) -> Callable[..., Any]:
  """`function` with its annotations checked at each call, or as it is where beartype cannot read one of them."""
  try:
    return _check(function)
  except BeartypeDecorHintException:
    return function
