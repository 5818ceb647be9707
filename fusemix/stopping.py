"""The end of a computation that was asked to stop."""


class Stopped(Exception):
    """Raised by a computation that was asked to stop before its end; its docstring says what is left of it."""
