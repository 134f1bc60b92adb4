"""How fast the moments move: relative change of u and v over K steps against their half-lives.

  python -m experiments.paper.half_lives

A moment with decay b has a half-life of ln(0.5) / ln(b) steps. The paper measures
||s(t+K) - s(t)|| / ||s(t)||: at b2 = 0.9999 the second moment moves about 100 times slower than the
first. Here they are the moments of DDP with ADOPT, which no average between workers disturbs, in
checkpoints from the end of a run, before its learning rate decays.
"""

from collections.abc import Sequence
import math
import pathlib
import sys

import jax
import numpy as np

from desloc_jax.checkpoints.store import Checkpoints
from desloc_jax.logs.workdir import CHECKPOINTS
from experiments import command, plots
from experiments.report import Check, grouped, mean_spread, Report, rows_of
from experiments.runs import Result, Run
from experiments.scales import Scale

B1, B2 = 0.95, (0.95, 0.99, 0.999, 0.9999)
MOMENTS = {'mu': 'u', 'nu': 'v'}
LOOKS = 32  # Checkpoints in the window.
LONGEST = 128  # Steps of the window, at most a quarter of the run.


def runs(scale: Scale) -> list[Run]:
  """Returns, for each b2 and seed, a window of steps after a run without checkpoints."""
  config = scale.config
  every = max(1, min(LONGEST, config.steps // 4) // LOOKS)
  # Checkpoints come at multiples of `every`.
  end = int(config.steps * (1 - config.schedule.decay_fraction)) // every * every
  window = min(LONGEST, config.steps // 4) // every * every
  found = []
  for b2 in B2:
    options = {'method': 'ddp', 'inner.name': 'adopt', 'inner.b1': B1, 'inner.b2': b2}
    first = {**options, 'stop_at': end - window, 'checkpoint.every': 0, 'checkpoint.keep': 1}
    last = {**options, 'stop_at': end, 'checkpoint.every': every, 'checkpoint.keep': window + 1}
    before = scale.runs({f'b2 = {b2}': first}, keep_checkpoints=True)
    found += scale.runs({f'b2 = {b2}': last}, after=before, measure=measure)
  return found


def measure(workdir: pathlib.Path) -> dict[str, dict[int, float]]:
  """Returns the relative change of each moment by the number of steps, mean over the window.

  Only one array of the model is in memory at a time, of all checkpoints.
  """
  checkpoints = Checkpoints(workdir / CHECKPOINTS, keep=1)
  steps = sorted(checkpoints.steps())  # At the same distance each.
  like = checkpoints.leaves(steps[-1])
  changes = {}
  for moment in MOMENTS:
    squares, sizes = np.zeros((len(steps), len(steps))), np.zeros(len(steps))
    for name in (name for name in like if f'.{moment}.' in name):
      values = [_read(checkpoints, step, name, like[name]) for step in steps]
      sizes += [np.sum(value**2) for value in values]
      squares += [[np.sum((later - value) ** 2) for later in values] for value in values]
    relative = np.sqrt(squares / sizes[:, np.newaxis])
    changes[moment] = {
      later - steps[0]: float(np.mean(np.diagonal(relative, offset)))
      for offset, later in enumerate(steps)
      if offset
    }
  checkpoints.close()
  return changes


def _read(checkpoints: Checkpoints, step: int, name: str, like: jax.ShapeDtypeStruct) -> np.ndarray:
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  like = jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=here)
  with checkpoints.reader(step) as reader:
    return np.asarray(reader.read(name, like), np.float64).ravel()


def report(results: Sequence[Result], scale: Scale) -> Report:
  """Returns the rates of change and where they lie beside the half-lives."""
  groups = grouped(results)
  figure, panels = plots.panels(
    2, f'Relative change of the moments of ADOPT, b1 = {B1}: mean of {scale.seeds} seeds', sharey=True
  )  # fmt: skip
  for panel, (moment, letter) in zip(panels, MOMENTS.items(), strict=True):
    for b2, (name, group) in zip(B2, groups.items(), strict=True):
      steps = _steps(group[0])
      means = np.mean([[_change(r, moment, k) for k in steps] for r in group], axis=0)
      (line,) = panel.plot(steps, means, label=name)
      half = half_life(B1 if moment == 'mu' else b2)
      if half <= steps[-1]:
        panel.axvline(half, color='gray' if moment == 'mu' else line.get_color(), ls=':')
    panel.set(xscale='log', yscale='log', xlabel='K (steps); dotted: half-lives of the moment')
    panel.set_title(f'{letter}: {"first" if letter == "u" else "second"} moment')
    panel.legend(fontsize='small')
  panels[0].set_ylabel('||s(t+K) - s(t)|| / ||s(t)||')
  near, longest = _nearest_half_life(results), _steps(results[0])[-1]
  table = [
    ('b2', 'half-life of v', f'change of u over {near}', f'of v over {near}', f'u / v over {near}',
     f'u / v over {longest}')
  ]  # fmt: skip
  for b2, group in zip(B2, groups.values(), strict=True):
    changes = [mean_spread([_change(r, moment, near) for r in group]) for moment in MOMENTS]
    ratios = [mean_spread([_ratio(r, k) for r in group], 1) for k in (near, longest)]
    table.append((f'{b2}', f'{half_life(b2):.0f}', *changes, *ratios))
  slowest = groups[f'b2 = {B2[-1]}']
  checks = [
    Check(
      f'at b2 = {B2[-1]} v moves at least 30x slower than u over {longest} steps',
      [_ratio(r, longest) for r in slowest],
      at_least=30,
      unit='x',
      paper='about 100x',
    ),
    Check(
      'u has moved half of its way (its squared change half of its plateau) within its half-life',
      [half_way(r) / half_life(B1) for r in slowest],
      at_most=1,
      unit=' half-lives',
    ),
  ]
  notes = [
    f'The half-life of u is {half_life(B1):.1f} steps. If gradients were independent noise, it would '
    'have moved half of its way in just that. v moves in proportion to K, so that the ratio depends '
    'on K; the paper does not say which K its 100x is of.'
  ]
  title = 'Moments move at the pace of their half-lives'
  return Report(title, rows_of(results), table, checks, figure, notes)


def half_life(decay: float) -> float:
  """Returns the steps in which a moment loses half of what it held."""
  return math.log(0.5) / math.log(decay)


def half_way(result: Result) -> float:
  """Returns the K at which the squared change of u reaches half of what it ends at."""
  steps = _steps(result)
  squares = np.maximum.accumulate([_change(result, 'mu', k) ** 2 for k in steps])
  return float(np.interp(squares[-1] / 2, squares, steps))


def _steps(result: Result) -> list[int]:
  return sorted(map(int, result.summary['measured']['mu']))


def _change(result: Result, moment: str, steps: int) -> float:
  return result.summary['measured'][moment][str(steps)]


def _ratio(result: Result, steps: int) -> float:
  return _change(result, 'mu', steps) / _change(result, 'nu', steps)


def _nearest_half_life(results: Sequence[Result]) -> int:
  return min(_steps(results[0]), key=lambda k: abs(k - half_life(B1)))


if __name__ == '__main__':
  command.main(sys.modules[__name__])
