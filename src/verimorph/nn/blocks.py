"""What every network here is made of: convolution, normalisation, activation, and how weights start.

All parts take 2-D and 3-D, any device and memory format: where weights or images are ``channels_last_3d`` (which is
faster on the CPU) the features stay so.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

from verimorph.errors import InputError, OptionError, nearest

Normalisation = Literal["none", "instance", "batch", "group"]
Activation = Literal["none", "relu", "leaky_relu", "prelu", "gelu"]
Upsampling = Literal["nearest", "linear", "transposed"]

_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_BATCH = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def check_ndim(ndim: int) -> int:
    """2 or 3, or an error."""
    if ndim not in (2, 3):
        raise OptionError(f"images have 2 or 3 dimensions, got ndim={ndim}")
    return ndim


def _known(what: str, name: str, known: tuple[str, ...]) -> str:
    if name not in known:
        raise OptionError(f"unknown {what} '{name}'{nearest(name, known)}")
    return name


def torch_is_slow(x: Float[Tensor, "b i *space"], weight: Float[Tensor, "o j *kernel"]) -> bool:
    """Whether torch unfolds a volume for a matrix product where oneDNN would be up to ten times faster.

    On the CPU torch leaves float32 to oneDNN only when the batch has several items, the kernel is wider than 3 or the
    features, their last axis not counted, have more than 20 480 values; the inner levels of a network on one pair have
    none of that. Below a few hundred voxels nothing is gained. A tracer, a transform of ``torch.func`` and forward
    differentiation must see the plain operation.
    """
    return (
        x.ndim == 5
        and len(x) == 1
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and 1 < weight[0, 0].numel()
        and max(weight.shape[-2:]) <= 3
        and x[0, 0].numel() >= 300
        and x.numel() <= 20_480 * x.shape[-1]
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and not (torch.jit.is_tracing() or torch.compiler.is_compiling())  # pyright: ignore[reportPrivateImportUsage]
        and _is_plain(x)
        and _is_plain(weight)
    )


def _is_plain(x: Tensor) -> bool:
    """Whether a tensor is only its values: no fake, no wrapper of ``torch.func`` or batched gradients, no tangent."""
    return (
        type(x) in (Tensor, nn.Parameter)
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        and not torch._C._functorch.is_legacy_batchedtensor(x)
        and forward_ad.unpack_dual(x).tangent is None
    )


class _OneDnnConvolution(torch.autograd.Function):
    """Convolution by oneDNN whose derivative is by oneDNN too, and has one itself: that of the plain operation."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...]
    ) -> Tensor:
        ordered = x.to_mkldnn()
        ctx.save_for_backward(x, weight, ordered)
        ctx.stride, ctx.padding, ctx.biases = stride, padding, None if bias is None else list(bias.shape)
        return functional.conv3d(ordered, weight, bias, stride, padding).to_dense()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, ordered = ctx.saved_tensors
        if torch.is_grad_enabled() or not (torch.backends.mkldnn.enabled and _is_plain(gradient)):
            # A second derivative may be asked: oneDNN's tensors have none.
            into, of = gradient, x
        else:
            into, of = gradient.to_mkldnn(), ordered
        wanted = [*ctx.needs_input_grad[:2], ctx.needs_input_grad[2] and ctx.biases is not None]
        found = torch.ops.aten.convolution_backward(
            into, of, weight, ctx.biases, ctx.stride, ctx.padding, (1, 1, 1), False, (0, 0, 0), 1, wanted
        )
        return *(one.to_dense() if one is not None and one.is_mkldnn else one for one in found), None, None


def convolve(
    x: Float[Tensor, "b i *space"],
    weight: Float[Tensor, "o i *kernel"],
    bias: Float[Tensor, " o"] | None = None,
    *,
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
) -> Float[Tensor, "b o *out"]:
    """Convolution in 2-D and 3-D, the same value as torch's up to rounding, without its slow case on the CPU."""
    if x.ndim == 4:
        return functional.conv2d(x, weight, bias, stride, padding)
    if torch_is_slow(x, weight):
        settings = _three(stride), _three(padding)
        if torch.is_grad_enabled():
            return _OneDnnConvolution.apply(x, weight, bias, *settings)
        return functional.conv3d(x.to_mkldnn(), weight, bias, *settings).to_dense()
    return functional.conv3d(x, weight, bias, stride, padding)


def _three(number: int | tuple[int, ...]) -> tuple[int, ...]:
    return (number,) * 3 if isinstance(number, int) else tuple(number)


class _Convolution3d(nn.Conv3d):
    """Torch's layer by `convolve`."""

    def forward(self, input: Float[Tensor, "b i *space"]) -> Float[Tensor, "b o *out"]:
        assert not isinstance(self.padding, str)
        return convolve(input, self.weight, self.bias, stride=self.stride, padding=self.padding)


_CONVOLUTION = {2: nn.Conv2d, 3: _Convolution3d}


def convolution(
    ndim: int, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, bias: bool = True
) -> nn.Module:
    """Convolution with zero padding that keeps the size (an odd kernel, stride 1) or divides it by the stride."""
    if kernel % 2 == 0 and stride == 1:
        raise OptionError(f"a convolution that keeps the size needs an odd kernel, got {kernel}")
    padding = kernel // 2 if kernel % 2 else (kernel - stride) // 2
    return _CONVOLUTION[check_ndim(ndim)](inputs, outputs, kernel, stride=stride, padding=padding, bias=bias)


class InstanceNorm(nn.Module):
    """Every channel of every item to mean 0 and variance 1, without scale and offset of its own.

    The same as torch's layer, but a single voxel (the bottom of a network on a small image) is no error: it becomes 0.
    """

    def forward(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
        """Normalised features, in the precision of ``x``: sums over voxels are taken in float32 inside.

        Autocast would raise bfloat16 features to float32 and write them back as such, twice the memory for nothing.
        """
        # One group a channel; the functional form does not count voxels. A number also while a graph is traced.
        groups = int(x.shape[1])
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return torch.group_norm(x, groups)
        return torch.group_norm(x, groups)


def normalisation(name: Normalisation, ndim: int, channels: int, *, groups: int = 8) -> nn.Module:
    """Layer that normalises features; ``group`` takes the largest number of groups up to ``groups`` that divides."""
    _known("normalisation", name, ("none", "instance", "batch", "group"))
    if name == "batch":
        return _BATCH[check_ndim(ndim)](channels)
    if name == "group":
        return nn.GroupNorm(max(g for g in range(1, min(groups, channels) + 1) if channels % g == 0), channels)
    if name == "instance":
        return InstanceNorm()
    return nn.Identity()


def activation(name: Activation, *, slope: float = 0.2, channels: int = 1) -> nn.Module:
    """Pointwise function; ``slope`` is that of a leaky rectifier below zero, ``channels`` the number of PReLU's slopes.

    Rectifiers work in place: their input is the output of a convolution or normalisation that nothing else reads, and
    one copy of the features less is kept for the backward pass.
    """
    _known("activation", name, ("none", "relu", "leaky_relu", "prelu", "gelu"))
    if name == "relu":
        return nn.ReLU(inplace=True)
    if name == "leaky_relu":
        return nn.LeakyReLU(slope, inplace=True)
    if name == "prelu":
        return nn.PReLU(channels)
    return nn.GELU() if name == "gelu" else nn.Identity()


def transposed_kernel(weight: Float[Tensor, "o i *three"]) -> Float[Tensor, "i o *four"]:
    """Kernel of the transposed convolution (size 4, stride 2, padding 1) that upsamples (nearest) and convolves 3^d.

    An output voxel 2i + p (p = 0, 1 along an axis) reads the coarse voxels i - 1, i or i, i + 1 only; the taps that
    fall on the same coarse voxel are added once instead of multiplied twice. Along an axis, with taps (a, b, c)::

        kernel = (c, b + c, a + b, a)

    8 products a voxel in 3-D instead of 27, and neither the upsampled features nor their concatenation are made.
    """
    out = weight
    for axis in range(2, weight.ndim):
        a, b, c = out.unbind(axis)
        out = torch.stack((c, b + c, a + b, a), axis)
    return out.transpose(0, 1)


def convolve_upsampled(
    coarse: Float[Tensor, "b i *half"],
    skip: Float[Tensor, "b s *space"],
    weight: Float[Tensor, "o j *three"],
    bias: Float[Tensor, " o"] | None = None,
) -> Float[Tensor, "b o *space"]:
    """Convolution 3^d of [nearest upsampling of ``coarse``, ``skip``] without making either: see `transposed_kernel`.

    The same value as ``conv(cat([upsample(coarse), skip]))`` up to rounding.
    """
    inputs, ndim = coarse.shape[1], coarse.ndim - 2
    transposed = functional.conv_transpose2d if ndim == 2 else functional.conv_transpose3d
    fine = convolve(skip, weight[:, inputs:], bias, padding=1)
    return fine.add_(transposed(coarse, transposed_kernel(weight[:, :inputs]), None, stride=2, padding=1))


class ConvBlock(nn.Module):
    """Convolution, normalisation, activation.

    Parameters
    ----------
    ndim, inputs, outputs
        2 or 3; channels in and out.
    kernel, stride, bias
        Of the convolution.
    norm, activation, slope
        As in `normalisation` and `activation`.
    """

    def __init__(
        self,
        ndim: int,
        inputs: int,
        outputs: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        bias: bool = True,
        norm: Normalisation = "none",
        activation: Activation = "leaky_relu",
        slope: float = 0.2,
    ) -> None:
        super().__init__()
        self.convolution = convolution(ndim, inputs, outputs, kernel=kernel, stride=stride, bias=bias)
        self.norm = normalisation(norm, ndim, outputs)
        self.activation = _activation(activation, slope=slope)
        self.takes_upsampled = kernel == 3 and stride == 1

    def forward(self, x: Float[Tensor, "b i *space"]) -> Float[Tensor, "b o *out"]:
        """Features of the block."""
        return self.activation(self.norm(self.convolution(x)))

    def upsampled(
        self, coarse: Float[Tensor, "b i *half"], skip: Float[Tensor, "b s *space"]
    ) -> Float[Tensor, "b o *space"]:
        """The block on [nearest upsampling of ``coarse``, ``skip``], where ``takes_upsampled``."""
        features = convolve_upsampled(coarse, skip, self.convolution.weight, self.convolution.bias)
        return self.activation(self.norm(features))


_activation = activation  # the name of the argument hides the function


class Upsample(nn.Module):
    """Features on a grid twice as fine.

    Parameters
    ----------
    mode
        ``nearest``; ``linear`` (the field of view stays); ``transposed``: a convolution 2^d of stride 2 with weights of
        its own, bias and an activation after it.
    """

    def __init__(
        self,
        ndim: int,
        channels: int,
        *,
        mode: Upsampling = "nearest",
        activation: Activation = "none",
        slope: float = 0.2,
    ) -> None:
        super().__init__()
        self.mode = _known("upsampling", mode, ("nearest", "linear", "transposed"))
        self.convolution: nn.Module | None = None
        if mode == "transposed":
            self.convolution = _TRANSPOSED[check_ndim(ndim)](channels, channels, 2, stride=2)
            self.activation = _activation(activation, slope=slope)

    def forward(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *out"]:
        """Features, every side doubled."""
        if self.convolution is not None:
            return self.activation(self.convolution(x))
        if self.mode == "nearest":
            return functional.interpolate(x, scale_factor=2.0, mode="nearest")
        linear = "bilinear" if x.ndim == 4 else "trilinear"
        return functional.interpolate(x, scale_factor=2.0, mode=linear, align_corners=False)


def start_small(module: nn.Module, deviation: float = 1e-5, bias: float = 0.0) -> nn.Module:
    """Draw a layer's weights from N(0, deviation^2) and set its bias: a head that starts next to the identity."""
    nn.init.normal_(module.weight, std=deviation)  # type: ignore[arg-type]
    if module.bias is not None:
        nn.init.constant_(module.bias, bias)  # type: ignore[arg-type]
    return module


def start_at_zero(module: nn.Module) -> nn.Module:
    """Set a layer's weights and bias to zero: a head that starts at the identity."""
    return start_small(module, 0.0)


def size_of(x: Tensor) -> tuple[int, ...]:
    """Sides of the image behind batch and channels, as plain numbers also while a tracer looks on."""
    return tuple(int(n) for n in x.shape[2:])


def check_size(shape: tuple[int, ...], stride: int) -> None:
    """Refuse an image that a network of this stride cannot take, and say to what size to pad it."""
    if any(n % stride for n in shape):
        padded = "x".join(str(-(-n // stride) * stride) for n in shape)
        size = "x".join(map(str, shape))
        raise InputError(f"the network takes images whose sides are multiples of {stride}, got {size}; pad to {padded}")
