"""Mutated .onnx files: bytes changed, and fields of the protobuf replaced, moved, repeated and deleted."""

import functools
import random
from typing import Any

from leanax import deploy
from leanax.deploy.formats.onnx.writer import package
from scripts.drills.fuzz import runners
from scripts.drills.fuzz.mutations import damaged

LIMIT = runners.LIMIT
INTEGERS = (*range(-2, 9), 15, 16, 255, 256, 2**15, 2**24, 2**27, 2**31 - 1, -(2**31), 2**40, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-38, 1e-45, 3e38, float("inf"), float("nan"))
TEXTS = (
  "",
  "x",
  "/etc/passwd",
  "../x",
  "SAME_UPPER",
  "Conv",
  "Loop",
  "Resize",
  "QLinearConv",
  "Reshape",
  "ai.onnx",
  "N",
)


@functools.cache
def seeds() -> list[bytes]:
  """Returns true files: each network with codes of uint8 and of int8."""
  return [content for kind in ("uint8", "int8") for content in runners.written(deploy.onnx(kind))]


def mutant(draw: random.Random, files: list[bytes]) -> bytes:
  """Returns a file that somebody damaged or made up, from true ones."""
  content = draw.choice(files)
  if draw.randrange(4) == 0:
    return damaged(draw, content, files)
  model = package().ModelProto.FromString(content)
  for _ in range(draw.randint(1, 3)):
    _changed(draw, model)
  content = model.SerializePartialToString()
  return damaged(draw, content, files) if draw.randrange(8) == 0 else content


def case(content: bytes) -> str:
  """Opens a file and runs it."""
  return runners.opened(deploy.onnx(), content, "ONNX")


def _changed(draw: random.Random, model: Any) -> None:
  """Changes one field of one message, anywhere in the model."""
  messages = [model]
  for message in messages:  # it grows
    for field, value in message.ListFields():
      if field.type == field.TYPE_MESSAGE:
        messages += value if _many(field) else [value]
  message = draw.choice(messages)
  field = draw.choice(message.DESCRIPTOR.fields)
  if draw.randrange(3):  # rather one that is set
    field = draw.choice([one for one, _ in message.ListFields()] or [field])
  value = getattr(message, field.name)
  if field.type == field.TYPE_MESSAGE:
    _message(draw, message, field, value, messages)
  elif not _many(field):
    if draw.randrange(5) == 0:
      message.ClearField(field.name)
    else:
      setattr(message, field.name, _scalar(draw, field, value))
  elif value and draw.randrange(3):
    place = draw.randrange(len(value))
    if draw.randrange(3) == 0:
      del value[place]
    else:
      value[place] = _scalar(draw, field, value[place])
  else:
    value.append(_scalar(draw, field, value[0] if value else None))


def _message(draw: random.Random, message: Any, field: Any, value: Any, messages: list[Any]) -> None:
  """Deletes, repeats, moves or replaces a message inside of another one."""
  alike = [one for one in messages if one.DESCRIPTOR is field.message_type]
  if not _many(field):
    other = draw.choice(alike).SerializePartialToString() if alike and draw.randrange(2) else b""
    message.ClearField(field.name)
    getattr(message, field.name).MergeFromString(other)
    return
  match draw.randrange(3):
    case 0 if value:
      del value[draw.randrange(len(value))]
    case 1 if value:
      one, other = draw.randrange(len(value)), draw.randrange(len(value))
      held = [value[place].SerializePartialToString() for place in (other, one)]
      for place, content in zip((one, other), held, strict=True):
        value[place].Clear()
        value[place].MergeFromString(content)
    case _:
      value.add().MergeFromString(draw.choice(alike).SerializePartialToString() if alike else b"")


def _scalar(draw: random.Random, field: Any, now: Any) -> Any:
  if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
    return draw.choice(FLOATS)
  if field.type == field.TYPE_STRING:
    return draw.choice((*TEXTS, (now or "")[::-1], (now or "") + "x"))
  if field.type == field.TYPE_BYTES:
    return draw.choice((b"", b"\0", (now or b"")[:-1], (now or b"") * 2, draw.randbytes(len(now or b"1234"))))
  if field.type == field.TYPE_ENUM:
    return draw.choice(field.enum_type.values).number
  number = draw.choice((*INTEGERS, (now or 0) + 1, (now or 0) - 1, (now or 0) * 2))
  wide = field.type in (field.TYPE_INT64, field.TYPE_UINT64)
  bits = 63 if wide else 31
  low = 0 if field.type in (field.TYPE_UINT64, field.TYPE_UINT32) else -(2**bits)
  return min(max(number, low), 2**bits - 1)


def _many(field: Any) -> bool:
  return field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED
