"""The toy system of the variational-inference paper: a double well with a current at will."""

import functools

import jax
import jax.numpy as jnp


def drift(x, rotation):
    """The toy's force: down the double well, and around."""
    downhill = jnp.stack([x[0] - x[0] ** 3, -x[1]])
    well = (x[0] ** 2 - 1) ** 2 / 4 + x[1] ** 2 / 2
    around = jnp.exp(well - jnp.sum(x**2) ** 2 / 4) * jnp.stack([-x[1], x[0]])
    return downhill + rotation * around


@functools.partial(jax.jit, static_argnames="num_steps")
def rotating_double_well(key, rotation, num_steps, dt=0.01):
    """A path of num_steps steps of Euler and Maruyama from the well at (1, 0).

    dx = (j - grad Phi) dt + sqrt(2) dW,  Phi = (x1^2 - 1)^2 / 4 + x2^2 / 2,
    j = lambda exp(Phi - |x|^4 / 4) (-x2, x1).  Its stationary density is exp(-Phi) / Z whatever
    the rotation lambda (0.5 and 1.5 in the paper), the current through it j exp(-Phi) / Z, and the
    area swept per unit of time pi lambda / Z.
    """
    noise = jax.random.normal(key, (num_steps, 2))

    def step(x, z):
        x = x + drift(x, rotation) * dt + (2 * dt) ** 0.5 * z
        return x, x

    return jax.lax.scan(step, jnp.array([1.0, 0.0]), noise)[1]
