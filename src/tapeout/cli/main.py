"""The `tapeout` command's frame: finds verbs, and turns known errors into one line and exit code 1.

A verb `x` is the function `x` in `tapeout/cli/x.py`, annotated for typer. Verb modules import what
they need inside the function, so that `tapeout --help` stays quick.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import typer
from typer.core import TyperGroup

from tapeout import __version__

VERBS = ("run", "chat", "chip", "rtl", "verify", "prove", "synth")  # in the order --help lists them


class _Verbs(TyperGroup):
    """Imports a verb's module when that verb is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [verb for verb in VERBS if find_spec(f"tapeout.cli.{verb}")]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.commands and cmd_name in self.list_commands(ctx):
            single = typer.Typer(add_completion=False)
            module = import_module(f"tapeout.cli.{cmd_name}")
            single.command(name=cmd_name)(getattr(module, cmd_name))
            self.commands[cmd_name] = typer.main.get_command(single)
        return self.commands.get(cmd_name)


app = typer.Typer(
    cls=_Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tapeout {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Tapeout: an AI accelerator that exists as text.

    Start with: tapeout run smollm2-135m --prompt "The capital of France is"
    """


def _is_for_the_user(error: BaseException) -> bool:
    """Errors that Tapeout defines, and the file system's, are answers; the rest are defects."""
    ours = any(c.__module__.split(".")[0] == "tapeout" for c in type(error).__mro__)
    return ours or (isinstance(error, OSError) and error.filename is not None)


def _one_line(error: BaseException) -> str:
    """The error's text and notes; what it lists on lines of its own is joined by semicolons."""
    lines = [*str(error).splitlines(), *getattr(error, "__notes__", ())]
    return "; ".join(line.strip() for line in lines if line.strip()).replace(":;", ":")


def main() -> None:
    """The console script."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone: nothing is left to say
        sys.exit(1)
    except Exception as error:
        if not _is_for_the_user(error):
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        sys.exit(1)
