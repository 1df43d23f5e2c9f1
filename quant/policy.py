"""Policies: the grids of each site, from ordered rules.

Rules are (site glob, setting), the first that matches wins. The first and the last site that hold a kernel, and the
model's output, get the widths of `ends` at least, as papers do (8 bits unless told otherwise).
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from leanax.core import rules as core_rules
from leanax.core.errors import UserError
from quant.spec import Setting, Spec, parse


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
  """Returns a policy from rules and the widths of the ends.

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
  """Returns each site's setting and the rule it came from; sites without a rule are left out and stay in float.

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
        raised = Setting(
          _at_least(setting.weights, policy.ends.weights), _at_least(setting.activations, policy.ends.activations)
        )
        result[name] = Explained(raised, rule if raised == setting else f"{rule} (ends)")
  return result


def _at_least(spec: Spec | None, end: Spec | None) -> Spec | None:
  """As wide as the end at least; what stays in float stays so."""
  if spec is None or end is None or spec.bits >= end.bits:
    return spec
  # What is raised has the levels of the ends: others may not serve so many bits.
  return dataclasses.replace(spec, bits=end.bits, format=end.format, group=end.group)
