"""The compared methods by name: each is `desloc` with other arguments, or `ddp`."""

from collections.abc import Mapping
import dataclasses

import jax
import optax

from desloc_jax.optimizer import state_fields, sync_periods as periods_lib
from desloc_jax.optimizer.averaging import AxisName
from desloc_jax.optimizer.control_variates import CONTROL
from desloc_jax.optimizer.ddp import ddp
from desloc_jax.optimizer.stepping import SteppingTransformation
from desloc_jax.optimizer.sync_periods import Periods
from desloc_jax.optimizer.transform import desloc
from desloc_jax.optimizer.worker_step.frame import CONSENSUS

# The paper's multiples of the parameter period, by the kind of state.
MULTIPLES = {
  **dict.fromkeys(('mu', 'trace', 'm1'), periods_lib.PAPER_MULTIPLES['mu']),
  **dict.fromkeys(('nu', 'm2'), periods_lib.PAPER_MULTIPLES['nu']),
  CONTROL: 1,
}


@dataclasses.dataclass(frozen=True)
class Method:
  """How often a method averages what.

  Attributes:
    states: 'own' (each state has its own period), 'params' (all at the parameters' period),
      'never' (they stay local) or 'reset' (they become zero at parameter syncs).
    outer: whether an outer optimizer steps on the pseudo-gradient.
    gradients: whether gradients are averaged at every step, and nothing else is.
    inner: inner optimizers that the method replaces by another of its own.
    options: values of options, by name, that a run leaves unset: the paper's settings. A function
      makes one of K_x.
    control: whether gradients are corrected by control variates, which are averaged.
    merges_once: whether parameters are averaged after the last step of a run, and never before.
    paper: what its paper has otherwise: periods, rates, and what cannot be had here.
  """

  states: str
  outer: bool = False
  gradients: bool = False
  inner: Mapping[str, str] = dataclasses.field(default_factory=dict)
  options: Mapping[str, object] = dataclasses.field(default_factory=dict)
  control: bool = False
  merges_once: bool = False
  paper: str = ''


def just_before_the_next(period: int) -> int:
  """Returns the longest delay that the next average does not overtake."""
  return max(0, period - 1)


def one_after_another(period: int) -> int:
  """Returns a number of fragments for which a period has steps, at most 4."""
  return max(1, min(4, period))


def while_the_next_waits(period: int) -> int:
  """Returns a delay of five steps, or less where the next of these fragments would overtake it."""
  return max(0, min(5, period // one_after_another(period) - 1))


METHODS = {
  'desloc': Method(states='own'),
  'desloc_nesterov': Method(states='own', outer=True),
  'local_adam': Method(states='params'),
  'local_sgd': Method(states='never'),
  'favg_opt': Method(states='never'),
  'favg_reset': Method(states='reset'),
  'diloco': Method(states='never', outer=True),
  'mt_dao': Method(
    states='params', inner={'adam': 'qh_adam', 'adamw': 'qh_adam', 'adopt': 'qh_adopt'}
  ),
  'edit': Method(
    states='never',
    outer=True,
    options={'sync.params': 'edit', 'outer.momentum': 0.8},
    paper='K_x = 128, and averages layer by layer while the next step computes; here an array is a '
    'layer, and all come at once. Where all workers are unusual the outer momentum still moves.',
  ),
  'byz_nsgdm': Method(
    states='never',
    outer=True,
    inner=dict.fromkeys(('adam', 'adamw', 'adopt'), 'sgd'),
    options={
      'sync.params': 'geometric_median', 'sync.neighbours': True, 'sync.byzantine': 1,
      'outer.name': 'normalised',
    },
    paper='K_x = 1.',
  ),
  'muloco': Method(
    states='never', outer=True, inner=dict.fromkeys(('adam', 'adamw'), 'muon'), paper='K_x = 30.'
  ),
  'sparseloco': Method(
    states='never',
    outer=True,
    options={
      'sync.params': 'topk', 'outer.learning_rate': 1.0, 'outer.momentum': 0.0,
      'outer.nesterov': False,
    },
    paper='K_x = 30.',
  ),
  'merge_once': Method(
    states='never',
    merges_once=True,
    paper='workers gossip before the merge; here they are alone until then.',
  ),
  'co2': Method(
    states='never',
    outer=True,
    options={'sync.delay': just_before_the_next, 'sync.land': 'keep'},
    paper="a penalty for the staleness and clipping of the outer momentum, which are not here. It "
    'throws away the steps that workers made meanwhile in its released code; here they are kept.',
  ),
  'eager': Method(
    states='never',
    outer=True,
    options={'sync.delay': just_before_the_next, 'sync.land': 'eager'},
    paper='what is sent in a round lands in the step in which the next is sent, here in the one before.',
  ),
  'streaming_diloco': Method(
    states='never',
    outer=True,
    options={
      'sync.fragments': one_after_another, 'sync.delay': while_the_next_waits, 'sync.land': 'mix',
      'sync.local_share': 0.5, 'sync.params': 'int4', 'sync.decay': 0.0, 'outer.learning_rate': 0.4,
    },
    paper='K_x = 100, three layers a fragment, whole arrays; four-bit floats, here multiples of a '
    "block's scale. Over a slow network the exchange takes no time there; here the step waits for it.",
  ),
  'gossip': Method(
    states='never',
    options={'sync.params': 'gossip'},
    paper='each worker has an outer optimizer of its own over pairs at random; here the pairs are '
    'those of a hypercube and their mean is taken over. Workers do not wait for others there.',
  ),
  'scaffold': Method(
    states='never',
    control=True,
    paper='SGD without momentum, at a rate of its own: inner.name=sgd, inner.momentum=0. Here any '
    'inner optimizer steps by the corrected gradient.',
  ),
  'ddp': Method(states='never', gradients=True),
}  # fmt: skip


def resolve_periods(
  method: str,
  inner: optax.GradientTransformation,
  params: optax.Params,
  requested: Mapping[str, int | None],
) -> dict[str, int | None]:
  """Returns the period of the parameters and of each state field of `inner` under `method`.

  Args:
    method: a key of `METHODS`.
    inner: the inner optimizer.
    params: its parameters, as arrays or shapes.
    requested: periods that the user chose, by field name, 'params' among them, and 'consensus' where
      workers gossip; 0: never.

  Raises:
    ValueError: a state is given a period of its own under a method that has none, a name matches
      no state field of `inner`, or a state field has neither a period nor a rule for one.
  """
  chosen = {name: period or None for name, period in requested.items()}
  params_period, models = (
    chosen.pop('params'),
    {n: chosen.pop(n) for n in (CONSENSUS,) if n in chosen},
  )
  if METHODS[method].gradients:
    params_period = None
  fields = inner_fields(inner, params)
  rule = METHODS[method].states
  alone = [name for name in chosen if name != CONTROL]
  if alone and rule != 'own':
    raise ValueError(
      f'periods.{alone[0]} is set, but method {method!r} gives no state a period of '
      "its own; leave it unset or use method='desloc'."
    )
  if rule in ('never', 'reset') or params_period is None:
    defaults = dict.fromkeys(fields)
  elif rule == 'params':
    defaults = dict.fromkeys(fields, params_period)
  else:
    defaults = {f: MULTIPLES[f] * params_period for f in fields if f in MULTIPLES}
  if CONTROL in fields:
    defaults[CONTROL] = params_period if METHODS[method].control else None
  periods = {'params': params_period} | models | defaults | chosen
  state_fields.check_fields(fields, periods)
  return periods


def inner_fields(inner: optax.GradientTransformation, params: optax.Params) -> list[str]:
  """Returns the names of the state fields of `inner` that can be averaged, in state order."""
  labels = state_fields.label_fields(jax.eval_shape(inner.init, params), params)
  return list(dict.fromkeys(label for label in labels if label is not None))


def make_method(
  method: str,
  inner: optax.GradientTransformation,
  periods: Periods,
  axis_name: AxisName = 'workers',
  *,
  outer: optax.GradientTransformation | None = None,
  **options,
) -> SteppingTransformation:
  """Returns the transformation of `method`.

  Args:
    method: a key of `METHODS`.
    inner: the inner optimizer.
    periods: from `resolve_periods`, or schedules in their place.
    axis_name: of the workers.
    outer: the outer optimizer, used by the methods that have one.
    **options: `timing`, `coin_key` and others of `desloc`; `ddp` has no use for them.
  """
  if METHODS[method].gradients:
    return ddp(inner, axis_name)
  fields = [name for name in periods if name not in state_fields.MODELS]
  return desloc(
    inner,
    periods,
    axis_name,
    outer=outer if METHODS[method].outer else None,
    reset=fields if METHODS[method].states == 'reset' else (),
    **options,
  )
