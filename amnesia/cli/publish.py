"""The commands that bring an edit to others and back: push and replay."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import click

from amnesia.cli.options import MODEL, as_json, force_option
from amnesia.cli.terminal import Terminal, echo, noted_on_interrupt, print_json


@click.command()
@click.argument("output", type=click.Path(path_type=Path))
@click.argument("repo_id")
@click.option("--public/--private", default=False, help="Visibility of a new repository. Default: private.")
@click.option("--create-pr", is_flag=True, help="Open a pull request and leave the main branch alone.")
@click.option("--branch", help="Branch to push to; made if it does not exist.")
@click.option("--base", help="Repository of the base, REPO_ID[@REVISION], where it was a folder when it was edited.")
@click.option(
    "--private-targets",
    is_flag=True,
    help="Keep names of entities, prompts and generated texts out of everything that is published.",
)
@click.option("--leave-out", is_flag=True, help="Publish without the files in OUTPUT that are no part of it.")
@click.option(
    "--allow-failed", is_flag=True, help="Publish an edit that missed the bounds of its recipe; the card says so."
)
@click.option("--space", is_flag=True, help="Show the report in a static Space of the same name, public if REPO_ID is.")
@as_json
def push(
    output: Path,
    repo_id: str,
    public: bool,
    create_pr: bool,
    branch: str | None,
    base: str | None,
    private_targets: bool,
    leave_out: bool,
    allow_failed: bool,
    space: bool,
    json_output: bool,
) -> None:
    """Publish OUTPUT on the Hugging Face Hub, with a model card. What arrives as REPO_ID is checked.

    The repository is private unless --public is given. What is sent is listed first, and files that are no part of the
    output are refused, as is an output that missed the bounds of its recipe. Repeat a push that was interrupted: only
    what is missing is sent. The token is the one of `hf auth login` or HF_TOKEN.
    """
    from huggingface_hub.utils import disable_progress_bars

    from amnesia.hub import push as hub

    if not sys.stderr.isatty():
        disable_progress_bars()
    terminal = Terminal()
    kept = f"what {repo_id} already got stays there; repeat the push, which sends the rest"
    with noted_on_interrupt(kept), terminal.task(f"publishing {repo_id}", 0):
        done = hub.push(
            output,
            repo_id,
            base_name=base,
            public=public,
            create_pr=create_pr,
            branch=branch,
            private_targets=private_targets,
            leave_out=leave_out,
            allow_failed=allow_failed,
            space=space,
            notice=terminal.notice,
        )
    if json_output:
        print_json(dataclasses.asdict(done))
        return
    echo(
        f"{done.n_files} files at {done.pull_request or done.url} (commit {done.commit}): {done.n_sent} sent, "
        f"{done.n_copied} copied from the base by the Hub, {done.n_unchanged} already there, {done.n_deleted} removed"
    )
    if done.space is not None:
        echo(f"report at {done.space}")


@click.command()
@click.argument("manifest", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option(
    "--base", type=MODEL, help="The model that was edited. Default: the repository or built-in model of the manifest."
)
@force_option
@as_json
def replay(manifest: Path, output: Path, base: str | None, force: bool, json_output: bool) -> None:
    """Make an output again, bit for bit, from its amnesia.json. The recorded hashes prove that it is the same."""
    from amnesia.outputs.replay import replay as make_again
    from amnesia.outputs.write import rounding_notice

    terminal = Terminal()
    made = make_again(
        manifest,
        output,
        base=base,
        force=force,
        notice=terminal.notice,
        watch=lambda n_bytes: terminal.task("replaying the edit", n_bytes),
    )
    if line := rounding_notice(made):
        terminal.notice(line)
    if json_output:
        print_json(made.to_json())
    else:
        from amnesia.report.view import count

        n = sum(len(row.indices) for row in made.tensors)
        changed = f"{count(n, 'column')} in {count(len(made.tensors), 'tensor')}"
        echo(f"{changed} as recorded ({made.format}); written to {output}")
