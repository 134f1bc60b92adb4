"""A matmul whose backward pass makes each of its operands once, on CPUs too.

XLA for CPUs computes what leads to the gradient of a matmul's result (the derivative of an
activation, say) in both matmuls of the backward pass, and once more to transpose it.
"""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Returns x [..., D] times kernel [D, F]: [..., F], in their dtype, as are the gradients."""
  return jnp.einsum('...d,df->...f', x, kernel)


def _forward(x, kernel):
  return product(x, kernel), (x, kernel)


def _backward(operands, gradient):
  x, kernel = operands
  gradient = made_once(gradient)
  return (
    jnp.einsum('...f,df->...d', gradient, kernel),
    jnp.einsum('...d,...f->df', x, gradient),
  )


product.defvjp(_forward, _backward)


def made_once(x: jax.Array) -> jax.Array:
  """Returns x. On a CPU it is an array of its own there: what reads it does not compute it again."""
  # Other platforms' compilers decide well what to compute again: nothing is in their way.
  return jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)
