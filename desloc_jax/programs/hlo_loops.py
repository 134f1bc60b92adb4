"""How often a step runs each computation of a compiled program, read off its text.

XLA for CPU and GPU notes the trip count of a loop beside it; for TPU it does not, and the count is
that of a counter which the condition compares with a constant.
"""

from collections.abc import Iterator, Mapping
import re

Computations = Mapping[str, list[str]]  # Instructions, one a line, by name of the computation.

_BRANCHES = re.compile(
  r'(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=(%?[\w.\-]+))'
)
_CALLS = re.compile(
  r'\b(?:to_apply|calls|body|condition|called_computations)=(?:\{([^}]*)\}|(%?[\w.\-]+))'
)
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


def times_of(computations: Computations, entry: str) -> dict[str, int | None]:
  """Returns how often each computation runs in a step, by name.

  Branches of conditionals count as if they were taken, and what several instructions call as often
  as the one that calls it most (XLA copies what two loops call). None: in a loop whose number of
  trips cannot be read.
  """
  times: dict[str, int | None] = {entry: 1}
  waiting = [entry]
  while waiting:
    name = waiting.pop()
    for line in computations.get(name, ()):
      trips = trip_count(line, computations, name) if is_loop(line) else 1
      runs = None if trips is None or times[name] is None else trips * times[name]
      for callee in (*calls(line), *branches(line)):
        if callee not in times or _more(runs, times[callee]):
          times[callee] = runs
          waiting.append(callee)
  return times


def reachable(computations: Computations, entry: str) -> set[str]:
  """Returns the computations reached from `entry` without going through a branch."""
  seen, waiting = set(), [entry]
  while waiting:
    name = waiting.pop()
    if name not in seen:
      seen.add(name)
      waiting.extend(callee for line in computations.get(name, ()) for callee in calls(line))
  return seen


def calls(line: str) -> Iterator[str]:
  """Yields the computations that an instruction calls in any case."""
  yield from _names(_CALLS, line)


def branches(line: str) -> Iterator[str]:
  """Yields the computations that an instruction may call."""
  yield from _names(_BRANCHES, line)


def is_loop(line: str) -> bool:
  """Whether an instruction is a loop."""
  return ' while(' in line


def trip_count(line: str, computations: Computations, name: str) -> int | None:
  """Returns the trips of the loop `line` of the computation `name`, None if they cannot be read."""
  if match := _KNOWN_TRIPS.search(line):
    return int(match[1])
  parts = {key: re.search(rf'{key}=%?([\w.\-]+)', line) for key in ('condition', 'body')}
  condition, body = (computations.get(part[1], []) if part else [] for part in parts.values())
  test = re.search(r' compare\(([^,]+), ([^)]+)\), direction=LT', root(condition))
  if not test:
    return None
  index = re.search(r'get-tuple-element\(.*index=(\d+)', _definition(condition, test[1]))
  limit = _constant(condition, test[2])
  if not index or limit is None:
    return None
  counter = int(index[1])
  initial = _element(_definition(computations[name], _operands(line)[0]), counter)
  begin = _constant(computations[name], initial)
  added = _operands(_definition(body, _element(root(body), counter)))
  steps = [_constant(body, operand) for operand in added]
  step = next((step for step in steps if step), None)
  if begin is None or step is None:
    return None
  return max(0, -(-(limit - begin) // step))


def _names(pattern: re.Pattern, line: str) -> Iterator[str]:
  for match in pattern.finditer(line):
    yield from (name.strip().lstrip('%') for name in (match[1] or match[2] or '').split(','))


def _more(runs: int | None, than: int | None) -> bool:
  return than is not None and (runs is None or runs > than)


def root(lines: list[str]) -> str:
  """Returns the instruction whose result is that of a computation, empty if there is none."""
  return next((line for line in lines if line.startswith('ROOT ')), '')


def _definition(lines: list[str], name: str) -> str:
  """Returns the instruction called `name`, empty if there is none."""
  name = name.strip().split(' ')[-1].lstrip('%')
  starts = tuple(f'{root}{sign}{name} = ' for root in ('', 'ROOT ') for sign in ('%', ''))
  return next((line for line in lines if line.startswith(starts)), '')


def _operands(line: str) -> list[str]:
  match = re.search(r' [a-z][\w\-]*\(((?:[^()]|\([^()]*\))*)\)', line.partition(' = ')[2])
  text = re.sub(r'/\*.*?\*/', '', match[1]) if match else ''
  return [operand.strip() for operand in text.split(', ')]


def _element(line: str, index: int) -> str:
  """Returns the operand `index` of a tuple, empty if `line` is none."""
  operands = _operands(line) if ' tuple(' in line else []
  return operands[index] if index < len(operands) else ''


def _constant(lines: list[str], name: str) -> int | None:
  """Returns the value of a constant whole number, through copies of it, None if it is none."""
  line = _definition(lines, name) if name else ''
  if match := re.search(r' constant\((-?\d+)\)', line):
    return int(match[1])
  if re.search(r' (?:copy|bitcast|convert)\(', line):
    return _constant(lines, _operands(line)[0])
  return None
