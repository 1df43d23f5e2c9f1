"""The axes that a reshape flattens, or splits."""

Run = list[tuple[int, int]]  # (axis, size) of neighbours


def runs(source: tuple[int, ...], result: tuple[int, ...]) -> list[tuple[Run, Run]]:
  """Returns the shortest runs of axes, ones aside, that a reshape turns into each other."""
  a, b = ([(i, n) for i, n in enumerate(shape) if n != 1] for shape in (source, result))
  found = []
  while a and b:
    left, right = [a.pop(0)], [b.pop(0)]
    p, q = left[0][1], right[0][1]
    while p != q:
      if p < q:
        left.append(a.pop(0))
        p *= left[-1][1]
      else:
        right.append(b.pop(0))
        q *= right[-1][1]
    found.append((left, right))
  return found
