"""Reads collectives out of compiled HLO: which devices take part, and whether on a condition.

The ledger sees what was written; this sees what XLA made of it, including what it added by itself.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import math
import re

import numpy as np

from desloc_jax.programs import hlo_loops
from desloc_jax.programs.hlo_loops import Computations
from desloc_jax.programs.ledger import sync_name

OPCODES = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
  'collective-broadcast',
  'ragged-all-to-all',
)
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_COLLECTIVE = re.compile(rf'= (.*?) ({"|".join(OPCODES)})(-start)?\(')
_TYPE = re.compile(r'= (.*?) [a-z][\w\-]*\(')
# A type, its shape, and the bits of an element where its layout packs them.
_ARRAY = re.compile(r'(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\](?:\{[^}]*E\((\d+)\)[^}]*\})?')
# Computations of XLA for TPU: an all-reduce of which each device keeps a part, and the loops that
# pass weights or sums around a ring of devices, a matmul at each of them.
_REDUCE_SCATTER = 'all-reduce-scatter'
_RING = re.compile(r'windowed_dot_general_body_(ag|rs)')
# Between slices the hosts exchange what the chips send them: the program is of one slice, and these
# attributes name the slices and the range of the devices of each.
_BETWEEN_SLICES = re.compile(
  r'= \((\S+), .* send\(.*_xla_megascale_target="\{([\d,]+)\}x\{(\d+):(\d+)\}"'
  r'.*_xla_megascale_transfer_type="(\w+)"'
)
_RING_OPCODES = {'ag': 'all-gather', 'rs': 'reduce-scatter'}


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective instruction.

  Attributes:
    opcode: 'all-reduce', 'all-gather', ...
    result_bytes: of its result on one device.
    groups: ids of the devices that exchange data with each other.
    conditional: whether it is only reached through a branch of a conditional.
    times: how often a step runs it, if the branches that it is in are taken; None: in a loop whose
      number of trips cannot be read.
    ring: what a 'collective-permute' is a piece of, 'all-gather' or 'reduce-scatter', where XLA has
      cut one into the steps of a matmul.
    source: the name of the operation that it comes from.
  """

  opcode: str
  result_bytes: int
  groups: tuple[tuple[int, ...], ...]
  conditional: bool
  times: int | None = 1
  ring: str | None = None
  source: str = dataclasses.field(default='', compare=False)

  @property
  def sent_bytes(self) -> float:
    """Bytes that a device sends each time, where the devices of a group form a ring."""
    devices = max(map(len, self.groups), default=1)
    if self.opcode == 'reduce-scatter':  # The result is one of as many parts.
      return self.result_bytes * (devices - 1)
    passes = {'all-reduce': 2, 'all-gather': 1, 'all-to-all': 1, 'ragged-all-to-all': 1}
    if self.opcode not in passes:
      return self.result_bytes
    return passes[self.opcode] * self.result_bytes * (devices - 1) / devices

  @property
  def payload_bytes(self) -> int:
    """Bytes of its operand on one device: what that contributes."""
    devices = max(map(len, self.groups), default=1)
    if self.opcode == 'all-gather':
      return self.result_bytes // devices
    return self.result_bytes * (devices if self.opcode == 'reduce-scatter' else 1)

  def crosses(self, worker_of_device: Sequence[int]) -> bool:
    """Returns whether devices of different workers exchange data."""
    return any(len({worker_of_device[device] for device in group}) > 1 for group in self.groups)


def read_collectives(hlo_text: str) -> list[Collective]:
  """Returns the collectives of a compiled program, from `compiled.as_text()`."""
  computations, entry = _split(hlo_text)
  unconditional = hlo_loops.reachable(computations, entry)
  times = hlo_loops.times_of(computations, entry)
  rings = _ring_sources(computations)
  device_count = _device_count(hlo_text)
  found = []
  for name, lines in computations.items():
    # Of a chain of pieces the one that starts it counts.
    piece = not any('"AsyncCollectiveStart"' in line for line in lines)
    for line in lines:
      if not (read := _read(line, name, lines, device_count)) or piece and 'chain_id=' in line:
        continue
      opcode, size, groups = read
      ring = _ring_of(line, name, lines, rings) if opcode == 'collective-permute' else None
      conditional = name not in unconditional
      found.append(
        Collective(opcode, size, groups, conditional, times.get(name), ring, _source(line))
      )
  return found


def sync_bytes(
  collectives: Iterable[Collective], worker_of_device: Sequence[int]
) -> dict[str, int]:
  """Returns the payload bytes of a device in one sync of each quantity, as they were compiled."""
  found: dict[str, int] = {}
  for collective in collectives:
    name = sync_name(collective.source)
    if name is not None and collective.crosses(worker_of_device):
      size = collective.payload_bytes * (collective.times or 1)
      found[name] = found.get(name, 0) + size
  return found


def _read(
  line: str, name: str, lines: list[str], device_count: int
) -> tuple[str, int, tuple[tuple[int, ...], ...]] | None:
  """Returns opcode, result bytes and groups of an instruction, None if it is no collective."""
  if match := _BETWEEN_SLICES.search(line):
    opcode = match[5].lower().replace('_', '-')
    return opcode, _bytes(match[1]), _groups_of_slices(match, device_count)
  match = _COLLECTIVE.search(line)
  if not match:
    return None
  result, opcode, start = match.groups()
  if start and opcode != 'all-reduce':
    result = _result_of_start(result)
  if opcode == 'all-reduce' and name.startswith(_REDUCE_SCATTER):
    opcode, result = 'reduce-scatter', _TYPE.search(hlo_loops.root(lines))[1]
  return opcode, _bytes(result), _groups(line, device_count)


def _result_of_start(types: str) -> str:
  """Returns the result of what `-start` returns: operands, results and what it keeps to itself."""
  parts, depth = [''], 0
  for character in types.strip()[1:-1] if types.startswith('(') else types:
    depth += (character in '([{') - (character in ')]}')
    if character == ',' and not depth:
      parts.append('')
    else:
      parts[-1] += character
  return parts[1] if len(parts) > 1 else types


def _source(line: str) -> str:
  match = re.search(r'op_name="([^"]*)"', line)
  return match[1] if match else ''


def _ring_sources(computations: Computations) -> dict[str, set[str]]:
  """Returns by source of a matmul in a ring what its rings do, 'ag' or 'rs'."""
  sources: dict[str, set[str]] = {}
  for lines in computations.values():
    for line in lines:
      if hlo_loops.is_loop(line) and (ring := _RING.search(line)):
        sources.setdefault(_source(line), set()).add(ring[1])
  return sources


def _ring_of(line: str, name: str, lines: list[str], rings: dict[str, set[str]]) -> str | None:
  if ring := _RING.search(name):
    return _RING_OPCODES[ring[1]]
  # Before a ring of an all-gather comes its first permute, after one of a reduce-scatter its last.
  kinds = rings.get(_source(line), set())
  if len(kinds) == 2:
    operand = re.search(r'collective-permute(?:-start)?\((%[\w.\-]+)', line)
    taken = operand and any(
      x.startswith(f'{operand[1]} = ') and ' get-tuple-element(' in x for x in lines
    )
    kinds = {'rs' if taken else 'ag'}
  return _RING_OPCODES[next(iter(kinds))] if kinds else None


def _split(hlo_text: str) -> tuple[dict[str, list[str]], str]:
  computations, entry, name = {}, '', ''
  for line in hlo_text.splitlines():
    if header := _COMPUTATION.match(line):
      name = header.group(2)
      computations[name] = []
      if header.group(1):
        entry = name
    elif name:
      computations[name].append(line.strip())
  return computations, entry


def _bytes(types: str) -> int:
  return sum(
    math.ceil(
      math.prod(int(n) for n in shape.split(',') if n) * int(packed or max(8, int(bits or 8))) / 8
    )
    for bits, shape, packed in _ARRAY.findall(types)
  )


def _device_count(hlo_text: str) -> int:
  header = hlo_text.splitlines()[0]
  counts = [int(n) for n in re.findall(r'(?:num_partitions|replica_count)=(\d+)', header)]
  return math.prod(counts) if counts else 1


def _groups_of_slices(match: re.Match, device_count: int) -> tuple[tuple[int, ...], ...]:
  """Returns groups of the same device of each slice, counted through slice after slice."""
  first, last = int(match[3]), int(match[4])
  slices = range(len(match[2].split(',')))
  return tuple(tuple(s * device_count + i for s in slices) for i in range(first, last + 1))


def _groups(line: str, device_count: int) -> tuple[tuple[int, ...], ...]:
  """Parses the four forms that XLA prints: explicit lists, pairs, iota tiles and mesh axes."""
  if match := re.search(r'(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}', line):
    return tuple(
      tuple(int(n) for n in group.split(','))
      for group in re.findall(r'\{([\d,]+)\}', match.group(1))
    )
  if match := re.search(r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', line):
    tile, dims, order = (tuple(map(int, g.split(','))) if g else None for g in match.groups())
    devices = np.arange(math.prod(dims)).reshape(dims).transpose(order).reshape(tile)
    return tuple(map(tuple, devices.tolist()))
  if match := re.search(r'replica_groups=mesh\[(.*?)\](?: \{(.*?)\})', line):
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", match.group(1))}
    reduced = re.findall(r"'(\w+)'", match.group(2))
    names = list(sizes)
    kept = [i for i, name in enumerate(names) if name not in reduced]
    moved = [names.index(name) for name in reduced]
    devices = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
    devices = devices.transpose(kept + moved).reshape(-1, math.prod(sizes[n] for n in reduced))
    return tuple(map(tuple, devices.tolist()))
  return (tuple(range(device_count)),)
