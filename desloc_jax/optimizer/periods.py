"""Sync periods: checking them, and choosing them by the paper's rule or from half-lives."""

from collections.abc import Callable, Mapping
import math
import operator

# A number of steps, a schedule of it (step -> steps, as optax schedules are), or None for never.
Period = int | Callable | None
Periods = Mapping[str, Period]

# K_u = 3 K_x and K_v = 6 K_x: section "recommended periods" of arXiv:2505.22549.
PAPER_MULTIPLES = {'mu': 3, 'nu': 6}


def check_periods(periods: Periods) -> dict[str, Period]:
  """Returns `periods` with plain integers, schedules and None.

  Raises:
    ValueError: a period is neither None, nor a schedule, nor a whole number of steps >= 1, or
      `'params'` is missing.
  """
  checked = {}
  for name, period in periods.items():
    checked[name] = period if period is None or callable(period) else _whole_steps(name, period)
  if 'params' not in checked:
    raise ValueError(
      f"periods must say how often 'params' is averaged (a number of steps, or None for never); "
      f'got only {sorted(checked)}.'
    )
  return checked


def _whole_steps(name: str, period) -> int:
  try:
    steps = None if isinstance(period, bool) else operator.index(period)
  except TypeError:
    steps = None
  if steps is None or steps < 1:
    raise ValueError(
      f'periods[{name!r}] is {period!r}; expected a whole number of steps >= 1, or None for never.'
    )
  return steps


def half_life(decay: float) -> float:
  r"""Returns the half-life, in steps, of an exponential moving average: ln(0.5) / ln(decay).

  Raises:
    ValueError: `decay` is not in [0, 1).
  """
  if not 0 <= decay < 1:
    raise ValueError(f'a decay must be in [0, 1), got {decay!r}.')
  return 0.0 if decay == 0 else math.log(0.5) / math.log(decay)


def periods_from_half_lives(
  params: int, decays: Mapping[str, float] | None = None
) -> dict[str, int | None]:
  """Returns sync periods for a parameter period and the decay of each moment.

  Without `decays` it is the paper's rule: `mu` every 3 and `nu` every 6 parameter syncs. With them,
  a moment is averaged once per half-life, rounded to a whole number of parameter syncs so that
  syncs coincide, and never more often than the parameters (whose noise it would then follow).

  Args:
    params: steps between parameter syncs (K_x), chosen from the bandwidth.
    decays: decay rate of each state field, e.g. `{'mu': 0.95, 'nu': 0.9999}` for Adam's b1 and b2.

  Returns:
    Steps between syncs, by state field name, for `desloc`'s `periods`.

  Raises:
    ValueError: `params` is no whole number >= 1, or a decay is not in [0, 1).

  Example:
    >>> periods_from_half_lives(256)
    {'params': 256, 'mu': 768, 'nu': 1536}
    >>> periods_from_half_lives(64, {'mu': 0.95, 'nu': 0.999})
    {'params': 64, 'mu': 64, 'nu': 704}
  """
  params = _whole_steps('params', params)
  if decays is None:
    multiples = PAPER_MULTIPLES
  else:
    multiples = {name: max(1, round(half_life(b) / params)) for name, b in decays.items()}
  return {'params': params} | {name: multiple * params for name, multiple in multiples.items()}
