"""What a run would need and how long it would take, before any device is touched."""

from desloc_jax.plan.compile import compile_step, CompiledStep, DoesNotFit
from desloc_jax.plan.compile_table import compiled_text
from desloc_jax.plan.estimate import make_plan, Plan
from desloc_jax.plan.plan_text import plan_text

__all__ = [
  'CompiledStep',
  'DoesNotFit',
  'Plan',
  'compile_step',
  'compiled_text',
  'make_plan',
  'plan_text',
]
