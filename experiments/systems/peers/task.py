"""What all programs train, and how they are asked for steps. Every environment has what this needs.

A program says once what it is, and then makes as many steps as each line of its input asks for: so
all of them wait, ready, and one at a time computes.
"""

from collections.abc import Callable, Mapping
import dataclasses
import json
import resource
import sys
import time
from typing import Any

import numpy as np

VOCABULARY = 256  # Bytes.
ROPE_BASE, NORM_EPS, INIT_STDDEV = 10_000.0, 1e-6, 0.02
LEARNING_RATE, B1, B2, EPS, WEIGHT_DECAY = 1e-3, 0.9, 0.999, 1e-8, 0.1
OUTER_LEARNING_RATE, OUTER_MOMENTUM = 0.7, 0.9  # Nesterov's, as in DiLoCo.


@dataclasses.dataclass(frozen=True)
class Task:
  """A model and its batch.

  Attributes:
    layers: blocks.
    width: of the residual stream; the MLP's is four times as much.
    heads: of attention.
    seq_len: tokens of a sequence.
    sequences: of each worker and step.
    workers: that train apart; 1: plain training, without averages.
    period: steps from one average to the next.
    turn: steps of a turn.
  """

  layers: int
  width: int
  heads: int
  seq_len: int
  sequences: int
  workers: int
  period: int
  turn: int


TASKS = {
  'toy': Task(2, 64, 4, 64, 16, workers=2, period=20, turn=100),
  'larger': Task(4, 256, 4, 256, 4, workers=1, period=0, turn=10),
}
BEGUN_S = time.perf_counter()


def arguments() -> tuple[Task, np.ndarray]:
  """Returns the task and tokens [steps, workers, sequences, seq_len + 1] that a program is given."""
  return TASKS[sys.argv[1]], np.load(sys.argv[2])


def serve(about: Mapping[str, Any], steps: Callable[[int, int], float]) -> None:
  """Answers each line of the input, a number of steps, until it ends.

  Args:
    about: of the program: 'versions', 'compile_s' where something is compiled, and 'payload_bytes'
      of an average.
    steps: (first, count) -> loss of the last of these steps, when all of them are done.
  """
  done = 0
  loss = steps(done, 1)  # What begins at the first step is no part of a turn.
  done += 1
  say({**about, 'start_s': time.perf_counter() - BEGUN_S, 'loss': loss})
  for line in sys.stdin:
    start = time.perf_counter()
    loss = steps(done, int(line))
    seconds = time.perf_counter() - start
    done += int(line)
    memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    say({'seconds': seconds, 'loss': loss, 'memory_bytes': memory})


def say(answer: Mapping[str, Any]) -> None:
  """Prints a line that `Running.listen` knows among what libraries print."""
  print('@' + json.dumps(answer), flush=True)
