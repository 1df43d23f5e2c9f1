"""The description of a network that a file stores beside its numbers: classes, licence, and how it was made."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from leanax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Description:
  """A network in words, which file formats store.

  Attributes:
    classes: the names of the entries of its only output, in order; () where there are none.
    licence: under which it may be used, a name such as "Apache-2.0" or a text.
    made: how it was made, such as {"stage": "int8", "quantization": "w8a8"}.
  """

  classes: tuple[str, ...] = ()
  licence: str = ""
  made: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def __post_init__(self) -> None:
    texts = [*self.classes, self.licence, *self.made, *self.made.values()]
    wrong = [text for text in texts if not isinstance(text, str) or "\0" in text]
    wrong += [name for name in self.classes if isinstance(name, str) and (not name or len(name.splitlines()) != 1)]
    if wrong:
      raise UserError(f"the description of a network holds {wrong[0]!r}; expected texts, and classes of one line each")

  def to_json(self) -> bytes:
    """Returns the bytes that a file stores."""
    return json.dumps({**dataclasses.asdict(self), "made": dict(self.made)}, separators=(",", ":")).encode()

  @classmethod
  def from_json(cls, content: bytes) -> "Description":
    """Returns what `to_json` stored.

    Raises:
      UserError: something else.
    """
    try:
      given: dict[str, Any] = json.loads(content)
      found = {"classes": tuple(given["classes"]), "licence": given["licence"], "made": dict(given["made"])}
    except (ValueError, TypeError, KeyError):
      raise UserError("its description is none; expected JSON with classes, licence and made") from None
    return cls(**found)
