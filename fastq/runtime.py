"""``fastq.runtime``: what :func:`fastq.save` wrote, on NumPy arrays, without torch.

::

    network = fastq.runtime.load("digits.safetensors")
    logits = network(images)                                # float32 (B, C, H, W) to float32 (B, classes)

The file says how its layers follow one another (``fastq/deploy/program.py``), so that no model is needed, and the network has the
bits of ``fastq.load(file, model)`` on the CPU for contiguous images, whatever the strides of those that it is given itself: of
channels_last ones torch adds up a mean in another order. The layers compute with the same kernels; what comes between them is
summed in the order of torch's. One thing is not torch's: the mean of one image of one channel with 2**15 elements or more, whose
order there depends on the number of threads; here it does not.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from . import container
from .container import FormatError, Stored

try:
    _runtime: Any = importlib.import_module("fastq._runtime")
except ImportError as error:
    raise ImportError(
        f"fastq.runtime needs the native module fastq._runtime, which is not there ({error}); install fastq with a C++ compiler "
        "and without FASTQ_BUILD_NATIVE=0"
    ) from None

__all__ = ["FormatError", "Network", "load"]

#: Of files that have a program.
VERSIONS = (4,)
OLDER = (1, 2, 3)


def load(source: str | os.PathLike[str] | bytes, *, threads: int | None = None) -> Network:
    """The network that :func:`fastq.save` wrote to ``source``, a path or the file's bytes.

    threads: how many the loops of a call share, which changes no bit; None: one for each core that the process may use. They are
    started by the first call that is worth it.

    Raises:
        FormatError: the file is truncated, damaged, foreign, of another version, has no program, or one that contradicts its
            layers or tensors. Nothing is loaded. It is a ``ValueError``.
        OSError: the file cannot be read.
        MemoryError: there is not enough for the file's weights.
        TypeError, ValueError: ``threads`` is no int, or not from 1 to 1024.
    """
    if threads is None:
        threads = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 1024)
    if type(threads) is not int:
        raise TypeError(f"load: threads must be an int or None, got {threads!r:.60}")
    if not 1 <= threads <= 1024:
        raise ValueError(f"load: threads must be from 1 to 1024, got {threads}")
    name = container.name_of(source)
    header, tensors = container.read_arrays(source, "fastq", (*OLDER, *VERSIONS), "network", uncounted=(1, 2))
    if header["version"] in OLDER:
        raise FormatError(
            f"load: {name} has format version {header['version']}, which has no program; fastq.load and fastq.save with torch make "
            f"one of version {VERSIONS[-1]}"
        )
    if header.get("program") is None:
        raise FormatError(f"load: {name} has no program, for the network is not all fastq's: {header.get('program_reason')!s:.300}")
    native = _runtime.Network(threads)
    try:
        layers = Builder(native, header, tensors).build()
    except KeyError as error:
        reason = f"it has no {error}"
    except (ArithmeticError, AttributeError, IndexError, RecursionError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
    else:
        return Network(native, layers)
    raise FormatError(f"load: {name} does not hold a network: {reason:.300}")


class Network:
    """An integer network that :func:`load` made. It does not change; several threads may call it at once.

    Attributes:
        layers: the names of the layers, in the order in which they run.
        threads: how many a call uses; fewer where the system does not start so many.
        input_shape: what it takes, ``(None, C, None, None)`` or ``(None, F)`` with None for any length; None where no layer says.
    """

    def __init__(self, native: Any, layers: tuple[str, ...]) -> None:
        self._native, self.layers = native, layers
        self.threads: int = native.threads
        self.input_shape = tuple(length or None for length in native.expects()) or None

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The output for ``x``, a new array; the GIL is released meanwhile.

        x: float32 ``(B, C, H, W)`` or ``(B, F)``, any strides; B may be 0. A sample that holds NaN, which no integer stands for,
        becomes NaN whole in a layer that takes numbers and gives numbers, and is an arbitrary code in one that gives codes.

        Raises ``TypeError`` for what is no array of float32 (float64 and float16 are not converted: ``x.astype(np.float32)`` says
        that rounding is meant), ``ValueError`` for a shape that a layer cannot take, ``MemoryError`` for one too large.
        """
        if not isinstance(x, np.ndarray):
            raise TypeError(f"Network: x must be a NumPy array, got {type(x).__name__}")
        if x.dtype != np.float32:
            raise TypeError(f"Network: x must be of float32, got {x.dtype}; x.astype(numpy.float32) makes one")
        expected = self.input_shape
        if expected is not None and (x.ndim != len(expected) or expected[1] not in (None, x.shape[1])):
            axes = "(B, F)" if len(expected) == 2 else "(B, C, H, W)"
            said = axes.replace("F" if len(expected) == 2 else "C", str(expected[1]))
            raise ValueError(f"Network: x must have shape {said}, got {x.shape}")
        try:
            return self._native.run(np.require(x, np.float32, ["C", "A"]))  # type: ignore[no-any-return]
        except ValueError as error:
            raise ValueError(f"Network: {error}") from None

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the output for an input of ``shape``; ``ValueError`` where a layer cannot take it, or a length is none."""
        return tuple(self._of_shape(self._native.output_shape, shape))

    def memory(self, shape: tuple[int, ...]) -> int:
        """Bytes of what the layers give one another in a call with an input of ``shape``. They are kept for the next call; calls
        at the same time have their own.

        Not counted: input and output, the packed weights, and what a thread needs for the piece of work at hand, such as a mean's
        numbers of 16 channels of an image. Raises ``ValueError`` like :meth:`output_shape`.
        """
        return int(self._of_shape(self._native.memory, shape))

    @staticmethod
    def _of_shape(question: Callable[[list[int]], Any], shape: tuple[int, ...]) -> Any:
        """What ``question`` says of ``shape``, once that is known to be lengths."""
        if not isinstance(shape, (tuple, list)) or any(not isinstance(n, (int, np.integer)) or abs(int(n)) >= 2**63 for n in shape):
            raise ValueError(f"Network: shape must have a number for each axis, such as (1, 3, 32, 32), got {shape!r:.60}")
        try:
            return question([int(n) for n in shape])
        except ValueError as error:
            raise ValueError(f"Network: {error}") from None

    def __repr__(self) -> str:
        return f"fastq.runtime.Network({len(self.layers)} layers, takes {self.input_shape}, {self.threads} thread(s))"


class Builder:
    """From a file's header and tensors to the steps of ``native``, which checks numbers and sizes; here it is checked that they
    are what they should be, and that they fit one another. ``grids``: of the steps that give codes, lowest and highest code and the
    step of them."""

    def __init__(self, native: Any, header: dict[str, Any], tensors: dict[str, Stored]) -> None:
        self.native, self.layers, self.program, self.tensors = native, header["layers"], header["program"], tensors
        self.places: list[int] = []
        self.weights: dict[str, int] = {}  # packed: a layer may run several times
        self.grids: dict[int, tuple[int, int, bytes]] = {}
        self.names: list[str] = []

    def build(self) -> tuple[str, ...]:
        """The names of the layers. Raises all sorts of errors for what does not fit."""
        steps = self.program["steps"]
        if not isinstance(steps, list) or not steps or steps[0] != {"op": "input"}:
            raise ValueError("its program does not begin with an input")
        self.places.append(0)
        for step in steps[1:]:
            op = step["op"]
            if op not in OPS:
                raise ValueError(f"its program has the unknown step {op!r:.60}")
            place = OPS[op](self, step)
            self.places.append(place)
        self.native.finish(self.places[place_of(self.program["output"], len(self.places))])
        return tuple(self.names)

    # ---- what a file says

    def value(self, step: dict[str, Any], key: str = "input") -> int:
        """The native step whose value ``step`` takes."""
        return self.places[place_of(step[key], len(self.places))]

    def array(self, name: str, dtype: str) -> np.ndarray:
        """A tensor of the file, of ``dtype``."""
        found, array = self.tensors[name]
        if found != dtype:
            raise ValueError(f"{name} is of {found}, not {dtype}")
        return array

    def floats(self, name: str) -> np.ndarray | None:
        return self.array(name, "float32") if name in self.tensors else None

    def grid(self, name: str) -> tuple[int, int, np.ndarray]:
        """Lowest and highest code and the step of a layer's input."""
        numbers, prefix = self.layers[name], f"{name}." if name else ""
        low, high = integer(numbers, "qmin"), integer(numbers, "qmax")
        for other in ("input_offset", "input_lower", "input_width", "scale"):
            if f"{prefix}{other}" in self.tensors:
                raise ValueError(f"{name} has {other}, which this runtime does not know")
        if numbers.get("odd_inputs") is not False or not low <= 0 <= high or not 0 < high - low < 256:
            raise ValueError(f"{name} takes codes from {low} to {high}, odd {numbers.get('odd_inputs')!r:.20}")
        step = self.array(f"{prefix}input_step", "float32")
        if step.size != 1:
            raise ValueError(f"{name} has an input_step of shape {step.shape}")
        return low, high, step.reshape(1)

    def affine(self, norm: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Multiplier and addend of a batch norm: ``fastq.nn.batch_norm.affine_of``."""
        name, eps = norm["name"], norm["eps"]
        if type(eps) is not float:
            raise ValueError(f"{name} has the eps {eps!r:.20}")
        parts = {part: self.floats(f"{name}.{part}") for part in ("running_mean", "running_var", "weight", "bias")}
        mean, variance = parts["running_mean"], parts["running_var"]
        if mean is None or variance is None or any(t.ndim != 1 or t.size != mean.size for t in parts.values() if t is not None):
            raise ValueError(f"{name} is no batch norm of one number per channel")
        with np.errstate(all="ignore"):  # as torch has it: what is no number becomes none
            weight, bias = (None if t is None else t.astype(np.float64) for t in (parts["weight"], parts["bias"]))
            deviation = np.sqrt(variance.astype(np.float64) + eps)
            multiplier = (np.ones_like(deviation) if weight is None else weight) / deviation
            shift = mean.astype(np.float64) * multiplier
            addend = -shift if bias is None else bias - shift
            return multiplier.astype(np.float32), addend.astype(np.float32)

    # ---- steps

    def layer(self, step: dict[str, Any]) -> int:
        name = step["layer"]
        if not isinstance(name, str):
            raise ValueError(f"a layer's name is {name!r:.60}")
        numbers, prefix = self.layers[name], f"{name}." if name else ""
        kind, given = numbers["kind"], self.value(step)
        if kind not in ("linear", "conv", "weight-only linear", "weight-only conv"):
            raise ValueError(f"{name} is of the kind {kind!r:.60}, which this runtime does not know")
        if name not in self.weights:
            self.weights[name] = int(self.native.weight(name=name, **self.weight(name, numbers, prefix)))
        arguments: dict[str, Any] = {"name": name, "input": given, "weight": self.weights[name], "x_scale": None}
        arguments |= {"x_zero": 0, "bias": self.floats(f"{prefix}bias"), "multiplier": None, "addend": None, "residual": None}
        arguments |= {"relu": False, "out_scale": None, "out_codes": (0, 0, 0), "window": None}
        if kind.endswith("conv"):
            arguments["window"] = window(name, numbers)
        if not kind.startswith("weight-only"):
            low, high, x_scale = self.grid(name)
            arguments |= {"x_scale": x_scale, "x_zero": -zero_of(low, high)}
            if given in self.grids:
                if self.grids[given] != (low, high, x_scale.tobytes()):
                    raise ValueError(f"{name} is given codes of another grid than its own")
            else:
                zero = zero_of(low, high)
                arguments["input"] = self.native.quantize(name, given, float(x_scale[0]), low - zero, high - zero, -zero)
        elif given in self.grids:
            raise ValueError(f"{name} takes floating point and is given codes")
        if (norm := step.get("norm")) is not None:
            arguments["multiplier"], arguments["addend"] = self.affine(norm)
        if step.get("residual") is not None:
            arguments["residual"] = self.value(step, "residual")
        if (activation := step.get("activation")) not in (None, "relu"):
            raise ValueError(f"{name} has the activation {activation!r:.20}")
        arguments["relu"] = activation == "relu"
        if (next_ := step.get("codes_for")) is not None:
            low, high, out_scale = self.grid(next_)
            zero = zero_of(low, high)
            arguments |= {"out_scale": out_scale, "out_codes": (low - zero, high - zero, -zero)}
        place = int(self.native.product(**arguments))
        if next_ is not None:
            self.grids[place] = (low, high, out_scale.tobytes())
        self.names.append(name)
        return place

    def weight(self, name: str, numbers: dict[str, Any], prefix: str) -> dict[str, Any]:
        """What :class:`fastq.PackedWeight` has: codes, scale, stored zero, and n, k, bits, group_size."""
        shape, bits, signed, group = numbers["shape"], integer(numbers, "bits"), numbers["signed"], numbers["weight_groups"]
        axes = 4 if numbers["kind"].endswith("conv") else 2
        if not isinstance(shape, list) or len(shape) != axes or any(type(n) is not int or not 0 < n < 2**31 for n in shape):
            raise ValueError(f"{name} has a weight of shape {shape!r:.60}")
        if type(signed) is not bool or (group is not None and (type(group) is not int or not 16 <= group < 2**31)):
            raise ValueError(f"{name} has a weight with signed {signed!r:.20} and groups of {group!r:.20}")
        if numbers.get("group_size") != group:
            raise ValueError(f"{name} has groups of {numbers.get('group_size')!r:.20} and a weight with groups of {group!r:.20}")
        n, k = shape[0], 1
        for length in shape[1:]:
            k *= length
        data, scale = self.array(f"{prefix}weight", "uint8"), self.array(f"{prefix}weight_scale", "float32")
        shapes = [(1,), (n,)] if group is None else [(n, -(-k // group))]
        if data.shape != (n, -(-k * bits // 8)) or scale.shape not in shapes or not np.isfinite(scale).all():
            raise ValueError(
                f"{name} has codes of shape {data.shape} and a scale of {scale.shape}, or one that is not finite, for a weight of "
                f"shape {tuple(shape)} in {bits} bits"
            )
        middle = 0 if signed else 2 ** (bits - 1)
        zero = np.zeros(scale.shape, np.int32)
        if f"{prefix}weight_zero" in self.tensors:
            zero = self.array(f"{prefix}weight_zero", "int32")
            low, high = middle - 2 ** (bits - 1), middle + 2 ** (bits - 1) - 1
            if zero.shape != scale.shape or not ((zero >= low) & (zero <= high)).all():
                raise ValueError(f"{name} has a zero-point of shape {zero.shape}, or one that is no code of {bits} bits")
        stored = (zero - middle).astype(np.int32)
        form = (n, k, bits, group or 0)
        return {"rows": data, "scale": scale, "zero": stored if stored.any() else None, "form": form}

    def norm(self, step: dict[str, Any]) -> int:
        return int(self.native.affine(step["name"], self.value(step), *self.affine(step)))

    def relu(self, step: dict[str, Any]) -> int:
        return int(self.native.clip("relu", self.value(step), np.inf))

    def relu6(self, step: dict[str, Any]) -> int:
        return int(self.native.clip("relu6", self.value(step), 6.0))

    def add(self, step: dict[str, Any]) -> int:
        return int(self.native.add("add", self.value(step), self.value(step, "other")))

    def flatten(self, step: dict[str, Any]) -> int:
        given = self.value(step)
        features = 0 if step["features"] is None else integer(step, "features")
        place = int(self.native.flatten("flatten", given, features))
        if given in self.grids:
            self.grids[place] = self.grids[given]
        return place

    def max_pool(self, step: dict[str, Any]) -> int:
        windows = [pair(step, key) for key in ("kernel", "stride", "padding", "dilation")]
        return int(self.native.max_pool("max_pool", self.value(step), *windows, truth(step, "ceil")))

    def avg_pool(self, step: dict[str, Any]) -> int:
        windows = [pair(step, key) for key in ("kernel", "stride", "padding")]
        divisor = 0 if step["divisor"] is None else integer(step, "divisor")
        truths = truth(step, "ceil"), truth(step, "count_padding")
        return int(self.native.average_pool("avg_pool", self.value(step), *windows, *truths, divisor))

    def adaptive_avg_pool(self, step: dict[str, Any]) -> int:
        return int(self.native.adaptive_average_pool("adaptive_avg_pool", self.value(step), *pair(step, "size")))

    def mean(self, step: dict[str, Any]) -> int:
        return int(self.native.mean("mean", self.value(step), truth(step, "keep")))


OPS = {
    "layer": Builder.layer, "norm": Builder.norm, "relu": Builder.relu, "relu6": Builder.relu6, "add": Builder.add,
    "flatten": Builder.flatten, "max_pool": Builder.max_pool, "avg_pool": Builder.avg_pool,
    "adaptive_avg_pool": Builder.adaptive_avg_pool, "mean": Builder.mean,
}  # fmt: skip


def place_of(step: Any, steps: int) -> int:
    """``step``, the place of one of so many."""
    if type(step) is not int or not 0 <= step < steps:
        raise ValueError(f"its program takes the value of step {step!r:.20} of {steps} before it")
    return step


def integer(numbers: dict[str, Any], key: str) -> int:
    """A number that C++ can hold."""
    value = numbers[key]
    if type(value) is not int or not -(2**31) <= value < 2**31:
        raise ValueError(f"{key} must be an integer below 2**31, got {value!r:.60}")
    return value


def truth(numbers: dict[str, Any], key: str) -> bool:
    if type(numbers[key]) is not bool:
        raise ValueError(f"{key} must be true or false, got {numbers[key]!r:.60}")
    return bool(numbers[key])


def pair(numbers: dict[str, Any], key: str) -> tuple[int, int]:
    """Two numbers, for height and width."""
    values = whole(numbers, key, 2)
    return values[0], values[1]


def whole(numbers: dict[str, Any], key: str, count: int) -> list[int]:
    """So many integers."""
    values = numbers[key]
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"{key} must be {count} integers, got {values!r:.60}")
    return [integer({key: value}, key) for value in values]


def window(name: str, numbers: dict[str, Any]) -> tuple[int, ...]:
    """The twelve numbers of a convolution, as its kernel takes them."""
    if numbers["dims"] != 2 or numbers["padding_mode"] != "zeros":
        raise ValueError(f"{name} has {numbers['dims']!r:.20} dimensions and padding_mode {numbers['padding_mode']!r:.20}")
    _, channels, kh, kw = whole(numbers, "shape", 4)
    stride, dilation, padding = pair(numbers, "stride"), pair(numbers, "dilation"), whole(numbers, "padding", 4)
    return (channels, kh, kw, *stride, *padding, *dilation, integer(numbers, "groups"))


def zero_of(low: int, high: int) -> int:
    """The code that is stored as 0: 0 itself where int8 holds the codes as they are."""
    return 0 if low >= -128 and high <= 127 else low + 128
