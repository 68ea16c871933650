"""``anontls completion``: the completion script of a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from anontls.errors import UsageError

SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    bash: eval "$(anontls completion bash)"   in ~/.bashrc
    zsh:  eval "$(anontls completion zsh)"    in ~/.zshrc
    fish: anontls completion fish > ~/.config/fish/completions/anontls.fish
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise UsageError(f"no completion for {shell}")
    root = ctx.find_root()
    click.echo(kind(root.command, {}, "anontls", "_ANONTLS_COMPLETE").source())
