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


def shown(value: object, most: int = 200) -> str:
  """Returns a value as it is written, in a sentence: shortened where it is long, as texts and numbers may be."""
  if isinstance(value, int) and value.bit_length() > 200:
    return f"a whole number of about 10^{int(value.bit_length() * 0.30103)}"
  try:
    text = repr(value)
  except ValueError:  # Python writes no number of more than a few thousand digits
    return f"a {type(value).__name__} with a number of thousands of digits"
  return text if len(text) <= most else f"{text[:most]}..."


def quoted(text: object, most: int = 300) -> str:
  """Returns what another program says, such as an error that quotes a damaged file, as part of one printable line."""
  line = " ".join(str(text).split())[:most] or "no reason given"
  return "".join(one if one.isprintable() else "?" for one in line)
