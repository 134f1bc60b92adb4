"""What a run would need and how long it would take, before any device is touched."""

from desloc_jax.plan.plan import make_plan, Plan
from desloc_jax.plan.table import plan_text

__all__ = ['Plan', 'make_plan', 'plan_text']
