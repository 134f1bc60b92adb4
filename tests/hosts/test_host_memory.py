"""What a step frees is there for the next one, without page faults."""

import fnmatch
import platform
import subprocess
import sys
import types

import pytest

from desloc_jax.hosts import host_memory
from tests.environment import environment

# Frees blocks at the end of the heap in the order in which glibc gives them back to the kernel.
FAULTS = """
import resource, sys, threading
import numpy as np
import desloc_jax.train.loop  # A library whose import begins a thread would give it a heap.
from desloc_jax.hosts import host_memory
if sys.argv[1] == 'keep':
  assert host_memory.keep_freed_memory()
def blocks():
  blocks = [np.ones(size << 17) for size in (1, 5, 20, 20, 100)]  # MiB
  while blocks:
    blocks.pop()
def step():  # In a thread, as XLA allocates.
  thread = threading.Thread(target=blocks)
  thread.start()
  thread.join()
for _ in range(4):
  step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
  step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 5)
"""


def faults(mode):
  command = [sys.executable, '-c', FAULTS, mode]
  # Huge pages would be few faults.
  settings = environment(NUMPY_MADVISE_HUGEPAGE='0')
  return int(subprocess.run(command, capture_output=True, check=True, env=settings).stdout)


def test_a_step_that_frees_its_blocks_has_pages_for_the_next():
  if platform.libc_ver()[0] != 'glibc':
    pytest.skip('the C library is not glibc')
  assert 10 * faults('keep') < faults('default')


def test_other_c_libraries_are_left_alone(monkeypatch):
  monkeypatch.setattr(host_memory.ctypes, 'CDLL', lambda name: object())
  assert not host_memory.keep_freed_memory()


@pytest.mark.parametrize(
  'platforms, nodes, kept',
  [
    (None, [], True),
    (None, ['/dev/nvidia0'], False),
    ('cpu', ['/dev/nvidia0'], True),
    ('tpu,cpu', [], False),
  ],
)
def test_processes_with_an_accelerator_are_left_alone(monkeypatch, platforms, nodes, kept):
  changed = []
  library = lambda name: types.SimpleNamespace(mallopt=lambda *what: changed.append(what) or 1)
  monkeypatch.setattr(host_memory.ctypes, 'CDLL', library)
  monkeypatch.setattr(host_memory.glob, 'glob', lambda path: fnmatch.filter(nodes, path))
  monkeypatch.setattr(host_memory.jax, 'config', types.SimpleNamespace(jax_platforms=platforms))
  assert host_memory.keep_freed_memory() == bool(changed) == kept
