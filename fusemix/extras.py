"""Optional libraries: an error names the extra that installs a missing one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec


@contextmanager
def extra(name: str, purpose: str, *libraries: str) -> Iterator[None]:
    """Import optional libraries inside this block.

    Args:
        name: The extra of this package that installs them, such as ``audio``.
        purpose: What they are for, as the beginning of a sentence: ``Reading sounds``.
        libraries: Libraries that are only looked up, because importing them is slow.

    Raises:
        ImportError: If one of them is not installed, in one sentence with the line that installs it.

    Example:
        >>> with extra("plots", "Drawing the curves"):
        ...     import matplotlib
    """
    try:
        for library in libraries:
            if find_spec(library) is None:
                raise ModuleNotFoundError(name=library)
        yield
    except ModuleNotFoundError as error:
        library = error.name or "a library"
        if library.partition(".")[0] == "fusemix":
            raise  # a bug here, not a missing library
        raise ImportError(
            f'{purpose} needs {library}, which is not installed; run: pip install "fusemix[{name}]"', name=error.name
        ) from error
