"""The paper's toy: 256 workers on the Rosenbrock function with gradient noise (K_v = 692).

  python -m experiments.paper.toy

f(a, b) = (1 - a)^2 + 100 (b - a^2)^2, noise N(0, 1.5^2) on each worker's gradient, K_x = K_u = 192,
K_v = 692, as in arXiv:2505.22549. The paper prints neither the inner optimizer's numbers nor the start.
Our reading: 192 and 692 are the half-lives of b1 = 0.9964 and b2 = 0.999, and Adam's moments have no
bias correction; with a rate of 0.7 everything that the caption says is so. Beside it a map of other
decays and rates.

What counts is the distance of the consensus from the optimum (1, 1), averaged over the last fifth of
the steps. The toy is the same at all scales, but for `test`, and has ten seeds, the map three.
"""

from collections.abc import Mapping, Sequence
import functools
import itertools
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np
import optax

from desloc_jax import WORKER_AXES
from desloc_jax.optimizer.methods import make_method
from experiments import command, plots
from experiments.report import Check, mean_spread, Report
from experiments.runs import Result, Run
from experiments.scales import Scale

WORKERS, NOISE, START = 256, 1.5, (0.0, 0.0)
READING = (0.7, 0.9964, 0.999)  # Rate, b1, b2.
RATES, DECAYS = (0.01, 0.1, 0.7), tuple(itertools.product((0.9, 0.9964), (0.95, 0.999, 0.9999)))
PERIODS = {
  'desloc': {'params': 192, 'mu': 192, 'nu': 692},
  'local_adam': {'params': 192, 'mu': 192, 'nu': 192},
  'favg_opt': {'params': 192, 'mu': None, 'nu': None},
  'favg_reset': {'params': 192, 'mu': None, 'nu': None},
}
ROUND, SEEDS, MAP_SEEDS = 192, 10, 3
STEPS, TEST_STEPS = 15_000, 400
NEAR = 1.1  # Times DES-LOC's distance: the curves overlap.


class Moments(NamedTuple):
  """Those of Adam."""

  mu: optax.Params
  nu: optax.Params


def rosenbrock(point: jax.Array) -> jax.Array:
  """Returns f at a point [2]; its least value is 0 at (1, 1)."""
  a, b = point
  return (1 - a) ** 2 + 100 * (b - a**2) ** 2


def uncorrected_adam(rate, b1, b2) -> optax.GradientTransformation:
  """Returns Adam without bias correction, which optax has not, of an array."""

  def update(grads, state, params=None):
    del params
    mu = b1 * state.mu + (1 - b1) * grads
    nu = b2 * state.nu + (1 - b2) * grads**2
    return -rate * mu / (jnp.sqrt(nu) + 1e-8), Moments(mu, nu)

  return optax.GradientTransformation(lambda x: Moments(*[jnp.zeros_like(x)] * 2), update)


@functools.partial(jax.jit, static_argnames=('method', 'steps'))
def distances(method: str, steps: int, setting: jax.Array, key: jax.Array) -> jax.Array:
  """Returns the consensus' distance from the optimum after each step, float32 [steps].

  `setting` is rate, b1 and b2.
  """
  tx = make_method(method, uncorrected_adam(*setting), PERIODS[method], guard=False)

  def of_worker(state, params, noise):
    grads = jax.grad(rosenbrock)(state.params) + noise
    updates, state = tx.update(grads, state, params)
    return state, optax.apply_updates(params, updates)

  of_all = jax.vmap(
    of_worker,
    in_axes=(WORKER_AXES, None, 0),
    out_axes=(WORKER_AXES, None),
    axis_name='workers',
  )

  def step(carry, t):
    noise = NOISE * jax.random.normal(jax.random.fold_in(key, t), (WORKERS, 2))
    state, params = of_all(*carry, noise)
    return (state, params), jnp.linalg.norm(params - 1.0)

  params = jnp.array(START)
  state = jax.vmap(lambda: tx.init(params), axis_size=WORKERS, out_axes=WORKER_AXES)()
  return jax.lax.scan(step, (state, params), jnp.arange(steps))[1]


def all_distances(settings: Sequence[tuple], seeds: int, steps: int) -> dict[str, np.ndarray]:
  """Returns by method the distances [settings, seeds, steps]."""
  keys = jax.random.split(jax.random.key(0), seeds)
  found = {}
  for method in PERIODS:
    of_seeds = jax.vmap(functools.partial(distances, method, steps), in_axes=(None, 0))
    found[method] = np.asarray(jax.lax.map(lambda s, f=of_seeds: f(s, keys), jnp.array(settings)))
  return found


def runs(scale: Scale) -> list[Run]:
  """Returns no runs of the trainer: the toy is quick, and has a scan of its own."""
  del scale
  return []


def report(results: Sequence[Result], scale: Scale) -> Report:
  """Returns the distances of all methods in our reading, and the map of other settings."""
  del results
  steps = TEST_STEPS if scale.name == 'test' else STEPS
  curves = {method: each[0] for method, each in all_distances([READING], SEEDS, steps).items()}
  ends = {method: _end(curve) for method, curve in curves.items()}
  settings = [(rate, *decays) for decays in DECAYS for rate in RATES]
  others = {
    method: _end(each) for method, each in all_distances(settings, MAP_SEEDS, steps).items()
  }
  table = [('method', 'distance from the optimum', 'worst seed')]
  table += [(method, mean_spread(v), f'{v.max():.4f}') for method, v in ends.items()]
  return Report(
    f'The toy: Rosenbrock with {WORKERS} workers',
    [
      {'setting': setting, 'method': method, 'seed': seed, 'distance': float(distance),
       'jax': jax.__version__}
      for where, each in (([READING], {m: v[None] for m, v in ends.items()}), (settings, others))
      for method, values in each.items()
      for setting, of_seeds in zip(where, values, strict=True)
      for seed, distance in enumerate(of_seeds)
    ],
    table,
    checks(ends),
    plot(curves, {m: v.mean(axis=1) for m, v in others.items()}, steps),
    [f'{SEEDS} seeds, {steps} steps from {START}; the setting is our reading: {_words(READING)}.'],
  )  # fmt: skip


def checks(ends: Mapping[str, np.ndarray]) -> list[Check]:
  """Returns the paper's claims, by the final distances of each seed."""
  ratio = {method: list(ends[method] / ends['desloc']) for method in PERIODS}
  return [
    Check("DES-LOC's and Local Adam's distance are the same within 10%", ratio['local_adam'],
          1 / NEAR, NEAR, 'x', 'they overlap'),
    Check('with local moments it is larger', ratio['favg_opt'], NEAR, unit='x',
          paper='does not converge'),
    Check('with reset moments it is larger', ratio['favg_reset'], NEAR, unit='x',
          paper='does not converge'),
  ]  # fmt: skip


def plot(curves: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray], steps: int) -> Figure:
  """Draws the distance at each parameter sync (mean over seeds, range), and the maps."""
  figure, (of_reading, *maps) = plots.panels(
    4, f'Rosenbrock, {WORKERS} workers, {SEEDS} seeds, {steps} steps', 6.5
  )
  for method, curve in curves.items():
    at_syncs = curve[:, ROUND - 1 :: ROUND]
    at = ROUND * np.arange(1, at_syncs.shape[1] + 1)
    (line,) = of_reading.plot(at, at_syncs.mean(axis=0), label=method, **plots.style(method))
    of_reading.fill_between(
      at, at_syncs.min(axis=0), at_syncs.max(axis=0), alpha=0.15, color=line.get_color()
    )
  of_reading.set(
    xlabel='step', ylabel='distance of the consensus from the optimum', yscale='log',
    title=f'our reading: {_words(READING)}',
  )  # fmt: skip
  of_reading.legend()
  compared = [method for method in PERIODS if method != 'local_adam']
  for panel, method in zip(maps, compared, strict=True):
    _draw_map(panel, others[method] / others['local_adam'], f"{method} over Local Adam's distance")
  return figure


def _draw_map(panel: Axes, ratios: np.ndarray, title: str) -> None:
  cells = ratios.reshape(len(DECAYS), len(RATES))
  panel.imshow(np.log10(cells), origin='lower', aspect='auto', vmin=-1, vmax=2, cmap='coolwarm')
  for (row, column), value in np.ndenumerate(cells):
    panel.text(
      column,
      row,
      f'{value:.2g}x',
      ha='center',
      va='center',
      bbox={'fc': 'white', 'alpha': 0.7, 'lw': 0},
    )
  panel.set(xlabel='rate', title=title)
  panel.set_xticks(range(len(RATES)), [f'{rate:g}' for rate in RATES])
  panel.set_yticks(range(len(DECAYS)), [f'b1 {b1:g}\nb2 {b2:g}' for b1, b2 in DECAYS])
  panel.grid(False)


def _end(curve: np.ndarray) -> np.ndarray:
  """Returns the mean over the last fifth of the steps."""
  return curve[..., -curve.shape[-1] // 5 :].mean(axis=-1)


def _words(setting: Sequence[float]) -> str:
  rate, b1, b2 = setting
  return f'Adam without bias correction, rate {rate:g}, b1 {b1:g}, b2 {b2:g}'


if __name__ == '__main__':
  command.main(sys.modules[__name__])
