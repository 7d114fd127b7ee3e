"""The command that compares any two models: knowledge scores before and after, damage, and whether an edit holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from amnesia.cli.options import MODEL, as_json, force_option, on_device_or_disk, popqa_option
from amnesia.cli.terminal import Terminal, echo, print_json
from amnesia.domain import DEFAULT_LOADING, Loading
from amnesia.errors import InputError
from amnesia.probes.settings import ProbeSettings
from amnesia.recipe_file import load_recipe
from amnesia.stress.settings import WAYS, RelearningSettings, StressSettings

if TYPE_CHECKING:
    from amnesia.compare import Assessment
    from amnesia.facts.questions import FactSet


@click.command()
@click.argument("model", type=MODEL, required=False)
@click.argument("edited", type=MODEL, required=False)
@click.option("--server", help="In place of MODEL: address of an OpenAI-compatible server, URL or URL#MODEL.")
@click.option("--server-edited", help="In place of EDITED: address of the server that has it.")
@click.option(
    "--server-chat",
    type=MODEL,
    help="With --server: the model that is served, or a folder with its tokenizer, for its chat template; facts are "
    "then asked as messages, too. Servers do not show their template, so that this is not compared with it.",
)
@click.option("--recipe", "recipe_path", type=click.Path(path_type=Path), help="Facts and controls of a recipe.")
@popqa_option
@click.option(
    "--entity",
    "entities",
    multiple=True,
    help="Target: subject in PopQA (may be repeated), or entity of a recipe that lists several.",
)
@click.option(
    "--controls",
    "n_controls",
    type=click.IntRange(1),
    help="With --popqa: control facts to take, one for each other subject. Default: 100.",
)
@click.option("--stress", is_flag=True, help="Also attack and quantize both models: does the edit hold?")
@click.option(
    "--stress-facts",
    type=click.IntRange(1),
    help="With --stress or --relearning: how many known facts to take, and as many controls. Default: "
    f"{StressSettings.n_facts}.",
)
@click.option(
    "--relearning",
    is_flag=True,
    help="Also fine-tune both models, and one that forgot by LoRA unlearning: does it come back? Takes long.",
)
@click.option(
    "--relearning-steps",
    "steps",
    type=click.IntRange(1),
    help="With --relearning: steps of each training; the models are also asked after parts of it. Default: "
    f"{RelearningSettings.most}.",
)
@click.option(
    "--relearning-way",
    "ways",
    type=click.Choice([way.name for way in WAYS], case_sensitive=False),
    multiple=True,
    help="With --relearning: train an adapter (LoRA), all weights (full); repeat it. Default: both.",
)
@click.option(
    "--probes",
    is_flag=True,
    help="Also ask by multiple choice, drawn samples, inner layers, free texts and under pressure: does anything show?",
)
@click.option(
    "--probe-facts",
    type=click.IntRange(1),
    help=f"With --probes: how many known facts to take, and as many controls. Default: {ProbeSettings.n_facts}.",
)
@click.option(
    "--sweep", is_flag=True, help="Also score weaker and stronger versions of an edit that this program made."
)
@click.option(
    "--lm-eval", "tasks", help="Tasks of the lm-eval harness for both models: names or task files, with commas."
)
@click.option(
    "--lm-eval-limit", "task_limit", type=click.IntRange(1), help="Documents of each task. Default: all of them."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder for report.json and report.html. An evaluation that was broken off goes on where it stopped.",
)
@force_option
@on_device_or_disk
@as_json
def evaluate(
    model: str | None,
    edited: str | None,
    server: str | None,
    server_edited: str | None,
    server_chat: str | None,
    recipe_path: Path | None,
    popqa: str | None,
    entities: tuple[str, ...],
    n_controls: int | None,
    stress: bool,
    stress_facts: int | None,
    relearning: bool,
    steps: int | None,
    ways: tuple[str, ...],
    probes: bool,
    probe_facts: int | None,
    sweep: bool,
    tasks: str | None,
    task_limit: int | None,
    output: Path | None,
    force: bool,
    loading: Loading,
    json_output: bool,
) -> None:
    """Compare what MODEL and EDITED know of targets and controls. EDITED is any other model or adapter.

    Without EDITED, what MODEL itself knows is measured. Models on servers (vLLM, SGLang, llama.cpp) are asked as they
    are served, for log-probabilities with the tokens of the server; AMNESIA_SERVER_KEY is the key that servers want.
    """
    _check_facts(recipe_path, popqa, entities)
    _check_options(click.get_current_context().params)
    if stress or relearning or probes:
        loading = replace(loading, options=loading.options - {"--offload"})
    from amnesia import compare
    from amnesia.evaluation import measurement_cache

    n_tested = stress_facts or StressSettings.n_facts
    n_probed = probe_facts or ProbeSettings.n_facts
    wanted = tuple(way for way in WAYS if not ways or way.name in ways)
    terminal = Terminal()
    facts = _facts(recipe_path, popqa, entities, n_controls or 100)
    if facts.note:
        terminal.notice(facts.note)
    if output is not None:
        compare.check_report(output, (model, edited), force=force)
    with measurement_cache.for_now() if output is None else measurement_cache.beside(output) as measurements:
        if model is None:
            assert server is not None, "one of the two was given"
            result = compare.assess_servers(server, server_edited, facts, terminal, server_chat)
        else:
            result = compare.assess(
                model,
                edited,
                facts,
                terminal,
                stress=StressSettings(n_tested, n_tested) if stress else None,
                relearning=RelearningSettings(n_tested, n_tested, wanted, steps or RelearningSettings.most)
                if relearning
                else None,
                probes=ProbeSettings(n_probed, n_probed) if probes else None,
                sweep=sweep,
                loading=loading,
                measurements=measurements,
                tasks=[] if tasks is None else [name.strip() for name in tasks.split(",")],
                task_limit=task_limit,
            )
        if output is not None:
            compare.write_report(result.document, output, force=force)
    if json_output:
        print_json(result.document)
    else:
        echo(_shown(result, facts.entity), lines=True)


def _check_facts(recipe: Path | None, popqa: str | None, entities: Sequence[str]) -> None:
    if (recipe is None) == (popqa is None):
        raise InputError("give the facts either as --recipe FILE or as --popqa FILE")
    if popqa is not None and not entities:
        raise InputError("--popqa needs --entity: name the subject whose facts are the targets")
    if recipe is not None and len(entities) > 1:
        raise InputError("a recipe is about one entity: give --entity once")


# Options by the names of their parameters, with those of which one must be there, too.
_NEEDS = (
    ("--controls", "n_controls", {"--popqa": "popqa"}),
    ("--server-chat", "server_chat", {"--server": "server"}),
    ("--stress-facts", "stress_facts", {"--stress": "stress", "--relearning": "relearning"}),
    ("--lm-eval-limit", "task_limit", {"--lm-eval": "tasks"}),
    ("--relearning-steps", "steps", {"--relearning": "relearning"}),
    ("--relearning-way", "ways", {"--relearning": "relearning"}),
    ("--probe-facts", "probe_facts", {"--probes": "probes"}),
)


def _check_options(given: Mapping[str, Any]) -> None:
    """Raise InputError for options that do not go together, or that would do nothing."""
    tests = [flag for flag in ("stress", "relearning", "probes") if given[flag]]
    if given["server"] is None:
        if given["model"] is None or given["server_edited"] is not None:
            raise InputError("give MODEL, or the server of the original with --server")
    elif given["model"] is not None or tests or given["sweep"] or given["tasks"] or given["offload"]:
        raise InputError("a server is only asked: drop MODEL, EDITED and what tests or trains them, or --server")
    elif Loading(given["dtype"], given["device"]) != DEFAULT_LOADING:
        raise InputError("--dtype and --device are those of the server: drop them, or --server")
    for option, name, owners in _NEEDS:
        if given[name] and not any(given[owner] for owner in owners.values()):
            raise InputError(f"{option} belongs to {' and '.join(owners)}: add {'it' if len(owners) == 1 else 'one'}")
    if given["edited"] is None and (alone := [flag for flag in tests if flag != "probes"]):
        raise InputError(f"--{alone[0]} compares two models: give EDITED too")
    if tests and given["offload"]:
        raise InputError(f"--{tests[0]} works on what is in memory, where --offload leaves nothing: drop one")


def _facts(recipe: Path | None, popqa: str | None, entities: Sequence[str], n_controls: int) -> FactSet:
    from amnesia.facts import questions
    from amnesia.sources.resolve import find_popqa

    if recipe is not None:
        return questions.facts_of_recipe(load_recipe(recipe, entities[0] if entities else None))
    return questions.facts_of_popqa(find_popqa(popqa), entities, n_controls)


def _shown(result: Assessment, entity: str) -> str:
    from amnesia.probes.report import probes_text
    from amnesia.report import tables
    from amnesia.stress.relearning_report import relearning_text
    from amnesia.stress.report import stress_text

    parts = [tables.evaluation_table(result.evaluation, entity)]
    if result.tasks is not None:
        parts.append(tables.tasks_table(result.tasks))
    if result.probes is not None:
        parts.append(probes_text(result.probes, entity))
    if result.stress is not None:
        parts.append(stress_text(result.stress, entity))
    if result.relearning is not None:
        parts.append(relearning_text(result.relearning, entity))
    return "\n\n".join(parts)
