"""Learning-rate schedules of the paper's runs, as optax schedules."""

import jax.numpy as jnp
import optax


def wsd_schedule(
  peak: float, steps: int, warmup_steps: int, decay_fraction: float = 0.1
) -> optax.Schedule:
  """Warm-up, stable, decay: linear to `peak`, constant, then 1 - sqrt over the last part.

  The step after warm-up, and the first of the decay, are at `peak`; the value after the last step
  would be zero.

  Args:
    peak: learning rate between warm-up and decay.
    steps: length of the run.
    warmup_steps: of the run, at its start; step t of them has peak * (t + 1) / warmup_steps.
    decay_fraction: share of the run, at its end, in which the rate decays.

  References:
    Hägele et al., `Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations
    <https://arxiv.org/abs/2405.18392>`_, 2024 (the 1 - sqrt decay)
  """
  decay_steps = round(decay_fraction * steps)

  def schedule(count):
    warmup = (count + 1) / max(1, warmup_steps)
    decayed = (count - (steps - decay_steps)) / max(1, decay_steps)
    return peak * jnp.minimum(1.0, warmup) * (1 - jnp.sqrt(jnp.clip(decayed, 0.0, 1.0)))

  return schedule


def cosine_schedule(
  peak: float, steps: int, warmup_steps: int, decay_fraction: float = 0.1
) -> optax.Schedule:
  """Linear warm-up, then a cosine to zero; `decay_fraction` does not apply."""
  del decay_fraction
  return optax.warmup_cosine_decay_schedule(peak / max(1, warmup_steps), peak, warmup_steps, steps)


def constant_schedule(
  peak: float, steps: int, warmup_steps: int, decay_fraction: float = 0.1
) -> optax.Schedule:
  """Linear warm-up, then constant; `decay_fraction` does not apply."""
  del decay_fraction
  return wsd_schedule(peak, steps, warmup_steps, decay_fraction=0.0)


SCHEDULES = {'wsd': wsd_schedule, 'cosine': cosine_schedule, 'constant': constant_schedule}
