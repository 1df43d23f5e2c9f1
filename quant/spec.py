"""Settings: how the weights and the activations of a site are quantized, as texts, dicts and plain data.

In "w4a8 learned" the words are of both, as far as they concern them; in "w4 lsq, a8 tqt percentile(q=99)" each has
words of its own.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from leanax.core.errors import UserError, unknown
from leanax.core.methods import method, methods
from quant import estimators, formats, observers
from quant.estimators import Estimator
from quant.grid import limits
from quant.observers import Observer

_STARTS = ("auto", "lsq", "range")


@dataclasses.dataclass(frozen=True)
class Spec:
  """The quantization of one tensor.

  Attributes:
    bits: width of its grid.
    estimator: how rounding is trained, a name in `quant.estimators`: "ste" leaves the scales as calibrated, "lsq", in
      text also "learned", trains them.
    format: the levels of the grid, a name in `quant.formats`.
    start: where learned scales start: "lsq", the paper's 2 mean|v| / sqrt(Q_P); "range", the observed range; "auto",
      the paper's up to 4 bits and the range above, where the paper's would be several times wider than the data.
    per_channel: of weights: one scale per output channel, otherwise one, as activations have.
    narrow: of weights: the grid leaves out its lowest code. The grid of the LSQ paper is not narrow. Activations have
      all codes where they are integers, and otherwise a symmetric, narrow grid.
    group: of weights: how many inputs of a dot, or input channels of a convolution at all positions of its kernel, have
      a scale of their own; None for all of them. The product is then one of floats.
    observer: of activations: how their range is found, a name in `quant.observers`.
    options: of activations: the observer's keywords.
  """

  bits: int
  estimator: str = "ste"
  format: str = "integer"
  start: str = "auto"
  per_channel: bool = True
  narrow: bool = True
  group: int | None = None
  observer: str = "min_max"
  options: tuple[tuple[str, Any], ...] = ()

  def __post_init__(self) -> None:
    limits(self.bits)
    for name in ("per_channel", "narrow"):
      _boolean(name, getattr(self, name))
    if self.group is not None and (type(self.group) is not int or self.group < 1):
      raise _bad_group(self.group)
    method(formats, self.format)().levels(limits(self.bits, True, self.narrow))
    served = self.make_estimator().formats
    if served is not None and self.format not in served:
      raise UserError(
        f"the estimator {self.estimator!r} serves {' and '.join(served)} grids, and not {self.format!r}; "
        "expected 'static'"
      )
    if self.start not in _STARTS:
      raise unknown("start of a learned scale", self.start, _STARTS)
    self.make_observer()

  def make_estimator(self) -> Estimator:
    return method(estimators, self.estimator)()

  def make_observer(self) -> Observer:
    return _observer(self.observer, self.options)


@dataclasses.dataclass(frozen=True)
class Setting:
  """The quantization of one site: of its kernel and of what it reads; None leaves them in float."""

  weights: Spec | None = None
  activations: Spec | None = None

  def __post_init__(self) -> None:
    for kind, spec in (("weights", self.weights), ("activations", self.activations)):
      if spec is not None and not isinstance(spec, Spec):
        raise UserError(f"a quantization setting has {kind}={spec!r}; expected a Spec, or None for floats")
      for field in () if spec is None else dataclasses.fields(spec):
        if field.name not in _FIELDS[kind] and getattr(spec, field.name) != field.default:
          known = ", ".join(_FIELDS[kind])
          raise UserError(f"a quantization setting gives {kind} {field.name!r}; expected only {known} of them")

  @property
  def specs(self) -> tuple[Spec, ...]:
    """The specs that are given, of the weights first."""
    return tuple(spec for spec in (self.weights, self.activations) if spec is not None)

  def __str__(self) -> str:
    """Returns the text that `parse` reads as this setting."""
    w, a = self.weights, self.activations
    left = "" if w is None else f"w{w.bits}" + ("" if w.group is None else f"g{w.group}")
    right = "" if a is None else f"a{a.bits}"
    of_w = {} if w is None else {key: getattr(w, key) for key in _FIELDS["weights"]}
    of_a = {} if a is None else {key: getattr(a, key) for key in _FIELDS["activations"]}
    shared_w, shared_a = _shared("weights", of_w), _shared("activations", of_a)
    if shared_w | shared_a == shared_a | shared_w and (a is None or a.format == "integer"):
      return " ".join([left + right or "float", *_words(shared_w | shared_a)])
    return ", ".join(" ".join([widths or "float", *_words(one)]) for widths, one in ((left, of_w), (right, of_a)))


_FIELDS = {
  "weights": ("bits", "estimator", "format", "start", "per_channel", "narrow", "group"),
  "activations": ("bits", "estimator", "format", "start", "observer", "options"),
}
_FLAGS: dict[str, tuple[str, Any]] = {
  "learned": ("estimator", "lsq"),
  "static": ("estimator", "ste"),
  "per_tensor": ("per_channel", False),
  "per_channel": ("per_channel", True),
  "full": ("narrow", False),
  "narrow": ("narrow", True),
}
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Spec)}
_WIDTHS = re.compile(r"(?:w(?P<w>\d+)(?:g(?P<g>\d+))?)?(?:a(?P<a>\d+))?")
_OUTSIDE = r"(?![^(]*\))"  # not in parentheses

Given = dict[str, Any]  # fields of a `Spec`
Both = dict[str, Given]  # of "weights" and "activations", without what stays in float


def parse(spec: "str | Mapping[str, Any] | Setting") -> Setting:
  """Returns the setting that a text, a config's dict or a setting means.

  A text is a width part, `w<bits>`, `a<bits>`, both, or `float` (`w<bits>g<group>` with groups), then words in any
  order: an estimator (`learned` for `lsq`, `static` for `ste`), a format of the kernel (`power_of_two`), `per_tensor`,
  `full` (not narrow), `start=lsq|range|auto`, and an observer, `min_max` or `ema(rate=0.1)`. Two such texts with a
  comma between them, one of weights and one of activations, give each words of its own, and activations a format.

  A dict has the keys `weights` and `activations`, each a width or a dict of the fields of `Spec`, and the fields of
  `Spec` that both share as the words of a text are shared; `learned=True` stands for `estimator="lsq"`.

  Raises:
    UserError: a word, width, key or value that is not known.
  """
  if isinstance(spec, Setting):
    return spec
  if isinstance(spec, str):
    return _from_text(spec)
  if isinstance(spec, Mapping):
    return _from_dict(spec)
  raise UserError(f"a quantization setting is {spec!r}; expected a text such as 'w8a8', a dict or a Setting")


def int8(**changes: Any) -> Setting:
  """Returns 8-bit weights and activations; keywords are fields of `Spec`, shared as the keys of a dict (`parse`)."""
  return parse({"weights": 8, "activations": 8, **changes})


def weights(bits: int, **changes: Any) -> Setting:
  """Returns weights of `bits` bits, activations in float; keywords are fields of `Spec`."""
  return parse({"weights": bits, **changes})


def _from_text(text: str) -> Setting:
  parts = [_part(part.strip(), text) for part in re.split("," + _OUTSIDE, text)]
  if len(parts) == 1:
    return _made(*parts[0])
  own: Both = {}
  for given, words in parts:
    if len(parts) > 2 or len(given) > 1 or (words and not given) or given.keys() & own.keys():
      raise UserError(
        f"quantization setting {text!r} has a comma; expected it between weights and activations, as in 'w4 lsq, a8'"
      )
    own |= {kind: {**fields, **words} for kind, fields in given.items()}
  return _made(own, {})


def _part(part: str, text: str) -> tuple[Both, Given]:
  """Returns the widths and the words of a text, or of one side of its comma."""
  widths, *words = re.split(r"\s+" + _OUTSIDE, part)
  found = _WIDTHS.fullmatch(widths)
  if widths != "float" and not (found and widths):
    raise UserError(f"quantization setting {text!r} does not begin with widths; expected such as w8a8, w4 or float")
  number = {} if found is None else {key: int(digits) for key, digits in found.groupdict().items() if digits}
  given: Both = {}
  if "w" in number:
    given["weights"] = {"bits": number["w"], "group": number.get("g")}
  if "a" in number:
    given["activations"] = {"bits": number["a"]}
  fields: Given = {}
  for word in words:
    new = _word(word, text)
    if twice := next((key for key, value in new.items() if fields.get(key, value) != value), None):
      raise UserError(
        f"quantization setting {text!r} gives the {twice} twice, the second time as {word!r}; expected one"
      )
    fields |= new
  return given, fields


def _word(word: str, text: str) -> Given:
  if word in _FLAGS:
    return dict([_FLAGS[word]])
  if word.startswith("start="):
    return {"start": word.removeprefix("start=")}
  name, _, options = word.partition("(")
  if word in methods(estimators):
    return {"estimator": word}
  if word in methods(formats):
    return {"format": word}
  if name in methods(estimators) or name in methods(formats):
    raise UserError(f"quantization setting {text!r}: {name!r} takes no options here; expected {name}")
  if name not in methods(observers):
    known = [*_FLAGS, *methods(estimators), *methods(formats), *methods(observers), "start=lsq"]
    raise unknown(f"word in the quantization setting {text!r}:", name, known)
  pairs = [pair.partition("=") for pair in options.removesuffix(")").split(",") if pair]
  try:
    if options and not options.endswith(")"):
      raise ValueError
    return {"observer": name, "options": tuple(sorted((k.strip(), float(v)) for k, _, v in pairs))}
  except ValueError:
    raise UserError(f"quantization setting {text!r}: {word!r} does not read like ema(rate=0.1)") from None


def _words(fields: Given) -> Iterable[str]:
  """Yields the words of the fields that are not the defaults."""
  if fields.get("format", "integer") != "integer":
    yield fields["format"]
  if fields.get("estimator", "ste") not in ("ste", "lsq"):
    yield fields["estimator"]
  yield from (word for word, (key, x) in _FLAGS.items() if x != _DEFAULTS[key] and fields.get(key) == x)
  if fields.get("start", "auto") != "auto":
    yield f"start={fields['start']}"
  name, options = fields.get("observer", "min_max"), fields.get("options", ())
  if (name, options) != ("min_max", ()):
    yield name + (f"({','.join(f'{k}={v}' for k, v in options)})" if options else "")


def _from_dict(given: Mapping[str, Any]) -> Setting:
  names = [name for name in _DEFAULTS if name != "bits"]
  fields, own = _fields("a quantization setting", given, [*_FIELDS, *names]), {}
  for kind, known in _FIELDS.items():
    one = fields.pop(kind, None)
    if one is not None:
      what = f"the {kind} of a quantization setting"
      own[kind] = _fields(what, one if isinstance(one, Mapping) else {"bits": one}, known)
      if "bits" not in own[kind]:
        raise UserError(f"{what} have no 'bits'; expected a width such as 8")
  return _made(own, fields)


def _fields(what: str, given: Mapping[str, Any], names: Sequence[str]) -> Given:
  """Returns the fields of a dict, whose keys must be among the names."""
  fields = dict(given)
  if "learned" in fields:  # the word of a text, as a key
    learned, named = _boolean("learned", fields.pop("learned")), fields.get("estimator")
    fields["estimator"] = "lsq" if learned else "ste"
    if named not in (None, fields["estimator"]):
      raise UserError(f"{what} has learned={learned} and estimator={named!r}; expected one of them")
  for key in fields:
    if key not in names:
      raise unknown(f"key of {what}", key, names)
  if "options" in fields:
    try:
      fields["options"] = tuple(sorted(dict(fields["options"]).items()))
    except (TypeError, ValueError):
      raise UserError(f"{what} has options={fields['options']!r}; expected a dict") from None
  return fields


def _made(own: Both, shared: Given) -> Setting:
  """Returns the setting of the fields that each tensor has and of those that both share."""
  # What concerns no tensor of the setting is checked all the same.
  if shared.get("group") is not None and "weights" not in own:
    raise _bad_group(shared["group"])
  _observer(shared.get("observer", "min_max"), shared.get("options", ()))
  return Setting(**{kind: Spec(**{**_shared(kind, shared), **fields}) for kind, fields in own.items()})


def _shared(kind: str, fields: Given) -> Given:
  """Returns those of the shared fields that concern weights or activations: a shared format is of weights."""
  names = [name for name in _FIELDS[kind] if name != "bits" and (kind, name) != ("activations", "format")]
  return {name: fields[name] for name in names if name in fields}


def _observer(name: str, options: tuple[tuple[str, Any], ...]) -> Observer:
  try:
    return method(observers, name)(**dict(options))
  except TypeError as error:
    raise UserError(f"observer {name!r} does not take {dict(options)}: {error}") from None


def _boolean(name: str, value: Any) -> bool:
  if not isinstance(value, bool):
    raise UserError(f"{name!r} of a quantization setting is {value!r}; expected True or False")
  return value


def _bad_group(group: Any) -> UserError:
  return UserError(f"a quantization setting has groups of {group!r}; expected a whole number, with weights")
