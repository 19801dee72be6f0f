"""Pairs of texts as examples for a translator: what it reads and what its decoder is given side by side, as
`models.SideBySide` takes them, and what it is to write."""

from collections.abc import Sequence

import numpy as np

from jaxnn.data.arrays import Arrays
from jaxnn.data.given import is_whole
from jaxnn.data.tokenizers import Tokenizer
from jaxnn.tree import describe
from jaxnn.typing import HostArray

WHERE = "data.Texts.translations"


def translations(
    tokenizer: Tokenizer, texts: Sequence[str], partners: Sequence[str], length: int | None, start: int | None
) -> Arrays:
    """See `Texts.translations`."""
    if not isinstance(tokenizer, Tokenizer):
        raise TypeError(
            f"{WHERE}: tokenizer is {describe(tokenizer)}. Tried: a Tokenizer. Write data.Tokenizer.train(texts, "
            "vocab=8192, ends=True)."
        )
    if length is not None and not is_whole(length, 2):
        raise ValueError(f"{WHERE}: length={length!r}. Tried: an integer of at least 2. Write one, or None.")
    start = tokenizer.token_id("[CLS]") if start is None else start
    if not is_whole(start, 0) or start >= tokenizer.vocab:
        raise ValueError(
            f"{WHERE}: start={start!r} for {tokenizer.vocab} tokens. Tried: one of them. Write "
            "tokenizer.token_id('[CLS]'), or the model's config.start."
        )
    sides = [tokenizer.encode(side) for side in (texts, partners)]
    rows = [[s.ids[s.starts[i] : s.starts[i + 1]] for i in range(len(texts))] for s in sides]
    ends = {int(row[-1]) if len(row) else -1 for side in rows for row in side}
    if len(ends) > 1 or not ends <= set(tokenizer.special):
        raise ValueError(
            f"{WHERE}: {tokenizer} puts no token behind a text, by which a translator knows where it ends. Tried: the "
            "last token of each. Write Tokenizer.train(texts, vocab=8192, ends=True)."
        )
    # Those whose tokenizer begins every text so are given that token already.
    wanted = [row[1:] if row[0] == start else row for row in rows[1]]
    needed = np.array([max(len(a), len(b)) for a, b in zip(rows[0], wanted, strict=True)])
    length = int(needed.max()) if length is None else length
    kept = np.flatnonzero(needed <= length)
    if not kept.size:
        raise ValueError(
            f"{WHERE}: none of {len(texts)} pairs has {length} tokens or fewer on both sides. Tried: leaving longer "
            f"ones out. Write length={int(needed.max())} for all of them."
        )
    reads, writes = (_padded([side[i] for i in kept], length, tokenizer.pad) for side in (rows[0], wanted))
    weights = (np.arange(length) < np.array([len(wanted[i]) for i in kept])[:, None]).astype(np.float32)
    # What is given ends where what is wanted does: a token that follows the last one is told to nobody.
    given = np.where(weights > 0, np.roll(writes, 1, axis=1), np.int32(tokenizer.pad))
    given[:, 0] = start
    return Arrays(np.concatenate([reads, given], axis=1), writes, weights=weights)


def _padded(rows: Sequence[HostArray], length: int, pad: int) -> HostArray:
    """int32 [N, length]."""
    out = np.full((len(rows), length), pad, np.int32)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
