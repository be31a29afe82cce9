"""Window cross-attention: voxels of the fixed features ask those of the moving ones around them."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from verimorph.errors import InputError, OptionError
from verimorph.nn.matching._shifts import check_features


def _per_axis(value: int | tuple[int, ...], ndim: int, least: int, what: str) -> tuple[int, ...]:
    values = (value,) * ndim if isinstance(value, int) else tuple(value)
    if len(values) != ndim or min(values) < least:
        raise OptionError(f"{what} {value} does not give {ndim} whole numbers from {least}, one an axis")
    return values


def _relative_index(window: tuple[int, ...], margin: tuple[int, ...]) -> Int[Tensor, "q k"]:
    """Place in the table of biases of (position of the key - position of the query), last axis fastest."""
    flat = torch.zeros(1, 1, dtype=torch.long)
    for w, m in zip(window, margin, strict=True):
        reach = w - 1 + m
        axis = torch.arange(-m, w + m)[None, :] - torch.arange(w)[:, None] + reach
        q, k = flat.shape
        flat = (flat[:, None, :, None] * (2 * reach + 1) + axis[None, :, None, :]).reshape(q * w, k * (w + 2 * m))
    return flat


def _table_size(window: tuple[int, ...], margin: tuple[int, ...]) -> int:
    size = 1
    for w, m in zip(window, margin, strict=True):
        size *= 2 * (w - 1 + m) + 1
    return size


def _windows(x: Tensor, window: tuple[int, ...], margin: tuple[int, ...], heads: int) -> Tensor:
    """(b, c, *space) -> (b, windows, heads, positions, c / heads); windows overlap by their margins."""
    ndim = len(window)
    for axis, (w, m) in enumerate(zip(window, margin, strict=True)):
        x = x.unfold(2 + axis, w + 2 * m, w)
    x = x.unflatten(1, (heads, -1))  # b, h, c', *counts, *positions
    b, h, c = x.shape[:3]
    order = (0, *range(3, 3 + ndim), 1, *range(3 + ndim, 3 + 2 * ndim), 2)
    counts, positions = x.shape[3 : 3 + ndim].numel(), x.shape[3 + ndim :].numel()
    return x.permute(order).reshape(b, counts, h, positions, c)


def _joined(windows: Tensor, counts: tuple[int, ...], window: tuple[int, ...]) -> Tensor:
    """(b, windows, heads, positions, c') -> (b, heads c', *space)."""
    ndim = len(window)
    b, _, h, _, c = windows.shape
    x = windows.reshape(b, *counts, h, *window, c)
    # b, h, c', then count and position of every axis side by side
    order = (0, 1 + ndim, 2 + 2 * ndim, *(k for axis in range(ndim) for k in (1 + axis, 2 + ndim + axis)))
    return x.permute(order).reshape(b, h * c, *(n * w for n, w in zip(counts, window, strict=True)))


def window_cross_attention(
    *,
    query: Float[Tensor, "b c *space"],
    key: Float[Tensor, "b c *space"],
    value: Float[Tensor, "b c *space"],
    heads: int,
    window: int | tuple[int, ...],
    margin: int | tuple[int, ...] = 0,
    bias: Float[Tensor, "h q k"] | None = None,
    rows: int | None = None,
) -> Float[Tensor, "b c *space"]:
    """Attention of every query to the keys of its window widened by a margin.

    ::

        out(i) = sum_j softmax_j( <q(i), k(j)> / sqrt(c / heads) + bias(i, j) ) v(j),   j in the window of i + margin

    Parameters
    ----------
    query, key, value
        Of one shape; the channels are split evenly among the heads.
    window, margin
        Voxels an axis. Windows tile the image from its first voxel; the last ones may be cut off, and what lies outside
        the image is never asked.
    bias
        By head, position in the window and position in the widened window (last axis fastest).
    rows
        Rows of windows along the first axis that are worked on at once; fewer need less memory: keys of overlapping
        windows are copied, and made again in the backward pass. All where None. The result does not depend on it.

    References
    ----------
    Shi et al., XMorpher, MICCAI 2022 (search window wider than the base window); Chen et al., TransMatch, IEEE TMI
    2023.
    """
    check_features(query, key)
    check_features(key, value)
    ndim, shape = query.ndim - 2, tuple(query.shape[2:])
    size, wide = _per_axis(window, ndim, 1, "window"), _per_axis(margin, ndim, 0, "margin")
    if heads < 1 or query.shape[1] % heads:
        raise InputError(f"{query.shape[1]} channels do not split into {heads} heads")
    counts = tuple(-(-n // w) for n, w in zip(shape, size, strict=True))
    tail = [n * w - s for n, w, s in zip(counts, size, shape, strict=True)]
    around = [p for t, m in zip(reversed(tail), reversed(wide), strict=True) for p in (m, t + m)]
    asked = functional.pad(query, [p for t in reversed(tail) for p in (0, t)])
    keys, values = functional.pad(key, around), functional.pad(value, around)
    inside = None
    if any(around):
        inside = functional.pad(torch.ones(1, 1, *shape, dtype=torch.bool, device=query.device), around)

    def attend(asked: Tensor, keys: Tensor, values: Tensor, inside: Tensor | None, some: tuple[int, ...]) -> Tensor:
        q, k, v = (_windows(x, size, m, heads) for x, m in ((asked, (0,) * ndim), (keys, wide), (values, wide)))
        mask = None if bias is None else bias.to(q.dtype)[None]
        if inside is not None:
            seen = _windows(inside, size, wide, 1)[0].transpose(-2, -1)  # windows, 1, 1, positions
            nothing = torch.zeros((), dtype=q.dtype, device=q.device) if mask is None else mask
            mask = torch.where(seen, nothing, -torch.inf)
        if mask is not None:
            mask = mask.expand(*q.shape[:4], k.shape[3]).flatten(0, 1)
        out = functional.scaled_dot_product_attention(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), attn_mask=mask)
        return _joined(out.unflatten(0, q.shape[:2]), some, size)

    step = counts[0] if rows is None else max(1, rows)
    again = step < counts[0] and torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    parts = []
    for first in range(0, counts[0], step):
        some = (min(step, counts[0] - first), *counts[1:])
        at, length = first * size[0], some[0] * size[0]
        slabs = (
            asked.narrow(2, at, length),
            keys.narrow(2, at, length + 2 * wide[0]),
            values.narrow(2, at, length + 2 * wide[0]),
            None if inside is None else inside.narrow(2, at, length + 2 * wide[0]),
            some,
        )
        parts.append(checkpoint(attend, *slabs, use_reentrant=False) if again else attend(*slabs))
    out = torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]
    for axis, n in enumerate(shape):
        out = out.narrow(2 + axis, 0, n)
    return out


class WindowCrossAttention(nn.Module):
    """Project, attend within windows with a learned bias of relative position, project back.

    Parameters
    ----------
    ndim, channels, heads
        Axes of space; channels of either image's features; heads that share them.
    window, margin
        Base window of the queries, and by how much the search window of the keys is wider on each side, voxels.
    rows
        As in `window_cross_attention`.
    """

    relative: Tensor

    def __init__(
        self,
        *,
        ndim: int,
        channels: int,
        heads: int,
        window: int | tuple[int, ...],
        margin: int | tuple[int, ...] = 0,
        rows: int | None = None,
    ) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise OptionError(f"{channels} channels do not split into {heads} heads")
        self.heads, self.rows = heads, rows
        self.window, self.margin = _per_axis(window, ndim, 1, "window"), _per_axis(margin, ndim, 0, "margin")
        self.query = nn.Linear(channels, channels)
        self.key_value = nn.Linear(channels, 2 * channels)
        self.out = nn.Linear(channels, channels)
        self.bias = nn.Parameter(torch.zeros(heads, _table_size(self.window, self.margin)))
        nn.init.trunc_normal_(self.bias, std=0.02)
        self.register_buffer("relative", _relative_index(self.window, self.margin), persistent=False)

    def forward(
        self, *, fixed: Float[Tensor, "b c *space"], moving: Float[Tensor, "b c *space"]
    ) -> Float[Tensor, "b c *space"]:
        """What every fixed voxel gathers from the moving features around it, on the grid of both."""
        key, value = self.key_value(moving.movedim(1, -1)).movedim(-1, 1).chunk(2, dim=1)
        gathered = window_cross_attention(
            query=self.query(fixed.movedim(1, -1)).movedim(-1, 1),
            key=key,
            value=value,
            heads=self.heads,
            window=self.window,
            margin=self.margin,
            bias=self.bias[:, self.relative],
            rows=self.rows,
        )
        return self.out(gathered.movedim(1, -1)).movedim(-1, 1)


class CrossAttentionBlock(nn.Module):
    """Transformer block whose attention is between two images; call it once each way for an exchange both ways.

    ``x = fixed + attention(norm(fixed), norm(moving))``, then ``x + mlp(norm(x))``.

    Parameters
    ----------
    mlp_ratio
        Width of the hidden layer over the channels.
    ndim, channels, heads, window, margin, rows
        As in `WindowCrossAttention`.
    """

    def __init__(
        self,
        *,
        ndim: int,
        channels: int,
        heads: int,
        window: int | tuple[int, ...],
        margin: int | tuple[int, ...] = 0,
        mlp_ratio: float = 4.0,
        rows: int | None = None,
    ) -> None:
        super().__init__()
        self.fixed_norm, self.moving_norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attention = WindowCrossAttention(
            ndim=ndim, channels=channels, heads=heads, window=window, margin=margin, rows=rows
        )
        hidden = max(1, round(channels * mlp_ratio))
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels)
        )

    def forward(
        self, *, fixed: Float[Tensor, "b c *space"], moving: Float[Tensor, "b c *space"]
    ) -> Float[Tensor, "b c *space"]:
        """Fixed features that know of the moving ones."""
        x = fixed + self.attention(
            fixed=self.fixed_norm(fixed.movedim(1, -1)).movedim(-1, 1),
            moving=self.moving_norm(moving.movedim(1, -1)).movedim(-1, 1),
        )
        return x + self.mlp(x.movedim(1, -1)).movedim(-1, 1)
