"""The ``billaged`` command: its groups, found by name and imported only when used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any, Final

import click
from click.shell_completion import CompletionItem, get_completion_class

from billaged import __version__
from billaged.cli.errors import exit_codes

# Where each command is, and its line in --help: known without importing it, for most bring grpc or a database along.
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "serve": ("billaged.cli.serve:serve", "Run the daemon."),
    "agent": ("billaged.cli.agent:agent", "Meter this machine or single processes and send it all."),
    "send": ("billaged.cli.send:send", "Send one request: metrics, heartbeat, started, stopped, gap."),
    "vms": ("billaged.cli.vms:vms", "List the VMs that the ledger knows."),
    "usage": ("billaged.cli.usage:usage", "Report what a VM or a customer used."),
    "gaps": ("billaged.cli.gaps:gaps", "List what was not measured."),
    "bill": ("billaged.cli.bill:bill", "Print the bill of a period, and what stands behind it."),
    "verify": ("billaged.cli.verify:verify", "Check every invariant of the ledger, row by row."),
    "ledger": ("billaged.cli.ledger:ledger", "Back up, restore and check the ledger."),
    "backup": ("billaged.cli.backup:backup", "Back up the whole data directory, daemon running or not."),
    "restore": ("billaged.cli.backup:restore", "Put a backup of the whole data directory back."),
    "journal": ("billaged.cli.journal:journal", "Verify the journal, or compute the ledger anew from it."),
    "certs": ("billaged.cli.certs:certs", "Make certificates to try mTLS with."),
    "policy": ("billaged.cli.policy:policy", "Check the policy's file; say who may do what, and why."),
    "config": ("billaged.cli.config:config", "Show the settings in force."),
    "version": ("billaged.cli.version:version", "Print the version."),
    "completion": ("billaged.cli.main:completion", "Print the script that completes commands in your shell."),
}


class LazyGroup(click.Group):
    """Lists, describes and completes its commands from a table; imports one to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}:{attribute} is no command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, help_line) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        commands = [
            CompletionItem(name, help=help_line)
            for name, (_, help_line) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return commands + click.Command.shell_complete(self, ctx, incomplete)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 it worked; 1 it failed (the message says why); 2 a wrong argument or setting. "
    "`billaged COMMAND --help` says more about each command.",
)
@click.version_option(__version__, prog_name="billaged", message="%(prog)s %(version)s")
def billaged() -> None:
    """Raw VM usage in, bills that can be proved out.

    The daemon (serve) takes usage over gRPC and HTTP and makes it durable; the agent
    sends a machine's usage; the others read what the ledger has, or help to find out.
    """


_INSTALL: Final = {
    "bash": "# Install: billaged completion bash > ~/.local/share/bash-completion/completions/billaged",
    "zsh": '# Install: billaged completion zsh > "${fpath[1]}/_billaged", then start a new shell',
    "fish": "# Install: billaged completion fish > ~/.config/fish/completions/billaged.fish",
}


@click.command()
@click.argument("shell", type=click.Choice(list(_INSTALL)))
def completion(shell: str) -> None:
    """Print the script that completes commands and options in SHELL.

    \b
    To have it at once:        eval "$(billaged completion bash)"
    To have it in each bash:   billaged completion bash > ~/.local/share/bash-completion/completions/billaged
    To have it in each zsh:    billaged completion zsh > "${fpath[1]}/_billaged"
    To have it in each fish:   billaged completion fish > ~/.config/fish/completions/billaged.fish
    """
    completer = get_completion_class(shell)
    if completer is None:
        raise click.ClickException(f"no completion for {shell}")
    source = completer(billaged, {}, "billaged", "_BILLAGED_COMPLETE").source().strip()
    # zsh takes a file of its fpath for a completion by its first line.
    first, _, rest = source.partition("\n")
    click.echo(f"{first}\n{_INSTALL[shell]}\n{rest}" if first.startswith("#") else f"{_INSTALL[shell]}\n{source}")


def main() -> None:
    """The console script. Ends the process with 0, 1 or 2."""
    run: Callable[..., Any] = billaged.main
    with exit_codes():
        run(args=sys.argv[1:], prog_name="billaged")
