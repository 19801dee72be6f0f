"""Documents packed into rows of one length, and tokens hidden to be guessed.

A row holds several documents side by side and a number for each (`segment`), so that attention keeps them apart, and
positions that begin anew. Which document lies where is a function of the documents alone; the order in which rows are
seen is arithmetic as for any source, so that a run goes on at any data step.
"""

import bisect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.data.arrays import take_rows
from jaxnn.data.given import example_numbers, is_whole
from jaxnn.data.order import splitmix
from jaxnn.data.tokenizers import Encoded
from jaxnn.data.transforms import Examples
from jaxnn.tree import describe
from jaxnn.typing import HostArray, Resident


def _pieces(starts: HostArray, length: int) -> tuple[HostArray, HostArray]:
    """Where documents, and the parts of those that a row cannot hold, begin and end in the stream.

    A part begins with the token that the one before it ends with, so that every token but a document's first is a
    target exactly once.
    """
    begins, ends = [], []
    for first, last in zip(starts[:-1].tolist(), starts[1:].tolist()):
        for at in range(first, max(first + 1, last - 1) if last > first else first, length):
            begins.append(at)
            ends.append(min(at + length + 1, last))
    return np.array(begins, np.int64), np.array(ends, np.int64)


def _rows(sizes: HostArray, room: int) -> list[list[int]]:
    """Pieces by row: each goes where it leaves the least room, else into a new row."""
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (room, row), sorted
    for piece, size in enumerate(sizes.tolist()):
        at = bisect.bisect_left(open_rows, (size, -1))
        if at == len(open_rows):
            rows.append([piece])
            left, row = room - size, len(rows) - 1
        else:
            left, row = open_rows.pop(at)
            rows[row].append(piece)
            left -= size
        if left > 1:
            bisect.insort(open_rows, (left, row))
    return rows


class Packed:
    """Documents side by side in rows of `length` tokens, as inputs and next-token targets.

    Examples are {"x": int32 [B, T], "y": int32 [B, T], "weights": float32 [B, T], "segment": int32 [B, T], "position":
    int32 [B, T]}. y is the next token of the same document, and weights are 0 where there is none: at a document's end
    and at padding. Segments count from 1 in each row and are 0 at padding; positions count from 0 in each document (or
    part of one, where it is longer than a row).
    """

    def __init__(self, documents: Encoded | Sequence[Any], *, length: int, pad: int = 0):
        """Packs.

        Args:
            documents: Token ids of each, as `Tokenizer.encode` gives them, or a sequence of integer arrays or of bytes;
                empty ones are left out.
            length: T, at least 2.
            pad: The token that fills up.

        Raises:
            ValueError: If there is no token, an id is negative or no int32, or the length is out of range.
            TypeError: If a document holds no integers.
        """
        if not is_whole(length, 2):
            raise ValueError(f"data.Packed: length={length!r}. Tried: rows of so many tokens. Write at least 2.")
        if not isinstance(documents, Encoded):
            documents = _encoded(documents)
        if not len(documents.ids):
            raise ValueError("data.Packed: no tokens. Tried: packing the documents. Give one that is not empty.")
        self.length, self.pad = length, pad
        begins, ends = _pieces(documents.starts, length)
        rows = _rows(ends - begins, length + 1)
        self.tokens = np.full((len(rows), length + 1), pad, np.int32)
        self.segments = np.zeros((len(rows), length + 1), np.int32)
        for row, pieces in enumerate(rows):
            at = 0
            for number, piece in enumerate(pieces, 1):
                size = ends[piece] - begins[piece]
                self.tokens[row, at : at + size] = documents.ids[begins[piece] : ends[piece]]
                self.segments[row, at : at + size] = number
                at += size

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        share = np.mean(self.segments[:, :-1] != 0)
        return f"Packed({len(self)} rows of {self.length} tokens, {share:.1%} of them used)"

    def _example(self, tokens: Any, segments: Any, xp: Any) -> dict[str, Any]:
        x, segment = tokens[:, :-1], segments[:, :-1]
        time = xp.arange(self.length, dtype=xp.int32)[None]
        first = xp.concatenate([xp.ones_like(segment[:, :1]), segment[:, 1:] != segment[:, :-1]], axis=1)
        begin = xp.where(first != 0, time, xp.zeros((), xp.int32))
        latest = np.maximum.accumulate(begin, axis=1) if xp is np else jax.lax.cummax(begin, axis=1)
        follows = (segments[:, 1:] == segment) & (segment != 0)
        return {
            "x": x,
            "y": tokens[:, 1:],
            "weights": follows.astype(xp.float32),
            "segment": segment,
            "position": time - latest,
        }

    def take(self, index: HostArray) -> dict[str, HostArray]:
        """The rows `index` [B].

        Raises:
            TypeError: If they are no integers.
            ValueError: If one is not there.
        """
        index = example_numbers("data.Packed", index, len(self))
        return self._example(self.tokens[index], self.segments[index], np)

    def resident(self) -> Resident:
        """The rows, for the device."""

        def take(arrays: Any, index: Any) -> dict[str, Any]:
            rows = take_rows(arrays, index)
            return self._example(rows["tokens"], rows["segments"], jnp)

        return Resident({"tokens": self.tokens, "segments": self.segments}, take)


def _encoded(documents: Sequence[Any]) -> Encoded:
    arrays = []
    if isinstance(documents, (str, bytes)) or not hasattr(documents, "__iter__"):
        raise TypeError(
            f"data.Packed: documents are {describe(documents)}. Tried: several arrays of ids. Give a list of them."
        )
    for i, document in enumerate(documents):
        array = np.frombuffer(document, np.uint8) if isinstance(document, bytes) else np.asarray(document)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise TypeError(
                f"data.Packed: document {i} is {describe(document)}. Tried: integer ids [n], or bytes. Tokenize it: "
                f"tokenizer.encode(texts)."
            )
        if array.size and not 0 <= array.min() <= array.max() < 2**31:
            raise ValueError(
                f"data.Packed: document {i} {describe(document)} has ids {array.min()} to {array.max()}. Tried: ids in "
                f"[0, 2**31). Mend them."
            )
        arrays.append(array.astype(np.int32))
    starts = np.cumsum([0, *map(len, arrays)])
    ids = np.concatenate([np.zeros(0, np.int32), *arrays])
    return Encoded(ids, np.zeros(len(ids), np.uint8), starts)


def masked_tokens(
    vocab: int, mask: int, special: Sequence[int] = (), rate: float = 0.15, most: int | None = None
) -> Callable[[Examples, HostArray], Examples]:
    """A random transform that hides tokens for a model to guess, for `mapped(source, masked_tokens(...), random=True)`.

    Of the tokens that are not special a share `rate` is chosen: they become targets, with weight 1; the others weigh 0.
    Of the chosen 80 % are replaced by `mask`, 10 % by a random token, and 10 % stay. The choice is a function of the
    seed, the data step and the example.

    Args:
        vocab: Number of tokens, for the random ones.
        mask: The token that hides.
        special: Tokens that are never chosen; give the padding's.
        rate: In (0, 1).
        most: N: examples get "places" [B, N], where their first N chosen tokens are, and "y" and "weights" are [B, N]
            of these places; those chosen beyond N stay as they are. A model that takes `places` then computes logits
            there only. None for targets at every place.

    Raises:
        ValueError: If `mask` is no token of the vocabulary, or the rate or `most` is out of range.

    Source:
        Devlin et al. 2018, arXiv:1810.04805, section 3.1.
    """
    if not is_whole(vocab, 1) or not is_whole(mask, 0) or mask >= vocab:
        raise ValueError(
            f"data.masked_tokens: vocab={vocab}, mask={mask}. Tried: a token of the vocabulary. Write the tokenizer's "
            f"vocab and mask."
        )
    if not 0 < rate < 1:
        raise ValueError(f"data.masked_tokens: rate={rate!r}. Tried: a share in (0, 1). Write 0.15, say.")

    if most is not None and most < 1:
        raise ValueError(f"data.masked_tokens: most={most}. Tried: a number of tokens. Write at least 1, or None.")

    def hide(examples: Examples, words: HostArray) -> Examples:
        x = examples["x"]
        wide = words.astype(np.uint64)
        seeds = (wide[:, :1] << np.uint64(32)) | wide[:, 1:2]
        bits = splitmix(splitmix(seeds) + np.arange(x.shape[1], dtype=np.uint64))
        chosen = (bits & np.uint64(0xFFFF)) < np.uint64(round(rate * 2**16))
        chosen &= ~np.isin(x, np.asarray([mask, *special]))
        if most is not None:
            chosen &= np.cumsum(chosen, axis=1) <= most
        kind = (bits >> np.uint64(16)) & np.uint64(0xFFFF)
        random = ((bits >> np.uint64(32)) * np.uint64(vocab) >> np.uint64(32)).astype(x.dtype)
        hidden = np.where(kind < round(0.8 * 2**16), x.dtype.type(mask), np.where(kind < round(0.9 * 2**16), random, x))
        out = {**examples, "x": np.where(chosen, hidden, x), "y": x, "weights": chosen.astype(np.float32)}
        if most is not None:
            places = np.argsort(~chosen, axis=1, kind="stable")[:, :most].astype(np.int32)  # the chosen ones first
            out |= {k: np.take_along_axis(out[k], places, axis=1) for k in ("y", "weights")} | {"places": places}
        return out

    return hide
