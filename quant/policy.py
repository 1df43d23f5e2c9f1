"""Policies: the grid of each site, from ordered rules.

A setting is written as text (`"w4a8"`, `"w4a4 learned"`, `"w8 per_tensor"`, `"float"`), as a dict of a config, or as a
`Setting`. Rules are (site glob, setting), the first that matches wins. The first and the last site that hold a
kernel, and the model's output, get the widths of `ends` at least, as papers do (8 bits unless told otherwise).
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from leanax.core import rules as core_rules
from leanax.core.errors import UserError, unknown
from leanax.core.methods import method, methods
from quant import estimators, formats, observers
from quant.estimators import Estimator
from quant.grid import limits
from quant.observers import Observer


@dataclasses.dataclass(frozen=True)
class Setting:
  """The quantization of one site.

  Attributes:
    weights: width of the kernel's grid, None to leave it in float.
    activations: width of the grids of what the site reads, None to leave them in float.
    estimator: how rounding is trained, a name in `quant.estimators`: "ste" leaves the scales as calibrated, "lsq", in
      text also "learned", trains them.
    per_channel: the kernel has one scale an output channel, otherwise one.
    narrow: the kernel's grid leaves out its lowest code. The grid of the LSQ paper is not narrow.
    format: the levels of the kernel's grid, a name in `quant.formats`. Activations are integers.
    start: where learned scales start: "lsq", the paper's 2 mean|v| / sqrt(Q_P); "range", the observed range; "auto",
      the paper's up to 4 bits and the range above, where the paper's would be several times wider than the data.
    observer: how ranges of activations are found, a name in `quant.observers`.
    options: the observer's keywords.
    group: how many of the kernel's numbers along what a dot sums over have a scale of their own; None for all of them.
      The product is then one of floats.
  """

  weights: int | None = None
  activations: int | None = None
  estimator: str = "ste"
  per_channel: bool = True
  narrow: bool = True
  format: str = "integer"
  start: str = "auto"
  observer: str = "min_max"
  options: tuple[tuple[str, Any], ...] = ()
  group: int | None = None

  def make_observer(self) -> Observer:
    return method(observers, self.observer)(**dict(self.options))

  def make_estimator(self) -> Estimator:
    return method(estimators, self.estimator)()

  def __str__(self) -> str:
    """The setting as `parse` reads it."""
    parts = ("w", self.weights), ("g", self.group), ("a", self.activations)
    widths = "".join(f"{k}{number}" for k, number in parts if number is not None)
    plain = Setting(self.weights, self.activations)
    words = [word for word, change in _WORDS.items() if _differs(self, plain, change)]
    start = [] if self.start == plain.start else [f"start={self.start}"]
    observer = [] if (self.observer, self.options) == (plain.observer, ()) else [_call(self.observer, self.options)]
    format = [] if self.format == plain.format else [self.format]
    estimator = [] if self.estimator in (plain.estimator, "lsq") else [self.estimator]
    return " ".join([widths or "float", *format, *estimator, *words, *start, *observer])


_WORDS: dict[str, dict[str, Any]] = {
  "learned": {"estimator": "lsq"},
  "static": {"estimator": "ste"},
  "per_tensor": {"per_channel": False},
  "per_channel": {"per_channel": True},
  "full": {"narrow": False},
  "narrow": {"narrow": True},
}
_STARTS = ("auto", "lsq", "range")
_WIDTHS = re.compile(r"(?:w(\d+)(?:g(\d+))?)?(?:a(\d+))?")


def _differs(setting: Setting, plain: Setting, change: Mapping[str, Any]) -> bool:
  return any(getattr(setting, k) == v != getattr(plain, k) for k, v in change.items())


def _call(name: str, options: tuple[tuple[str, Any], ...]) -> str:
  return name + (f"({','.join(f'{k}={v}' for k, v in options)})" if options else "")


def parse(spec: "str | Mapping[str, Any] | Setting") -> Setting:
  """The setting that a text, a config's dict or a setting means.

  A text is a width part, `w<bits>`, `a<bits>`, both, or `float` (`w<bits>g<group>` with groups), then words in any
  order: an estimator (`learned` for `lsq`, `static` for `ste`), a format of the kernel (`power_of_two`), `per_tensor`,
  `full` (not narrow), `start=lsq|range|auto`, and an observer, `min_max` or `ema(rate=0.1)`. A dict has the fields of
  `Setting`; `learned=True` stands for `estimator="lsq"`.

  Raises:
    UserError: a word, width, key or value that is not known.
  """
  if isinstance(spec, Setting):
    return _checked(spec)
  if isinstance(spec, str):
    return _checked(_from_text(spec))
  if not isinstance(spec, Mapping):
    raise UserError(f"a quantization setting is {spec!r}; expected a text such as 'w8a8', a dict or a Setting")
  given = dict(spec)
  if "learned" in given:  # the word of a text, as a key
    learned, named = _boolean("learned", given.pop("learned")), given.get("estimator")
    given["estimator"] = "lsq" if learned else "ste"
    if named not in (None, given["estimator"]):
      raise UserError(f"a quantization setting has learned={learned} and estimator={named!r}; expected one of them")
  names = [field.name for field in dataclasses.fields(Setting)]
  for key in given:
    if key not in names:
      raise unknown("key of a quantization setting", key, names)
  if isinstance(given.get("options"), Mapping):
    given["options"] = tuple(sorted(given["options"].items()))
  return _checked(Setting(**given))


def _from_text(text: str) -> Setting:
  widths, *words = text.split() or [""]
  found = _WIDTHS.fullmatch(widths)
  if widths != "float" and not (found and widths):
    raise UserError(f"quantization setting {text!r} does not begin with widths; expected such as w8a8, w4 or float")
  weights, group, activations = (None,) * 3 if found is None else (int(g) if g else None for g in found.groups())
  setting = Setting(weights, activations, group=group)
  for word in words:
    setting = dataclasses.replace(setting, **_word(word, text))
  return setting


def _word(word: str, text: str) -> dict[str, Any]:
  if word in _WORDS:
    return _WORDS[word]
  if word.startswith("start="):
    return {"start": word.removeprefix("start=")}
  name, _, options = word.partition("(")
  if word in methods(estimators):
    return {"estimator": word}
  if word in methods(formats):
    return {"format": word}
  if name not in methods(observers):
    known = [*_WORDS, *methods(estimators), *methods(formats), *methods(observers), "start=lsq"]
    raise unknown(f"word in the quantization setting {text!r}:", name, known)
  pairs = [pair.partition("=") for pair in options.removesuffix(")").split(",") if pair]
  try:
    return {"observer": name, "options": tuple((k.strip(), float(v)) for k, _, v in pairs)}
  except ValueError:
    raise UserError(f"quantization setting {text!r}: {word!r} does not read like ema(rate=0.1)") from None


def _boolean(name: str, value: Any) -> bool:
  if not isinstance(value, bool):
    raise UserError(f"{name!r} of a quantization setting is {value!r}; expected True or False")
  return value


def _checked(setting: Setting) -> Setting:
  for bits in (setting.weights, setting.activations):
    if bits is not None:
      limits(bits)
  if setting.group is not None and (setting.weights is None or type(setting.group) is not int or setting.group < 1):
    raise UserError(f"a quantization setting has groups of {setting.group!r}; expected a whole number, with weights")
  for name in ("per_channel", "narrow"):
    _boolean(name, getattr(setting, name))
  format, served = method(formats, setting.format)(), setting.make_estimator().formats
  if setting.weights is not None:
    format.levels(limits(setting.weights, True, setting.narrow))
  if served is not None and setting.format not in served:
    raise UserError(
      f"the estimator {setting.estimator!r} serves {' and '.join(served)} grids, and not {setting.format!r}; "
      "expected 'static'"
    )
  if setting.start not in _STARTS:
    raise unknown("start of a learned scale", setting.start, _STARTS)
  try:
    setting.make_observer()
  except TypeError as error:
    raise UserError(f"observer {setting.observer!r} does not take {dict(setting.options)}: {error}") from None
  return setting


def int8(**changes: Any) -> Setting:
  """8-bit weights and activations; keywords are fields of `Setting`."""
  return parse({"weights": 8, "activations": 8, **changes})


def weights(bits: int, **changes: Any) -> Setting:
  """Weights of `bits` bits, activations in float; keywords are fields of `Setting`."""
  return parse({"weights": bits, **changes})


@dataclasses.dataclass(frozen=True)
class Policy:
  """Ordered (site glob, setting) rules, and the widths of the first and the last site (None: as the rules say)."""

  rules: tuple[tuple[str, Setting], ...]
  ends: Setting | None


class Explained(NamedTuple):
  """A site's setting, the rule that it comes from, and a note on its kernel's grid in a file."""

  setting: Setting
  rule: str
  note: str = ""


def policy(rules: Any, ends: Any = "w8a8") -> Policy:
  """A policy from rules and the widths of the ends.

  Args:
    rules: a sequence of (site glob, setting), a mapping from glob to setting in order, one setting for every site, or a
      policy, which is returned as it is.
    ends: the least widths of the first and the last site with a kernel and of the output; None for none.
  """
  if isinstance(rules, Policy):
    return rules
  if isinstance(rules, str | Setting):
    rules = [("*", rules)]
  if not isinstance(rules, Iterable):
    raise UserError(
      f"a quantization policy is {rules!r}; expected a text such as 'w8a8', or (site glob, setting) pairs"
    )
  pairs: Sequence[Any] = list(rules.items()) if isinstance(rules, Mapping) else list(rules)
  for pair in pairs:
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
      raise UserError(f"quantization rule {pair!r} is not a pair; expected (site glob, setting)")
  return Policy(tuple((str(glob), parse(setting)) for glob, setting in pairs), None if ends is None else parse(ends))


def explain(
  policy: Policy, sites: Iterable[str], kernels: Sequence[str], output: str = "output"
) -> dict[str, Explained]:
  """Each site's setting and the rule it came from; sites without a rule are left out and stay in float.

  Args:
    policy: the rules.
    sites: names of all sites of the model.
    kernels: those that hold a kernel, in the order in which they run.
    output: the site of the model's outputs.

  Raises:
    UserError: a rule matches nothing or never applies.
  """
  found = core_rules.match(policy.rules, sites, "quantization rule")
  result = {name: Explained(match.setting, match.glob) for name, match in found.items()}
  if policy.ends is not None:
    for name in dict.fromkeys([*kernels[:1], *kernels[-1:], output]):
      if name in result:
        setting, rule, _ = result[name]
        weights = _at_least(setting.weights, policy.ends.weights)
        raised = dataclasses.replace(
          setting,
          weights=weights,
          # What is raised has the levels of the ends: others may not serve so many bits.
          format=setting.format if setting.weights == weights else policy.ends.format,
          group=setting.group if setting.weights == weights else policy.ends.group,
          activations=_at_least(setting.activations, policy.ends.activations),
        )
        result[name] = Explained(raised, rule if raised == setting else f"{rule} (ends)")
  return result


def _at_least(bits: int | None, end: int | None) -> int | None:
  """The wider of the two; what stays in float stays so."""
  return bits if bits is None or end is None else max(bits, end)
