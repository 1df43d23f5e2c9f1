"""The checker of annotations that `pytest --check-types` puts on every function of ours."""

from beartype import BeartypeConf, beartype

# An int is welcome where a float is asked for, as static checkers have it.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
