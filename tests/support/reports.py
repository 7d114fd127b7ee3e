"""Reports and rows of reports: made by hand, and held against the schema of the package."""

import json
from pathlib import Path

import jsonschema

from amnesia.domain import Answer
from amnesia.evaluation.results import PromptScore
from amnesia.report import document as report

SCHEMA = json.loads((Path(report.__file__).parent / "report.schema.json").read_text(encoding="utf-8"))


def check_report_json(document):
    """Raise ValidationError where a document is not what the schema says."""
    jsonschema.validate(json.loads(json.dumps(document, allow_nan=False)), SCHEMA)


def prompt(role="target", score=0.25, split="search", before="Tokyo", after="a city", **options):
    return PromptScore(
        role=role,
        split=split,
        entity="Japan",
        prompt=options.pop("prompt", "the capital of Japan is"),
        answer="Tokyo",
        before=Answer(-1.0, -0.5, 0, before),
        after=Answer(-4.0, -2.0, 7, after),
        logprob_unknown=-5.0,
        knowledge_score=score,
        knowledge_score_first=score,
        **options,
    )
