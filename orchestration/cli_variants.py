"""`yt8m variant` and `yt8m study`: models with other settings beside the recipe's own, one by one or many."""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from orchestration.cli_recipe import write_recipe
from orchestration.session import Session, open_session, say, show
from yt8m_assets.errors import ConfigError
from yt8m_assets.progress import default_progress
from yt8m_assets.recipes.study import nested
from yt8m_assets.stages.nodes import Node, parents
from yt8m_assets.stages.study_table import BEST


def command_variant(arguments: argparse.Namespace) -> int:
    """Make a variant where one is named, or forget it; show the model and its variants side by side."""
    from yt8m_assets.stages.variants import forget_variant, kept_variants, known_variant

    session, base = open_session(arguments), arguments.model
    if base is None:
        found = dict.fromkeys(variant.base for variant in kept_variants(session.store).values())
        shown = [key for key in session.recipe.model_keys if key in found]
        if not shown:
            say(f"no variants are kept in {session.store.root_uri}: yt8m variant MODEL NAME --set FIELD=VALUE")
        for key in shown:
            show([comparison(session, key)])
        return 0
    session.recipe.model(base)
    if not arguments.name and (arguments.forget or arguments.save or arguments.set):
        raise ConfigError(f"variant: say which: yt8m variant {base} NAME ...")
    if arguments.forget:
        forget_variant(session.store, base, arguments.name)
        say(f"variant {arguments.name!r} of {base} is forgotten; `yt8m gc` removes what was made of it")
        return 0
    if arguments.save:
        settings = known_variant(session.store, base, arguments.name).settings
        write_recipe(arguments.save, arguments.recipe or session.settings.recipe, {"models": {base: dict(settings)}})
        say(f"{arguments.save}: {base} has the settings of {arguments.name} there")
        say(f"yt8m materialize --recipe {arguments.save}    (trains it anew; the other models are found)")
        return 0
    if arguments.name:
        make(session, base, arguments)
    show([comparison(session, base)])
    return 0


def make(session: Session, base: str, arguments: argparse.Namespace) -> None:
    """Run the asset of variants, by the form that a page would fill. What is wrong is said before anything runs."""
    from orchestration.driver import open_driver
    from yt8m_assets.assets.variants import VARIANT
    from yt8m_assets.stages.variants import Variant, keep_variant

    settings = settings_from(arguments.set)
    variant = keep_variant(session.recipe, session.store, Variant(base=base, name=arguments.name, settings=settings))
    with open_driver(session.recipe, session.state, session.settings, default_progress()) as driver:
        driver.make(variant.needs(session.recipe))
        driver.request(VARIANT, base, {"name": variant.name, **variant.settings}, _resuming(arguments))


def command_study(arguments: argparse.Namespace) -> int:
    """Try settings of a model until a budget is spent, by the asset of studies; show what was found."""
    from orchestration.driver import open_driver
    from yt8m_assets.assets.study import STUDY
    from yt8m_assets.recipes.study import StudyConfig

    session, base = open_session(arguments), arguments.model
    space = dict(map(setting, arguments.space))
    form = {"steps": arguments.steps, "name": arguments.name, "space": space, "seed": arguments.seed}
    StudyConfig(**form).space_of(session.recipe, base)  # says what is wrong before anything runs
    with open_driver(session.recipe, session.state, session.settings, default_progress()) as driver:
        driver.make(parents(session.recipe, Node("finetuned_model", base)))
        driver.request(STUDY, base, form, _resuming(arguments))
    found = session.store.require(f"study/{base}/{arguments.name}")
    show([trials_table(found.metadata), comparison(session, base)])
    say(f"best settings as a recipe  {session.store.uri(found, BEST)}")
    return 0


def trials_table(metadata: Mapping[str, Any]) -> Any:
    """The trials of a study, best first."""
    from rich.markup import escape
    from rich.table import Table

    head, _, *rows = ([cell.strip() for cell in line.strip("|").split(" | ")] for line in metadata["table"].split("\n"))
    counts = ", ".join(f"{metadata[name]} {name}" for name in ("completed", "pruned", "failed") if metadata[name])
    table = Table(title=f"{metadata['trials']} trials: {counts}; {metadata['steps']:,} steps")
    for place, name in enumerate(head):
        table.add_column(name, justify="right" if place else "left")
    for row in rows:
        table.add_row(*(escape(cell.replace(r"\|", "|")) for cell in row))
    return table


def _resuming(arguments: argparse.Namespace) -> dict[str, str]:
    """Tags of the run, by what the command line says of half-trained models."""
    from yt8m_assets.assets.models import AFRESH_TAG, FALLBACK_TAG

    tags = {FALLBACK_TAG: "true"} if arguments.allow_fallback else {}
    return tags | ({AFRESH_TAG: "true"} if arguments.start_afresh else {})


def setting(word: str) -> tuple[str, Any]:
    """`finetuning.learning_rate=3e-4` as name and value. Raises ConfigError."""
    name, separator, text = word.partition("=")
    section, dot, field = name.strip().partition(".")
    if not (separator and section and dot and field):
        raise ConfigError(f"{word!r}: give SECTION.FIELD=VALUE, such as finetuning.learning_rate=3e-4")
    try:
        return name.strip(), json.loads(text)
    except ValueError:
        return name.strip(), text.strip()


def settings_from(words: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What `--set` says, as the fields of a JSON recipe. Raises ConfigError."""
    found: dict[str, Any] = {}
    for name, value in map(setting, words):
        if name in found:
            raise ConfigError(f"--set {name}: is given twice")
        found[name] = value
    return nested(found)


def comparison(session: Session, base: str) -> Any:
    """The table of a model and its variants."""
    from rich.markup import escape
    from rich.table import Table

    from yt8m_assets.reports.variants import COLUMNS, compare_variants, comparison_rows

    table = Table(title=escape(f"{base} of recipe {session.recipe.name}, and its variants"))
    for place, name in enumerate(COLUMNS):
        table.add_column(name, justify="right" if place > 1 else "left", no_wrap=place != 1)
    for row in comparison_rows(compare_variants(session.recipe, session.store, base)):
        table.add_row(*(escape(cell) for cell in row))
    return table
