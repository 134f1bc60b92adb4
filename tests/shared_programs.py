"""Tests of one process that train the same program compile it once, and only if a step is made."""

import collections
from concurrent import futures
import copy
import functools
import json

from desloc_jax.checkpoints.segment import Clock, Segment
from desloc_jax.options.values import flatten
from desloc_jax.train import job as job_lib

# What no program depends on. It is taken out: who reads it all the same finds nothing there.
APART = (
  'stop_at', 'log_every', 'log', 'init', 'data', 'eval', 'checkpoint', 'restore', 'processes', 'compilation', 'profile',
  'topology', 'plan',
)  # fmt: skip
_MOST = 16  # Programs kept: each has some MB.


class SharedPrograms:
  """Stands between `make_job` and what it compiles."""

  def __init__(self, patch):
    self._make, self._compile = job_lib.make_program, job_lib.compile_program
    self._kept = collections.OrderedDict()
    self._key = None
    patch.setattr(job_lib, 'make_program', self.make_program)
    patch.setattr(job_lib, 'compile_program', self.compile_program)

  def stand_aside(self, patch):
    patch.setattr(job_lib, 'make_program', self._make)
    patch.setattr(job_lib, 'compile_program', self._compile)

  def make_program(self, config, vocab_size, clock, mesh, document_end):
    """Is always made, for what it refuses and warns of; its step is not traced by that."""
    self._key = key_of(config, vocab_size, clock, mesh, document_end)
    return self._make(without(config), vocab_size, schedule_of(clock), mesh, document_end)

  def compile_program(self, program):
    if self._key not in self._kept:
      ledger = job_lib.ledger_of(program)
      self._kept[self._key] = program, ledger, Later(job_lib.compile_and_check, program, ledger)
      if len(self._kept) > _MOST:
        self._kept.popitem(last=False)
    self._kept.move_to_end(self._key)
    return self._kept[self._key]


class Later(futures.Future):
  """What is computed when it is asked for."""

  def __init__(self, compute, *args):
    super().__init__()
    self._compute = functools.partial(compute, *args)

  def result(self, timeout=None):
    if not self.done():
      self.set_result(self._compute())
    return super().result(timeout)


def key_of(config, vocab_size, clock, mesh, document_end):
  """Returns what a program depends on, the arguments of `make_program`."""
  options = json.dumps(flatten(without(config)))
  return options, vocab_size, repr(schedule_of(clock)), mesh, document_end


def schedule_of(clock):
  """Returns a clock of the same schedule, with nothing else of its segment."""
  step, progress = clock.segment.step, clock.segment.progress
  if clock.rate == 1 and progress == step:
    step, progress = 0, 0.0
  return Clock(Segment(step=step, progress=progress), clock.batch, clock.rate, clock.steps)


def without(config):
  """Returns a copy of a config without the options that a program does not depend on."""
  config = copy.deepcopy(config).unlock()
  for name in APART:
    del config[name]
  return config.lock()
