"""Run nn.MultiheadAttention with sparse projections."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mirl_kernels.ops.linear import PackedLinear


def attention_refusal(dense: nn.MultiheadAttention) -> str | None:
    """Return why an attention layer has no sparse form, None where it has one."""
    if dense.bias_k is not None or dense.bias_v is not None or dense.add_zero_attn:
        return "attention with add_bias_kv or add_zero_attn has no sparse form"
    return None


class SparseAttention(nn.Module):
    """Compute `torch.nn.MultiheadAttention` with projections by surviving weights.

    It takes the same arguments and gives the same results as the dense layer in eval mode.

    Args:
        dense: The layer whose projections are packed.

    Raises:
        ValueError: The layer adds keys and values of its own (``add_bias_kv``, ``add_zero_attn``).
    """

    def __init__(self, dense: nn.MultiheadAttention) -> None:
        super().__init__()
        if reason := attention_refusal(dense):
            raise ValueError(reason)
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
        """Compute attention as `torch.nn.MultiheadAttention.forward` does.

        Args:
            query: (tokens, C), or (B, tokens, C), or (tokens, B, C) without ``batch_first``.
            key: As ``query``, with ``kdim`` channels.
            value: As ``key``, with ``vdim`` channels.
            key_padding_mask: (B, key tokens); True for keys to leave out, or values to add to the logits.
            need_weights: Return the attention weights as well.
            attn_mask: (query tokens, key tokens) or (B * heads, query tokens, key tokens); True for pairs to
                leave out, or values to add to the logits.
            average_attn_weights: Return the mean of the weights over the heads.
            is_causal: A hint about ``attn_mask``; it changes nothing.

        Returns:
            The result, of the query's shape, and the attention weights or None.

        Raises:
            RuntimeError: ``is_causal`` comes without ``attn_mask``.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError(
                "is_causal is given without attn_mask; expected both: it is a hint about that mask"
            )
        batched = query.ndim == 3
        if batched and not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        elif not batched:
            query, key, value = (t[None] for t in (query, key, value))
        q, k, v = map(self._split, (self.q(query), self.k(key), self.v(value)))
        mask = self._mask(q, attn_mask, key_padding_mask)
        weights = None
        if need_weights:
            logits = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
            weights = (logits if mask is None else logits + mask).softmax(-1)
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask)
        result = self.out(mixed.transpose(1, 2).reshape(query.shape))
        if not batched:
            return result[0], None if weights is None else weights[0]
        return result if self.batch_first else result.transpose(0, 1).contiguous(), weights

    def _split(self, t: Tensor) -> Tensor:
        """Return (B, tokens, C) as (B, heads, tokens, C / heads)."""
        return t.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _mask(self, q: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None) -> Tensor | None:
        """Return both masks as one that is added to the logits."""
        mask = None
        if attn_mask is not None:
            if attn_mask.ndim == 3:
                attn_mask = attn_mask.view(q.shape[0], self.heads, *attn_mask.shape[1:])
            mask = _additive(attn_mask, q)
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask.view(q.shape[0], 1, 1, -1), q)
            mask = padding if mask is None else mask + padding
        return mask


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """Return a mask that is added to logits; True of a boolean mask means to leave out."""
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=like.dtype).masked_fill(mask, float("-inf"))
    return mask
