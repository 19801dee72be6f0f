"""FLOPs of matrix factorizations, by the textbook counts; the library that runs may use more.

Source:
    Golub and Van Loan, Matrix Computations, 4th edition: 4.2.5 (Cholesky), 3.2.8 (LU), 5.2.2 (QR, and forming Q), 8.3.3
    (symmetric QR), 7.5.6 (nonsymmetric QR), 7.4.3 (Hessenberg), figure 8.6.1 (SVD).
"""

import math
from typing import Any


def _matrix(eqn: Any) -> tuple[int, int, int]:
    """(batch, rows, columns) of the first operand."""
    *batch, m, n = eqn.invars[0].aval.shape
    return math.prod(batch), m, n


def cholesky(eqn: Any) -> float:
    """n^3 / 3."""
    batch, n, _ = _matrix(eqn)
    return batch * n**3 / 3


def lu(eqn: Any) -> float:
    """2 n^3 / 3 for a square matrix."""
    batch, m, n = _matrix(eqn)
    k = min(m, n)
    return batch * 2 * (m * n * k - (m + n) * k**2 / 2 + k**3 / 3)


def geqrf(eqn: Any) -> float:
    """R and the reflectors, 2 n^2 (m - n / 3) for m >= n."""
    batch, m, n = _matrix(eqn)
    m, n = max(m, n), min(m, n)
    return batch * 2 * n**2 * (m - n / 3)


def orgqr(eqn: Any) -> float:
    """Q [m, n] from k reflectors: 4 m n k - 2 (m + n) k^2 + 4 k^3 / 3."""
    batch, m, n = _matrix(eqn)
    k = eqn.invars[1].aval.shape[-1]
    return batch * (4 * m * n * k - 2 * (m + n) * k**2 + 4 * k**3 / 3)


def qr(eqn: Any) -> float:
    """R, and Q formed explicitly."""
    batch, m, _ = _matrix(eqn)
    k = eqn.invars[0].aval.shape[-1] if m >= eqn.invars[0].aval.shape[-1] else m
    columns = eqn.outvars[0].aval.shape[-1]
    return geqrf(eqn) + batch * (4 * m * columns * k - 2 * (m + columns) * k**2 + 4 * k**3 / 3)


def eigh(eqn: Any) -> float:
    """9 n^3 with eigenvectors, 4 n^3 / 3 without (never so in jax, whose `eigh` makes them always)."""
    batch, n, _ = _matrix(eqn)
    return batch * (9 * n**3 if len(eqn.outvars) > 1 else 4 * n**3 / 3)


def eig(eqn: Any) -> float:
    """25 n^3 with eigenvectors, 10 n^3 without."""
    batch, n, _ = _matrix(eqn)
    return batch * (25 if len(eqn.outvars) > 1 else 10) * n**3


def schur(eqn: Any) -> float:
    """25 n^3 with the Schur vectors, 10 n^3 without."""
    return eig(eqn)


def hessenberg(eqn: Any) -> float:
    """10 n^3 / 3."""
    batch, n, _ = _matrix(eqn)
    return batch * 10 * n**3 / 3


def tridiagonal(eqn: Any) -> float:
    """Householder reduction of a symmetric matrix: 4 n^3 / 3."""
    batch, n, _ = _matrix(eqn)
    return batch * 4 * n**3 / 3


def svd(eqn: Any) -> float:
    """Golub-Reinsch, m >= n: 4 m n^2 - 4 n^3 / 3 values only, 14 m n^2 + 8 n^3 thin, 4 m^2 n + 8 m n^2 + 9 n^3 full."""
    batch, m, n = _matrix(eqn)
    m, n = max(m, n), min(m, n)
    if not eqn.params.get("compute_uv", True):
        return batch * (4 * m * n**2 - 4 * n**3 / 3)
    if eqn.params.get("full_matrices", False):
        return batch * (4 * m**2 * n + 8 * m * n**2 + 9 * n**3)
    return batch * (14 * m * n**2 + 8 * n**3)


def triangular_solve(eqn: Any) -> float:
    """n^2 for each right-hand side."""
    n = eqn.invars[0].aval.shape[-1]
    return eqn.invars[1].aval.size * n


def tridiagonal_solve(eqn: Any) -> float:
    """Thomas' algorithm: 8 n for each right-hand side."""
    return 8 * eqn.invars[-1].aval.size


RULES = {
    "cholesky": cholesky,
    "eig": eig,
    "eigh": eigh,
    "geqrf": geqrf,
    "hessenberg": hessenberg,
    "householder_product": orgqr,
    "lu": lu,
    "qr": qr,
    "schur": schur,
    "svd": svd,
    "triangular_solve": triangular_solve,
    "tridiagonal": tridiagonal,
    "tridiagonal_solve": tridiagonal_solve,
}
