"""The model families in PyTorch: text and vectors; `benchmarks.model_torch_images` has the image families.

Plain modules of torch.nn, with the architecture, the sizes and the parameters' names that `benchmarks.model_jax` writes
weights for: the reference's own where there is one (BERT, Marian), else ours. Attention is
`F.scaled_dot_product_attention`, recurrence `nn.LSTM` and `nn.GRU`. There is no dropout.

Shape suffixes: B examples, T time, E width, H heads, D head width.
"""

import math
from typing import Any

import torch  # pyrefly: ignore[missing-import]
import torch.nn.functional as F  # pyrefly: ignore[missing-import]
from torch import Tensor, nn  # pyrefly: ignore[missing-import]

from benchmarks.model_families import Family


def heads_first(x: Tensor, heads: int) -> Tensor:
    """[B, T, E] -> [B, H, T, D]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def heads_last(x: Tensor) -> Tensor:
    """[B, H, T, D] -> [B, T, E]."""
    return x.transpose(1, 2).flatten(2)


class MLP(nn.Module):
    """Dense layers with relu between them."""

    def __init__(self, inputs: int, features: tuple[int, ...]):
        super().__init__()
        widths = (inputs, *features[:-1])
        self.hidden = [f"hidden_{i}" for i in range(len(features) - 1)]
        for name, a, b in zip(self.hidden, widths, widths[1:]):
            self.add_module(name, nn.Linear(a, b))
        self.head = nn.Linear(widths[-1], features[-1])

    def forward(self, x: Tensor) -> Tensor:
        for name in self.hidden:
            x = F.relu(getattr(self, name)(x))
        return self.head(x)


class GPTBlock(nn.Module):
    """Rotary attention and an MLP of squared relu, both after RMSNorm; no biases."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.RMSNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width, bias=False)  # of each head its queries, keys and values
        self.attention_out = nn.Linear(width, width, bias=False)
        self.norm_mlp = nn.RMSNorm(width, eps=1e-6)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        qkv = self.qkv(self.norm_attention(x)).unflatten(-1, (self.heads, 3, -1))
        q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)  # [B, H, T, D]
        q, k = (
            y * cos + torch.cat((-y[..., y.shape[-1] // 2 :], y[..., : y.shape[-1] // 2]), -1) * sin for y in (q, k)
        )
        x = x + self.attention_out(heads_last(F.scaled_dot_product_attention(q, k, v, is_causal=True)))
        return x + self.mlp_out(F.relu(self.mlp_in(self.norm_mlp(x))).square())


class GPT(nn.Module):
    """Tokens to logits of the next; the table is the output matrix too."""

    def __init__(self, vocab: int, layers: int, heads: int, width: int, length: int):
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.blocks = [f"blocks_{i}" for i in range(layers)]
        for name in self.blocks:
            self.add_module(name, GPTBlock(width, heads))
        self.norm_out = nn.RMSNorm(width, eps=1e-6)
        each = width // heads
        rates = 10_000.0 ** (-torch.arange(each // 2, dtype=torch.float64) * 2 / each)
        angles = (torch.arange(length)[:, None] * rates).float().repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for name in self.blocks:
            x = getattr(self, name)(x, self.cos, self.sin)
        return self.norm_out(x) @ self.embed.weight.T


def only_one_bias(cell: Any, gates: int) -> None:
    """Trains of a recurrent layer's second biases what ours has: nothing of an LSTM's, the last gate's of a GRU's."""
    for name, bias in cell.named_parameters():
        if not name.startswith("bias_hh"):
            continue
        if gates == 4:
            bias.requires_grad_(False)
        else:
            third = bias.shape[0] // 3
            bias.register_hook(lambda g, n=third: F.pad(g[2 * n :], (2 * n, 0)))


class LSTMLanguage(nn.Module):
    """A table, an LSTM, a dense layer."""

    def __init__(self, vocab: int, embed: int, width: int):
        super().__init__()
        self.embed = nn.Embedding(vocab, embed)
        self.rnn = nn.LSTM(embed, width, batch_first=True)
        only_one_bias(self.rnn, 4)
        self.head = nn.Linear(width, vocab)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(tokens))[0])


class AdditiveAttention(nn.Module):
    """`softmax(v . tanh(W query + U key + b))`."""

    def __init__(self, query: int, key: int, width: int):
        super().__init__()
        self.key = nn.Linear(key, width)
        self.query = nn.Linear(query, width, bias=False)
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, query: Tensor, keys: Tensor, values: Tensor, valid: Tensor) -> Tensor:
        scores = self.score(torch.tanh(keys + self.query(query)[:, None]))[..., 0]
        weights = F.softmax(scores.masked_fill(~valid, torch.finfo(scores.dtype).min), -1)
        return torch.bmm(weights[:, None], values)[:, 0]


class Seq2Seq(nn.Module):
    """A GRU in both directions, and one that looks back at all of it; teacher forcing.

    The decoder is written out over time, because its input depends on its state; a step is a `nn.GRUCell`'s, whose
    input is a sum of two products.
    """

    def __init__(self, vocab: int, embed: int, width: int, attention: int, length: int):
        super().__init__()
        self.length = length
        self.embed = nn.Embedding(vocab, embed)
        self.encoder = nn.GRU(embed, width, batch_first=True, bidirectional=True)
        only_one_bias(self.encoder, 3)
        self.attention = AdditiveAttention(width, 2 * width, attention)
        self.bridge_0 = nn.Linear(width, width)
        self.decoder = nn.GRU(embed, width)  # its parameters; `step` runs them
        only_one_bias(self.decoder, 3)
        self.context = nn.Linear(2 * width, 3 * width, bias=False)
        self.readout = nn.Linear(3 * width, embed)

    def step(self, gates: Tensor, state: Tensor) -> Tensor:
        """The next state, from a time's projected input."""
        d = self.decoder
        x_r, x_z, x_n = gates.chunk(3, -1)
        h_r, h_z, h_n = F.linear(state, d.weight_hh_l0, d.bias_hh_l0).chunk(3, -1)
        z = torch.sigmoid(x_z + h_z)
        n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
        return n + z * (state - n)

    def forward(self, x: Tensor) -> Tensor:
        source, target = x[:, : self.length], x[:, self.length :]
        valid = source != 0
        memory, last = self.encoder(self.embed(source))
        state = torch.tanh(self.bridge_0(last[1]))
        keys = self.attention.key(memory)
        gates = F.linear(self.embed(target), self.decoder.weight_ih_l0, self.decoder.bias_ih_l0)
        seen = []
        for now in gates.unbind(1):
            found = self.attention(state, keys, memory, valid)
            state = self.step(now + self.context(found), state)
            seen.append(torch.cat((state, found), -1))
        return torch.tanh(self.readout(torch.stack(seen, 1))) @ self.embed.weight.T


class MarianAttention(nn.Module):
    """Multi-head attention whose keys and values may come from elsewhere."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, seen: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        q, k, v = (heads_first(y, self.heads) for y in (self.q_proj(x), self.k_proj(seen), self.v_proj(seen)))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.out_proj(heads_last(y))


class MarianLayer(nn.Module):
    """Attention to its own sequence, in a decoder to the source, and an MLP, each with LayerNorm after the sum."""

    def __init__(self, width: int, heads: int, hidden: int, decoder: bool):
        super().__init__()
        self.self_attn = MarianAttention(width, heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        if decoder:
            self.encoder_attn = MarianAttention(width, heads)
            self.encoder_attn_layer_norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor, seen: Tensor | None = None) -> Tensor:
        own = (None, True) if seen is not None else (mask, False)  # a decoder's target is not padded
        x = self.self_attn_layer_norm(x + self.self_attn(x, x, *own))
        if seen is not None:
            x = self.encoder_attn_layer_norm(x + self.encoder_attn(x, seen, mask, False))
        return self.final_layer_norm(x + self.fc2(F.relu(self.fc1(x))))


class Layers(nn.Module):
    """Layers in a row, under the name that Marian's files have."""

    def __init__(self, layers: list[MarianLayer]):
        super().__init__()
        self.layers = nn.ModuleList(layers)


class Marian(nn.Module):
    """Source and target tokens in one array -> logits; one table for all three uses of it."""

    def __init__(self, vocab: int, width: int, heads: int, hidden: int, layers: int, length: int):
        super().__init__()
        self.length, self.scale = length, math.sqrt(width)
        sides = {
            side: Layers([MarianLayer(width, heads, hidden, side == "decoder") for _ in range(layers)])
            for side in ("encoder", "decoder")
        }
        self.model = nn.ModuleDict({"shared": nn.Embedding(vocab, width), **sides})
        self.final_logits_bias = nn.Parameter(torch.zeros(1, vocab))
        rates = 10_000.0 ** (-torch.arange(width // 2) * 2 / width)
        angles = torch.arange(length)[:, None] * rates
        self.register_buffer("sinusoids", torch.cat((angles.sin(), angles.cos()), -1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        source, target = x[:, : self.length], x[:, self.length :]
        table: Any = self.model["shared"]
        mask = (source != 0)[:, None, None, :]
        seen = table(source) * self.scale + self.sinusoids[: source.shape[1]]
        for layer in self.model["encoder"].layers:  # type: ignore[union-attr]
            seen = layer(seen, mask)
        y = table(target) * self.scale + self.sinusoids[: target.shape[1]]
        for layer in self.model["decoder"].layers:  # type: ignore[union-attr]
            y = layer(y, mask, seen)
        return y @ table.weight.T + self.final_logits_bias


class BERTLayer(nn.Module):
    """Attention and an MLP, each with LayerNorm after the sum."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.dense = (nn.Linear(width, width) for _ in range(4))
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm_out = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (heads_first(part(x), self.heads) for part in (self.query, self.key, self.value))
        y = heads_last(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
        x = self.norm(x + self.dense(y))
        return self.norm_out(x + self.down(F.gelu(self.up(x))))


class BERT(nn.Module):
    """Tokens -> logits of two classes, read at the first token."""

    # Names in BERT's files, and here.
    NAMES = (
        ("bert.embeddings.word_embeddings", "words"),
        ("bert.embeddings.position_embeddings", "positions"),
        ("bert.embeddings.token_type_embeddings", "types"),
        ("bert.embeddings.LayerNorm", "norm"),
        ("bert.encoder.layer.", "layers."),
        ("attention.self.", ""),
        ("attention.output.dense", "dense"),
        ("attention.output.LayerNorm", "norm"),
        ("intermediate.dense", "up"),
        ("output.dense", "down"),
        ("output.LayerNorm", "norm_out"),
        ("bert.pooler.dense", "pooler"),
    )

    def __init__(self, vocab: int, layers: int, heads: int, width: int, mlp_width: int, length: int):
        super().__init__()
        self.words, self.positions = nn.Embedding(vocab, width), nn.Embedding(length, width)
        self.types = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList([BERTLayer(width, heads, mlp_width) for _ in range(layers)])
        self.pooler, self.classifier = nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = (tokens != 0)[:, None, None, :]
        x = self.words(tokens) + self.positions.weight[: tokens.shape[1]] + self.types.weight[0]
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, mask)
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))


def module(name: str, family: Family, weights: dict[str, Tensor]) -> nn.Module:
    """A family's model with these weights; every one of them must have its place, and every place one."""
    s: dict[str, Any] = dict(family.sizes)
    vocab = family.vocab
    if name == "mlp":
        made: nn.Module = MLP(family.x[0], **s)
    elif name in ("gpt_tiny", "gpt_small"):
        made = GPT(vocab, **s)
    elif name == "lstm":
        made = LSTMLanguage(vocab, **s)
    elif name == "seq2seq":
        made = Seq2Seq(vocab, **s)
    elif name == "transformer":
        made = Marian(vocab, **s)
    elif name == "bert":
        made = BERT(vocab, **s)
        for theirs, here in BERT.NAMES:
            weights = {key.replace(theirs, here): w for key, w in weights.items()}
    else:
        from benchmarks import model_torch_images

        made = model_torch_images.module(name, family)
    lacking = made.load_state_dict(weights, strict=False)
    lost = [key for key in lacking.missing_keys if not key.endswith("num_batches_tracked")]
    if lost or lacking.unexpected_keys:
        raise SystemExit(
            f"benchmarks.model_torch: {name} lacks {lost}, and has no place for {lacking.unexpected_keys}."
        )
    return made
