"""`clmoe recipes`: the shipped recipes and every key they can set."""

from __future__ import annotations

from typing import Annotated

import typer

from clmoe_cli.options import AsJson, examples
from clmoe_cli.present import session

app = typer.Typer(
    help="List the shipped recipes, show one, or explain a key.",
    epilog=examples("clmoe recipes list", "clmoe recipes explain merge.gamma"),
    no_args_is_help=True,
)


@app.command("list", epilog=examples("clmoe recipes list", "clmoe recipes list --json"))
def list_recipes(context: typer.Context, as_json: AsJson = False) -> None:
    """List the shipped recipes."""
    call = session(context, runs=None, as_json=as_json)
    call.show(call.call(lambda pipeline: pipeline.recipes_list()))


@app.command("show", epilog=examples("clmoe recipes show shapes", "clmoe recipes show my.yaml"))
def show_recipe(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A shipped recipe, or a YAML file.")],
    as_json: AsJson = False,
) -> None:
    """Show a recipe with every key and its value."""
    call = session(context, runs=None, as_json=as_json)
    call.show(call.call(lambda pipeline: pipeline.recipes_show(name)))


@app.command(
    "explain",
    epilog=examples("clmoe recipes explain merge.gamma", "clmoe recipes explain eval.beta"),
)
def explain_key(
    context: typer.Context,
    key: Annotated[str, typer.Argument(metavar="KEY", help="A recipe key, such as train.lr.")],
    as_json: AsJson = False,
) -> None:
    """Explain a recipe key: type, default, the paper's symbol, and the stages it changes."""
    call = session(context, runs=None, as_json=as_json)
    call.show(call.call(lambda pipeline: pipeline.recipes_explain(key)))
