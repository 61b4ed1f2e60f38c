"""Examples for committee machines: random, from a teacher, and from the classes of an image set."""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real, Shaped

from entropix._checks import check_integer, check_number
from entropix._keys import check_key, fresh_key
from entropix.committee._arguments import dtype_of
from entropix.committee._model import Committee, check_finite

Distribution = Literal["signs", "normal"]


class Examples(NamedTuple):
    """Patterns and what they should be classified as.

    Attributes:
      patterns: x. # shape=(M, N)
      labels: sigma, each +1 or -1. # shape=(M,)
    """

    patterns: Float[Array, "*batch M N"]
    labels: Float[Array, "*batch M"]


def random_patterns(
    model: Committee,
    alpha: float,
    key: jax.Array | int,
    *,
    distribution: Distribution = "signs",
    dtype: Any = None,
) -> Examples:
    r"""Random patterns with random labels, alpha for each weight.

    .. math:: M = \mathrm{round}(\alpha K n), \qquad x^\mu_i \sim \pm 1 \ \text{or} \ N(0, 1),
       \qquad \sigma^\mu \sim \pm 1

    Args:
      model: the network that is to learn them.
      alpha: load, patterns per weight. Above 0.
      key: an integer seed or a key of ``jax.random.key``; may be mapped over by ``jax.vmap``.
      distribution: of the inputs, ``"signs"`` or ``"normal"``. Default signs.
      dtype: of patterns and labels. Default jax's floating-point type.

    Returns:
      `Examples`.

    Raises:
      TypeError: ``alpha`` is not a number or ``key`` not a key.
      ValueError: ``alpha`` is not above 0 or leaves no pattern, or the distribution is unknown.

    Examples:
      >>> examples = random_patterns(Committee(99, 9), 0.5, 0)
      >>> examples.patterns.shape, examples.labels.shape
      ((50, 99), (50,))
    """
    count = _count(model, alpha)
    _check_distribution(distribution)
    check_key(key)
    dtype = dtype or jnp.result_type(float)
    pattern_key, label_key = jax.random.split(fresh_key(key))
    patterns = _inputs(pattern_key, (count, model.num_inputs), distribution, dtype)
    return Examples(patterns, jax.random.rademacher(label_key, (count,), dtype))


def teacher_student(
    model: Committee,
    alpha: float,
    key: jax.Array | int,
    *,
    distribution: Distribution = "signs",
    dtype: Any = None,
) -> tuple[Examples, jax.Array]:
    r"""Random patterns labeled by a random network of the model's own kind.

    .. math:: \sigma^\mu = \hat\sigma(w^*, x^\mu)

    Args:
      model: the network of teacher and student.
      alpha: load, patterns per weight. Above 0.
      key: an integer seed or a key of ``jax.random.key``. The student may be given the same: it
        starts from other weights than the teacher's.
      distribution: of the inputs, ``"signs"`` or ``"normal"``. Default signs. The fields of real
        weights on patterns of +-1 are never 0 in practice; those of binary weights never are.
      dtype: of patterns, labels and weights. Default jax's floating-point type.

    Returns:
      `Examples`, and the teacher's weights. # shape=(K, n)

    Raises:
      TypeError: ``alpha`` is not a number or ``key`` not a key.
      ValueError: ``alpha`` is not above 0 or leaves no pattern, or the distribution is unknown.

    Examples:
      >>> model = Committee(15, 3)
      >>> examples, teacher = teacher_student(model, 2.0, 0)
      >>> int(model.errors(teacher, *examples))
      0
    """
    teacher_key, example_key = jax.random.split(_checked(key))
    patterns, labels = random_patterns(
        model, alpha, example_key, distribution=distribution, dtype=dtype
    )
    teacher = model.random_weights(teacher_key, patterns.dtype)
    agrees = model.stabilities(teacher, patterns, labels) > 0
    return Examples(patterns, jnp.where(agrees, labels, -labels)), teacher


def binarize(
    images: Real[ArrayLike, "images ..."], thresholds: Real[ArrayLike, "..."] | None = None
) -> Float[Array, "images inputs"]:
    r"""Images as patterns of +-1, by medians.

    .. math:: x^\mu_i = +1 \ \text{if} \ p^\mu_i > \theta_i, \ \text{else} \ -1

    Args:
      images: p, of any real type. # shape=(M, ...)
      thresholds: theta for each pixel, such as ``jnp.median(images, axis=0)`` of the training set.
        Default for each image its own median, and then half of its pixels, rounded down, are +1:
        of pixels equal to the median as many as that takes, chosen by an order of the pixels that
        is the same for all images and spreads them evenly. # shape=(...)

    Returns:
      The patterns, float, pixels in row-major order. # shape=(M, N)

    Raises:
      ValueError: there is no pixel axis, a number is not finite, or the thresholds are not of one
        image's shape.

    Examples:
      >>> import jax.numpy as jnp
      >>> binarize(jnp.array([[[1, 2], [3, 4]], [[0, 0], [0, 9]]])).tolist()
      [[-1.0, -1.0, 1.0, 1.0], [-1.0, -1.0, 1.0, 1.0]]
    """
    if np.ndim(images) < 2:
        raise ValueError(f"images must have shape (M, ...), got {np.shape(images)}")
    check_finite("images", images)
    pixels = jnp.asarray(images).reshape(np.shape(images)[0], -1).astype(jnp.result_type(float))
    if thresholds is None:
        return _upper_half(pixels)
    if np.shape(thresholds) != np.shape(images)[1:]:
        raise ValueError(
            f"thresholds must have the shape of one image, {np.shape(images)[1:]}, "
            f"got {np.shape(thresholds)}"
        )
    check_finite("thresholds", thresholds)
    levels = jnp.asarray(thresholds).reshape(1, -1).astype(pixels.dtype)
    return jnp.where(pixels > levels, 1, -1).astype(pixels.dtype)


def _upper_half(pixels: Float[Array, "images pixels"]) -> Float[Array, "images pixels"]:
    """+1 for the half of each image's pixels that are largest, equal ones in a fixed order."""
    size = pixels.shape[1]
    # Multiples of the golden ratio, whose fractional parts are never far from evenly spaced.
    priority = np.argsort(np.arange(1, size + 1) * (5**0.5 - 1) / 2 % 1, kind="stable")
    place = jnp.asarray(np.argsort(priority))[None]
    by_size = jnp.lexsort((jnp.broadcast_to(place, pixels.shape), pixels), axis=1)
    rank = jnp.argsort(by_size, axis=1)
    return jnp.where(rank >= size - size // 2, 1, -1).astype(pixels.dtype)


def two_classes(
    patterns: Shaped[ArrayLike, "patterns inputs"],
    classes: Shaped[ArrayLike, " patterns"],
    pair: tuple[int, int],
    per_class: int,
    key: jax.Array | int,
) -> Examples:
    """The same number of examples of two classes, drawn without replacement, in random order.

    Args:
      patterns: of all classes, such as `binarize` makes. # shape=(M, N)
      classes: of the patterns; not a tracer, since it decides the answer. # shape=(M,)
      pair: the class that gets the label +1 and the one that gets -1. Dress and coat are (3, 4) in
        Fashion-MNIST.
      per_class: examples of each.
      key: an integer seed or a key of ``jax.random.key``.

    Returns:
      `Examples`, 2 ``per_class`` of them.

    Raises:
      TypeError: ``per_class`` is not an integer, ``key`` not a key, or ``classes`` a tracer.
      ValueError: the two classes are the same, or one has fewer examples than asked for.

    Examples:
      >>> import jax.numpy as jnp
      >>> patterns = jnp.array([[1.0], [1.0], [-1.0], [-1.0], [-1.0]])
      >>> examples = two_classes(patterns, jnp.array([3, 3, 4, 4, 4]), (3, 4), 2, 0)
      >>> bool((examples.patterns[:, 0] == examples.labels).all()), float(examples.labels.sum())
      (True, 0.0)
    """
    check_integer("per_class", per_class, at_least=1)
    if pair[0] == pair[1]:
        raise ValueError(f"pair must be of two different classes, got {pair}")
    first_key, second_key, order_key = jax.random.split(_checked(key), 3)
    if isinstance(classes, jax.core.Tracer):
        raise TypeError("classes must have known values, since they decide the shape, got a tracer")
    chosen = []
    for one, draw_key in zip(pair, (first_key, second_key), strict=True):
        members = np.flatnonzero(np.asarray(classes) == one)
        if len(members) < per_class:
            raise ValueError(
                f"per_class must be at most the examples of class {one}, {len(members)}, "
                f"got {per_class}"
            )
        chosen.append(jax.random.choice(draw_key, members, (per_class,), replace=False))
    order = jax.random.permutation(order_key, 2 * per_class)
    patterns = jnp.asarray(patterns)
    # Neither booleans nor unsigned integers know -1.
    is_signed = jnp.issubdtype(patterns.dtype, jnp.signedinteger)
    dtype = patterns.dtype if is_signed else dtype_of(patterns)
    labels = jnp.repeat(jnp.array([1, -1], dtype), per_class)
    return Examples(patterns[jnp.concatenate(chosen)[order]], labels[order])


def shuffle_pixels(
    patterns: Shaped[Array, "patterns inputs"], key: jax.Array | int
) -> Shaped[Array, "patterns inputs"]:
    """Every pixel permuted over the examples, independently of the other pixels.

    Each pixel keeps its values, so the patterns keep their biases; the correlations of the pixels
    with one another and with the labels are destroyed.

    Args:
      patterns: x. # shape=(M, N)
      key: an integer seed or a key of ``jax.random.key``.

    Returns:
      The shuffled patterns. # shape=(M, N)

    Raises:
      TypeError: ``key`` is not a key.

    Examples:
      >>> import jax.numpy as jnp
      >>> x = jnp.arange(6).reshape(3, 2)
      >>> bool((jnp.sort(shuffle_pixels(x, 0), axis=0) == x).all())
      True
    """
    return jax.random.permutation(_checked(key), patterns, axis=0, independent=True)


def _checked(key: Any) -> jax.Array:
    """A typed key of it, or a TypeError."""
    check_key(key)
    return fresh_key(key)


def _count(model: Committee, alpha: float) -> int:
    """M = round(alpha K n), or an error that names alpha."""
    check_number("alpha", alpha, above=0)
    count = round(float(alpha) * model.num_weights)
    if count == 0:
        raise ValueError(
            f"alpha must give 1 pattern or more, got {alpha} for {model.num_weights} weights"
        )
    return count


def _check_distribution(distribution: str) -> None:
    """Raises unless it is one of the accepted names."""
    if distribution not in get_args(Distribution):
        raise ValueError(f"distribution must be of {get_args(Distribution)}, got {distribution!r}")


def _inputs(key: jax.Array, shape: tuple[int, int], distribution: str, dtype: Any) -> jax.Array:
    """Independent inputs with mean 0 and variance 1."""
    draw = jax.random.rademacher if distribution == "signs" else jax.random.normal
    return draw(key, shape, dtype)
