"""Python's garbage collector rests while a run starts, and leaves out what is there by then.

Modules, traces and programs stay. To look through them again and again takes an eighth of a start.
"""

from collections.abc import Callable, Iterator
import contextlib
import gc


@contextlib.contextmanager
def resting() -> Iterator[Callable[[], None]]:
  """Turns the collector off, and gives the function that turns it on; the block's end does too.

  What is there when the function is called is looked through again after the block. A collector
  that was off stays off.
  """
  was_on = gc.isenabled()
  gc.disable()

  def wake() -> None:
    gc.freeze()
    if was_on:
      gc.enable()

  try:
    yield wake
  finally:
    wake()
    gc.unfreeze()
