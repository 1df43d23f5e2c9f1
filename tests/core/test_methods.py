import pytest

import kd
from leanax.core.errors import UserError
from leanax.core.methods import method, methods


def test_methods_are_the_files_that_have_a_function_of_their_name():
  found = methods(kd, "losses")
  assert found["hinton"] is kd.hinton
  assert "base" not in found


def test_an_unknown_method_is_named_with_the_nearest():
  with pytest.raises(UserError, match="unknown method of kd 'hintn'; did you mean 'hinton'"):
    method(kd, "hintn", folder="losses")
