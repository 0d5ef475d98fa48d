"""The command ``rbl``: one module per command, imported when the command is used, so that ``rbl --help`` stays quick.

Exit codes: 0 all is well; 1 something ran and failed; 2 the request could not be carried out as written; 130 interrupted.
"""

from __future__ import annotations

import importlib
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from robustbench_lite import __version__
from robustbench_lite.cli.app import App
from robustbench_lite.errors import MissingData, MissingWeights, RblError, StoreFormatError, UsageError

# Command -> (its module below robustbench_lite.cli, its help in a line: known without importing the module).
COMMANDS = {
    "run": ("run", "Run defenses against attacks and judge what comes out."),
    "plan": ("plan", "Say what a run would do, cell by cell, and why."),
    "report": ("report", "Render leaderboards from stored results."),
    "leaderboard": ("report", "The same as report."),
    "compare": ("compare", "Two defenses or two attacks on the same examples: what differs, and how sure that is."),
    "export": ("export", "Put results into one file, a bundle, for others to import and verify."),
    "import": ("import_", "Take in somebody's bundle, or published entries of RobustBench."),
    "verify": ("verify", "Judge somebody's results again, on the defense that is installed here."),
    "diagnose": ("diagnose", "Look for signs that a defense only seems robust, or that an attack fails."),
    "status": ("status", "What a store holds, what failed and who is at work."),
    "list": ("list", "List attacks, defenses, data sets, metrics or protocols."),
    "show": ("show", "Everything about one plugin object, or one stored result."),
    "plugins": ("plugins", "Which distributions bring what, and what is wrong with them."),
    "train": ("train", "Train a defense and keep its weights where rbl run finds them."),
    "check": ("check", "Run the conformance suite on a plugin object."),
    "doctor": ("doctor", "Versions, devices, data sets and weights found on this machine."),
}


COMMAND_LINE = "robustbench_lite.command_line"


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """As click does; the command line is kept as it was typed, for the tables that name the command that makes them."""
        typed = shlex.join(["rbl", *args])
        context = super().make_context(info_name, args, parent, **extra)
        context.meta[COMMAND_LINE] = typed
        return context

    def invoke(self, ctx: click.Context) -> Any:
        """As click does; a reader of our output who has had enough, such as ``head``, is no failure."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.exceptions.Exit(0) from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order in which one meets them."""
        return [*COMMANDS]  # `list` is the name of a command's module here

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"robustbench_lite.cli.{COMMANDS[cmd_name][0]}")
        command = module.command
        if not isinstance(command, click.Command):
            raise TypeError(f"{module.__name__}.command is no click command")
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a suggestion for a misspelt command."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            from robustbench_lite.errors import did_you_mean

            raise UsageError(f"no command {args[0]!r}", hint=did_you_mean(args[0], COMMANDS) or "rbl --help lists them")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, "--version", prog_name="rbl")
@click.option(
    "--plugin",
    "plugins",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A one-file plugin, used without installing it. May be repeated.",
)
@click.option("--verbose", is_flag=True, help="Log what is going on, and show tracebacks.")
@click.pass_context
def cli(ctx: click.Context, plugins: tuple[Path, ...], verbose: bool) -> None:
    """Benchmark adversarial robustness: every defense against every attack, judged by the same hand."""
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="rbl: %(message)s", stream=sys.stderr)
    ctx.obj = App([*plugins], command_line=ctx.meta[COMMAND_LINE])


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run ``rbl``: errors become a message, a hint and an exit code, never a traceback (unless ``--verbose``).

    arguments: those of the process where None.
    """
    given = [*(sys.argv[1:] if arguments is None else arguments)]
    try:
        outcome = cli(given, prog_name="rbl", standalone_mode=False)
    except click.exceptions.Exit as ended:
        sys.exit(ended.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("rbl: interrupted", err=True)
        sys.exit(130)
    except RblError as error:
        if "--verbose" in given:
            traceback.print_exception(error)
        click.echo(f"rbl: {error}", err=True)
        sys.exit(exit_code(error))
    sys.exit(outcome if isinstance(outcome, int) else 0)


def exit_code(error: RblError) -> int:
    """2 where the request cannot be carried out as written, 1 where something failed on the way."""
    from robustbench_lite.registry import StrictPluginError

    return 2 if isinstance(error, (UsageError, MissingData, MissingWeights, StoreFormatError, StrictPluginError)) else 1
