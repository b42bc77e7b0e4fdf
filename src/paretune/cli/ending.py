"""How a command ends: its document on stdout, what went wrong on stderr, and the exit status."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from paretune.errors import CallError, ParetuneError

MEETS_NONE = 3
INTERRUPTED = 130
"""What typer makes of Ctrl-C."""
NO_ARGUMENTS = "NoArgsIsHelpError"
"""What typer raises after it has shown the help of a command that was called without arguments."""

_document: list[TextIO] = []
"""Where a document goes while stdout is kept for it."""


def show(document: Any) -> None:
    """Write the one JSON document of a ``--json`` call."""
    out = _document[-1] if _document else sys.stdout
    out.write(json.dumps(document, indent=1) + "\n")
    out.flush()


@contextlib.contextmanager
def stdout_for_the_document(json: bool) -> Iterator[None]:
    """With ``--json``, whatever else is printed (by a user's workload, or by a runtime's C++) goes to stderr."""
    if not json:
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            whole = sys.stdout.fileno() == 1
        except (OSError, ValueError):  # not a real one
            whole = False
        if whole:
            sys.stdout.flush()
            kept = os.dup(1)
            _document.append(stack.enter_context(os.fdopen(kept, "w", encoding="utf-8")))
            os.dup2(2, 1)
            stack.callback(os.dup2, kept, 1)
        else:
            _document.append(sys.stdout)
        stack.callback(_document.pop)
        with contextlib.redirect_stdout(sys.stderr):
            yield


def guarded(run: Callable[[], Any], debug: bool = False, json: bool = False) -> int:
    """Run a command line; whatever goes wrong becomes one line on stderr. The exit status.

    ``run`` returns None or an exit status. With ``json`` what went wrong is the document, too:
    ``{"error": {"what", "where", "do", "exit"}}``.
    """
    try:
        code = run() or 0
        if code != INTERRUPTED:
            return int(code)
        told = ParetuneError("interrupted; finished steps are kept", do="--resume goes on from them")
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except KeyboardInterrupt:
        told = ParetuneError("interrupted")
    except Exception as error:
        if debug:
            traceback.print_exc()
        if type(error).__name__ == NO_ARGUMENTS:
            return CallError.exit_code  # the help was shown in place of an error
        told = _told(error)
    _complain(told, json)
    return told.exit_code


def _told(error: Exception) -> ParetuneError:
    """What went wrong, as an error of paretune's own."""
    if isinstance(error, ParetuneError):
        return error
    if hasattr(error, "format_message"):  # typer's, whose home moved from one version to the next
        context = getattr(error, "ctx", None)
        see = f"see {context.command_path} --help" if context is not None else "see --help"
        return CallError(str(error.format_message()).rstrip("."), do=see)
    text = " ".join(str(error).split())[:300]
    return ParetuneError(f"something unforeseen: {type(error).__name__}: {text}", do="--debug shows where")


def _complain(told: ParetuneError, json: bool) -> None:
    lines = [f"paretune: error: {told}", *(f"    {line}" for line in told.quote)]
    sys.stderr.write("\n".join(lines) + "\n")
    if json:
        show({"error": {"what": told.what, "where": told.where, "do": told.do, "exit": told.exit_code}})
