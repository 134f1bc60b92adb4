"""A program of a peer, as whoever asks it for steps has it."""

from collections.abc import Mapping, Sequence
import json
import subprocess
import tempfile
from typing import Any


class ProgramFailed(Exception):
  """A program has ended before it answered; says what it printed last."""


class Running:
  """One program that waits for turns, see `task.serve`."""

  def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None):
    """Starts it; `env` is its environment, None: that of this process."""
    self._said = tempfile.TemporaryFile('w+')
    self._process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True, env=env
    )

  def ask(self, steps: int) -> None:
    """Has it make so many steps."""
    self._process.stdin.write(f'{steps}\n')
    self._process.stdin.flush()

  def listen(self) -> dict[str, Any]:
    """Returns its next answer.

    Raises:
      ProgramFailed: it has ended.
    """
    for line in self._process.stdout:
      if line.startswith('@'):
        return json.loads(line[1:])
      self._said.write(line)
    self._process.wait()
    self._said.seek(0)
    words = [line.strip() for line in self._said if line.strip()]
    raise ProgramFailed(words[-1] if words else f'ended with code {self._process.returncode}')

  def end(self) -> None:
    """Lets it end, or ends it."""
    self._process.stdin.close()
    try:
      self._process.wait(20)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
