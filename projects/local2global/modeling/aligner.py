"""The L2G-aligner, Eq. (3): q_global,t = L2G-aligner(q_global,t-1, q_local,t, g_pos,t, l_pos).

The global queries attend to one another and to the current frame's local queries.  Row i of the output is the same
object as row i of the input.
"""

from __future__ import annotations

from torch import Tensor, nn

from .layers import Attention, FeedForward


class AlignerLayer(nn.Module):
    """Self-attention of the global queries, cross-attention to the local queries, feed-forward; post-norm."""

    def __init__(self, dim: int, num_heads: int, dim_feedforward: int, cross_first: bool = False) -> None:
        super().__init__()
        self.self_attn = Attention(dim, num_heads)
        self.cross_attn = Attention(dim, num_heads)
        self.ffn = FeedForward(dim, dim_feedforward)
        self.cross_first = cross_first

    def forward(self, queries: Tensor, local: Tensor, g_pos: Tensor, l_pos: Tensor) -> Tensor:
        """As `L2GAligner.forward`."""
        if self.cross_first:
            queries = self.cross_attn(queries, g_pos, local, l_pos)
            queries = self.self_attn(queries, g_pos)
        else:
            queries = self.self_attn(queries, g_pos)
            queries = self.cross_attn(queries, g_pos, local, l_pos)
        out: Tensor = self.ffn(queries)
        return out


class L2GAligner(nn.Module):
    """Three transformer decoder layers (section 4.2).

    Args:
        dim: width C.
        num_heads: attention heads.
        dim_feedforward: hidden width of the feed-forward networks, the paper's "hidden dimension" (Table 5).
        num_layers: number of layers.
        cross_first: apply cross-attention before self-attention.
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
        """Align the global queries with the current frame.

        Args:
            queries: (B, N, C) q_global,t-1.
            local: (B, N, C) q_local,t.
            g_pos: (B, N, C) positions of the global queries.
            l_pos: (B, N, C) positions of the local queries, added to the keys.

        Returns:
            (B, N, C) q_global,t.
        """
        for layer in self.layers:
            queries = layer(queries, local, g_pos, l_pos)
        return queries
