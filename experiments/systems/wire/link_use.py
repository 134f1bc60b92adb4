"""How much of a link is used over time, beside the steps and between them."""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import pathlib
import threading
import time

from matplotlib.figure import Figure

from experiments.systems.wire.network import Network

_EVERY_S = 0.1
_LAST_S = 8.0  # That are kept of a run.
Samples = list[tuple[float, int]]  # Seconds, and bytes sent so far.


@dataclasses.dataclass(frozen=True)
class LinkRow:
  """What the first process sent in a tenth of a second."""

  processes: int
  method: str
  K_x: int
  megabits: float
  second: float
  used_megabits: float


@contextlib.contextmanager
def watched(network: Network) -> Iterator[Samples]:
  """Yields what the first site has sent over time, to which is added while the context lasts."""
  samples, ended = [], threading.Event()

  def sample() -> None:
    while not ended.wait(_EVERY_S):
      samples.append((time.monotonic(), network.sent()[0]))

  thread = threading.Thread(target=sample)
  thread.start()
  try:
    yield samples
  finally:
    ended.set()
    thread.join()


def link_rows(
  processes: int, method: str, period: int, megabits: float, samples: Samples
) -> list[LinkRow]:
  """Returns the last seconds in which something was sent."""
  used = [
    (stop, 8e-6 * (sent - before) / (stop - start))
    for (start, before), (stop, sent) in zip(samples, samples[1:], strict=False)
  ]
  while used and used[-1][1] < megabits / 10:
    used.pop()
  end = used[-1][0] if used else 0.0
  return [
    LinkRow(processes, method, period, megabits, round(at - end + _LAST_S, 3), round(rate, 3))
    for at, rate in used
    if at > end - _LAST_S
  ]


def plot(rows: Sequence[LinkRow], path: pathlib.Path) -> None:
  """Draws a column for each number of processes, and a panel for each method."""
  counts = sorted({row.processes for row in rows})
  methods = list(dict.fromkeys(row.method for row in rows))
  figure = Figure(figsize=(6.2 * len(counts), 1.7 * len(methods) + 0.6), layout='constrained')
  panels = figure.subplots(len(methods), len(counts), squeeze=False, sharex=True)
  for line, method in zip(panels, methods, strict=True):
    for axes, count in zip(line, counts, strict=True):
      here = [row for row in rows if (row.processes, row.method) == (count, method)]
      if not here:
        axes.remove()
        continue
      axes.fill_between(
        [row.second for row in here], [row.used_megabits for row in here], step='pre', alpha=0.7
      )
      axes.axhline(here[0].megabits, color='gray', ls=':')
      axes.set_title(f'{count} processes, {method}, K_x = {here[0].K_x}', fontsize='small')
      axes.set_ylabel('Mbit/s')
  for axes in panels[-1]:
    axes.set_xlabel('seconds')
  figure.savefig(path, dpi=120)
