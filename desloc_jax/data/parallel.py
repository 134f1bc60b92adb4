"""Encoding documents in several processes, in the order they come."""

import collections
from collections.abc import Iterable, Iterator
from concurrent import futures
import contextlib
import functools
import multiprocessing.context
import os
import signal
import threading

from desloc_jax import signals
from desloc_jax.data import encoding
from desloc_jax.data.named_tokenizers import load_tokenizer
from desloc_jax.errors import UserError

_BATCHES_AHEAD = 4  # Per process: keeps every process busy and little text in memory.


def encode_in_processes(
  texts: Iterable[str],
  tokenizer: str,
  end_of_document: str | None,
  validation_fraction: float,
  processes: int,
) -> Iterator[encoding.EncodedDocument]:
  """Yields `encoding.encode_documents` of the texts, in their order whatever `processes` is.

  Args:
    texts: read as far ahead as the processes need, so they may be endless.
    tokenizer: spec of `load_tokenizer`; each process loads its own.
    end_of_document: of `load_tokenizer`.
    validation_fraction: of documents held out.
    processes: at least 1; a single one is this process itself.

  Raises:
    UserError: the system does not let several work together, or has killed one.
  """
  batches = encoding.batch_texts(texts)
  arguments = (tokenizer, end_of_document, validation_fraction)
  if processes == 1:
    for batch in batches:
      yield from _encode(batch, *arguments)
    return
  try:
    with _deaf_children():
      pool = futures.ProcessPoolExecutor(processes, _Context(), initializer=_start_process)
  except OSError as error:  # A system without /dev/shm.
    raise UserError(
      f'processes cannot share memory here ({error.strerror}); --processes=1 needs none.'
    ) from error
  try:
    pending = collections.deque()
    for batch in batches:
      with _deaf_children():
        pending.append(pool.submit(_encode, batch, *arguments))
      if len(pending) >= processes * _BATCHES_AHEAD:
        yield from pending.popleft().result()
    while pending:
      yield from pending.popleft().result()
  except futures.process.BrokenProcessPool as error:
    raise UserError(
      'a process that tokenises was killed, by the system perhaps for want of memory; the same '
      f'command goes on, with less memory where --processes is below {processes}.'
    ) from error
  finally:
    pool.shutdown(cancel_futures=True)


def _encode(
  texts: list[str], tokenizer: str, end_of_document: str | None, validation_fraction: float
) -> list[encoding.EncodedDocument]:
  loaded = _load_once(tokenizer, end_of_document)
  return encoding.encode_documents(texts, loaded, validation_fraction)


_load_once = functools.cache(load_tokenizer)


class _Process(multiprocessing.context.SpawnProcess):
  def terminate(self) -> None:
    self.kill()  # It is deaf to SIGTERM.


class _Context(multiprocessing.context.SpawnContext):
  Process = _Process


@contextlib.contextmanager
def _deaf_children() -> Iterator[None]:
  """Has processes that begin in the block not hear the signals that end this one, and them with it.

  Of a signal to all, each would tell in a page; and one that goes as it writes what it has made leaves
  this one waiting for the rest.
  """
  before = signal.pthread_sigmask(signal.SIG_BLOCK, signals.ENDING)
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_process() -> None:
  os.environ['TOKENIZERS_PARALLELISM'] = 'false'  # The processes are the parallelism.
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  """Ends this process when its parent is killed, or it would wait for work for ever."""
  multiprocessing.parent_process().join()
  os._exit(1)
