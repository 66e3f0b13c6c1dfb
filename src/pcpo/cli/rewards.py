"""`pcpo rewards`: list the built-in rewards, check one of your own, serve one over HTTP."""

from __future__ import annotations

import contextlib
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

    rows = [
        (name, spec.source, spec.summary + (f" [extra: {spec.extra}]" if spec.extra else ""))
        for name, spec in REWARDS.items()
    ]
    print_table([("reward", "source", "what it measures"), *rows])
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


@app.command("serve")
def serve(
    name: Annotated[str, typer.Argument(help="built-in name, module:function or file.py:function")],
    options: Annotated[
        list[str] | None, typer.Option("--option", "-o", metavar="KEY=VALUE", help="an argument of the reward")
    ] = None,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: a free one, printed", min=0, max=65535)] = 8800,
    token_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="environment variable with the token that clients must send")
    ] = None,
    max_body: Annotated[int, typer.Option(metavar="MiB", help="largest request", min=1, max=1024)] = 64,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="let --host be an address that other machines reach; needs a token")
    ] = False,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="a name of this machine by which clients call it")
    ] = None,
) -> None:
    """Serve a reward to `reward: http` on this machine, or on others; Ctrl-C ends it."""
    from pcpo.rewards.base import ready
    from pcpo.rewards.registry import check_extra, load_reward

    check_extra("serve", "pcpo rewards serve")
    from pcpo.rewards.remote.serving import Access, serve_reward
    from pcpo.trainer.configfile import apply_overrides

    access = Access.checked(host, token_env, allow_remote, allow_host or [])
    reward = load_reward(name, **apply_overrides({}, options or []))
    ready(reward)
    with contextlib.suppress(KeyboardInterrupt):
        serve_reward(reward, name, access, port, max_body * 2**20, typer.echo)
