"""The one function that models call, and the choice of its form."""

from numbers import Integral
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxnn import rng
from jaxnn.models.attention import plain
from jaxnn.models.attention.linear import linear
from jaxnn.models.attention.rules import Given, Rules, allowed, default_scale, distance_bias, relative_bias, span
from jaxnn.models.given import check_array
from jaxnn.models.products import operand_dtype
from jaxnn.tree import describe
from jaxnn.typing import Array

Form = Literal["plain", "linear", "xla", "cudnn"]
FORMS = ("plain", "linear", "xla", "cudnn")
LINEAR_FROM = 4096  # keys, from which weights are too many to keep


def choose_form(form: Form | None, keys: int) -> Form:
    """The form asked for, or the backend's: "plain" on CPU and "xla" elsewhere, "linear" from 4096 keys on."""
    if form is not None:
        return form
    if keys >= LINEAR_FROM:
        return "linear"
    return "plain" if jax.default_backend() == "cpu" else "xla"


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    causal: bool,
    segment: Array | None = None,
    key_segment: Array | None = None,
    mask: Array | None = None,
    window: int | None = None,
    alibi: Array | None = None,
    bias: Array | None = None,
    relative: Array | None = None,
    scale: float | None = None,
    matmul_dtype: Any = None,
    form: Form | None = None,
    dropout: float = 0.0,
    key: Array | None = None,
) -> Array:
    """`softmax(scale q k^T + bias) v` over the keys that a query may read, each head apart; the softmax in float32.

    A query reads a key where every restriction given allows it; one that may read none gives 0. With fewer heads of
    keys than of queries, consecutive H / K heads of queries read the same keys (grouped-query attention).

    Args:
        q: Queries [B, T, H, D].
        k: Keys [B, S, K, D], K dividing H; S may differ from T where `causal` is False (cross attention).
        v: Values [B, S, K, D].
        causal: Whether a query reads only keys at its own and earlier positions; needs S = T.
        segment: [B, T] document ids; a query reads only keys of its own document.
        key_segment: [B, S], those of the keys; None where they are the queries'.
        mask: [B, S], 0 (or False) for keys that are padding, which no query reads.
        window: A query reads only keys less than `window` positions away, itself included; None for all.
        alibi: Slopes [H] (see `alibi_slopes`): adds `-slope * |t - s|` to the scores. No gradient.
        bias: [1 or B, 1 or H, T, S], added to the scores. Differentiable.
        relative: [H, 2 R + 1], by how far a key is from a query: `relative[:, clip(s - t, -R, R) + R]` is added to the
            scores. Differentiable; "linear" never makes [T, S] of it.
        scale: Of the scores; None for 1 / sqrt(D).
        matmul_dtype: Precision of the products' operands, forward and backward; see `products.matmul`.
        form: "plain", "linear" (memory grows with T + S), "xla" or "cudnn" (`jax.nn.dot_product_attention`'s
            implementations; the latter wants an NVIDIA device and 16-bit operands, and may add in another order each
            run). None chooses by backend and length; all but "cudnn" agree to rounding.
        dropout: Rate at which weights are zeroed, the others scaled by 1 / (1 - rate); "plain" alone does it.
        key: Typed key of the layer at this step, where `dropout` is not 0; examples draw apart (see `rng.dropout`).

    Returns:
        [B, T, H, D] in the dtype of `q`.

    Raises:
        ValueError: If the shapes do not fit each other, the window or form is unknown, dropout is asked of a form that
            has none, or "cudnn" where it cannot run.

    Source:
        Vaswani et al. 2017, arXiv:1706.03762; Ainslie et al. 2023, arXiv:2305.13245 (grouped queries); Press et al.
        2022, arXiv:2108.12409 (ALiBi).
    """
    _check(q, k, v, causal, segment, key_segment, mask, window, alibi, bias, relative, form)
    if not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise ValueError(f"attention.attention: dropout={dropout!r}. Tried: a rate in [0, 1). Write 0.1, say.")
    if segment is not None and key_segment is None:
        key_segment = segment
    scale = default_scale(q.shape[-1]) if scale is None else float(scale)
    matmul_dtype = operand_dtype(matmul_dtype, q, "attention")
    dtype = jnp.dtype(q.dtype if matmul_dtype is None else matmul_dtype)
    # Without padding a query of self attention reads its own key at least.
    rules = Rules(causal, window, scale, dtype, mask is not None or key_segment is not segment or q.shape != k.shape)
    given = Given(segment, key_segment, mask, None if alibi is None else jnp.asarray(alibi))
    chosen = "plain" if dropout else choose_form(form, k.shape[1])
    if relative is not None and chosen != "linear":
        whole = relative_bias(relative, 0, 0, q.shape[1], k.shape[1])[None]
        bias, relative = whole if bias is None else bias + whole, None
    if dropout:
        if form not in (None, "plain") or key is None:
            raise ValueError(
                f"attention.attention: dropout={dropout!r}, form={form!r}, key={'None' if key is None else 'given'}. "
                f"Tried: a rate in [0, 1) and a key, in the form 'plain'. Write form=None and key=KEY, or dropout=0."
            )
        drop = lambda e, first: rng.dropout(jax.random.fold_in(key, first), e, dropout)  # noqa: E731
        return plain.forward(rules, q, k, v, bias, given, drop)[0].astype(q.dtype)
    if chosen in ("xla", "cudnn"):
        return _library(rules, q, k, v, bias, given, chosen).astype(q.dtype)
    if chosen == "plain" and matmul_dtype is None:
        return plain.forward(rules, q, k, v, bias, given)[0].astype(q.dtype)
    wide = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (q, k, v))
    y = plain.narrow(rules, *wide, bias, given) if chosen == "plain" else linear(rules, *wide, bias, relative, given)
    return y.astype(q.dtype)


def attention_weights(q: Array, k: Array, *, mask: Array | None = None, scale: float | None = None) -> Array:
    """The weights [B, H, T, S] of `attention`, float32, for pictures: it never makes all of them otherwise."""
    same = jnp.broadcast_to(jnp.eye(k.shape[1], dtype=q.dtype)[None, :, None], (*k.shape[:3], k.shape[1]))
    _check(q, k, k, False, None, None, mask, None, None, None, None, None)
    rules = Rules(False, None, default_scale(q.shape[-1]) if scale is None else float(scale), q.dtype, True)
    y = plain.forward(rules, q, k, same, None, Given(None, None, mask, None))[0]
    return y.astype(jnp.float32).transpose(0, 2, 1, 3)


def _library(rules: Rules, q: Array, k: Array, v: Array, bias: Array | None, given: Given, form: Any) -> Array:
    """By `jax.nn.dot_product_attention`: what it has a name for is passed by name, the rest as mask or bias."""
    rows, columns = span(0, q.shape[1]), span(0, k.shape[1])
    if given.slopes is not None:
        near = distance_bias(given.slopes, rows, columns, 1)[:, :, 0]
        bias = near if bias is None else bias + near
    free = Rules(False, None, rules.scale, rules.dtype, rules.empty)
    mask = allowed(free, rows, columns, given.segment, given.key_segment, given.mask)
    window = rules.window
    try:
        y = jax.nn.dot_product_attention(
            *(x.astype(rules.dtype) for x in (q, k, v)),
            bias=None if bias is None else bias.astype(rules.dtype),
            mask=None if mask is None else mask[:, 0],
            scale=rules.scale,
            is_causal=rules.causal,
            local_window_size=None if window is None else (window - 1, 0 if rules.causal else window - 1),
            implementation=form,
        )
    except jax.errors.JaxRuntimeError:  # a device's, when it ran
        raise
    except (RuntimeError, NotImplementedError, ValueError) as error:
        if form != "cudnn":
            raise
        raise ValueError(
            f"attention.attention: form='cudnn', operands {rules.dtype}: {error} Tried: cuDNN's kernel, which wants an "
            f"NVIDIA device and 16-bit operands. Write form=None, or matmul_dtype=jnp.bfloat16 there."
        ) from error
    if not rules.empty:
        return y
    readable = allowed(rules, rows, columns, given.segment, given.key_segment, given.mask)
    if readable is None:
        return y
    return jnp.where(jnp.any(readable[:, 0, 0], axis=-1)[..., None, None], y, 0)


def _check(
    q: Array,
    k: Array,
    v: Array,
    causal: bool,
    segment: Array | None,
    key_segment: Array | None,
    mask: Array | None,
    window: int | None,
    alibi: Array | None,
    bias: Array | None,
    relative: Array | None,
    form: str | None,
) -> None:
    given = f"attention.attention: q {describe(q)}, k {describe(k)}, v {describe(v)}"
    shapes = q.ndim == k.ndim == v.ndim == 4 and k.shape == v.shape
    if not shapes or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or q.shape[2] % k.shape[2]:
        raise ValueError(
            f"{given}. Tried: q [B, T, H, D], k and v [B, S, K, D] alike, K dividing H. Reshape the projections to "
            f"heads first."
        )
    (batch, queries, heads, _), keys = q.shape, k.shape[1]
    if causal and queries != keys:
        raise ValueError(
            f"{given}, causal=True. Tried: as many queries as keys. Write causal=False for cross attention, or "
            f"cached_attention for queries that follow a cache."
        )
    own = segment is not None and key_segment is None
    wanted = {
        "segment": (segment, (batch, queries)),
        "key_segment": (segment if own else key_segment, (batch, keys)),
        "mask": (mask, (batch, keys)),
        "alibi": (alibi, (heads,)),
    }
    for name, (array, shape) in wanted.items():
        if array is not None:
            check_array("attention", name, array, f"{list(shape)}")
        if array is not None and tuple(array.shape) != shape:
            raise ValueError(f"{given}, {name} {describe(array)}. Tried: {list(shape)}. Write {name} in that shape.")
    if key_segment is not None and segment is None:
        raise ValueError(f"{given}: key_segment without segment. Tried: both. Give the queries' documents too.")
    if bias is not None:
        check_array("attention", "bias", bias, "[B, H, T, S]")
        fits = bias.ndim == 4 and bias.shape[0] in (1, batch) and bias.shape[1] in (1, heads)
        if not fits or bias.shape[2:] != (queries, keys):
            raise ValueError(
                f"{given}, bias {describe(bias)}. Tried: [1 or {batch}, 1 or {heads}, {queries}, {keys}]. "
                f"Write it in that shape."
            )
    if relative is not None:
        check_array("attention", "relative", relative, "[H, 2 R + 1]")
    if relative is not None and (relative.ndim != 2 or relative.shape[0] != heads or relative.shape[1] % 2 == 0):
        raise ValueError(
            f"{given}, relative {describe(relative)}. Tried: [{heads}, 2 R + 1], from R places before a query to R "
            f"after it. Write it in that shape."
        )
    if window is not None and (not isinstance(window, Integral) or window < 1):
        raise ValueError(
            f"{given}, window={window}. Tried: an integer of at least 1, the query's own position. Write None for all."
        )
    if form is not None and (not isinstance(form, str) or form not in FORMS):
        raise ValueError(f"{given}, form={form!r}. Tried: {', '.join(FORMS)}. Write one of them, or None.")
