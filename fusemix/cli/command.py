"""What all commands share: several values behind one flag, one guard against bad input, one way to be called.

A command is a function whose parameters are its flags (Typer reads them) and which returns nothing when it succeeds,
or an exit code. Exit codes are 0 for success, 2 for bad input, in one sentence, and 130 for a run that was stopped.
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

    bare: Mapping[str, str] = {}  # flags that may stand without a value, and what they mean then

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Write ``--splits train val`` as ``--splits train --splits val``, then read as ever."""
        several = {name for p in self.params if getattr(p, "multiple", False) for name in p.opts if name[:2] == "--"}
        words = [word for words in _spread(args, several) for word in words]
        for place in reversed(range(len(words))):
            if words[place] in self.bare and (words[place + 1 :] or ["-"])[0].startswith("-"):
                words.insert(place + 1, self.bare[words[place]])
        return super().parse_args(ctx, words)


class SetCommand(Command):
    """A command whose ``--latents`` stands once for every set of pairs and keeps its values together."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Join the values of each ``--latents`` by NUL, which no argument can hold."""
        words: list[str] = []
        for first, *rest in _spread(args, {"--latents"}):
            values = [word for word in rest if word != first]
            words += [first, "\0".join(values)] if first == "--latents" and values else [first, *rest]
        return super().parse_args(ctx, words)


def _spread(args: list[str], several: set[str]) -> Iterator[list[str]]:
    """Each word alone, and each flag of ``several`` with its values, the flag repeated before every further one."""
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
    """Turn what a user can get wrong into one red sentence and exit code 2, and Ctrl-C into 130.

    Args:
        stopped: What Ctrl-C leaves behind, in one sentence.
        words: How the library's words read on the command line, where an argument and its flag differ in name.
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
    """Make the ``main(argv) -> exit code`` of one command: of its module, of ``scripts/`` and of torchrun."""

    def main(argv: Sequence[str] | None = None) -> int:
        """Run the command on these words, by default those of the process; give its exit code."""
        app = typer.Typer(add_completion=False)
        app.command(name, cls=kind, help=help_of(function))(function)
        return call(app, argv, f"fusemix {name}")

    return main


def help_of(function: Callable[..., Any]) -> str:
    """Make a command's help of its docstring: each paragraph one line, to be wrapped to the terminal."""
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
        form: What they look like, such as ``--latents MODALITY=DIR``.
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
    """Split ``NAME=VALUE`` words of which every name stands once.

    Raises:
        ValueError: As :func:`named`, and if a name stands twice.
    """
    pairs = named(pieces, form, empty=empty)
    if len(dict(pairs)) != len(pairs):
        raise ValueError(f"Expected {form}, each name once, got {' '.join(pieces)!r}.")
    return dict(pairs)


def _sentence(error: BaseException) -> str:
    """What an error says, as a sentence; those of the operating system hold a number and a file name only."""
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
    """Every text and path among the values of flags, also within lists and behind ``NAME=``."""
    for value in values:
        if isinstance(value, list):
            yield from _texts(value)
        elif isinstance(value, str | Path):
            for word in str(value).split("\0"):
                yield from {word, word.partition("=")[2]} - {""}


def _as_flags(sentence: str, flags: Mapping[str, str], values: Sequence[str], words: Mapping[str, str]) -> str:
    """Write ``batch_size`` and ``the argument key`` as ``--batch-size`` and ``--key``, outside of the given values."""
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
