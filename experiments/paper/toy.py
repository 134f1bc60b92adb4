"""The paper's toy: 256 workers on the Rosenbrock function with gradient noise (K_v = 692).

  python -m experiments.paper.toy

f(a, b) = (1 - a)^2 + 100 (b - a^2)^2, noise N(0, 1.5^2) on each worker's gradient, K_x = K_u = 192,
K_v = 692, as in arXiv:2505.22549. The paper does not print the inner optimizer's numbers nor the
start; the two settings here come from a search over Adam and ADOPT, b1 from 0.9 to 0.9999, b2 from
0.9 to 0.9999, rates from 0.001 to 0.5 and six starts.

What counts is the distance of the consensus from the optimum (1, 1), averaged over the last ten
rounds of 192 steps. The toy is the same at all scales, but for `test`, and has ten seeds.
"""

from collections.abc import Mapping, Sequence
import functools
import sys

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
import numpy as np
import optax

from desloc_jax import WORKER_AXES
from desloc_jax.optimizer.inner import make_inner
from desloc_jax.optimizer.methods import make_method
from experiments import command, plots
from experiments.report import Check, mean_spread, Report
from experiments.runs import Result, Run
from experiments.scales import Scale

WORKERS, NOISE, START = 256, 1.5, (0.0, 0.0)
# In both b1 has a half-life of K_u = 192 steps; in the first b2 has one of K_v = 692, in the second
# of 13.5, so that a local second moment follows its own worker's noise.
SETTINGS = {
  'slow second moment': {'name': 'adopt', 'learning_rate': 0.6, 'b1': 0.9964, 'b2': 0.999},
  'fast second moment': {'name': 'adam', 'learning_rate': 0.1, 'b1': 0.9964, 'b2': 0.95},
}
PERIODS = {
  'desloc': {'params': 192, 'mu': 192, 'nu': 692},
  'local_adam': {'params': 192, 'mu': 192, 'nu': 192},
  'favg_opt': {'params': 192, 'mu': None, 'nu': None},
  'favg_reset': {'params': 192, 'mu': None, 'nu': None},
}
ROUND, AVERAGED_ROUNDS, SEEDS = 192, 10, 10
ROUNDS, TEST_ROUNDS = 60, 2
NEAR = 1.1  # Times DES-LOC's distance: the curves overlap.


def rosenbrock(point: jax.Array) -> jax.Array:
  """Returns f at a point [2]; its least value is 0 at (1, 1)."""
  a, b = point
  return (1 - a) ** 2 + 100 * (b - a**2) ** 2


@functools.partial(jax.jit, static_argnames=('setting', 'method', 'steps'))
def distances(setting: str, method: str, steps: int, key: jax.Array) -> jax.Array:
  """Returns the consensus' distance from the optimum after each step, float32 [steps]."""
  tx = make_method(method, make_inner(**SETTINGS[setting]), PERIODS[method])

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


def runs(scale: Scale) -> list[Run]:
  """Returns no runs of the trainer: the toy is quick, and has a scan of its own."""
  del scale
  return []


def report(results: Sequence[Result], scale: Scale) -> Report:
  """Returns the distances of all methods in both settings."""
  del results
  steps = ROUND * (TEST_ROUNDS if scale.name == 'test' else ROUNDS)
  keys = jax.random.split(jax.random.key(0), SEEDS)
  curves = {
    (setting, method): np.asarray(
      jax.vmap(functools.partial(distances, setting, method, steps))(keys)
    )
    for setting in SETTINGS
    for method in PERIODS
  }
  ends = {run: curve[:, -ROUND * AVERAGED_ROUNDS :].mean(axis=1) for run, curve in curves.items()}
  table = [('setting', 'method', 'distance from the optimum', 'worst seed')]
  table += [(*run, mean_spread(values), f'{values.max():.4f}') for run, values in ends.items()]
  rows = [
    {'setting': setting, 'method': method, 'seed': seed, 'distance': float(distance),
     'jax': jax.__version__, **SETTINGS[setting]}
    for (setting, method), values in ends.items()
    for seed, distance in enumerate(values)
  ]  # fmt: skip
  notes = [
    f'{SEEDS} seeds, {steps} steps from {START}. {_title(SETTINGS[s])} ({s}).' for s in SETTINGS
  ]
  title = f'The toy: Rosenbrock with {WORKERS} workers'
  return Report(title, rows, table, checks(ends), plot(curves), notes)


def checks(ends: Mapping[tuple[str, str], np.ndarray]) -> list[Check]:
  """Returns the paper's claims in both settings, by the final distances of each seed."""
  found = []
  for setting in SETTINGS:
    ratio = {method: ends[setting, method] / ends[setting, 'desloc'] for method in PERIODS}
    found += [
      Check(f"{setting}: DES-LOC's and Local Adam's distance are the same within 10%",
            list(ratio['local_adam']), 1 / NEAR, NEAR, 'x', 'they overlap'),
      Check(f'{setting}: with local moments it is larger', list(ratio['favg_opt']), NEAR,
            unit='x', paper='does not converge'),
      Check(f'{setting}: with reset moments it is larger', list(ratio['favg_reset']), NEAR,
            unit='x', paper='does not converge'),
    ]  # fmt: skip
  return found


def plot(curves: Mapping[tuple[str, str], np.ndarray]) -> Figure:
  """Draws the distance at each parameter sync: the mean over seeds and their range."""
  title = f'Rosenbrock, {WORKERS} workers, {SEEDS} seeds (mean and range)'
  figure, axes = plots.panels(len(SETTINGS), title, sharey=True)
  panels = dict(zip(SETTINGS, axes, strict=True))
  for (setting, method), curve in curves.items():
    at_syncs = curve[:, ROUND - 1 :: ROUND]
    steps = ROUND * np.arange(1, at_syncs.shape[1] + 1)
    (line,) = panels[setting].plot(
      steps, at_syncs.mean(axis=0), label=method, **plots.style(method)
    )
    panels[setting].fill_between(
      steps, at_syncs.min(axis=0), at_syncs.max(axis=0), alpha=0.15, color=line.get_color()
    )
  for setting, axes in panels.items():
    axes.set(xlabel='step', yscale='log', title=f'{setting}: {_title(SETTINGS[setting])}')
  axes = panels[next(iter(SETTINGS))]
  axes.set_ylabel('distance of the consensus from the optimum')
  axes.legend()
  return figure


def _title(options: dict[str, str | float]) -> str:
  return (
    f'{options["name"]}, rate {options["learning_rate"]}, b1 {options["b1"]}, b2 {options["b2"]}'
  )


if __name__ == '__main__':
  command.main(sys.modules[__name__])
