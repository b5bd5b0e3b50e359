"""The command line. Commands import what they need when they run, so that `bequest --help` answers at once."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from .. import __version__
from ..types import BequestError, RecipeError, Stopped

app = typer.Typer(add_completion=True, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Pre-train language models by inheriting from models that exist already."""
    if version:
        typer.echo(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, for example data.sequence=512", metavar="[KEY=VALUE]...")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; runs/<name> unless given.")] = None,
    push: Annotated[
        str | None,
        typer.Option(help="Afterwards upload the model to this Hugging Face repository.", metavar="USER/REPO"),
    ] = None,
    teach: Annotated[
        bool, typer.Option("--teach", help="First harvest what the stores of its teachers lack, as bequest teach does.")
    ] = False,
) -> None:
    """Train what RECIPE says. Run it again to go on where it stopped."""
    from .train import command

    if teach:
        from .teach import command as harvest

        harvest(recipe, tuple(overrides or ()))
    command(recipe, tuple(overrides or ()), out, push)


@app.command()
def teach(
    recipe: Annotated[Path | None, typer.Argument(help="A YAML file.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, for example teach.kind=topk", metavar="[KEY=VALUE]...")
    ] = None,
    look: Annotated[
        Path | None,
        typer.Option("--inspect", help="Look into this store instead; with RECIPE, ask its teacher again and compare."),
    ] = None,
) -> None:
    """Ask RECIPE's teachers about its text once and keep what they say in their stores. Run it again to go on."""
    from .teach import command, inspect

    if look:
        inspect(look, recipe, tuple(overrides or ()))
    elif recipe is None:
        raise RecipeError("name the recipe whose teachers are to be asked, for example: bequest teach taught.yaml")
    else:
        command(recipe, tuple(overrides or ()))


@app.command()
def grow(
    source: Annotated[str, typer.Argument(help="A model's folder or hub id.", metavar="FROM")],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    sizes: Annotated[
        list[str] | None, typer.Argument(help="For example hidden=512 layers=12 width=tile", metavar="[KEY=VALUE]...")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Refuse what would not keep the function.")] = False,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Text to measure the loss on; can be given several times.", metavar="[SOURCE=]PATH"),
    ] = None,
) -> None:
    """Make a larger model that begins with what FROM knows: wider, deeper, with more heads."""
    from .grow import command

    command(source, out, tuple(sizes or ()), exact, tuple(data or ()))


@app.command()
def check(
    recipe: Annotated[Path | None, typer.Argument(help="A YAML file.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, for example data.sequence=512", metavar="[KEY=VALUE]...")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; runs/<name> unless given.")] = None,
    time: Annotated[
        bool, typer.Option("--time", help="Also try it out for 20 seconds and say how long it will take.")
    ] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of recipes, for editors.")] = False,
) -> None:
    """Say what RECIPE would do and cost, or everything that is wrong with it. Trains nothing."""
    from .check import command, schema_text

    if schema:
        typer.echo(schema_text())
    elif recipe is None:
        raise RecipeError("name the recipe to check, for example: bequest check recipes/ki-small.yaml")
    else:
        command(recipe, tuple(overrides or ()), out, time)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, finished or not.")],
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("report.html"),
) -> None:
    """Write one HTML page about RUNS, side by side: curves, cost, what inheriting saved, who descends from whom."""
    from ..report import page, record

    page.write([record.read(run) for run in runs], out)
    typer.echo(f"the report: {out}")


@app.command()
def compare(
    sweep: Annotated[Path, typer.Argument(help="A YAML file: arms, learning rates, seeds.")],
    out: Annotated[Path, typer.Option(help="The folder of all sweeps' runs and results.")] = Path("runs/compare"),
    jobs: Annotated[
        int | None, typer.Option(help="Runs at a time, of one thread each on a CPU; one per GPU or core.", min=1)
    ] = None,
    index: Annotated[
        int | None, typer.Option(help="Do one arm alone, by its number from 0: for arrays of cluster jobs.", min=0)
    ] = None,
) -> None:
    """Hold arms against one another at equal cost: SWEEP's runs, then what came out. Run it again to go on."""
    from .compare import command

    command(sweep, out, jobs, index)


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="One of them.")] = None,
    recipe: Annotated[bool, typer.Option("--recipe", help="Print a recipe to start from.")] = False,
) -> None:
    """List the methods: what each does, its paper, what it needs, its keys."""
    from .methods import command

    if recipe and name is None:
        raise RecipeError("name the method whose recipe you want, for example: bequest methods ki --recipe")
    command(name, recipe)


@app.command()
def generate(
    checkpoint: Annotated[str, typer.Argument(help="A model's folder or hub id.")],
    text: Annotated[str, typer.Argument(help="What it goes on from; for a masked model, text with masks in it.")],
    tokens: Annotated[int, typer.Option(help="At most so many new tokens.", min=1)] = 50,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.", min=0.0)] = 0.8,
    seed: Annotated[int, typer.Option(help="Of the draws.", min=0)] = 0,
) -> None:
    """Let a model go on from TEXT, or fill in the masks in it."""
    from .look import generate as command

    command(checkpoint, text, tokens, temperature, seed)


@app.command("eval")
def eval_(
    checkpoint: Annotated[str, typer.Argument(help="A model's folder or hub id.")],
    data: Annotated[
        list[str] | None, typer.Option(help="Text to predict; can be given several times.", metavar="[SOURCE=]PATH")
    ] = None,
    sequence: Annotated[int, typer.Option(help="Positions; 0 is what the model allows, at most 512.", min=0)] = 0,
    task: Annotated[
        str | None,
        typer.Option(help="Labelled text to fine-tune on: jsonl of text and label.", metavar="[SOURCE=]PATH"),
    ] = None,
    dev: Annotated[Path | None, typer.Option(help="Labelled text to be right about after that.")] = None,
    seeds: Annotated[int, typer.Option(help="So many times, with other first weights and order.", min=1)] = 5,
    epochs: Annotated[int, typer.Option(help="Times through --task.", min=1)] = 5,
    rate: Annotated[float, typer.Option(help="Peak learning rate of fine-tuning.")] = 5e-4,
) -> None:
    """Say how well a model predicts some text (--data), or what it is good for after fine-tuning (--task and --dev)."""
    from .look import evaluate, probe

    if not data and not task:
        raise RecipeError(
            "give --data, text to predict, or --task and --dev, labelled text to learn from and to be right about"
        )
    if bool(task) != bool(dev):
        raise RecipeError("--task needs --dev, labelled text that is not learned from, and --dev needs --task")
    if not 0 < rate < 1:
        raise RecipeError(f"--rate {rate:g} is no learning rate; give one such as 5e-4")
    if data:
        evaluate(checkpoint, data, sequence)
    if task and dev:
        probe(checkpoint, task, dev, seeds, epochs, rate)


@app.command()
def demo(
    text: Annotated[
        Path | None,
        typer.Option(help="A folder or file of your own text; without it, the source of Python's standard library."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where runs and their recipes go.")] = Path("runs/demo"),
    scale: Annotated[float, typer.Option(help="Share of the full demo's tokens.")] = 1.0,
) -> None:
    """Train a small model, then a larger one twice, from scratch and inheriting, and say what inheriting saved."""
    from .demo import command

    command(text, out, scale)


def main() -> None:
    """Run a command. What a user can mend is one sentence and exit code 2; everything else is a traceback and a bug."""
    from ..files import machine_errors, machine_fault

    before = signal.signal(signal.SIGINT, _interrupted)
    try:
        app(standalone_mode=False)
    except BequestError as error:
        _leave(str(error), 2)
    except typer.Abort:
        _leave("stopped", 130)
    except Stopped as stopped:
        _leave(str(stopped), 128 + stopped.signal)
    except typer.TyperException as error:
        _leave(error.format_message(), 2)
    except machine_errors() as error:
        if (fault := machine_fault(error)) is None:
            raise
        _leave(fault, 2)
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupted(number: int, frame: FrameType | None) -> None:
    """Ctrl-C outside training leaves at once, as a crash would: an exception may be lost inside an import."""
    os.write(2, b"bequest: stopped; run the same command again to go on\n")
    os._exit(130)


def _leave(sentence: str, code: int) -> None:
    print(f"bequest: {sentence}", file=sys.stderr)
    sys.exit(code)
