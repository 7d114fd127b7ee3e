"""What two models go through beside the questions: attacks and quantization, training, probes.

Each trial asks the original model first, and the edited one once the original has left the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from amnesia.evaluation.measurement import KnownFact
from amnesia.evaluation.measurement_cache import MeasurementCache
from amnesia.evaluation.results import Finding
from amnesia.facts.questions import FactSet
from amnesia.live.chat_form import chat_format
from amnesia.live.loading import merge_adapter
from amnesia.live.model import LiveModel
from amnesia.probes.conclusion import conclude as conclude_probes
from amnesia.probes.findings import probe_findings
from amnesia.probes.plan import prepare as prepare_probes
from amnesia.probes.results import Probes
from amnesia.probes.settings import ProbeSettings
from amnesia.probes.trial import probe
from amnesia.progress import Tracker
from amnesia.stress.conclusion import conclude as conclude_stress
from amnesia.stress.findings import stress_findings
from amnesia.stress.relearning import announce, conclude_relearning, plan_relearning, retrain, retrain_peer
from amnesia.stress.relearning_report import relearning_findings
from amnesia.stress.results import Relearning, Stress
from amnesia.stress.settings import RelearningSettings, StressSettings
from amnesia.stress.trial import endure, prepare


@dataclass(frozen=True)
class TrialResults:
    """What came of each trial, None where it was not asked for, and the findings of all."""

    stress: Stress | None = None
    relearning: Relearning | None = None
    probes: Probes | None = None
    findings: tuple[Finding, ...] = ()


Finish = Callable[[LiveModel | None], TrialResults]
"""Ask the edited model, or none where one model is measured alone, and conclude. An adapter is merged afterwards."""


@dataclass(frozen=True)
class Trials:
    """The trials that are asked for, by their settings."""

    stress: StressSettings | None = None
    relearning: RelearningSettings | None = None
    probes: ProbeSettings | None = None

    @property
    def compares(self) -> bool:
        """Whether a second model is needed."""
        return self.stress is not None or self.relearning is not None

    def begin(
        self,
        live: LiveModel,
        known: Sequence[KnownFact],
        facts: FactSet,
        tracker: Tracker,
        caches: tuple[MeasurementCache | None, MeasurementCache | None] = (None, None),
    ) -> Finish:
        """Ask the original model; raises InputError for what a trial cannot be made of.

        What the original and the edited model have answered, and finished trainings, are kept in `caches`.
        """
        if (self.stress, self.relearning, self.probes) == (None, None, None):
            return lambda _edited: TrialResults()
        # Probes first: they take an adapter as it is, the others need it merged.
        chat, (cache, other) = chat_format(live.tokenizer), caches
        probed = None
        if self.probes is not None:
            probe_plan = prepare_probes(known, facts.translations, self.probes, chat)
            probed = probe_plan, probe(live, probe_plan, "original", tracker.task, cache)
        endured = None
        if self.stress is not None:
            plan = prepare(live, known, facts.translations, self.stress, tracker.task, chat, cache)
            endured = plan, endure(live, plan, "original", tracker.task, cache)
        trained = None
        if self.relearning is not None:
            training = plan_relearning(live, known, self.relearning, tracker, chat, cache)
            announce(live, training, tracker, {"original": cache, "unlearned": cache, "edited": other})
            first = retrain(live, training, "original", tracker, cache)
            trained = training, first, retrain_peer(live, training, tracker, cache)

        def finish(edited: LiveModel | None) -> TrialResults:
            stress = relearning = probes = None
            if probed is not None:
                second = None if edited is None else probe(edited, probed[0], "edited", tracker.task, other)
                probes = conclude_probes(*probed, second)
            if edited is not None and self.compares:
                merge_adapter(edited)
                if endured is not None:
                    # The cache has answers of an adapter that was not merged, which are the same but for rounding.
                    second_endured = endure(edited, endured[0], "edited", tracker.task, other)
                    stress = conclude_stress(*endured, second_endured)
                if trained is not None:
                    relearning = conclude_relearning(*trained, retrain(edited, trained[0], "edited", tracker, other))
            return TrialResults(
                stress,
                relearning,
                probes,
                (
                    *(() if stress is None else stress_findings(stress, facts.entity)),
                    *(() if relearning is None else relearning_findings(relearning, facts.entity)),
                    *(() if probes is None else probe_findings(probes, facts.entity)),
                ),
            )

        return finish
