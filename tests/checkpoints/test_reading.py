"""Restores read each chunk once and side by side, old checkpoints too."""

import functools
import json
import pathlib

import jax
from jax.sharding import NamedSharding, PartitionSpec as P
import numpy as np
import orbax.checkpoint as ocp
import pytest

from desloc_jax.checkpoints import store
from desloc_jax.checkpoints.leaves import LeafReader
from desloc_jax.checkpoints.parts import hull, overlap
from desloc_jax.checkpoints.store import Checkpoints
from tests.runs import same_bits

VALUES = np.arange(4 * 16 * 8, dtype=np.float32).reshape(4, 16, 8)


@functools.cache
def mesh(*shape):
  devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
  return jax.sharding.Mesh(devices, ('workers', 'fsdp'))


def placed(shape, spec):
  return NamedSharding(mesh(*shape), spec)


def save(folder, handler, sharding):
  arrays = {'x': jax.device_put(VALUES, sharding), 'n': jax.numpy.arange(4)}
  args = {'x': ocp.SaveArgs(shard_axes=(0,)), 'n': ocp.SaveArgs()}
  with ocp.Checkpointer(handler) as checkpointer:
    checkpointer.save(folder, args=ocp.args.PyTreeSave(arrays, save_args=args))
  return folder


@pytest.fixture(scope='module', params=[True, False], ids=['zstd', 'plain'])
def saved(request, tmp_path_factory):
  """A checkpoint with a chunk a worker, as it was written before and is written now."""
  handler = ocp.PyTreeCheckpointHandler(use_compression=request.param)
  folder = tmp_path_factory.mktemp('state') / 'state'
  return save(folder, handler, placed((4, 1), P('workers')))


LAYOUTS = [
  ((1, 1), P()), ((4, 2), P('workers', 'fsdp')), ((2, 4), P('workers', None, 'fsdp')),
  ((1, 8), P(None, 'fsdp')), ((2, 4), P(None, ('workers', 'fsdp'))), ((8, 1), P()),
]  # fmt: skip


@pytest.mark.parametrize('layout', LAYOUTS, ids=str)
def test_each_chunk_is_read_once_for_all_devices(saved, layout):
  reader = LeafReader(saved)
  like = jax.ShapeDtypeStruct(VALUES.shape, np.float32, sharding=placed(*layout))
  array = reader.read('x', like)
  assert same_bits(array, VALUES) and array.sharding == like.sharding
  assert reader._ahead.taken == 4 and reader._ahead.bytes_taken == VALUES.nbytes
  row = jax.ShapeDtypeStruct(VALUES.shape[1:], np.float32, sharding=placed((1, 8), P('fsdp')))
  mean = reader.read_mean('x', [3, 0, 2], row)
  assert same_bits(mean, (VALUES[3] + VALUES[0] + VALUES[2]) / 3)
  assert reader._ahead.taken == 4 + 3
  count = jax.ShapeDtypeStruct((), np.int32, sharding=placed((1, 1), P()))
  assert reader.read_if_same('n', [0, 1], count) == 1  # The largest of 0 and 1.


def test_chunks_of_other_devices_are_not_read(saved):
  """As one of two processes, of which the other has the second half of the workers."""
  half = jax.sharding.Mesh(np.array(jax.devices()[:2]).reshape(2, 1), ('workers', 'fsdp'))
  like = jax.ShapeDtypeStruct(VALUES.shape[1:], np.float32, sharding=NamedSharding(half, P()))
  reader = LeafReader(saved)
  reader.read_mean('x', [1], like)
  assert reader._ahead.bytes_taken == VALUES[1].nbytes


def test_reads_run_side_by_side_within_their_limit(saved, monkeypatch):
  reader = LeafReader(saved, ahead_bytes=2 * VALUES[0].nbytes)
  like = jax.ShapeDtypeStruct(VALUES.shape, np.float32, sharding=placed((4, 1), P('workers')))
  waits = [reader.start('x', like) for _ in range(3)]
  assert reader._ahead.added == 12 and len(reader._ahead._running) == 2
  assert all(same_bits(wait(), VALUES) for wait in waits)
  assert reader._ahead._in_flight == 0 and not reader._ahead._waiting
  narrow = LeafReader(saved, ahead_bytes=1)  # One is read, however large it is.
  assert same_bits(narrow.read('x', like), VALUES)


def test_scalar_arrays(tmp_path):
  arrays = {'one': np.array(7, np.float32), 'row': np.arange(3, dtype=np.int32)}
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False)) as checkpointer:
    checkpointer.save(tmp_path / 'state', args=ocp.args.PyTreeSave(arrays))
  reader = LeafReader(tmp_path / 'state')
  for name, value in arrays.items():
    like = jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=placed((2, 1), P()))
    assert same_bits(reader.read(name, like), value)


def test_large_arrays_are_cut_so_that_none_reads_much_for_others(tmp_path, monkeypatch):
  """Saved by a device a worker, and read as one of two processes that have a worker together."""
  monkeypatch.setattr(store, '_CHUNK_BYTES', VALUES[0].nbytes // 4)
  array = jax.device_put(VALUES, placed((4, 1), P('workers')))
  name = 'optimizer.params.x'
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False)) as checkpointer:
    args = ocp.args.PyTreeSave({name: array}, save_args={name: store.chunks(name, array)})
    checkpointer.save(tmp_path / 'state', args=args)
  reader = LeafReader(tmp_path / 'state')
  assert np.prod(reader._open(name).chunk_layout.read_chunk.shape) == VALUES[0].size // 4
  half = jax.ShapeDtypeStruct(
    VALUES.shape, np.float32, sharding=placed((4, 2), P('workers', 'fsdp'))
  )
  assert same_bits(reader.read(name, half), VALUES)


def test_boxes():
  assert overlap(((0, 4), (2, 6)), ((3, 9), (0, 3))) == ((3, 4), (2, 3))
  assert overlap(((0, 4),), ((4, 5),)) is None and overlap((), ()) == ()
  assert hull([((0, 1), (5, 6)), ((3, 4), (2, 3))]) == ((0, 4), (2, 6))


def test_a_checkpoint_is_not_compressed(after_seven_steps):
  checkpoints = Checkpoints(after_seven_steps / 'checkpoints', 2)
  reader = LeafReader(pathlib.Path(after_seven_steps, 'checkpoints', '7', 'state'))
  for name in checkpoints.leaves(7):
    assert reader._open(name).spec().to_json()['metadata']['compressor'] is None
  assert json.loads((after_seven_steps / 'checkpoints/7/position/metadata').read_text())
