"""The program `swiftvlm`: its commands, and what becomes of an error: exit code 1 (failed), 2 (bad input)."""

import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from swiftvlm.cli.eval import evaluate
from swiftvlm.cli.explain import explain
from swiftvlm.cli.figure import figure
from swiftvlm.cli.lists import families, methods
from swiftvlm.cli.parse import ASKED
from swiftvlm.cli.plan import plan
from swiftvlm.cli.profile import profile
from swiftvlm.cli.run import run
from swiftvlm.cli.split import split_budget
from swiftvlm.errors import SwiftVLMError

# 130: 128 and SIGINT's number, as shells report a program that Ctrl-C ended.
BAD, FAILED, INTERRUPTED = 2, 1, 130
PACKAGE = Path(__file__).parents[1]
# typer brings a click of its own or takes the installed one, depending on its version; this is the class either way.
UsageError: Any = typer.BadParameter.__mro__[1]


def build() -> typer.Typer:
    """The application with all its commands."""
    # Plain help and no drawn tracebacks: what goes wrong becomes one line in `main`.
    app = typer.Typer(
        name="swiftvlm",
        help="Prune the visual tokens of vision-language models, training-free.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    for command in (run, plan, methods, families):
        app.command()(command)
    app.command(name="eval")(evaluate)
    app.command()(profile)
    app.command(name="split")(split_budget)
    app.command()(explain)
    app.command()(figure)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program with these arguments (the process' own by default) and return its exit code.

    A user's mistake is one line on stderr and 2; Ctrl-C is 130; anything unforeseen is one line and 1.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    ASKED.set(tuple(given))
    try:
        with warnings.catch_warnings():
            # `catch_warnings` puts the old function back.
            warnings.showwarning = _note
            # Without any arguments the help is the answer, but nothing was done.
            code = build()(args=given or ["--help"], standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except typer.Exit as leaving:
        code = leaving.exit_code
    except Exception as error:
        return _explain(error)
    if code == INTERRUPTED:
        return _say("interrupted", INTERRUPTED)
    # typer hands an early exit's code back as the value, and None after a whole command.
    return code if isinstance(code, int) and code else BAD * (not given)


def _explain(error: Exception) -> int:
    """One line for what went wrong, and the exit code for whose fault it was."""
    if isinstance(error, UsageError):
        return _say(error.format_message(), BAD)
    if isinstance(error, SwiftVLMError):
        return _say(str(error), BAD)
    return _say(f"failed: {type(error).__name__}: {error}", FAILED)


def entry() -> None:
    """The console script. A closed pipe (`| head`) ends it quietly."""
    if sys.platform != "win32":
        # Here and not in `main`, which another program may call and keep its own signals.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())


def _note(message: Warning | str, *where: Any, **rest: Any) -> None:
    """Our own warnings as one line; other libraries' are their developers' business."""
    # `where`: category, file, line, as `warnings.showwarning` is called.
    if where and where[0] is UserWarning and Path(where[1]).is_relative_to(PACKAGE):
        _say(f"note: {message}", 0)


def _say(message: str, code: int) -> int:
    # Errors of other libraries have line breaks of their own.
    line = " ".join(message.split())
    typer.echo(f"swiftvlm: {line}", err=True)
    return code
