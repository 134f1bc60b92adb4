"""The paper's toy: 256 workers on the Rosenbrock function with gradient noise (K_v = 692).

  python -m experiments.toy

f(a, b) = (1 - a)^2 + 100 (b - a^2)^2, noise N(0, 1.5^2) on each worker's gradient, K_x = K_u = 192,
K_v = 692, as in arXiv:2505.22549. The paper does not print the inner optimizer's numbers nor the
start; the two settings here come from a search over Adam and ADOPT, b1 from 0.9 to 0.9999, b2 from
0.9 to 0.9999, rates from 0.001 to 0.5 and six starts.

Writes experiments/results/toy.csv and toy.png and prints the distance of the consensus from the
optimum (1, 1), averaged over the last ten rounds of 192 steps.
"""

import csv
import functools
import pathlib

from absl import app, flags
import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
import numpy as np
import optax

from desloc_jax import WORKER_AXES
from desloc_jax.optimizer.inner import make_inner
from desloc_jax.optimizer.methods import make_method
from desloc_jax.tables import align

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
ROUND, AVERAGED_ROUNDS = 192, 10

_SEEDS = flags.DEFINE_integer('seeds', 10, 'Runs of each method.', lower_bound=2)
_ROUNDS = flags.DEFINE_integer('rounds', 60, 'Rounds of 192 steps.', lower_bound=AVERAGED_ROUNDS)
_RESULTS = flags.DEFINE_string('results', 'experiments/results', 'Folder of the table and plot.')


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


def main(argv):
  del argv
  steps = ROUND * _ROUNDS.value
  keys = jax.random.split(jax.random.key(0), _SEEDS.value)
  curves = {
    (setting, method): np.asarray(
      jax.vmap(functools.partial(distances, setting, method, steps))(keys)
    )
    for setting in SETTINGS
    for method in PERIODS
  }
  ends = {run: curve[:, -ROUND * AVERAGED_ROUNDS :].mean(axis=1) for run, curve in curves.items()}
  results = pathlib.Path(_RESULTS.value)
  results.mkdir(parents=True, exist_ok=True)
  write_rows(ends, results / 'toy.csv')
  plot(curves, results / 'toy.png')
  rows = [('setting', 'method', 'distance from the optimum', 'worst seed')]
  rows += [
    (*run, f'{values.mean():.4f} ± {values.std(ddof=1):.4f}', f'{values.max():.4f}')
    for run, values in ends.items()
  ]
  print(align(rows))
  print(f'{_SEEDS.value} seeds, {steps} steps from {START}')
  for setting, options in SETTINGS.items():
    print(f'{setting}: {options}')


def write_rows(ends: dict[tuple[str, str], np.ndarray], path: pathlib.Path) -> None:
  """Writes a row a run."""
  options = list(next(iter(SETTINGS.values())))
  with path.open('w', newline='') as file:
    writer = csv.writer(file)
    writer.writerow(['setting', 'method', 'seed', 'distance', *options])
    for (setting, method), values in ends.items():
      for seed, distance in enumerate(values):
        writer.writerow([setting, method, seed, float(distance), *SETTINGS[setting].values()])


def plot(curves: dict[tuple[str, str], np.ndarray], path: pathlib.Path) -> None:
  """Draws the distance at each parameter sync: the mean over seeds and their range."""
  figure = Figure(figsize=(11, 5), layout='constrained')
  panels = dict(zip(SETTINGS, figure.subplots(1, len(SETTINGS), sharey=True), strict=True))
  styles = {'desloc': '-', 'local_adam': '--', 'favg_opt': ':', 'favg_reset': '-.'}
  for (setting, method), curve in curves.items():
    at_syncs = curve[:, ROUND - 1 :: ROUND]
    steps = ROUND * np.arange(1, at_syncs.shape[1] + 1)
    (line,) = panels[setting].plot(steps, at_syncs.mean(axis=0), styles[method], label=method)
    panels[setting].fill_between(
      steps, at_syncs.min(axis=0), at_syncs.max(axis=0), alpha=0.15, color=line.get_color()
    )
  for setting, axes in panels.items():
    axes.set(xlabel='step', yscale='log', title=f'{setting}: {_title(SETTINGS[setting])}')
    axes.grid(alpha=0.3)
  axes = panels[next(iter(SETTINGS))]
  axes.set_ylabel('distance of the consensus from the optimum')
  axes.legend()
  figure.suptitle(f'Rosenbrock, {WORKERS} workers, {len(curve)} seeds (mean and range)')
  figure.savefig(path, dpi=120)


def _title(options: dict[str, str | float]) -> str:
  return (
    f'{options["name"]}, rate {options["learning_rate"]}, b1 {options["b1"]}, b2 {options["b2"]}'
  )


if __name__ == '__main__':
  app.run(main)
