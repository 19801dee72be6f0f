"""What is inside a `Tokenizer`: byte pairs and WordPiece, trained, or put together of a vocabulary's plain files."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_GPT2 = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")  # role -> token
_ROBERTA = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
    "cls_token": "<s>",
    "sep_token": "</s>",
}
_LIKE_ROBERTA = ("Roberta", "Bart", "Longformer", "LED")  # whose tokenizers are the same


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


def trained_bpe(texts: Iterable[str], vocab: int, lowercase: bool, ends: bool) -> Any:
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
    if ends:
        _surround(inner)
    return inner


def trained_wordpiece(texts: Iterable[str], vocab: int, lowercase: bool, ends: bool) -> Any:
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
    return _wordpiece(tokenizers.models.WordPiece(found, unk_token="[UNK]"), lowercase, found, ends)


def _wordpiece(model: Any, lowercase: bool, vocab: Any, ends: bool = True) -> Any:
    """BERT's tokenizer around a WordPiece model."""
    tokenizers = package()
    inner = tokenizers.Tokenizer(model)
    inner.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    inner.decoder = tokenizers.decoders.WordPiece()
    if vocab is not None:
        inner.add_special_tokens([token for token in SPECIAL if token in vocab])
        if ends:
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
    if "[UNK]" not in vocab:
        raise ValueError(
            f"data.Tokenizer.load: {str(file)!r} holds {len(vocab)} tokens and no '[UNK]'. Tried: BERT's vocab.txt. "
            f"Give the file of a BERT, or its tokenizer.json."
        )
    return _wordpiece(model(vocab, unk_token="[UNK]"), lowercase, vocab)


def byte_pairs(vocab: Path, merges: Path) -> Any:
    """GPT-2's tokenizer of its two files, or RoBERTa's, which puts <s> before a text and </s> after it.

    A `tokenizer_config.json` beside them says which, and by which tokens; without one the vocabulary does.

    Raises:
        ValueError: If it is of neither: others have such files too, and cut words or surround texts otherwise.
    """
    tokenizers = package()
    tokens, pairs = tokenizers.models.BPE.read_file(str(vocab), str(merges))
    said = _beside(vocab, "tokenizer_config.json")
    roberta = _as_roberta(vocab, tokens, said)
    roles = {**(_ROBERTA if roberta else _GPT2), **_said_tokens(said)}
    special = dict.fromkeys(token for token in roles.values() if token in tokens)
    before = bool(said.get("add_prefix_space"))
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(tokens, pairs))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=before)
    inner.decoder = tokenizers.decoders.ByteLevel()
    for token in special:
        # A mask stands for a word with the blank before it.
        inner.add_special_tokens([tokenizers.AddedToken(token, lstrip=token == "<mask>", normalized=False)])
    wanted = ("sep_token", "cls_token") if roberta else ("bos_token",) if said.get("add_bos_token") else ()
    if missing := [role for role in wanted if roles[role] not in tokens]:
        raise ValueError(
            f"data.Tokenizer.load: {str(vocab)!r} has not {roles[missing[0]]!r}, the {missing[0]}. Tried: putting it "
            f"at texts. Give the vocabulary that tokenizer_config.json belongs to."
        )
    ends = [(roles[role], tokens[roles[role]]) for role in wanted]
    if roberta:
        inner.post_processor = tokenizers.processors.RobertaProcessing(*ends, add_prefix_space=before)
    elif wanted:  # OPT's, whose <s> is </s>
        first = ends[0][0]
        inner.post_processor = tokenizers.processors.TemplateProcessing(
            single=[first, "$A"], pair=[first, "$A", f"{first}:1", "$B:1"], special_tokens=ends
        )
    return inner


def _beside(vocab: Path, name: str) -> dict[str, Any]:
    """What a file beside the vocabulary says; nothing if there is none."""
    file = vocab.with_name(name)
    if not file.is_file():
        return {}
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"data.Tokenizer.load: {str(file)!r} is no JSON ({error}). Tried: reading it.") from error
    if not isinstance(said, dict):
        raise ValueError(
            f"data.Tokenizer.load: {str(file)!r} holds {said!r:.60}. Tried: an object of fields. Write it again."
        )
    return said


def _as_roberta(vocab: Path, tokens: Mapping[str, int], said: Mapping[str, Any]) -> bool:
    """Whether texts are surrounded as RoBERTa does, or left as GPT-2 does."""
    if "a</w>" in tokens:  # words' ends are marked, as CLIP does, which has <|endoftext|> too
        raise ValueError(_other(vocab, "has 'a</w>'"))
    name = said.get("tokenizer_class")
    if name is not None:
        family = str(name).removesuffix("Fast").removesuffix("Tokenizer")
        if family not in ("GPT2", *_LIKE_ROBERTA):
            raise ValueError(_other(vocab, f"is a {name!s:.60}'s, by tokenizer_config.json"))
        return family != "GPT2"
    if not all(token in tokens for token in ("<s>", "</s>")):
        if "<|endoftext|>" not in tokens:
            raise ValueError(_other(vocab, "has neither '<|endoftext|>' nor '<s>' and '</s>'"))
        return False
    model = _beside(vocab, "config.json").get("model_type")
    if model is not None and model not in [family.lower() for family in _LIKE_ROBERTA]:  # OPT's, or Blenderbot's
        raise ValueError(_other(vocab, f"is that of model_type={model!r:.60} without its tokenizer_config.json"))
    return True


def _other(vocab: Path, why: str) -> str:
    return (
        f"data.Tokenizer.load: {str(vocab)!r} {why}. Tried: GPT-2's and RoBERTa's vocabularies. Give the "
        f"tokenizer.json of any other."
    )


def _said_tokens(said: Mapping[str, Any]) -> dict[str, str]:
    """The tokens that `tokenizer_config.json` names by role; each as text, or as an object with its `content`."""
    found: dict[str, str] = {}
    for role in _ROBERTA:
        token = said.get(role)
        if token is None:
            continue
        token = token.get("content") if isinstance(token, dict) else token
        if not isinstance(token, str):
            raise ValueError(
                f"data.Tokenizer.load: tokenizer_config.json has {role}={said[role]!r:.60}. Tried: a token as text. "
                f"Write it again."
            )
        found[role] = token
    return found
