"""Transformer encoder of BERT (https://arxiv.org/abs/1810.04805), post-norm, without positions (SPEC section 3.1).

Shape letters: B batch, T frames, H width, P = 3H projections, N heads, D width of a head,
I inner width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.layers import truncated_normal_, zero_bias
from models.short_attention import attention, is_short, short_attention

LAYER_NORM_EPS = 1e-12
INITIALIZER_STD = 0.02


def bert_linear(in_features: int, out_features: int) -> nn.Linear:
    """Make a linear layer with BERT's initialiser."""
    layer = nn.Linear(in_features, out_features)
    truncated_normal_(layer.weight, INITIALIZER_STD)
    return zero_bias(layer)


class EncoderLayer(nn.Module):
    """Self-attention and a two-layer perceptron, each added to its input and layer-normalised."""

    def __init__(self, width: int, num_heads: int, intermediate_size: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.held_projection: tuple[Tensor, Tensor] | None = None
        self.query = bert_linear(width, width)
        self.key = bert_linear(width, width)
        self.value = bert_linear(width, width)
        self.attention_output = bert_linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.intermediate = bert_linear(width, intermediate_size)
        self.output = bert_linear(intermediate_size, width)
        self.output_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def project(self, x: Tensor) -> Tensor:
        """Project frames [..., H] to their queries, keys and values side by side, [..., 3H], by one product."""
        weight, bias = self.held_projection or self._projection()
        return F.linear(x, weight, bias)

    def _projection(self) -> tuple[Tensor, Tensor]:
        layers = (self.query, self.key, self.value)
        return torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])

    @torch.no_grad()
    def hold_projection(self) -> None:
        """Keep the joined weights of `project`, for inference: later changes of the weights do not reach them."""
        self.held_projection = self._projection()

    def forward(self, x_BTH: Tensor, mask_B11T: Tensor | None = None, projected_BTP: Tensor | None = None) -> Tensor:
        """Map [B, T, H] to [B, T, H]; the mask (bool [B, 1, 1, T]) says which frames may be attended to.

        `projected_BTP` is `project(x_BTH)` where the caller has it already.
        """
        dropout = self.dropout if self.training else 0.0
        if projected_BTP is None:
            projected_BTP = self.project(x_BTH)
        if mask_B11T is None and not dropout and is_short(projected_BTP):
            context_BTH = short_attention(projected_BTP, self.num_heads)
        else:
            context_BTH = attention(projected_BTP, self.num_heads, mask_B11T, dropout)
        attended_BTH = self.attention_output(context_BTH)
        x_BTH = self.attention_norm(F.dropout(attended_BTH, dropout) + x_BTH)
        inner_BTI = F.gelu(self.intermediate(x_BTH), approximate="tanh")
        return self.output_norm(F.dropout(self.output(inner_BTI), dropout) + x_BTH)


class Encoder(nn.Module):
    """A stack of encoder layers. Frames are a set to it: no position enters anywhere."""

    def __init__(self, num_layers: int, width: int, num_heads: int, intermediate_size: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(width, num_heads, intermediate_size, dropout) for _ in range(num_layers)
        )

    def project(self, x: Tensor) -> Tensor:
        """Compute what the first layer needs of every frame, wherever it stands (see `EncoderLayer.project`)."""
        first: EncoderLayer = self.layers[0]  # type: ignore[assignment]
        return first.project(x)

    def forward(self, x_BTH: Tensor, mask_B11T: Tensor | None = None, projected_BTP: Tensor | None = None) -> Tensor:
        """Map [B, T, H] to [B, T, H]; `projected_BTP` is `project(x_BTH)` where the caller has it already."""
        for layer in self.layers:
            x_BTH = layer(x_BTH, mask_B11T, projected_BTP)
            projected_BTP = None
        return x_BTH


class Pooler(nn.Module):
    """Reduce encoded frames [B, T, H] to one vector, by one of the original's strategies (SPEC section 4).

    concat: all frames side by side, [B, T * H]; last: the last frame (the original calls it "first"); mean: their mean;
    attention: weighted by a softmax over their products with a learned query.
    """

    def __init__(self, pooling: str, width: int) -> None:
        super().__init__()
        self.pooling = pooling
        self.query = (
            nn.Parameter(nn.init.xavier_uniform_(torch.empty(width, 1))[None]) if pooling == "attention" else None
        )

    def forward(self, x_BTH: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Pool [B, T, H]; frames outside the mask (bool [B, T]) do not take part."""
        if self.pooling == "concat":
            return (x_BTH if mask_BT is None else x_BTH * mask_BT[:, :, None]).flatten(1)
        if self.pooling == "last":
            return x_BTH[:, -1] if mask_BT is None else x_BTH[torch.arange(x_BTH.shape[0]), mask_BT.sum(1) - 1]
        if self.pooling == "mean":
            if mask_BT is None:
                return x_BTH.mean(1)
            return (x_BTH * mask_BT[:, :, None]).sum(1) / mask_BT.sum(1, keepdim=True)
        assert self.query is not None
        x_BTH = x_BTH.to(self.query.dtype)
        scores_BT1 = x_BTH @ self.query[0] / x_BTH.shape[2] ** 0.5
        if mask_BT is not None:
            scores_BT1 = scores_BT1.masked_fill(~mask_BT[:, :, None], float("-inf"))
        return (scores_BT1.float().softmax(1).to(x_BTH.dtype) * x_BTH).sum(1)
