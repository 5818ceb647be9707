"""The exception of a computation that was asked to stop."""


class Stopped(Exception):
    """Raised by a computation that was asked to stop early; the function's docstring says what remains."""
