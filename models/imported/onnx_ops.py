"""The ONNX operators that an imported graph may use, each as a differentiable function of torch tensors.

`OPS[name](inputs, attributes)` returns a tensor or a list of tensors. Omitted inputs are None; shapes and axes are
integer tensors. `attributes["opset"]` is the graph's opset, for operators whose meaning changed between versions.
Raises NotImplementedError for variants that are not supported.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Inputs = Sequence[Tensor | None]
Attributes = dict[str, Any]
DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip
"""By TensorProto.DataType."""

LISTED = 4096
"""The most numbers that a shape or a list of sizes may have."""


def ints(inputs: Inputs, index: int, attributes: Attributes, name: str, default: Any = None) -> Any:
    """A list of integers, which is an input in newer opsets and an attribute in older ones."""
    if len(inputs) > index and inputs[index] is not None:
        return as_list(inputs[index])
    return attributes.get(name, default)


def as_list(values: Tensor) -> list[int]:
    """The numbers of a shape or a list of axes or sizes. Raises ValueError for more than LISTED."""
    if values.numel() > LISTED:
        raise ValueError(f"a shape of {values.numel()} numbers")
    return values.flatten().tolist()


def optional(inputs: Inputs, index: int) -> Tensor | None:
    """The input `index`, or None where it is omitted."""
    return inputs[index] if len(inputs) > index else None


# ---- convolutions and pooling


def padded(x: Tensor, attributes: Attributes, kernel: Sequence[int], value: float = 0.0) -> Tensor:
    """`x` padded as `pads` or `auto_pad` says."""
    sides = x.ndim - 2
    strides = attributes.get("strides", [1] * sides)
    dilations = attributes.get("dilations", [1] * sides)
    pads, mode = attributes.get("pads", [0] * 2 * sides), attributes.get("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        pads = [0] * 2 * sides
        for axis in range(sides):
            side, reach = x.shape[2 + axis], (kernel[axis] - 1) * dilations[axis] + 1
            total = max((-(-side // strides[axis]) - 1) * strides[axis] + reach - side, 0)
            first = total // 2 if mode == "SAME_UPPER" else total - total // 2
            pads[axis], pads[axis + sides] = first, total - first
    if mode == "VALID" or not any(pads):
        return x
    order = [pad for axis in reversed(range(sides)) for pad in (pads[axis], pads[axis + sides])]
    return F.pad(x, order, value=value)


def conv(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, weight, bias = inputs[0], inputs[1], optional(inputs, 2)
    sides = x.ndim - 2
    run = (F.conv1d, F.conv2d, F.conv3d)[sides - 1]
    ones = [1] * sides
    x = padded(x, attributes, weight.shape[2:])
    return run(x, weight, bias, attributes.get("strides", ones), 0, attributes.get("dilations", ones),
               attributes.get("group", 1))  # fmt: skip


def conv_transpose(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, weight, bias = inputs[0], inputs[1], optional(inputs, 2)
    sides = x.ndim - 2
    ones, zeros = [1] * sides, [0] * sides
    pads = attributes.get("pads", [0] * 2 * sides)
    if pads[:sides] != pads[sides:] or attributes.get("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in attributes:
        raise NotImplementedError("ConvTranspose with unequal or automatic padding")
    run = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[sides - 1]
    return run(x, weight, bias, attributes.get("strides", ones), pads[:sides], attributes.get("output_padding", zeros),
               attributes.get("group", 1), attributes.get("dilations", ones))  # fmt: skip


def max_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    kernel, sides = attributes["kernel_shape"], inputs[0].ndim - 2
    x = padded(inputs[0], attributes, kernel, -math.inf)
    run = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[sides - 1]
    return run(x, kernel, attributes.get("strides", [1] * sides), 0, attributes.get("dilations", [1] * sides),
               ceil_mode=bool(attributes.get("ceil_mode", 0)))  # fmt: skip


def average_pool(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, kernel, sides = inputs[0], attributes["kernel_shape"], inputs[0].ndim - 2
    run = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[sides - 1]
    options = {"stride": attributes.get("strides", [1] * sides), "ceil_mode": bool(attributes.get("ceil_mode", 0))}
    total = run(padded(x, attributes, kernel), kernel, **options)
    if attributes.get("count_include_pad", 0):
        return total
    return total / run(padded(torch.ones_like(x[:1, :1]), attributes, kernel), kernel, **options)


# ---- dense layers and normalisation


def gemm(inputs: Inputs, attributes: Attributes) -> Tensor:
    a, b, c = inputs[0], inputs[1], optional(inputs, 2)
    a = a.mT if attributes.get("transA", 0) else a
    b = b.mT if attributes.get("transB", 0) else b
    out = attributes.get("alpha", 1.0) * (a @ b) if attributes.get("alpha", 1.0) != 1 else a @ b
    return out if c is None else out + attributes.get("beta", 1.0) * c


def batch_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, scale, shift, mean, variance = inputs[:5]
    return F.batch_norm(x, mean, variance, scale, shift, eps=attributes.get("epsilon", 1e-5))


def layer_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    axis = attributes.get("axis", -1) % inputs[0].ndim
    shape = inputs[0].shape[axis:]
    return F.layer_norm(inputs[0], shape, inputs[1], optional(inputs, 2), attributes.get("epsilon", 1e-5))


def group_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    return F.group_norm(inputs[0], attributes["num_groups"], inputs[1], inputs[2], attributes.get("epsilon", 1e-5))


def softmax(inputs: Inputs, attributes: Attributes, run: Callable = torch.softmax) -> Tensor:
    x = inputs[0]
    if attributes["opset"] >= 13:
        return run(x, attributes.get("axis", -1))
    axis = attributes.get("axis", 1) % x.ndim  # before opset 13 all axes from this one on are flattened
    return run(x.flatten(axis), -1).view(x.shape)


# ---- shapes


def reshape(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, shape = inputs[0], ints(inputs, 1, attributes, "shape")
    if not attributes.get("allowzero", 0):
        shape = [x.shape[axis] if side == 0 else side for axis, side in enumerate(shape)]
    return x.reshape(shape)


def flatten(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, axis = inputs[0], attributes.get("axis", 1)
    return x.reshape(math.prod(x.shape[: axis % x.ndim if axis < 0 else axis]), -1)


def squeeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    axes = ints(inputs, 1, attributes, "axes")
    return inputs[0].squeeze() if axes is None else inputs[0].squeeze(tuple(axes))


def unsqueeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, axes = inputs[0], ints(inputs, 1, attributes, "axes")
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


def transpose(inputs: Inputs, attributes: Attributes) -> Tensor:
    return inputs[0].permute(attributes.get("perm", list(range(inputs[0].ndim))[::-1]))


def split(inputs: Inputs, attributes: Attributes) -> list[Tensor]:
    x, axis = inputs[0], attributes.get("axis", 0)
    sizes = ints(inputs, 1, attributes, "split")
    if sizes is None:
        sizes = -(-x.shape[axis] // attributes.get("num_outputs", attributes["outputs"]))
    return list(x.split(sizes, axis))


def cut(inputs: Inputs, attributes: Attributes) -> Tensor:
    x = inputs[0]
    starts, ends = ints(inputs, 1, attributes, "starts"), ints(inputs, 2, attributes, "ends")
    axes = ints(inputs, 3, attributes, "axes", list(range(len(starts))))
    steps = ints(inputs, 4, attributes, "steps", [1] * len(starts))
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        places = range(x.shape[axis])[slice(start, end if end > -(2**31) else None, step)]
        index = torch.arange(len(places), device=x.device) * places.step + places.start
        x = x.index_select(axis, index)
    return x


def gather(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, indices, axis = inputs[0], inputs[1].long(), attributes.get("axis", 0) % inputs[0].ndim
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    shape = [*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]]
    return x.index_select(axis, indices.flatten()).reshape(shape)


def pad(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, pads = inputs[0], ints(inputs, 1, attributes, "pads")
    value = optional(inputs, 2)
    value = attributes.get("value", 0.0) if value is None else float(value)
    axes = ints(inputs, 3, {}, "", list(range(x.ndim)))
    full = {axis % x.ndim: (pads[place], pads[place + len(axes)]) for place, axis in enumerate(axes)}
    mode = attributes.get("mode", "constant")
    if mode == "constant":
        return F.pad(x, [side for axis in reversed(range(x.ndim)) for side in full.get(axis, (0, 0))], value=value)
    if any(any(full.get(axis, (0, 0))) for axis in range(2)) or mode not in ("reflect", "edge"):
        raise NotImplementedError(f"Pad in mode {mode} on these axes")
    order = [side for axis in reversed(range(2, x.ndim)) for side in full.get(axis, (0, 0))]
    return F.pad(x, order, mode="reflect" if mode == "reflect" else "replicate")


def expand(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, shape = inputs[0], as_list(inputs[1])
    return x.expand(torch.broadcast_shapes(x.shape, shape))


def resize(inputs: Inputs, attributes: Attributes) -> Tensor:
    x = inputs[0]
    scales, sizes = (optional(inputs, 2), optional(inputs, 3)) if len(inputs) > 2 else (optional(inputs, 1), None)
    if sizes is None or not sizes.numel():
        factors = as_list(scales) if scales is not None else attributes["scales"]
        sides = [math.floor(side * factor) for side, factor in zip(x.shape, factors, strict=True)]
    else:
        sides = as_list(sizes)
    mode, places = attributes.get("mode", "nearest"), attributes.get("coordinate_transformation_mode", "half_pixel")
    if mode == "nearest":
        whole = all(new % old == 0 for new, old in zip(sides[2:], x.shape[2:], strict=True))
        if not whole:
            raise NotImplementedError("Resize in mode nearest by a factor that is not whole")
        return F.interpolate(x, sides[2:], mode="nearest")
    if places not in ("half_pixel", "pytorch_half_pixel", "align_corners") or sides[:2] != list(x.shape[:2]):
        raise NotImplementedError(f"Resize with {places}")
    way = {"linear": "bilinear", "cubic": "bicubic"}[mode]
    return F.interpolate(x, sides[2:], mode=way, align_corners=places == "align_corners")


def depth_to_space(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, size = inputs[0], attributes["blocksize"]
    if attributes.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, size)
    b, c, h, w = x.shape
    x = x.reshape(b, size, size, c // size**2, h, w).permute(0, 3, 4, 1, 5, 2)  # (b, c', h, r, w, r)
    return x.reshape(b, c // size**2, h * size, w * size)


# ---- elementwise and reductions


def clip(inputs: Inputs, attributes: Attributes) -> Tensor:
    low, high = optional(inputs, 1), optional(inputs, 2)
    low = attributes.get("min") if low is None else low
    high = attributes.get("max") if high is None else high
    return inputs[0] if low is None and high is None else inputs[0].clamp(low, high)


def divide(inputs: Inputs, attributes: Attributes) -> Tensor:
    whole = not inputs[0].is_floating_point() and not inputs[1].is_floating_point()
    return torch.div(inputs[0], inputs[1], rounding_mode="trunc" if whole else None)


def reduction(run: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Callable[[Inputs, Attributes], Tensor]:
    def apply(inputs: Inputs, attributes: Attributes) -> Tensor:
        axes = ints(inputs, 1, attributes, "axes")
        if not axes:
            if attributes.get("noop_with_empty_axes", 0):
                return inputs[0]
            axes = list(range(inputs[0].ndim))
        return run(inputs[0], tuple(axes), bool(attributes.get("keepdims", 1)))

    return apply


def folded(run: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Inputs, Attributes], Tensor]:
    """An operator with any number of inputs."""

    def apply(inputs: Inputs, attributes: Attributes) -> Tensor:
        out = inputs[0]
        for other in inputs[1:]:
            out = run(out, other)
        return out

    return apply


def plain(run: Callable[..., Tensor]) -> Callable[[Inputs, Attributes], Tensor]:
    return lambda inputs, attributes: run(*inputs)


def arg_max(inputs: Inputs, attributes: Attributes) -> Tensor:
    return inputs[0].argmax(attributes.get("axis", 0), keepdim=bool(attributes.get("keepdims", 1)))


def constant_of_shape(inputs: Inputs, attributes: Attributes) -> Tensor:
    value = attributes.get("value")
    filler = torch.zeros(1) if value is None else value
    return filler.reshape(()).expand(as_list(inputs[0])).clone()


OPS: dict[str, Callable[[Inputs, Attributes], Any]] = {
    "Abs": plain(torch.abs),
    "Add": plain(torch.add),
    "And": plain(torch.logical_and),
    "ArgMax": arg_max,
    "AveragePool": average_pool,
    "BatchNormalization": batch_norm,
    "Cast": lambda a, at: a[0].to(DTYPES[at["to"]]),
    "Ceil": plain(torch.ceil),
    "Clip": clip,
    "Concat": lambda a, at: torch.cat(list(a), at["axis"]),
    "ConstantOfShape": constant_of_shape,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Cos": plain(torch.cos),
    "DepthToSpace": depth_to_space,
    "Div": divide,
    "Dropout": lambda a, at: [a[0], torch.ones_like(a[0], dtype=torch.bool)][: at["outputs"]],
    "Einsum": lambda a, at: torch.einsum(at["equation"], *a),
    "Elu": lambda a, at: F.elu(a[0], at.get("alpha", 1.0)),
    "Equal": plain(torch.eq),
    "Erf": plain(torch.erf),
    "Exp": plain(torch.exp),
    "Expand": expand,
    "Flatten": flatten,
    "Floor": plain(torch.floor),
    "Gather": gather,
    "Gelu": lambda a, at: F.gelu(a[0], approximate=at.get("approximate", "none")),
    "Gemm": gemm,
    "GlobalAveragePool": lambda a, at: a[0].mean(tuple(range(2, a[0].ndim)), keepdim=True),
    "GlobalMaxPool": lambda a, at: a[0].amax(tuple(range(2, a[0].ndim)), keepdim=True),
    "Greater": plain(torch.gt),
    "GreaterOrEqual": plain(torch.ge),
    "GroupNormalization": group_norm,
    "HardSigmoid": lambda a, at: (a[0] * at.get("alpha", 0.2) + at.get("beta", 0.5)).clamp(0, 1),
    "HardSwish": lambda a, at: F.hardswish(a[0]),
    "Identity": lambda a, at: a[0],
    "InstanceNormalization": lambda a, at: F.instance_norm(a[0], weight=a[1], bias=a[2], eps=at.get("epsilon", 1e-5)),
    "LayerNormalization": layer_norm,
    "LeakyRelu": lambda a, at: F.leaky_relu(a[0], at.get("alpha", 0.01)),
    "Less": plain(torch.lt),
    "LessOrEqual": plain(torch.le),
    "Log": plain(torch.log),
    "LogSoftmax": lambda a, at: softmax(a, at, torch.log_softmax),
    "MatMul": plain(torch.matmul),
    "Max": folded(torch.maximum),
    "MaxPool": max_pool,
    "Mean": lambda a, at: torch.stack(torch.broadcast_tensors(*a)).mean(0),
    "Min": folded(torch.minimum),
    "Mish": lambda a, at: F.mish(a[0]),
    "Mul": plain(torch.mul),
    "Neg": plain(torch.neg),
    "Not": plain(torch.logical_not),
    "Or": plain(torch.logical_or),
    "PRelu": lambda a, at: torch.where(a[0] < 0, a[0] * a[1], a[0]),
    "Pad": pad,
    "Pow": plain(torch.pow),
    "Range": lambda a, at: torch.arange(a[0].item(), a[1].item(), a[2].item(), device=a[0].device).to(a[0].dtype),
    "Reciprocal": plain(torch.reciprocal),
    "ReduceL2": reduction(lambda x, axes, keep: torch.linalg.vector_norm(x, dim=axes, keepdim=keep)),
    "ReduceMax": reduction(torch.amax),
    "ReduceMean": reduction(torch.mean),
    "ReduceMin": reduction(torch.amin),
    "ReduceSum": reduction(torch.sum),
    "Relu": plain(torch.relu),
    "Reshape": reshape,
    "Resize": resize,
    "Selu": lambda a, at: F.selu(a[0]),
    "Shape": lambda a, at: torch.tensor(list(a[0].shape)[at.get("start", 0) : at.get("end")], device=a[0].device),
    "Sigmoid": plain(torch.sigmoid),
    "Sign": plain(torch.sign),
    "Sin": plain(torch.sin),
    "Slice": cut,
    "Softmax": softmax,
    "Softplus": lambda a, at: F.softplus(a[0]),
    "SpaceToDepth": lambda a, at: (
        F.pixel_unshuffle(a[0], at["blocksize"]).unflatten(1, (a[0].shape[1], -1)).transpose(1, 2).flatten(1, 2)
    ),
    "Split": split,
    "Sqrt": plain(torch.sqrt),
    "Squeeze": squeeze,
    "Sub": plain(torch.sub),
    "Sum": folded(torch.add),
    "Tanh": plain(torch.tanh),
    "Tile": lambda a, at: a[0].repeat(as_list(a[1])),
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
    "Upsample": resize,
    "Where": plain(torch.where),
}
