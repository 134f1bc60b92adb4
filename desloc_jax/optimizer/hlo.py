"""Reads collectives out of compiled HLO: which devices take part, and whether on a condition.

The ledger sees what was written; this sees what XLA made of it, including what it added by itself.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import math
import re

import numpy as np

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
_BRANCHES = re.compile(
  r'(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=(%?[\w.\-]+))'
)
_CALLS = re.compile(
  r'(?:to_apply|calls|body|condition|called_computations)=\{?((?:%?[\w.\-]+(?:, )?)+)'
)
_ARRAY = re.compile(r'(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective instruction.

  Attributes:
    opcode: 'all-reduce', 'all-gather', ...
    result_bytes: of its result on one device.
    groups: ids of the devices that exchange data with each other.
    conditional: whether it is only reached through a branch of a conditional.
  """

  opcode: str
  result_bytes: int
  groups: tuple[tuple[int, ...], ...]
  conditional: bool

  def crosses(self, worker_of_device: Sequence[int]) -> bool:
    """Returns whether devices of different workers exchange data."""
    return any(len({worker_of_device[device] for device in group}) > 1 for group in self.groups)


def read_collectives(hlo_text: str) -> list[Collective]:
  """Returns the collectives of a compiled program, from `compiled.as_text()`."""
  computations, entry = _split(hlo_text)
  unconditional = _reachable(computations, entry)
  device_count = _device_count(hlo_text)
  found = []
  for name, lines in computations.items():
    for line in lines:
      if match := _COLLECTIVE.search(line):
        found.append(
          Collective(
            match.group(2),
            _bytes(match.group(1)),
            _groups(line, device_count),
            name not in unconditional,
          )
        )
  return found


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


def _reachable(computations: dict[str, list[str]], entry: str) -> set[str]:
  """Returns the computations reached from `entry` without going through a branch."""
  seen, waiting = set(), [entry]
  while waiting:
    name = waiting.pop()
    if name not in seen:
      seen.add(name)
      waiting.extend(callee for line in computations.get(name, ()) for callee in _calls(line))
  return seen


def _calls(line: str) -> Iterator[str]:
  for match in _CALLS.finditer(_BRANCHES.sub('', line)):
    yield from (name.strip().lstrip('%') for name in match.group(1).split(','))


def _bytes(types: str) -> int:
  return sum(
    math.prod(int(n) for n in shape.split(',') if n) * max(1, int(bits or 8) // 8)
    for _, bits, shape in _ARRAY.findall(types)
  )


def _device_count(hlo_text: str) -> int:
  header = hlo_text.splitlines()[0]
  counts = [int(n) for n in re.findall(r'(?:num_partitions|replica_count)=(\d+)', header)]
  return math.prod(counts) if counts else 1


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
