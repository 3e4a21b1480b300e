"""Calls in several threads, for what OpenCV decodes."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import joblib
from tqdm import tqdm

T = TypeVar("T")


def in_threads(function: Callable[[int], T], positions: Sequence[int], description: str) -> Iterator[T]:
    """Call `function` for each position in several threads and yield the results in order, with a progress bar.

    OpenCV releases the interpreter's lock while it decodes.
    """
    parallel = joblib.Parallel(joblib.cpu_count(), prefer="threads", return_as="generator")
    results = parallel(joblib.delayed(function)(position) for position in positions)
    with tqdm(desc=description, total=len(positions), unit=" images", disable=None, leave=False) as bar:
        try:
            for result in results:
                yield result
                bar.update()
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # an interrupted run leaves results unused
                results.close()
