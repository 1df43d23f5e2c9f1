"""A limit of time for a block."""

import signal
import threading
import time

import pytest

from leanax.core.limits import within


def test_a_block_that_takes_too_long_is_left():
  start = time.monotonic()
  with pytest.raises(TimeoutError, match=r"it takes more than 0\.2 s"), within(0.2):
    while True:
      pass
  assert time.monotonic() - start < 10


def test_a_block_in_time_leaves_no_timer_and_other_timers_go_on():
  handler = signal.getsignal(signal.SIGALRM)
  left = signal.getitimer(signal.ITIMER_REAL)[0]  # that of the test itself, where it has one
  with within(1000):
    assert 900 < signal.getitimer(signal.ITIMER_REAL)[0] <= 1000
  assert signal.getsignal(signal.SIGALRM) is handler
  after = signal.getitimer(signal.ITIMER_REAL)[0]
  assert left - 60 < after <= left


def test_there_is_no_limit_in_another_thread():
  done = []

  def work():
    with within(0.05):
      time.sleep(0.2)
    done.append(True)

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert done == [True]
