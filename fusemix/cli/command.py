"""Shared parts of all commands: flags with several values, handling of bad input, and entry points.

A command is a function whose parameters are its flags (Typer reads them) and which returns nothing when it succeeds,
or an exit code. Exit codes are 0 for success, 2 for bad input (with one sentence) and 130 for a stopped run.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import typer
from typer.core import TyperCommand
from typer.exceptions import TyperException

from fusemix.cli import terminal

_EXPECTED = (ValueError, OSError, ImportError, KeyError, MemoryError)


class Entry(Protocol):
    """The ``main`` of one command."""

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Run the command on these words, by default those of the process; give its exit code."""


class Command(TyperCommand):
    """A command whose repeatable flags take several values at once: ``--splits train val``."""

    bare: Mapping[str, str] = {}  # flags that may have no value -> their value then

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Rewrite ``--splits train val`` as ``--splits train --splits val``, then parse."""
        several = {name for p in self.params if getattr(p, "multiple", False) for name in p.opts if name[:2] == "--"}
        words = [word for words in _spread(args, several) for word in words]
        for place in reversed(range(len(words))):
            if words[place] in self.bare and (words[place + 1 :] or ["-"])[0].startswith("-"):
                words.insert(place + 1, self.bare[words[place]])
        return super().parse_args(ctx, words)


class SetCommand(Command):
    """A command with one ``--latents`` per set of pairs, whose values stay together."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Join the values of each ``--latents`` by NUL, which no argument can hold."""
        words: list[str] = []
        for first, *rest in _spread(args, {"--latents"}):
            values = [word for word in rest if word != first]
            words += [first, "\0".join(values)] if first == "--latents" and values else [first, *rest]
        return super().parse_args(ctx, words)


def _spread(args: list[str], several: set[str]) -> Iterator[list[str]]:
    """Yield each word, and each flag of ``several`` repeated before every one of its values."""
    words = list(args)
    while words:
        word = words.pop(0)
        if word == "--":
            yield [word, *words]
            return
        spread = [word] if word not in several or not words or words[0].startswith("-") else []
        while word in several and words and not words[0].startswith("-"):
            spread += [word, words.pop(0)]
        yield spread


def guarded(
    *, stopped: str = "Stopped; run the same command again.", words: Mapping[str, str] | None = None
) -> Callable[[Callable[..., int | None]], Callable[..., int]]:
    """Turn users' mistakes into one red sentence and exit code 2, and Ctrl-C into 130.

    Args:
        stopped: Sentence to print after Ctrl-C.
        words: Argument in the library's messages -> its flag, if their names differ.
    """

    def decorate(function: Callable[..., int | None]) -> Callable[..., int]:
        flags = {name: f"--{name.replace('_', '-')}" for name in inspect.signature(function).parameters}

        @functools.wraps(function)
        def guard(**given: Any) -> int:
            try:
                return function(**given) or 0
            except KeyboardInterrupt:
                terminal.note(stopped)
                return 130
            except _EXPECTED as error:
                terminal.fail(_as_flags(_sentence(error), flags, list(_texts(given.values())), words or {}))
                return 2

        return guard

    return decorate


def entry(name: str, function: Callable[..., int], kind: type[Command] = Command) -> Entry:
    """Make the ``main(argv) -> exit code`` of one command, for its module, ``scripts/`` and torchrun."""

    def main(argv: Sequence[str] | None = None) -> int:
        """Run the command on these words, by default those of the process; return its exit code."""
        app = typer.Typer(add_completion=False)
        app.command(name, cls=kind, help=help_of(function))(function)
        return call(app, argv, f"fusemix {name}")

    return main


def help_of(function: Callable[..., Any]) -> str:
    """Make a command's help from its docstring: each paragraph on one line, for wrapping to the terminal."""
    return "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(function.__doc__ or "").split("\n\n"))


def call(app: typer.Typer, argv: Sequence[str] | None, name: str) -> int:
    """Run an app on command-line words; a wrong flag is one sentence and exit code 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return int(typer.main.get_command(app).main(words, prog_name=name, standalone_mode=False) or 0)
    except TyperException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else name
        message = error.format_message()
        terminal.fail(f"{message}{'' if message.endswith(('.', '?')) else '.'} '{path} --help' lists what it takes.")
        return error.exit_code


def named(pieces: Sequence[str], form: str, *, empty: bool = False) -> list[tuple[str, str]]:
    """Split ``NAME=VALUE`` words.

    Args:
        pieces: The words.
        form: Their form for the message, such as ``--latents MODALITY=DIR``.
        empty: Whether a value may be empty.

    Raises:
        ValueError: If a word has no name, no value or no equals sign.
    """
    split = []
    for piece in pieces:
        name, equals, value = piece.partition("=")
        if not (name and equals and (value or empty)):
            raise ValueError(f"Expected {form}, got {piece!r}.")
        split.append((name, value))
    return split


def named_once(pieces: Sequence[str], form: str, *, empty: bool = False) -> dict[str, str]:
    """Split ``NAME=VALUE`` words with distinct names.

    Raises:
        ValueError: As :func:`named`, and if a name occurs twice.
    """
    pairs = named(pieces, form, empty=empty)
    if len(dict(pairs)) != len(pairs):
        raise ValueError(f"Expected {form}, each name once, got {' '.join(pieces)!r}.")
    return dict(pairs)


def _sentence(error: BaseException) -> str:
    """Format an error as a sentence; errors of the operating system hold only a number and a file name."""
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else str(error.filename)
        if isinstance(error, FileNotFoundError):
            return f"There is no file or folder {name}; check the path."
        return f"{name}: {os.strerror(error.errno)}; choose another path, or change what is wrong with this one."
    if isinstance(error, MemoryError):
        return f"The memory does not suffice; work on fewer items at once. {error}".strip()
    return str(error) or type(error).__name__


def _texts(values: Iterable[Any]) -> Iterator[str]:
    """Yield every text and path among the values of flags, also within lists and after ``NAME=``."""
    for value in values:
        if isinstance(value, list):
            yield from _texts(value)
        elif isinstance(value, str | Path):
            for word in str(value).split("\0"):
                yield from {word, word.partition("=")[2]} - {""}


def _as_flags(sentence: str, flags: Mapping[str, str], values: Sequence[str], words: Mapping[str, str]) -> str:
    """Replace ``batch_size`` and ``the argument key`` by ``--batch-size`` and ``--key``, except in given values."""
    telling = [name for name in flags if "_" in name] + [*words, "argument "]
    given = sorted({value for value in values if any(word in value for word in telling)}, key=len, reverse=True)
    pieces = re.split(f"({'|'.join(map(re.escape, given))})", sentence) if given else [sentence]
    pieces[::2] = [_translated(piece, flags, words) for piece in pieces[::2]]
    return "".join(pieces)


def _translated(text: str, flags: Mapping[str, str], words: Mapping[str, str]) -> str:
    for word, flag in words.items():
        text = text.replace(word, flag)
    one_word = r"[\w/.'\"\\-]"
    for name, flag in flags.items():
        text = re.sub(rf"(?<!{one_word}){name}=\{{'([^']+)': '([^']+)'\}}", rf"{flag} \1=\2", text)
        pattern = rf"(?<!{one_word})(?:the )?argument {name}\b"
        if "_" in name:
            pattern += rf"|(?<!{one_word}){name}(?![\w/'\"\\-])"
        text = re.sub(pattern, flag, text)
    return text
