"""Lists in the texts of settings, and the texts of others in a sentence."""

_PAIRS = {"(": ")", "[": "]"}


def elements(text: str) -> list[str]:
  """Returns the parts of a text between its commas, without spaces around them; empty ones are left out.

  Commas in parentheses or brackets belong to a part: "a, b(c, d)" has the parts "a" and "b(c, d)".

  Raises:
    ValueError: a parenthesis or a bracket has no counterpart.
  """
  parts, open_ones = [""], list[str]()
  for character in text:
    if character in _PAIRS:
      open_ones.append(_PAIRS[character])
    elif character in _PAIRS.values() and (not open_ones or open_ones.pop() != character):
      raise ValueError(text)
    if character == "," and not open_ones:
      parts.append("")
    else:
      parts[-1] += character
  if open_ones:
    raise ValueError(text)
  return [part.strip() for part in parts if part.strip()]


def quoted(text: object, most: int = 300) -> str:
  """Returns what another program says, such as an error that quotes a damaged file, as part of one printable line."""
  line = " ".join(str(text).split())[:most] or "no reason given"
  return "".join(one if one.isprintable() else "?" for one in line)
