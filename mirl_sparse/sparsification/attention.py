"""nn.MultiheadAttention with sparse projections."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mirl_kernels.ops.linear import PackedLinear


class SparseAttention(nn.Module):
    """`torch.nn.MultiheadAttention`, its projections by surviving weights; same arguments, same results in eval mode.

    ValueError for one that adds keys and values of its own (``add_bias_kv``, ``add_zero_attn``).
    """

    def __init__(self, dense: nn.MultiheadAttention) -> None:
        super().__init__()
        if dense.bias_k is not None or dense.bias_v is not None or dense.add_zero_attn:
            raise ValueError("attention with add_bias_kv or add_zero_attn has no sparse form")
        self.heads, self.batch_first = dense.num_heads, dense.batch_first
        self.in_proj_bias = None  # torch.nn.TransformerEncoderLayer looks here before it takes a fast path
        if dense.in_proj_weight is not None:
            weights = dense.in_proj_weight.chunk(3)
        else:
            weights = dense.q_proj_weight, dense.k_proj_weight, dense.v_proj_weight
        biases = (None,) * 3 if dense.in_proj_bias is None else dense.in_proj_bias.chunk(3)
        self.q, self.k, self.v = (PackedLinear(w, b) for w, b in zip(weights, biases, strict=True))
        self.out = PackedLinear(dense.out_proj.weight, dense.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `torch.nn.MultiheadAttention.forward`; ``is_causal`` is a hint beside attn_mask there and here."""
        if is_causal and attn_mask is None:
            raise RuntimeError(
                "is_causal is given without attn_mask; expected both: it is a hint about that mask"
            )
        batched = query.ndim == 3
        if batched and not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        elif not batched:
            query, key, value = (t[None] for t in (query, key, value))
        batch, count, width = query.shape

        def split(t: Tensor) -> Tensor:  # (B, heads, tokens, width / heads)
            return t.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q, k, v = split(self.q(query)), split(self.k(key)), split(self.v(value))
        mask = None
        if attn_mask is not None:
            mask = (
                attn_mask if attn_mask.ndim == 2 else attn_mask.view(batch, self.heads, *attn_mask.shape[1:])
            )
            mask = _additive(mask, q)
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask.view(batch, 1, 1, -1), q)
            mask = padding if mask is None else mask + padding
        weights = None
        if need_weights:
            logits = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
            weights = (logits if mask is None else logits + mask).softmax(-1)
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask)
        result = self.out(mixed.transpose(1, 2).reshape(batch, count, width))
        if not batched:
            return result[0], None if weights is None else weights[0]
        return result if self.batch_first else result.transpose(0, 1), weights


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """A mask to be added to logits; True of a boolean one means to leave out."""
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=like.dtype).masked_fill(mask, float("-inf"))
    return mask
