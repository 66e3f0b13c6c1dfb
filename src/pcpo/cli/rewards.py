"""`pcpo rewards`: list the built-in rewards, and check one of your own."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="List the built-in rewards; `pcpo rewards check NAME` tries one.", invoke_without_command=True)


@app.callback()
def rewards(context: typer.Context) -> None:
    """List the built-in rewards; `pcpo rewards check NAME` tries one."""
    if context.invoked_subcommand is not None:
        return
    from pcpo.cli.listing import print_table
    from pcpo.rewards.registry import REWARDS

    print_table((name, spec.summary) for name, spec in REWARDS.items())
    typer.echo("\nYour own: module:function or file.py:function, called with (images, prompts, metadata)")


@app.command("check")
def check(
    name: Annotated[str, typer.Argument(help="built-in name, module:function or file.py:function")],
    options: Annotated[
        list[str] | None, typer.Option("--option", "-o", metavar="KEY=VALUE", help="an argument of the reward")
    ] = None,
) -> None:
    """Try a reward on small pictures and name what is wrong with it; exit code 5 when something is."""
    from pcpo.errors import RewardError
    from pcpo.rewards.checker import check_reward
    from pcpo.rewards.registry import load_reward
    from pcpo.trainer.configfile import apply_overrides

    findings = check_reward(load_reward(name, **apply_overrides({}, options or [])))
    for finding in findings:
        typer.echo(finding)
    if findings:
        raise RewardError(f"{len(findings)} finding{'s' if len(findings) > 1 else ''}", where=f"reward {name}")
    typer.echo("nothing found")
