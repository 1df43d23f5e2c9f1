"""Number formats: the levels of a grid and their codes, one a file."""

from quant.formats.base import Format
from quant.formats.integer import integer
from quant.formats.power_of_two import power_of_two

__all__ = ["Format", "integer", "power_of_two"]
