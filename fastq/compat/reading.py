"""A tensor's value, read again only when it was written: the switches and ranges that other libraries keep in buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.compiler import is_compiling


class Reading:
    """What a tensor said when it was last read, and anew once it was written, moved or replaced; so that no call waits for a GPU.

    Writes through ``.data`` do not count in PyTorch, and are not seen.
    """

    def __init__(self, value: Any = None) -> None:
        self.tensor: Any = None
        self.version, self.value = -1, value

    def __deepcopy__(self, memo: Any) -> Reading:
        return Reading(self.value)

    def __reduce__(self) -> Any:
        return Reading, (self.value,)

    def of(self, tensor: Any, read: Callable[[Any], Any]) -> Any:
        """``read(tensor)``, or what it gave before."""
        if is_compiling():
            return read(tensor)
        if self.tensor is tensor and self.version == tensor._version:
            return self.value
        if tensor.is_inference():  # has no version that could be asked for, and so is never kept
            return read(tensor)
        self.value, self.tensor, self.version = read(tensor), tensor, tensor._version
        return self.value
