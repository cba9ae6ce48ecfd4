"""The L2G-aligner, Eq. (3): q_global,t = L2G-aligner(q_global,t-1, q_local,t, g_pos,t, l_pos).

Tracked queries ask, the current frame's local queries answer.  Order is identity and is kept: row i of the output
is row i of the input, told what the current frame looks like.
"""

from __future__ import annotations

from torch import Tensor, nn

from .layers import Attention, FeedForward


class AlignerLayer(nn.Module):
    """Self-attention among the tracked queries, cross-attention to the local ones, feed-forward; post-norm.

    Args:
        dim: width C.
        num_heads: attention heads.
        dim_feedforward: the paper's "hidden dimension".
        cross_first: look at the local queries before looking at one another.
    """

    def __init__(self, dim: int, num_heads: int, dim_feedforward: int, cross_first: bool = False) -> None:
        super().__init__()
        self.self_attn = Attention(dim, num_heads)
        self.cross_attn = Attention(dim, num_heads)
        self.ffn = FeedForward(dim, dim_feedforward)
        self.cross_first = cross_first

    def forward(self, queries: Tensor, local: Tensor, g_pos: Tensor, l_pos: Tensor) -> Tensor:
        """(B, N, C) tracked queries to the same, aligned."""
        if self.cross_first:
            queries = self.cross_attn(queries, g_pos, local, l_pos)
            return self.ffn(self.self_attn(queries, g_pos))
        queries = self.self_attn(queries, g_pos)
        return self.ffn(self.cross_attn(queries, g_pos, local, l_pos))


class L2GAligner(nn.Module):
    """Three transformer decoder layers (section 4.2).

    Args:
        dim: width C.
        num_heads: attention heads.
        dim_feedforward: hidden width of the feed-forward networks (Table 5).
        num_layers: layers.
        cross_first: cross-attention before self-attention.
    """

    def __init__(
        self,
        dim: int = 256,
        num_heads: int = 8,
        dim_feedforward: int = 1024,
        num_layers: int = 3,
        cross_first: bool = False,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            AlignerLayer(dim, num_heads, dim_feedforward, cross_first) for _ in range(num_layers)
        )

    def forward(self, queries: Tensor, local: Tensor, g_pos: Tensor, l_pos: Tensor) -> Tensor:
        """Align.

        Args:
            queries: (B, N, C) q_global,t-1.
            local: (B, K, C) q_local,t.
            g_pos: (B, N, C), added to the queries.
            l_pos: (B, K, C), added to the local queries where they are keys.

        Returns:
            (B, N, C) q_global,t.
        """
        for layer in self.layers:
            queries = layer(queries, local, g_pos, l_pos)
        return queries


class IdentityStartAligner(L2GAligner):
    """An L2G-aligner whose residual branches start at zero: new, it hands normed queries on as they are.

    For video training without pre-training (section 4.2): but for the norms it starts at what propagation does without
    an aligner, where random weights, or those that learned to follow learned queries, start behind that.  It takes what
    `L2GAligner` takes.
    """

    def __init__(self, *args: int, **kwargs: int) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        for layer in self.layers:
            assert isinstance(layer, AlignerLayer)
            for last in (
                layer.self_attn.attention.out_proj,
                layer.cross_attn.attention.out_proj,
                layer.ffn.linear2,
            ):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
