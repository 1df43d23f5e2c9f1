"""The values of a pickle, read without running it.

A pickle is a program whose opcodes import and call what they name, so a file from elsewhere must not be unpickled. Here
the same opcodes build plain values: numbers, texts, lists, tuples, dicts, and a `Record` of each object that the
pickle asks for. Nothing is imported and nothing is called, whatever the pickle names. The opcodes are those of the
standard library's `pickletools`.
"""

import io
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

OPCODES = 3_000_000  # at most so many: those of some 75,000 tensors, read in some ten seconds
DICTS = {"collections.OrderedDict", "collections.defaultdict", "builtins.dict", "__builtin__.dict"}
SETS = {"builtins.set", "builtins.frozenset", "__builtin__.set", "__builtin__.frozenset"}
MARK = object()


class Damaged(Exception):
  """The bytes are no pickle, or one that does what no program's does; the text says why."""


class Global(NamedTuple):
  """A name that the pickle would import, such as "torch.FloatStorage"."""

  name: str


class Record:
  """An object that the pickle would make: the name of its class or function, the arguments, and what was added.

  Attributes:
    made: the name of what would be called.
    args: the arguments of the call, a tuple.
    state: of an object with attributes these, mostly a dict.
    items: what was set in an object that is a dict.
  """

  __slots__ = ("args", "items", "made", "state")

  def __init__(self, made: str, args: tuple[Any, ...]) -> None:
    self.made, self.args, self.state = made, args, None
    self.items: dict[str, Any] = {}


def load(file: io.BytesIO, persistent: Callable[[Any], Any]) -> Any:
  """Reads one pickle from the file's position on, and leaves the position behind it.

  Args:
    file: the bytes.
    persistent: from a persistent id, which is how a pickle names what is stored beside it, to its value.

  Returns:
    The value. Keys of dicts are texts: a number is written in digits.

  Raises:
    Damaged: it is no pickle.
  """
  machine = _Machine(persistent, len(file.getbuffer()))
  try:
    for count, (opcode, arg, _) in enumerate(pickletools.genops(file)):
      if count > OPCODES:
        raise Damaged(f"it has more than {OPCODES:,} opcodes")
      action = ACTIONS.get(opcode.name)
      if action is None:
        raise Damaged(f"its opcode {opcode.name} is not one of data")
      action(machine, arg)
    if len(machine.stack) != 1:
      raise Damaged("it does not end with one value")
    return machine.pop()
  except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
    raise Damaged("it is no whole pickle") from error


class _Machine:
  """The stack and the memo of a pickle while it is read."""

  def __init__(self, persistent: Callable[[Any], Any], size: int) -> None:
    self.stack: list[Any] = []
    self.memo: dict[int, Any] = {}
    self.persistent, self.copies = persistent, size  # entries that may be copied: no more than there are bytes

  def pop(self) -> Any:
    found = self.stack.pop()
    if found is MARK:
      raise Damaged("a mark stands where it reads a value")
    return found

  def marked(self) -> list[Any]:
    """Takes the values behind the last mark."""
    place = len(self.stack) - 1
    while self.stack[place] is not MARK:
      if place == 0:
        raise Damaged("it lacks a mark")
      place -= 1
    found = self.stack[place + 1 :]
    del self.stack[place:]
    return found

  def call(self, made: Any, args: Any) -> None:
    """Pushes what a call would give: a dict of a class of dicts, else a record."""
    if not isinstance(made, Global) or not isinstance(args, tuple):
      self.stack.append(Record(f"an object of {type(made).__name__}", args if isinstance(args, tuple) else (args,)))
    elif made.name in DICTS:
      pairs = args[-1] if args and isinstance(args[-1], list) else []
      self.copies -= len(pairs)
      if self.copies < 0:
        raise Damaged("it copies a list again and again")
      self.stack.append({key(name): value for name, value in pairs})
    else:
      self.stack.append(Record(made.name, args))

  def set_items(self, pairs: list[Any]) -> None:
    """Sets pairs, which stand one behind the other, in the dict on the stack."""
    target = self.stack[-1]
    target = target.items if isinstance(target, Record) else target
    if not isinstance(target, dict) or len(pairs) % 2:
      raise Damaged("it sets an item of what is no dict")
    for name, value in zip(pairs[::2], pairs[1::2], strict=True):
      target[key(name, len(target))] = value

  def extend(self, values: list[Any]) -> None:
    """Appends to the list on the stack; what is appended to other objects is dropped."""
    if isinstance(self.stack[-1], list):
      self.stack[-1].extend(values)
    elif not isinstance(self.stack[-1], Record):
      raise Damaged("it appends to what is no list")

  def build(self, state: Any) -> None:
    """Gives the object on the stack its state; attributes of dicts and lists are dropped."""
    target = self.stack[-1]
    if isinstance(target, Record):
      target.state = state

  def remember(self, place: int) -> None:
    if not 0 <= place < 2**32 or self.stack[-1] is MARK:
      raise Damaged("it remembers what is no value")
    self.memo[place] = self.stack[-1]


def key(name: Any, number: int = 0) -> str:
  """Returns the key of a dict as text. Numbers of a file could be chosen so that all of them have one hash."""
  if isinstance(name, bytes):
    return name.decode("latin-1")
  return str(name) if isinstance(name, str | int | float | bool) else f"?{number}"


def _get(m: _Machine, place: Any) -> None:
  m.stack.append(m.memo[place])


def _named(m: _Machine, _: Any) -> None:
  name, module = m.pop(), m.pop()
  if not isinstance(name, str) or not isinstance(module, str) or len(name) + len(module) > 1000:
    raise Damaged("it imports what is no name")
  m.stack.append(Global(f"{module}.{name}"))


def _called(m: _Machine, _: Any) -> None:
  args, made = m.pop(), m.pop()
  m.call(made, args)


def _called_with_keywords(m: _Machine, _: Any) -> None:
  m.pop()  # no class of weights has any
  _called(m, None)


def _of_marked(m: _Machine, _: Any) -> None:
  made, *args = m.marked()
  m.call(made, tuple(args))


def _installed(m: _Machine, arg: str) -> None:
  m.call(Global(arg.replace(" ", ".")), tuple(m.marked()))


def _pairs(m: _Machine, _: Any) -> None:
  pairs = m.marked()
  m.stack.append({})
  m.set_items(pairs)


def _tuple(size: int) -> Callable[[_Machine, Any], None]:
  def made(m: _Machine, _: Any) -> None:
    m.stack.append(tuple(reversed([m.pop() for _ in range(size)])))

  return made


def _push(make: Callable[[Any], Any]) -> Callable[[_Machine, Any], None]:
  return lambda m, arg: m.stack.append(make(arg))


def _item(m: _Machine, _: Any) -> None:
  value, name = m.pop(), m.pop()
  m.set_items([name, value])


def _pop(m: _Machine, _: Any) -> None:
  m.stack.pop()


def _popped(m: _Machine, _: Any) -> None:
  m.marked()


def _set(m: _Machine, _: Any) -> None:
  m.stack.append(Record("builtins.set", ([],)))


def _added(m: _Machine, _: Any) -> None:
  values, target = m.marked(), m.stack[-1]
  if not isinstance(target, Record) or target.made not in SETS:
    raise Damaged("it adds to what is no set")
  target.args[0].extend(values)


def _nothing(m: _Machine, arg: Any) -> None:
  del m, arg


ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
  **dict.fromkeys(("PROTO", "FRAME", "STOP"), _nothing),
  **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"), _push(lambda arg: arg)),
  **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING", "FLOAT", "BINFLOAT"), _push(lambda arg: arg)),
  **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), _push(bytes)),
  **dict.fromkeys(("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"), _push(lambda arg: arg)),
  "NONE": _push(lambda _: None),
  "NEWTRUE": _push(lambda _: True),
  "NEWFALSE": _push(lambda _: False),
  "EMPTY_LIST": _push(lambda _: []),
  "EMPTY_DICT": _push(lambda _: {}),
  "EMPTY_TUPLE": _push(lambda _: ()),
  "EMPTY_SET": _set,
  "GLOBAL": _push(lambda arg: Global(arg.replace(" ", "."))),
  "STACK_GLOBAL": _named,
  "MARK": _push(lambda _: MARK),
  "POP": _pop,
  "POP_MARK": _popped,
  "DUP": lambda m, _: m.stack.append(m.stack[-1]),
  "TUPLE1": _tuple(1),
  "TUPLE2": _tuple(2),
  "TUPLE3": _tuple(3),
  "TUPLE": lambda m, _: m.stack.append(tuple(m.marked())),
  "LIST": lambda m, _: m.stack.append(m.marked()),
  "FROZENSET": lambda m, _: m.stack.append(Record("builtins.frozenset", (m.marked(),))),
  "DICT": _pairs,
  "APPEND": lambda m, _: m.extend([m.pop()]),
  "APPENDS": lambda m, _: m.extend(m.marked()),
  "SETITEM": _item,
  "SETITEMS": lambda m, _: m.set_items(m.marked()),
  "ADDITEMS": _added,
  **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _get),
  **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda m, place: m.remember(place)),
  "MEMOIZE": lambda m, _: m.remember(len(m.memo)),
  **dict.fromkeys(("REDUCE", "NEWOBJ"), _called),
  "NEWOBJ_EX": _called_with_keywords,
  "OBJ": _of_marked,
  "INST": _installed,
  "BUILD": lambda m, _: m.build(m.pop()),
  "PERSID": lambda m, arg: m.stack.append(m.persistent(arg)),
  "BINPERSID": lambda m, _: m.stack.append(m.persistent(m.pop())),
}
