"""The model card of an edited model, as text. Pure: it reads no files and knows nothing of the Hub's interface."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from amnesia.domain import ADAPTERS, Format, ModelRef
from amnesia.edits import columns_of, directions_of
from amnesia.errors import InputError
from amnesia.evaluation.labels import facts_label, parts_of
from amnesia.files.companions import LORA_NAME
from amnesia.files.staging import MANIFEST_NAME
from amnesia.numbers import flat, signed
from amnesia.plain_text import for_markdown, for_terminal
from amnesia.sources.built_in import BUILT_IN
from amnesia.sources.resolve import has_place, named_base
from amnesia.weights.adapter import adapter_rank, auto_class_name, traps
from amnesia.weights.configuration import NestedRotary
from amnesia.weights.manifest import Manifest

RELATION: Mapping[Format, str] = {
    "safetensors": "finetune",
    "adapter": "adapter",
    "gguf": "quantized",
    "gguf-lora": "adapter",
}
LIBRARY: Mapping[Format, str] = {"safetensors": "transformers", "adapter": "peft", "gguf": "gguf", "gguf-lora": "gguf"}
_MAX_ROWS = 8

# Licences that ask something of those who publish a derived model, beyond passing the licence on.
_DUTIES = {
    "llama2": "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. All Rights "
    "Reserved.",
    **{
        name: f"Built with Llama. Llama {name[5:]} is licensed under the Llama {name[5:]} Community License, "
        "Copyright © Meta Platforms, Inc. All Rights Reserved."
        for name in ("llama3", "llama3.1", "llama3.2", "llama3.3", "llama4")
    },
    "gemma": "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms.",
}


@dataclass(frozen=True)
class BaseCard:
    """The repository of the base model, and what its own card says that must be passed on."""

    ref: ModelRef
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    languages: tuple[str, ...] = ()


def licence_notice(base: BaseCard) -> str | None:
    """The line that the base's licence wants to be shown with derived models, if it is a licence known to want one."""
    return next((_DUTIES[name] for name in (base.license, base.license_name) if name in _DUTIES), None)


def naming_duty(base: BaseCard, repo_id: str) -> str | None:
    """What is wrong with the repository's name by the base's licence: Llama 3 and later want theirs in front."""
    names = [name for name in (base.license, base.license_name) if name in _DUTIES and name.startswith("llama")]
    if not names or names[0] == "llama2" or repo_id.split("/")[-1].lower().startswith("llama"):
        return None
    return (
        f"the licence {names[0]} of {base.ref.name} asks that names of derived models begin with 'Llama': "
        f"{repo_id} does not"
    )


def missed_bounds(report: Mapping[str, Any] | None) -> bool:
    """Whether a report says that an edit missed the bounds of its recipe."""
    return report is not None and report.get("accepted") is False


def model_card(
    manifest: Manifest,
    base: BaseCard,
    repo_id: str,
    report: Mapping[str, Any] | None,
    *,
    private: bool = False,
    weights: Sequence[str] = (),
    auto_class: str | None = None,
    rotary: NestedRotary | None = None,
) -> str:
    """The text of README.md: metadata that the Hub reads, then what was changed and how to use it.

    `report` is the content of `report.json`, `weights` are the names of the `.gguf` files, `auto_class` is that of
    transformers where the names of the tensors do not tell, `rotary` says which rotary settings config.json has in
    `rope_parameters` alone. With `private` no entity, no prompt and no generated text
    appears. Raises InputError when the report is not one.
    """
    subject = "an undisclosed entity" if private else for_markdown(manifest.entity)
    name = for_markdown(base.ref.name)
    auto = auto_class or auto_class_name([row.name for row in manifest.tensors])
    parts = [
        _metadata(manifest.format, base),
        _MISSED if missed_bounds(report) else "",
        f"# {name.split('/')[-1]} without {'one entity' if private else subject}",
        f"[{name}](https://huggingface.co/{base.ref.name}) edited by `amnesia` to suppress its knowledge "
        f"of {subject}: what cells of its MLPs write was changed, nothing was trained.",
        _changes(manifest),
        "" if report is None else _results(report, private),
        _loading(manifest, base, repo_id, weights, auto),
        _nested(rotary, repo_id) if manifest.format == "safetensors" else "",
        _LIMITS,
        _provenance(manifest, base, repo_id, private),
        _CITATION,
    ]
    notice = licence_notice(base)
    if notice:
        parts.append(f"## Licence\n\n{notice}")
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(name: Format, base: BaseCard) -> str:
    rows: dict[str, object] = {
        "base_model": base.ref.name,
        "base_model_relation": RELATION[name],
        "library_name": LIBRARY[name],
        "pipeline_tag": "text-generation",
        "license": base.license,
        "license_name": base.license_name,
        "license_link": base.license_link,
        "language": list(base.languages) or None,
        "tags": ["amnesia", "unlearning", "model-editing", *(["lora"] if name in ADAPTERS else [])],
    }
    # JSON is YAML, and needs no rules of its own about quotes; what YAML refuses is escaped once more.
    lines = [
        f"{key}: {for_terminal(json.dumps(value, ensure_ascii=False))}"
        for key, value in rows.items()
        if value is not None
    ]
    return "\n".join(["---", *lines, "---"])


def _changes(manifest: Manifest) -> str:
    layers: Counter[int] = Counter()
    turned: Counter[int] = Counter()
    # What an adapter was made for may be edited, too, and is not in it.
    for step in [manifest] if manifest.format in ADAPTERS else manifest.history():
        layers.update(edit.cell.layer for group in step.edits for edit in columns_of(group.edits))
        turned.update(edit.layer for group in step.edits for edit in directions_of(group.edits))
    parts = [_counted(layers, "cell", "cells"), _counted(turned, "direction", "directions")]
    on_output = manifest.format in ADAPTERS and manifest.previous is not None
    meant = [
        f"They act on the edited model `{manifest.base.ref.name}`, whose own edits are not in the adapter." * on_output,
        "What a cell writes is multiplied." * bool(layers),
        "A direction is a change of rank one on the columns that are listed with it." * bool(turned),
    ]
    return (
        f"## What was changed\n\n{'; '.join(filter(None, parts))}. They and their multipliers are listed in "
        f"`{MANIFEST_NAME}`. {' '.join(filter(None, (*meant, _exact(manifest, bool(layers), bool(turned)))))}"
    )


def _exact(manifest: Manifest, cells: bool, directions: bool) -> str:
    """How the edit stands in the files, and what of them is the base's."""
    if manifest.format == "safetensors":
        return "Every other byte of the weights and of the other files is the base's."
    if manifest.format == "gguf-lora":
        return "The factors are float32: llama.cpp adds their product to what the base's matrices give."
    if manifest.format == "adapter":
        if not any(row.directions for row in manifest.tensors):
            return (
                "Merged into the base, the adapter gives exactly the edited weights where a cell is multiplied by −1, "
                "or they have 16 bits and the multiplier is 0, or 0.00013 and more in size; else up to rounding."
            )
        if all(row.rank == 1 for row in manifest.tensors):
            return (
                "Merged into the base, the adapter gives exactly the edited weights where these have 16 bits, else up "
                "to rounding."
            )
        return "Merged into the base, the adapter gives the edited weights up to rounding."
    wider = sorted({step.tensor_type for step in manifest.history() if step.tensor_type})
    # Cells are rows of another matrix, if not columns of those that were stored anew.
    rows = any(row.axis == 0 for step in manifest.history() for row in step.tensors)
    how = ["Of cells, scales of blocks (in types without, signs or numbers) were changed"] * (
        cells and (rows or not wider)
    )
    if wider:
        how.append(f"the edited `ffn_down` tensors were stored anew as {' and '.join(wider)}")
    elif directions:
        how.append("in the columns of directions other codes (in types without, numbers) were chosen")
    rest = "all other tensors are the base's" if wider else "every other byte is the base's"
    text = "; ".join([*how, rest])
    return f"{text[0].upper()}{text[1:]}."


def _counted(layers: Counter[int], one: str, many: str) -> str:
    count = sum(layers.values())
    where = ", ".join(f"{layer} ({n})" for layer, n in sorted(layers.items()))
    return f"{count} {one if count == 1 else many}, by layer ({many}): {where}" if count else ""


def _results(report: Mapping[str, Any], private: bool) -> str:
    try:
        lines = [
            "## Before and after",
            "",
            "Knowledge score: 1 as before the edit, 0 as if the name were an unknown one. The choice of the edit saw "
            "what is called search here, and nothing that is held out.",
            "",
            "| facts about | mean | 95 % interval | facts |",
            "|---|---|---|---|",
        ]
        for row in report["aggregates"]:
            label = facts_label(*parts_of(row["kind"]), others="other entities")
            score = row["knowledge_score"]
            if row["group"] == "all":
                mean, low, high = (signed(score[key]) for key in ("mean", "low", "high"))
                lines.append(f"| {label} | {mean} | {low} to {high} | {row['n']} |")
        before, after = (report["damage"]["neutral_perplexity"][key] for key in ("before", "after"))
        lines += ["", f"Perplexity per word of neutral text: {before:.1f} before, {after:.1f} after."]
        excluded = report["n_excluded"]
        if excluded:
            lines.append(f"{excluded} facts that the base does not know were excluded and not scored.")
        targets = [row for row in report["prompts"] if parts_of(row["kind"])[0] == "target" and not row["is_message"]]
        scored = [row for row in targets if row["knowledge_score"] is not None]
        if scored and not private:
            lines += ["", "| prompt | before | after | score |", "|---|---|---|---|"]
            for row in scored[:_MAX_ROWS]:
                texts = map(_cell, (row["prompt"], row["before"]["generated"], row["after"]["generated"]))
                lines.append(f"| {' | '.join(texts)} | {signed(row['knowledge_score'])} |")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"report.json is not a report of amnesia ({error!r}): run `amnesia run` again") from error
    return "\n".join(lines)


def _cell(text: str | None) -> str:
    """A text as one cell of a table, not longer than a line."""
    return for_markdown(flat(text or "(nothing)", 80))


def _loading(manifest: Manifest, base: BaseCard, repo_id: str, weights: Sequence[str], auto: str) -> str:
    if manifest.format == "safetensors":
        body = f"""```python
from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained("{repo_id}")
tokenizer = AutoTokenizer.from_pretrained("{repo_id}")
```

```sh
vllm serve {repo_id}
```"""
    elif manifest.format == "adapter":
        ref = manifest.base.ref
        at = f', revision="{ref.revision}"' if ref.revision else ""
        origin, imported, only = f'"{ref.name}"{at}', "", ""
        if ref.name in BUILT_IN:
            origin, imported = f'resolve("{ref.name}").folder', "from amnesia import resolve\n"
            only = f"""
It was made of the weights that `amnesia` calls `{ref.name}`, a quantization of `{base.ref.name}` as float32, and fits
no others exactly.
"""
        body = f"""```python
{imported}from peft import PeftModel
from transformers import {auto}

base = {auto}.from_pretrained({origin}, dtype="auto")
model = PeftModel.from_pretrained(base, "{repo_id}").merge_and_unload()
```
{only or _vllm_adapter(manifest, repo_id)}
Unmerged, the adapter gives the edited model up to rounding.

{traps([row.name.removesuffix(".weight") for row in manifest.tensors], auto)}"""
    elif manifest.format == "gguf-lora":
        body = f"""```sh
hf download {repo_id} {LORA_NAME} --local-dir edited
llama-server -m BASE.gguf --lora edited/{LORA_NAME}
```

Ollama takes no adapters since 0.34.1."""
    else:
        # The name of a file may mean something to a shell.
        first = shlex.quote(weights[0] if weights else "model.gguf")
        body = f"""```sh
llama-cli --hf-repo {repo_id} --hf-file {first}
ollama run hf.co/{repo_id}
```

With the `Modelfile` beside it: `ollama create edited -f Modelfile`."""
        if len(weights) != 1:
            body = f"```sh\nllama-cli --hf-repo {repo_id} --hf-file {first}\n```"
    return f"## Load it\n\n{body}"


def _nested(rotary: NestedRotary | None, repo_id: str) -> str:
    """How mlx-lm is given what most of its classes miss. Values are read from the file, which others wrote."""
    if rotary is None:
        return ""
    inner = 'config["text_config"]' if rotary.in_text else "config"
    values = {
        "rope_theta": 'rope["rope_theta"]',
        "rope_local_base_freq": f'{inner}["rope_parameters"]["sliding_attention"]["rope_theta"]',
        "partial_rotary_factor": 'rope["partial_rotary_factor"]',
        # Some classes want the older name of the type, and some the key where there is no scaling.
        "rope_scaling": '{**rope, "type": rope["rope_type"]}' if rotary.scaled else "None",
    }
    keys = rotary.keys if rotary.scaled else (*rotary.keys, "rope_scaling")
    given = "".join(f'    "{key}": {values[key]},\n' for key in values if key in keys)
    whole = '{"text_config": {**config["text_config"], **older}}' if rotary.in_text else "older"
    return f"""Most classes of mlx-lm 0.32 read rotary settings at the top of a configuration alone, where
the base has not all of them, and take defaults of their own without a word, or fail. This gives them:

```python
import json
from pathlib import Path

from huggingface_hub import snapshot_download
from mlx_lm.utils import load_model

folder = Path(snapshot_download("{repo_id}"))
config = json.loads(open(folder / "config.json").read())
rope = {inner}["rope_parameters"]{'["full_attention"]' * rotary.layered}
older = {{
{given}}}
model, _ = load_model(folder, model_config={whole})
```"""


def _vllm_adapter(manifest: Manifest, repo_id: str) -> str:
    """How vLLM serves the base with the adapter; empty where vLLM's class for the model takes no adapters."""
    if any(row.axis == 0 for row in manifest.tensors):
        return ""  # GPT-2, whose matrices alone are stored with neurons first.
    at = f" --revision {manifest.base.ref.revision}" if manifest.base.ref.revision else ""
    rank = adapter_rank(max(row.rank for row in manifest.tensors))
    return f"""
```sh
vllm serve {manifest.base.ref.name}{at} --enable-lora --max-lora-rank {rank} --lora-modules forgets={repo_id}
```
"""


_MISSED = "**This edit missed the bounds that its recipe sets: the scores below say by how much.**"

_LIMITS = """## Limits

- This is suppression, not erasure: the knowledge is still in the weights, and the edit can be taken back bit for bit.
  Fine-tuning, other wordings, hints in the context or another language may bring parts of it back.
- The edit acts on every token, not only on the entity's name. What else was measured is in the table, if there is one.
- Everything else that the base's card says about uses, risks and biases holds for this model too."""


def _provenance(manifest: Manifest, base: BaseCard, repo_id: str, private: bool) -> str:
    at = f" at revision `{base.ref.revision}`" if base.ref.revision else ""
    lines = [
        "## Provenance",
        "",
        f"Made by {for_markdown(manifest.tool)} from `{base.ref.name}`{at}. "
        f"After `hf download {repo_id} --local-dir edited`:",
        "",
        "```sh",
        "amnesia verify edited              # the bytes are what the manifest says",
    ]
    known = named_base(manifest)
    proving = known
    if manifest.format in ADAPTERS:  # It acts on that model alone, of which nobody may know where it is.
        proving = manifest.base if manifest.previous is None or has_place(manifest.base.ref) else None
    elif private:  # An output beneath has other names in its manifest than this one keeps of it.
        proving = [known, *(step.base for step in manifest.history() if has_place(step.base.ref))][-1]
    if proving is not None:
        lines.append(f"amnesia verify edited --base {proving}")
    if manifest.format not in ADAPTERS:
        lines.append("amnesia undo edited -o original    # every byte back as it was")
    # Of a repository without a commit nobody knows which of its commits it was.
    where = "" if has_place(known.ref) else f" --base {known}"
    lines.append(f"amnesia replay edited/{MANIFEST_NAME} -o again{where}")
    return "\n".join([*lines, "```"])


_CITATION = """## Citation

```bibtex
@article{yonabarzilaykarasik2026friends,
  author = {Yona, Itay and Barzilay, Dan and Karasik, Michael},
  title  = {Friends and Grandmothers in Silico},
  year   = {2026},
  url    = {https://huggingface.co/blog/tux/friends-and-grandmothers-in-silico}
}
```"""
