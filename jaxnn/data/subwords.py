"""What is inside a `Tokenizer`: byte pairs and WordPiece, trained, or put together of a vocabulary's plain files."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def package() -> Any:
    """The package `tokenizers`.

    Raises:
        ModuleNotFoundError: If it is not installed.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise ModuleNotFoundError(
            "data.Tokenizer: the package tokenizers is not installed. Tried: importing it. Write pip install "
            "'jaxnn-training[text]', or work on bytes: data.TextFiles."
        ) from error
    return tokenizers


def trained_bpe(texts: Iterable[str], vocab: int, lowercase: bool) -> Any:
    """Byte pairs learned from texts; see `Tokenizer.train`."""
    tokenizers = package()
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    if lowercase:
        inner.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return inner


def trained_wordpiece(texts: Iterable[str], vocab: int, lowercase: bool) -> Any:
    """WordPiece learned from texts; see `Tokenizer.train`.

    Raises:
        ValueError: If the vocabulary holds not each letter twice, or there is no text.
    """
    tokenizers = package()
    texts = list(texts)
    inner = _wordpiece(tokenizers.models.WordPiece(unk_token="[UNK]"), lowercase, None)
    letters = sorted({c for text in texts for c in inner.normalizer.normalize_str(text) if not c.isspace()})
    if not letters or vocab < len(SPECIAL) + 2 * len(letters):
        raise ValueError(
            f"data.Tokenizer.train: vocab={vocab} for {len(letters)} different characters. Tried: each at a word's "
            f"begin and inside. Write at least {len(SPECIAL) + 2 * len(letters)}, and give texts."
        )
    # The trainer numbers what continues a word in the order of a hash table that differs from run to run, and breaks
    # ties by number: given as "special" tokens they have the same numbers always.
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=vocab, special_tokens=[*SPECIAL, *(f"##{c}" for c in letters)], show_progress=False
    )
    inner.train_from_iterator(texts, trainer)
    found = inner.get_vocab()
    return _wordpiece(tokenizers.models.WordPiece(found, unk_token="[UNK]"), lowercase, found)


def _wordpiece(model: Any, lowercase: bool, vocab: Any) -> Any:
    """BERT's tokenizer around a WordPiece model."""
    tokenizers = package()
    inner = tokenizers.Tokenizer(model)
    inner.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    inner.decoder = tokenizers.decoders.WordPiece()
    if vocab is not None:
        inner.add_special_tokens([token for token in SPECIAL if token in vocab])
        _surround(inner)
    return inner


def _surround(inner: Any) -> None:
    """[CLS] text [SEP], or [CLS] text [SEP] partner [SEP]."""
    tokenizers = package()
    ends = [(token, inner.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    if all(i is not None for _, i in ends):
        inner.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
        )


def wordpiece_of(file: Path, lowercase: bool) -> Any:
    """BERT's tokenizer of its `vocab.txt`."""
    model = package().models.WordPiece
    vocab = model.read_file(str(file))
    return _wordpiece(model(vocab, unk_token="[UNK]"), lowercase, vocab)


def byte_pairs(vocab: Path, merges: Path) -> Any:
    """GPT-2's tokenizer of its two files, or RoBERTa's, which puts <s> before a text and </s> after it.

    Raises:
        ValueError: If the vocabulary is of neither: others have such files too, and cut words otherwise.
    """
    tokenizers = package()
    tokens, pairs = tokenizers.models.BPE.read_file(str(vocab), str(merges))
    roberta = all(token in tokens for token in ("<s>", "</s>"))
    ends = "a</w>" in tokens  # words' ends are marked, as CLIP does, which has <|endoftext|> too
    if ends or (not roberta and "<|endoftext|>" not in tokens):
        why = "has 'a</w>'" if ends else "has neither '<|endoftext|>' nor '<s>' and '</s>'"
        raise ValueError(
            f"data.Tokenizer.load: {str(vocab)!r} {why}. Tried: GPT-2's and RoBERTa's vocabularies. Give the "
            f"tokenizer.json of any other."
        )
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(tokens, pairs))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    for token in (t for t in ("<|endoftext|>", *_ROBERTA) if t in tokens):
        # A mask stands for a word with the blank before it.
        inner.add_special_tokens([tokenizers.AddedToken(token, lstrip=token == "<mask>", normalized=False)])
    if roberta:
        ends = [(token, tokens[token]) for token in ("</s>", "<s>")]
        inner.post_processor = tokenizers.processors.RobertaProcessing(*ends, add_prefix_space=False)
    return inner
