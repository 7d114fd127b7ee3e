"""What the first model and the first report load late, loaded at once: for a process that forks others to work."""

from __future__ import annotations

from importlib import import_module

from amnesia.report.page import _environment

_LATE = (
    "numpy.ma",
    "peft",
    "transformers.generation",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
)


def warm() -> None:
    """Import modules and compile templates."""
    for name in _LATE:
        import_module(name)
    for name in ("report.html", "summary.html"):
        _environment().get_template(name)
