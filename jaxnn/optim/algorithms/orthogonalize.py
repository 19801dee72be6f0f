"""The polar factor of matrices by products only: what Muon and its relatives do to a momentum.

For X = U S V^H the polynomials below drive every singular value towards 1 and leave U and V, without an SVD. All take a
stack [B, m, n], of which each matrix is treated alone, and work on the smaller Gram matrix.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnn.optim.compose.scaling import full
from jaxnn.typing import Array

Triple = tuple[float, float, float]

# Jordan et al. 2024: the steepest slope at 0, at the price of singular values in about [0.7, 1.2] instead of 1.
QUINTIC: Triple = (3.4445, -4.7750, 2.0315)

# Amsel et al. 2025, arXiv:2505.16932, Listing 1: the best polynomial of each step for singular values in [1e-3, 1].
POLAR_EXPRESS: tuple[Triple, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)


@dataclasses.dataclass(frozen=True)
class Orthogonalizer:
    """X / norm, then for each (a, b, c): A = X X^H, X <- a X + (b A + c A^2) X. Make it by `newton_schulz` and others.

    Attributes:
        steps: The coefficients of each step.
        margin: X is divided by `margin` times its Frobenius norm, so that rounding leaves no singular value above 1.
        eps: The least norm that is divided by.
        gram: Aspect ratio from which the Gram matrix is iterated instead of X: same polynomial, products of the
            smaller side only. `math.inf` never does.
        dtype: Of the products' operands, which accumulate in float32; None leaves them as they are. bfloat16 pays on
            accelerators.
    """

    steps: tuple[Triple, ...]
    margin: float = 1.0
    eps: float = 1e-7
    gram: float = math.inf
    dtype: jax.typing.DTypeLike | None = None

    def __call__(self, x: Array) -> Array:
        """The approximate polar factors of a stack [B, m, n], float32 at least."""
        # XLA:CPU multiplies one matrix after the other 1.2 (64 x 64) to 1.5 times (256 x 256) as fast as a batch of
        # them. Over several devices the batch may be split, and a loop over it would gather it.
        if len(x) > 1 and jax.default_backend() == "cpu" and jax.device_count() == 1:
            return jax.lax.map(self._polar, x)
        return self._polar(x)

    def _polar(self, x: Array) -> Array:
        """Of one matrix, or of each of a stack."""
        x = full(x)
        norm = jnp.sqrt(jnp.sum(jnp.square(jnp.abs(x)), (-2, -1), keepdims=True))
        x = x / jnp.maximum(norm * self.margin, self.eps).astype(x.dtype)
        wide = x.shape[-2] <= x.shape[-1]
        ratio = max(x.shape[-2:]) / max(min(x.shape[-2:]), 1)
        return self._by_gram(x, wide) if ratio >= self.gram else self._by_products(x, wide)

    def _mm(self, a: Array, b: Array) -> Array:
        if self.dtype is None or jnp.iscomplexobj(a):
            return a @ b
        return jnp.matmul(a.astype(self.dtype), b.astype(self.dtype), preferred_element_type=jnp.float32)

    def _by_products(self, x: Array, wide: bool) -> Array:
        def step(x: Array, coefficients: tuple[Any, Any, Any]) -> tuple[Array, None]:
            a, b, c = coefficients
            dual = jnp.swapaxes(x, -2, -1).conj()
            gram = self._mm(x, dual) if wide else self._mm(dual, x)
            poly = b * gram + c * self._mm(gram, gram)
            return a * x + (self._mm(poly, x) if wide else self._mm(x, poly)), None

        if len(set(self.steps)) == 1:  # numbers in the program rather than in arrays: fewer kernels to compile
            return jax.lax.fori_loop(0, len(self.steps), lambda _, x: step(x, self.steps[0])[0], x)
        a, b, c = (jnp.asarray(column, x.dtype) for column in zip(*self.steps))
        return jax.lax.scan(step, x, (a, b, c))[0]

    def _by_gram(self, x: Array, wide: bool) -> Array:
        # X_k = Q_k X with Q_k a polynomial in A = X X^H: Q and the Gram matrix of X_k commute with A and are Hermitian.
        dual = jnp.swapaxes(x, -2, -1).conj()
        gram = self._mm(x, dual) if wide else self._mm(dual, x)
        eye = jnp.eye(gram.shape[-1], dtype=gram.dtype)
        q = None
        for i, (a, b, c) in enumerate(self.steps):
            poly = a * eye + b * gram + c * self._mm(gram, gram)
            q = poly if q is None else self._mm(poly, q)
            if i + 1 < len(self.steps):
                gram = self._mm(self._mm(poly, gram), poly)
                gram = (gram + jnp.swapaxes(gram, -2, -1).conj()) / 2
        if q is None:
            return x
        return self._mm(q, x) if wide else self._mm(x, q)


def _count(name: str, steps: int) -> int:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"optim.{name}: steps is {steps!r}. Give a whole number >= 1.")
    return steps


def newton_schulz(
    steps: int = 5,
    coefficients: Triple = QUINTIC,
    *,
    gram: float = math.inf,
    dtype: jax.typing.DTypeLike | None = None,
) -> Orthogonalizer:
    """Muon's own iteration: one quintic, `steps` times; singular values end in about [0.7, 1.2].

    Args:
        steps: >= 1.
        coefficients: a, b, c.
        gram: See `Orthogonalizer`; 2 is about where it pays.
        dtype: Of the products' operands; see `Orthogonalizer`.

    Raises:
        ValueError: If there is no step.

    Source:
        Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/.
    """
    return Orthogonalizer((coefficients,) * _count("newton_schulz", steps), gram=gram, dtype=dtype)


NEWTON_SCHULZ = newton_schulz()


def polar_express(
    steps: int = 5, *, gram: float = math.inf, dtype: jax.typing.DTypeLike | None = None
) -> Orthogonalizer:
    """The polynomials that are best at each step: nearer to the polar factor for the same products.

    Args:
        steps: >= 1; from the eighth on the cubic-convergent one repeats.
        gram: See `Orthogonalizer`.
        dtype: Of the products' operands; see `Orthogonalizer`.

    Raises:
        ValueError: If there is no step.

    Source:
        Amsel et al. 2025, arXiv:2505.16932, Algorithm 1 and Listing 1 (safety factor 1.01 on all but the last).
    """
    count = _count("polar_express", steps)
    table = (*POLAR_EXPRESS, *(POLAR_EXPRESS[-1],) * max(count - len(POLAR_EXPRESS), 0))[:count]
    safe = tuple((a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in table[:-1])
    return Orthogonalizer((*safe, table[-1]), margin=1.01, gram=gram, dtype=dtype)


Scale = Callable[[int, int], float]


def rms_matched(rms: float = 0.2) -> Scale:
    """Rms sqrt(max(rows, cols)): an orthogonal update then has elements of this root mean square, as AdamW's have about
    0.2, and takes AdamW's rates and decay.

    Source:
        Liu et al. 2025 (Moonlight), arXiv:2502.16982, equation 4.
    """
    return lambda rows, cols: rms * math.sqrt(max(rows, cols))


RMS_MATCHED = rms_matched()


def spectral(rows: int, cols: int) -> float:
    """sqrt(max(1, cols / rows)), of kernels (in, out): rates that hold when the width changes.

    Source:
        Jordan et al. 2024; Bernstein 2025, "Deriving Muon".
    """
    return math.sqrt(max(1.0, cols / max(rows, 1)))


def unscaled(rows: int, cols: int) -> float:
    """1: the orthogonal matrix itself."""
    del rows, cols
    return 1.0
