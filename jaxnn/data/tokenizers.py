"""Byte-pair and WordPiece tokenizers, trained here or loaded, and sentences as padded examples.

A thin layer over the package `tokenizers`, whose files it reads and writes (`subwords` makes what is inside). Bytes
need none of it: `TextFiles`, and `text.encode()`.
"""

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxnn.data import subwords
from jaxnn.data.arrays import Arrays, take_rows
from jaxnn.data.given import check_path, check_text, check_texts, check_whole, example_numbers, is_whole
from jaxnn.tree import describe
from jaxnn.typing import HostArray, Resident

_PADS, _MASKS = ("[PAD]", "<pad>", "<|endoftext|>"), ("[MASK]", "<mask>")
_PAIRS = {"vocab.json": "merges.txt", "encoder.json": "vocab.bpe"}  # tokens, and the pairs that make them


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """Token ids of texts, one after another.

    Attributes:
        ids: int32, all tokens.
        types: uint8, 0 for a first text's tokens and 1 for its partner's.
        starts: int64 [n + 1]; text i is `ids[starts[i] : starts[i + 1]]`.
    """

    ids: HostArray
    types: HostArray
    starts: HostArray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, i: int) -> HostArray:
        return self.ids[self.starts[i] : self.starts[i + 1]]


class Tokenizer:
    """Texts to token ids and back.

    Attributes:
        vocab: Number of tokens.
    """

    def __init__(self, inner: Any, pad: str | None = None):
        """Wraps a `tokenizers.Tokenizer`; `load` and `train` make one.

        Raises:
            ValueError: If it has not the token `pad`.
        """
        self.inner = inner
        inner.no_padding()
        inner.no_truncation()
        self.vocab: int = inner.get_vocab_size()
        self._end = max(inner.get_vocab().values(), default=-1) + 1  # ids may have gaps
        self._pads = _PADS if pad is None else (pad,)
        if pad is not None:
            self._first(self._pads, "pad with")

    def _first(self, names: Sequence[str], what: str, more: str = "") -> int:
        for name in names:
            if (found := self.inner.token_to_id(name)) is not None:
                return found
        raise ValueError(
            f"data.Tokenizer: {self.vocab} tokens and none to {what}. Tried: {', '.join(names)}. Use a tokenizer that "
            f"has one.{more}"
        )

    def __repr__(self) -> str:
        return f"Tokenizer({type(self.inner.model).__name__}, {self.vocab} tokens)"

    @property
    def pad(self) -> int:
        """The token that pads: the one that `load` was told, else the first there is of [PAD], <pad>, <|endoftext|>.

        Raises:
            ValueError: If there is none, as in Llama's and Mistral's files: `load` one with pad="</s>", say.
        """
        return self._first(self._pads, "pad with", " Or say which: Tokenizer.load(path, pad='</s>'), say.")

    @property
    def mask(self) -> int:
        """The token that stands for a hidden one.

        Raises:
            ValueError: If there is none.
        """
        return self._first(_MASKS, "mask with")

    @property
    def special(self) -> tuple[int, ...]:
        """Ids of the tokens that are no text."""
        return tuple(sorted(i for i, token in self.inner.get_added_tokens_decoder().items() if token.special))

    def token_id(self, token: str) -> int:
        """The id of a token.

        Raises:
            ValueError: If there is no such token.
        """
        check_text("data.Tokenizer.token_id", token)
        return self._first((token,), "give")

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, lowercase: bool = True, pad: str | None = None) -> "Tokenizer":
        """A tokenizer from a file, or from a folder that has one.

        Read are `tokenizer.json`, BERT's `vocab.txt`, and GPT-2's or RoBERTa's `vocab.json` with `merges.txt` beside it
        (`encoder.json` with `vocab.bpe`); of these `tokenizer_config.json`, if it is there, says what surrounds a text,
        as OPT's does.

        Args:
            path: The file, or the folder.
            lowercase: Whether a model of a bare `vocab.txt` reads lower case without accents.
            pad: The token that pads, where the tokenizer has none of those that `Tokenizer.pad` finds.

        Raises:
            ValueError: If there is no such file, it is damaged, or has no such token.
        """
        check_path("data.Tokenizer.load", path)
        if pad is not None and not isinstance(pad, str):
            raise TypeError(f"data.Tokenizer.load: pad={pad!r:.60}. Tried: a token. Write pad='</s>', say, no id.")
        file = Path(path).expanduser()
        if file.is_dir():
            file = next((file / n for n in ("tokenizer.json", "vocab.txt", *_PAIRS) if (file / n).is_file()), file)
        beside = file.with_name(_PAIRS[file.name]) if file.name in _PAIRS else file
        if not file.is_file() or not beside.is_file():
            pairs = ", ".join(f"{vocab} with {merges}" for vocab, merges in _PAIRS.items())
            raise ValueError(
                f"data.Tokenizer.load: {str(path)!r} holds no tokenizer. Tried: tokenizer.json, vocab.txt, {pairs}. "
                f"Give one of these files, or a folder with it."
            )
        try:
            if beside != file:
                return cls(subwords.byte_pairs(file, beside), pad)
            if file.suffix == ".txt":
                return cls(subwords.wordpiece_of(file, lowercase), pad)
            return cls(subwords.package().Tokenizer.from_file(str(file)), pad)
        except (ValueError, ModuleNotFoundError):
            raise
        except Exception as error:  # the package raises bare Exceptions
            raise ValueError(
                f"data.Tokenizer.load: {str(file)!r} is no tokenizer ({error}). Tried: reading it. Write it again."
            ) from error

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        *,
        vocab: int,
        kind: Literal["bpe", "wordpiece"] = "bpe",
        lowercase: bool | None = None,
        ends: bool | None = None,
    ) -> "Tokenizer":
        """A tokenizer of `texts`: byte-level byte pairs, which lose nothing, or BERT's WordPiece.

        `subwords.SPECIAL` are its first tokens. The result depends on the texts and their order alone.

        Args:
            texts: To learn from.
            vocab: Most tokens, the special ones and (for "bpe") 256 bytes included.
            kind: "bpe" (Sennrich et al. 2016, over bytes as GPT-2) or "wordpiece".
            lowercase: Whether to read lower case without accents; by default "wordpiece" does.
            ends: Whether [CLS] stands before a text and [SEP] after it; by default "wordpiece" puts them there.
                Translators need them.

        Raises:
            ValueError: If the vocabulary is too small, the kind is unknown, or there is no text.
            TypeError: If a text is no string, or `texts` is one.
        """
        least = len(subwords.SPECIAL) + (256 if kind == "bpe" else 1)
        if kind not in ("bpe", "wordpiece") or not is_whole(vocab, least):
            raise ValueError(
                f"data.Tokenizer.train: kind={kind!r}, vocab={vocab}. Tried: bpe or wordpiece, of at least {least} "
                f"tokens. Write vocab=8192, say."
            )
        check_texts("data.Tokenizer.train", texts)
        texts = _checked("data.Tokenizer.train", texts)
        if (first := next(texts, None)) is None:
            raise ValueError("data.Tokenizer.train: no texts. Tried: learning from them. Give at least one.")
        texts = itertools.chain([first], texts)
        return cls(
            subwords.trained_wordpiece(texts, vocab, lowercase is not False, ends is not False)
            if kind == "wordpiece"
            else subwords.trained_bpe(texts, vocab, bool(lowercase), bool(ends))
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `tokenizer.json`, to that file or into that folder.

        Raises:
            ValueError: If there is no such folder.
        """
        check_path("data.Tokenizer.save", path)
        file = Path(path).expanduser()
        if not file.is_dir() and not file.parent.is_dir():
            raise ValueError(
                f"data.Tokenizer.save: there is no folder {str(file.parent)!r}. Tried: writing {file.name!r} into it. "
                f"Make it first."
            )
        self.inner.save(str(file / "tokenizer.json" if file.is_dir() else file))

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, length: int | None = None) -> Encoded:
        """Ids of texts, or of pairs of texts, with the special tokens that the tokenizer adds.

        Args:
            texts: Any strings; of an empty one only special tokens are left.
            pairs: The second texts.
            length: Most tokens of an example, special ones included; the longer text of a pair is cut first.

        Raises:
            ValueError: If the numbers differ, or the length leaves no room for text.
            TypeError: If a text is no string, or `texts` is one.
        """
        for given in (texts,) if pairs is None else (texts, pairs):
            check_texts("data.Tokenizer.encode", given)
        if pairs is not None and len(pairs) != len(texts):
            raise ValueError(
                f"data.Tokenizer.encode: {len(texts)} texts and {len(pairs)} partners. Tried: pairs. Give one each."
            )
        for text in (*texts, *(pairs or ())):
            check_text("data.Tokenizer.encode", text)
        added = self.inner.num_special_tokens_to_add(pairs is not None)
        if length is not None and not is_whole(length, added + 1):
            raise ValueError(
                f"data.Tokenizer.encode: length={length} for {added} special tokens. Tried: cutting the text. Write at "
                f"least {added + 1}."
            )
        try:
            if length is not None:
                self.inner.enable_truncation(length)
            given = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
            found = self.inner.encode_batch(given)
        finally:
            self.inner.no_truncation()
        starts = np.cumsum([0, *(len(e) for e in found)])
        ids = np.fromiter((i for e in found for i in e.ids), np.int32, starts[-1])
        types = np.fromiter((i for e in found for i in e.type_ids), np.uint8, starts[-1])
        return Encoded(ids, types, starts)

    def decode(self, ids: Any) -> str:
        """The text of ids [n], without special tokens.

        Raises:
            ValueError: If they are not integers [n], or one is no token.
        """
        ids = np.asarray(ids)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise ValueError(
                f"data.Tokenizer.decode: ids are {describe(ids)}. Tried: integers [n]. Decode texts one by one."
            )
        if ids.size and (ids.min() < 0 or ids.max() >= self._end):
            raise ValueError(
                f"data.Tokenizer.decode: ids {ids.min()} to {ids.max()} for {self.vocab} tokens. Tried: ids in "
                f"[0, {self._end}). Give what the model wrote, without padding of other kinds."
            )
        return self.inner.decode(ids.tolist())


def _checked(where: str, texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        check_text(where, text)
        yield text


class Sentences:
    """Texts, or pairs of texts, as examples of one length a batch, padded.

    Examples are {"x": int32 [B, T]}, for pairs also "types": int32 [B, T], and the arrays given by name. T is the
    smallest of `buckets` that holds the longest of the batch: a batch of short texts costs less, and a program is
    compiled for each bucket. `fit`, `evaluate` and `predict` bring texts of one bucket together (`data.bucketing`).

    Attributes:
        padded_to: int [n], the bucket of each; None without buckets.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        length: int,
        buckets: Sequence[int] = (),
        **arrays: Any,
    ):
        """Tokenizes all texts.

        Args:
            tokenizer: Its `pad` fills up.
            texts: At least one.
            pairs: The second texts.
            length: Most tokens of an example; longer ones are cut.
            buckets: Further lengths of batches, below `length`; none for batches all alike, which may live on the
                device.
            arrays: Further arrays [n, ...], the targets "y", say.

        Raises:
            ValueError: If there is no text, one has no token, lengths do not fit, or a bucket is out of range.
        """
        if not isinstance(tokenizer, Tokenizer):
            raise TypeError(
                f"data.Sentences: tokenizer is {describe(tokenizer)}. Tried: a data.Tokenizer. Write "
                f"data.Tokenizer.load(folder)."
            )
        check_texts("data.Sentences", texts)
        if own := {"x", "types"} & arrays.keys():
            raise ValueError(
                f"data.Sentences: an array {sorted(own)[0]!r}. Tried: arrays beside the tokens, which are 'x' and "
                f"'types'. Rename it."
            )
        if not len(texts):
            raise ValueError("data.Sentences: no texts. Tried: tokenizing them. Give at least one.")
        check_whole("data.Sentences", "length", length, 1)
        if isinstance(buckets, (str, int)):
            raise ValueError(f"data.Sentences: buckets={buckets!r}. Tried: several lengths. Write ({buckets},).")
        bad = [b for b in buckets if not is_whole(b, 1) or b >= length]
        if bad:
            raise ValueError(
                f"data.Sentences: bucket {bad[0]} for length={length}. Tried: buckets in [1, length). Leave it out."
            )
        self.encoded = tokenizer.encode(texts, pairs, length=length)
        if len(nothing := np.flatnonzero(np.diff(self.encoded.starts) == 0)):
            raise ValueError(
                f"data.Sentences: text {nothing[0]} has no token. Tried: examples that are more than padding. Leave "
                f"empty texts out."
            )
        self.pad, self.paired = tokenizer.pad, pairs is not None
        self.lengths = np.array([*sorted(set(buckets)), length])
        self.padded_to = self.lengths[np.searchsorted(self.lengths, np.diff(self.encoded.starts))] if buckets else None
        self.arrays = Arrays(arrays) if arrays else None
        if self.arrays is not None and len(self.arrays) != len(self.encoded):
            raise ValueError(
                f"data.Sentences: {len(self.encoded)} texts and arrays of {len(self.arrays)}. Tried: one row a text. "
                f"Give as many."
            )

    def __len__(self) -> int:
        return len(self.encoded)

    def __repr__(self) -> str:
        return f"Sentences({len(self)} of {self.encoded.starts[-1]} tokens, up to {', '.join(map(str, self.lengths))})"

    def _pad(self, index: HostArray, length: int) -> dict[str, HostArray]:
        start, end = self.encoded.starts[index], self.encoded.starts[index + 1]
        at = start[:, None] + np.arange(length)
        inside = at < end[:, None]
        at = np.where(inside, at, 0)
        out = {"x": np.where(inside, self.encoded.ids[at], np.int32(self.pad))}
        if self.paired:
            out["types"] = np.where(inside, self.encoded.types[at], 0).astype(np.int32)
        return out | (self.arrays.take(index) if self.arrays is not None else {})

    def take(self, index: HostArray, length: int | None = None) -> dict[str, HostArray]:
        """The examples `index` [B], `length` long, or as the longest of them needs."""
        index = example_numbers("data.Sentences", index, len(self)).astype(np.int64)
        needed = self.lengths[:1] if self.padded_to is None else self.padded_to[index]
        return self._pad(index, int(needed.max(initial=1)) if length is None else length)

    def resident(self) -> Resident | None:
        """All of them at one length; None where there are buckets."""
        if self.padded_to is not None:
            return None
        return Resident(self._pad(np.arange(len(self)), int(self.lengths[0])), take_rows)
