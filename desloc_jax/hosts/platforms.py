"""Whether JAX has the devices that the user asks for by JAX_PLATFORMS."""

import jax
import jax.extend.backend

from desloc_jax.errors import UserError


def check_platforms() -> None:
  """Checks that JAX finds devices; in a run of several processes, once they have met.

  Raises:
    UserError: JAX_PLATFORMS names platforms of which there is none; names those that there are.
  """
  wanted = jax.config.jax_platforms
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:  # The latter has no text: 'cuda' without one.
    if not wanted:
      raise
    jax.extend.backend.clear_backends()
    jax.config.update('jax_platforms', None)
    reason = str(error).partition(' (set JAX_PLATFORMS')[0].rstrip('.')
    reason = reason or f'no {wanted} device is here'
    raise UserError(
      f'JAX_PLATFORMS={wanted}: {reason}. Here are: {", ".join(jax.extend.backend.backends())}; '
      'without JAX_PLATFORMS the best of them is taken.'
    ) from error
