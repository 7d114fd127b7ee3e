"""The one door through which transformers and PEFT read files: models, tokenizers, adapters, GGUF.

They are shown a folder that holds nothing but links to files that were checked, and copies of settings without what
names code. So no file decides by its presence what is read or run: no pickle, no Python, no adapter, no second set of
weights beside those that were looked over.
"""

from __future__ import annotations

import contextlib
import io
import json
import secrets
import warnings
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from amnesia.architectures import LAYOUTS
from amnesia.errors import (
    CheckpointError,
    InputError,
    SourceError,
    clipped,
    in_one_line,
    library_errors_as,
)
from amnesia.progress import quiet
from amnesia.sources.completeness import complete
from amnesia.sources.on_disk import check_plain, left_on_disk, stand_ins
from amnesia.sources.views import GENERATION, folder_of, object_in, settings_of
from amnesia.weights.adapter import CONFIG_NAME, WEIGHTS_NAME
from amnesia.weights.checkpoint import CheckpointSource
from amnesia.weights.safetensors import read_header

if TYPE_CHECKING:
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        GenerationConfig,
        PreTrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )
    from transformers.distributed import DistributedConfig

# Adapters whose settings are numbers and names of modules. Others load models, tokenizers or adapters of their own.
_ADAPTERS = ("LORA", "ADALORA", "LOHA", "LOKR", "IA3", "OFT")


def open_tokenizer(view: Path, name: str, config: PreTrainedConfig | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder of `shown`; `name` is the model's, for messages. Raises InputError."""
    from transformers import AutoTokenizer

    def load() -> PreTrainedTokenizerBase:
        opened = AutoTokenizer.from_pretrained(view, config=config, trust_remote_code=False)
        # Where it cannot be had an error is raised; that it may be None is in the annotations only.
        tokenizer = cast("PreTrainedTokenizerBase", opened)
        tokenizer("Some settings are looked at when the first text comes.")
        # With dropout of merges, BPE splits a text otherwise each time it is given: that is for training.
        model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
        if hasattr(model, "dropout"):
            model.dropout = None
        return tokenizer

    remedy = "expected tokenizer.json beside the weights, as the installed transformers and tokenizers read it"
    with quiet(), library_errors_as(InputError, f"{name} has no usable tokenizer", remedy):
        try:
            return load()
        except Exception as error:
            raise ValueError(f"{_blamed(view, load)}{in_one_line(error)}") from error


def _blamed(view: Path, load: Callable[[], object]) -> str:
    """The file, and the setting in it, for which a tokenizer cannot be loaded; may be empty."""
    from tokenizers import Tokenizer

    if (view / "tokenizer.json").exists():
        try:
            Tokenizer.from_file(str(view / "tokenizer.json"))
        except Exception:
            return "tokenizer.json: "
    path = view / "tokenizer_config.json"
    if not path.exists():
        return ""

    def build(settings: dict[str, Any]) -> None:
        path.write_text(json.dumps(settings), encoding="utf-8")
        load()

    wrong = _needless(object_in(path), build)
    return f"tokenizer_config.json with {wrong}: " if wrong else ""


def config_of(content: bytes, name: str) -> PreTrainedConfig:
    """The configuration in the bytes of the `config.json` of the model `name`; raises CheckpointError."""
    with folder_of({"config.json": settings_of(f"config.json of {name}", content)}) as view:
        return open_config(view, name)


def open_config(view: Path, name: str) -> PreTrainedConfig:
    """The configuration in a folder of `shown`, once a model can be built of it; `name` is for messages.

    Raises CheckpointError that names the setting that stands in the way, in this file or that of the generation.
    """
    from transformers import AutoConfig, GenerationConfig

    def build(settings: dict[str, Any]) -> None:
        _check_ends(skeleton(AutoConfig.for_model(**settings)).generation_config)

    def build_generation(settings: dict[str, Any]) -> None:
        _check_ends(GenerationConfig.from_dict(settings))

    with quiet():
        with _named_setting(view / "config.json", name, build):
            config = AutoConfig.from_pretrained(view, trust_remote_code=False)
            _check_ends(skeleton(config).generation_config)
        if (view / GENERATION).exists():
            with _named_setting(view / GENERATION, name, build_generation):
                _check_ends(GenerationConfig.from_pretrained(view))
    return config


def _check_ends(generation: GenerationConfig | None) -> None:
    """Raises TypeError for tokens that end a text and are no numbers, which transformers takes until it meets them."""
    ends = None if generation is None else generation.eos_token_id
    for end in ends if isinstance(ends, list) else [ends]:
        if end is not None and type(end) is not int:
            raise TypeError(f"eos_token_id {end!r}: expected a whole number, or a list of such")


@contextlib.contextmanager
def _named_setting(path: Path, name: str, build: Callable[[dict[str, Any]], object]) -> Generator[None]:
    """Turn what the block raises about the file `path` of the model `name` into a CheckpointError.

    Libraries seldom say which setting they cannot do with: it is the one without which `build` works.
    """
    try:
        yield
    except Exception as error:
        wrong = _needless(object_in(path), build)
        having = f" with {wrong}" if wrong else ""
        raise CheckpointError(
            f"{path.name} of {name} cannot be used{having} ({in_one_line(error)}): mend it, or fetch the file again"
        ) from error


def _needless(settings: dict[str, Any], build: Callable[[dict[str, Any]], object]) -> str:
    """The settings without one of which `build` works."""
    found = []
    for key, value in settings.items():
        with contextlib.suppress(Exception):
            build({other: kept for other, kept in settings.items() if other != key})
            found.append(f"{key} = {clipped(json.dumps(value))}")
    return " or ".join(found)


def auto_class(config: PreTrainedConfig) -> type[AutoModelForCausalLM | AutoModelForImageTextToText]:
    """The Auto class for a configuration: of models that take images, too, or of causal language models."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    row = LAYOUTS.get(config.model_type)
    causal = type(config) in AutoModelForCausalLM._model_mapping and not (row is not None and row.takes_images)
    return AutoModelForCausalLM if causal else AutoModelForImageTextToText


def skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """A model of this configuration; its tensors have shapes and no numbers, which would take memory."""
    import torch

    with torch.device("meta"):
        return auto_class(config).from_config(config)


def open_model(
    view: Path,
    name: str,
    whole: PreTrainedModel,
    checkpoint: CheckpointSource,
    dtype: str,
    device_map: str | dict[str, str] | None,
    split: DistributedConfig | None = None,
) -> PreTrainedModel:
    """The model in a folder of `shown`, in the given type; `device_map` is that of transformers.

    `whole` is its `skeleton`. Of a checkpoint of which only the first layers were looked over, these are loaded, with
    what comes before them. What transformers put together of what is left on disk is written into the folder. `split`
    says how the processes that were started together share it.

    Raises SourceError when transformers cannot load the model or would fill what is missing with random numbers.
    """
    settings: dict[str, Any] = {
        "config": whole.config,
        "dtype": dtype,
        "device_map": device_map,
        "offload_folder": view / "offload",
        "use_safetensors": True,
        "trust_remote_code": False,
        "output_loading_info": True,
    }
    if split is not None:
        settings["distributed_config"] = split
    with quiet(), library_errors_as(SourceError, f"{name} cannot be loaded by transformers", "fetch the model again"):
        if checkpoint.part is None:
            found = type(whole).from_pretrained(view, **settings)
        else:
            from amnesia.sources.parts import mapped, part_class

            tensors = mapped(view, checkpoint.weights, checkpoint.part)
            own = part_class(whole, checkpoint.shape)
            found = own.from_pretrained(None, state_dict=tensors, **settings)
    return complete(found, name, checkpoint.shape)


def open_gguf(gguf: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in a `.gguf` file as float32, and its tokenizer, from nothing but this file. Raises SourceError."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    with _alone(gguf) as (view, name):
        found = AutoModelForCausalLM.from_pretrained(
            view,
            gguf_file=name,
            # Without this transformers 5 keeps the blocks quantized, which cannot be saved as plain weights.
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
        )
        tokenizer = _tokenizer_of(view, name)
    return complete(found, str(gguf)), tokenizer


def open_gguf_tokenizer(gguf: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a `.gguf` file, without its weights. Raises SourceError."""
    with _alone(gguf) as (view, name):
        return _tokenizer_of(view, name)


def _tokenizer_of(view: Path, name: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    # Where it cannot be had an error is raised; that it may be None is in the annotations only.
    found = AutoTokenizer.from_pretrained(view, gguf_file=name, trust_remote_code=False)
    return cast("PreTrainedTokenizerBase", found)


@contextlib.contextmanager
def _alone(gguf: Path) -> Generator[tuple[Path, str]]:
    """A folder with nothing but a link to the file, and its name there; raises SourceError for what cannot be read."""
    # A name of its own: transformers prefers a file of the same name in the working directory to the one in the folder.
    name = f"{secrets.token_hex(16)}.gguf"
    with folder_of({name: gguf}) as view:
        what = f"{gguf} cannot be read by transformers"
        with (
            quiet(),
            contextlib.redirect_stderr(io.StringIO()),  # The bar of their GGUF reader is of tqdm, and heeds no switch.
            library_errors_as(SourceError, what, "use the unquantized model instead"),
        ):
            yield view, name


def check_on_disk(folder: Path) -> None:
    """Raises InputError for the PEFT adapter of a folder that cannot be put on layers that are left on the disk."""
    check_plain(_supported(folder / CONFIG_NAME), str(folder))


def _supported(path: Path) -> dict[str, Any]:
    """The settings of a PEFT adapter; raises InputError for one that holds more than numbers for named modules."""
    settings = object_in(path)
    kind = settings.get("peft_type")
    if kind not in _ADAPTERS or settings.get("megatron_config"):
        raise InputError(
            f"{path} has peft_type {clipped(repr(kind))}{' for Megatron' * (kind in _ADAPTERS)}: "
            f"supported are {', '.join(_ADAPTERS)}; merge the adapter with PEFT and give the merged model"
        )
    return settings


def open_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """A model with the PEFT adapter of a folder in it, unmerged; module paths stay as they were.

    Layers that are left on the disk stay there. Raises InputError for adapters that hold more than numbers for named
    modules, and on such layers for all but plain LoRA, CheckpointError for damaged files, and
    SourceError when PEFT cannot load the adapter, or when not each of its tensors is for one of the model's modules.
    """
    from peft import PeftModel

    class Reported(PeftModel):
        """Keeps what PEFT found out about the keys, of which `from_pretrained` only warns, and only in part."""

        def load_adapter(self, *arguments: Any, **settings: Any) -> Any:
            self.report = super().load_adapter(*arguments, **settings)
            return self.report

    settings = _supported(folder / CONFIG_NAME)
    # It would choose the class that wraps the model, of which only the model is kept.
    settings["task_type"] = None
    read_header(folder / WEIGHTS_NAME)
    files = {CONFIG_NAME: json.dumps(settings).encode(), WEIGHTS_NAME: folder / WEIGHTS_NAME}
    if left_on_disk(model):
        check_plain(settings, str(folder))
    with folder_of(files) as view:
        what = f"adapter {folder} cannot be loaded by PEFT"
        with (
            quiet(),
            stand_ins(model),
            warnings.catch_warnings(action="ignore", category=UserWarning),  # Of missing keys: see below.
            library_errors_as(SourceError, what, "give the adapter that was made for this model"),
        ):
            wrapped = cast("Reported", Reported.from_pretrained(model, str(view)))
    for keys, state in (
        (wrapped.report.unexpected_keys, "holds {n} tensors for which the model has no module"),
        (wrapped.report.missing_keys, "lacks {n} of its tensors"),
    ):
        if keys:
            raise SourceError(
                f"adapter {folder} {state.format(n=len(keys))}, first {clipped(min(keys))}: "
                "give the adapter that was made for this model, whole"
            )
    return cast("PreTrainedModel", wrapped.get_base_model())
