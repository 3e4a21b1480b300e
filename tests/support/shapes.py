"""Which calls of the trainer have their arguments checked in tests: those whose annotations name a shape."""

from collections.abc import Callable
from typing import TypeVar, get_args

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray

Function = TypeVar("Function", bound=Callable[..., object])
with_types = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Function) -> Function:
    """The function with the types, shapes and element types of its calls checked, if an annotation names a shape.

    Others stay as they are: an integer of NumPy is no `int` to beartype. So does a network's `forward`, which is
    traced for export.
    """
    if function.__name__ == "forward" or not any(map(_names_shape, function.__annotations__.values())):
        return function
    return with_types(function)


def _names_shape(annotation: object) -> bool:
    if isinstance(annotation, type):
        return issubclass(annotation, AbstractArray)
    return any(map(_names_shape, get_args(annotation)))
