"""How a command ends: its document on stdout, what went wrong on stderr, and the exit status."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from paretune.errors import ParetuneError

MEETS_NONE = 3
INTERRUPTED = 130
"""What typer makes of Ctrl-C."""

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


def guarded(run: Callable[[], Any], debug: bool) -> int:
    """Run a command line; whatever goes wrong becomes one line on stderr. The exit status."""
    try:
        run()
        return 0
    except SystemExit as error:  # usage errors are told by typer
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if code == INTERRUPTED:
            return _complain("interrupted; finished steps are kept, and --resume goes on from them", 1)
        return code
    except KeyboardInterrupt:
        return _complain("interrupted", 1)
    except ParetuneError as error:
        if debug:
            traceback.print_exc()
        return _complain(str(error), error.exit_code)
    except Exception as error:
        if debug:
            traceback.print_exc()
        text = " ".join(str(error).split())[:300]
        return _complain(f"something unforeseen: {type(error).__name__}: {text} — --debug shows where", 1)


def _complain(text: str, code: int) -> int:
    sys.stderr.write(f"paretune: error: {text}\n")
    return code
