"""Shared by all packages: user errors, path rules, tree names, reductions over a device axis, keys.

>>> from leanax.core import rules
>>> found = rules.match([("head/*", 0.5), ("*kernel", 0.1)], ["head/kernel", "body/kernel", "body/bias"])
>>> print({name: match.setting for name, match in found.items()})  # the first rule that matches; `*` crosses `/`
{'head/kernel': 0.5, 'body/kernel': 0.1}
"""
