"""SIGTERM, SIGINT, SIGHUP and the like: all processes of a run end after the same step, and save it.

Which step that is, they agree on as follows, over notes on a board, so that no step is burdened with
an exchange. The process that got the signal asks all to stop. Each then writes down the last step
that it has given to its devices, and gives them no other one until all have done so. The run ends
after the first step that none has begun: those that are behind catch up, as others may wait for them
in an average.
"""

from collections.abc import Iterable
import contextlib
import signal
import threading

from desloc_jax import pipes, signals
from desloc_jax.hosts import ending
from desloc_jax.hosts.board import Board

# By which schedulers warn that a run is to end, as their users choose.
_BY_SCHEDULERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_SIGNALS = (signal.SIGINT, signal.SIGHUP, *_BY_SCHEDULERS)
# These are taken only where nobody has said what they are to do, as nohup does.
_MAY_BE_OTHERS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_STOP, _AT, _STARTING = 'stop', 'at/', 'starting'
_POLL_S = 1.0  # How often a process looks whether another one asks it to stop.
_SOON_S = 0.02  # While they agree.


class Interrupted(Exception):
  """The run was asked to stop and has saved its state.

  Attributes:
    step: the last step done, of which there is a checkpoint; None: it had not begun a step.
    exit_code: 0 after what a scheduler sends: SIGTERM, SIGUSR1 and SIGUSR2; else as shells have it:
      130 after Ctrl-C, 129 after SIGHUP.
  """

  def __init__(self, step: int | None, signal_number: int):
    self.step = step
    self.exit_code = 0 if signal_number in _BY_SCHEDULERS else 128 + signal_number
    name = signal.Signals(signal_number).name
    super().__init__(
      f'stopped by {name} before its first step; there was nothing to save.'
      if step is None
      else f'stopped by {name} after step {step}, saved; the same command goes on.'
    )


class StopRequest:
  """Notes the first signal to stop, to this process or to another one of the run.

  Used as a context manager. Until `begin` is called there is nothing to save: then a signal ends the
  process at once. So does a second signal at any time. Outside the main thread, where signals cannot
  be caught, only other processes can ask. A process that is not there for the run alone, such as a
  notebook's, is never ended here: there `begin` raises, and a second signal has its usual effect.

  Attributes:
    signal_number: of the signal that all stop for, once they agree.
  """

  def __init__(self, board: Board):
    self.signal_number: int | None = None
    self._board = board
    self._caught: int | None = None
    self._previous = {}
    self._heard = contextlib.ExitStack()
    self._lock = threading.Lock()  # Of the next two.
    self._step: int | None = None
    self._holds = False  # Whether no step may begin until all agree.
    self._last_step: int | None = None  # Of the run, once they agree.
    self._agreed, self._woken, self._closed = (threading.Event() for _ in range(3))
    self._agent = threading.Thread(target=self._agree, daemon=True)

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      default = lambda number: signal.getsignal(number) == signal.SIG_DFL
      numbers = [n for n in _SIGNALS if n not in _MAY_BE_OTHERS or default(n)]
      for number in numbers:
        self._previous[number] = signal.signal(number, self._caught_one)
      self._heard.enter_context(signals.heard(numbers, self._hear))
    self._agent.start()
    return self

  def __exit__(self, *_):
    # Else, as there is nothing left to stop, one signal means nothing until the process has ended.
    if not ending.ends_with_run():
      for number, handler in self._previous.items():
        signal.signal(number, handler)
      self._heard.close()
    self._closed.set()
    self._woken.set()
    self._agent.join(timeout=2 * _POLL_S)

  def begin(self, step: int) -> None:
    """Says that the run goes on after `step`: from now on there is something to save.

    Raises:
      Interrupted: it is to stop before that.
    """
    self.stops_after(step)

  def stops_after(self, step: int) -> bool:
    """Returns whether the run ends after `step`, which has been given to the devices.

    Raises:
      Interrupted: it ends without that, as a process had not begun.
    """
    with self._lock:
      if not self._holds:
        self._step = step
        return False
    self._agreed.wait()
    if self._last_step is None:
      raise Interrupted(None, self.signal_number)
    return step >= self._last_step

  def ask(self, number: int) -> None:
    """Asks all processes to stop for a signal."""
    self._caught = number
    self._woken.set()

  def _caught_one(self, number, frame) -> None:
    """Is there for `_hear` to be called; where that ends no process, gives the next signal back."""
    del number, frame
    if not ending.may_be_ended():
      for each, handler in self._previous.items():
        signal.signal(each, handler)

  def _hear(self, number: int) -> None:
    """Exits as a shell has it at the second signal."""
    if self._caught is not None and ending.may_be_ended():
      signals.leave(number, _tell_of_second)
    self.ask(number)
    if self._step is not None:  # By another thread: who reads it may be what hangs.
      threading.Thread(target=_tell_of_first, args=(number,), daemon=True).start()

  def _agree(self) -> None:
    """Waits until some process is asked to stop, and agrees with all on the last step."""
    asked = False
    poll_s = _POLL_S if self._board.count > 1 else None  # Nobody else asks a process alone.
    while not self._closed.is_set() and not self._agreed.is_set():
      if not asked:
        self._woken.wait(poll_s)
      else:
        self._closed.wait(_SOON_S)
      with contextlib.suppress(Exception):  # Where process 0 is lost JAX ends this one.
        if self._caught is not None:
          self._board.post(_STOP, str(self._caught))
        notes = self._board.read()
        if asked := _STOP in notes:
          self._hold()
          self._conclude(int(notes[_STOP]), self._board.read())

  def _hold(self) -> None:
    with self._lock:
      self._holds = True
      position = _STARTING if self._step is None else str(self._step)
    self._board.post(f'{_AT}{self._board.index}', position)

  def _conclude(self, signal_number: int, notes: dict[str, str]) -> None:
    positions = [text for name, text in notes.items() if name.startswith(_AT)]
    if len(positions) < self._board.count:
      return
    self.signal_number, self._last_step = signal_number, last_step(positions)
    self._agreed.set()
    if self._last_step is None and ending.may_be_ended():
      stop = Interrupted(None, signal_number)
      ending.leave(stop.exit_code, str(stop))


def _tell_of_first(number: int) -> None:
  pipes.tell(
    f'\n{signal.Signals(number).name}: the run saves the step that it is making, and ends; a second '
    'signal ends it at once.'
  )


def _tell_of_second(number: int) -> None:
  name = signal.Signals(number).name
  pipes.tell(
    f'ended at once by a second signal, {name}; the same command goes on from what is saved.'
  )


def last_step(positions: Iterable[str]) -> int | None:
  """Returns the step after which all can stop; None where one has not begun a step."""
  positions = list(positions)
  return None if _STARTING in positions else max(map(int, positions)) + 1
