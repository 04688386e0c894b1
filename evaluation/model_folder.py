"""Models from local Hugging Face folders. A folder that is not complete is refused; nothing is downloaded.

All of them come through `FolderModel`: whatever a damaged or made-up folder makes transformers raise, the user gets a
sentence.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..common.batching import OUT_OF_MEMORY
from ..common.text import brief
from ..common.text_files import parse_json, read_text

if TYPE_CHECKING:
    from typing import Self  # from Python 3.11 on

Ready = Callable[[int], torch.device]  # takes the inputs' size in bytes, makes the model ready, returns its device
Keeper = Callable[[nn.Module], Ready]  # takes charge of a model: where it lies, and in which dtype


def on(device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Keeper:
    """A Keeper that puts a model on one device and leaves it there.

    dtype: by default float16 on a GPU, float32 elsewhere.
    """
    device = torch.device(device)
    dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)

    def keep(model: nn.Module) -> Ready:
        model.to(device, dtype)
        return lambda _: device

    return keep


def own_device(wanted: str | None = None) -> torch.device:
    """The device that was asked for; else a GPU of its own for every process of a machine, else the CPU."""
    if wanted:
        return torch.device(wanted)
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    return torch.device("cpu")


@dataclass(frozen=True, eq=False)
class FolderModel:
    """A model from transformers, in eval mode and without gradients, with its processor.

    name: of its folder. ready: prepares the model before each batch.
    what: in words, for messages. auto: names of transformers' Auto classes, of the model and of the processor.
    """

    name: str
    model: Any
    processor: Any
    ready: Ready

    what: ClassVar[str]
    auto: ClassVar[tuple[str, str]]

    @classmethod
    def load(cls, folder: str | os.PathLike[str], keeper: Keeper | None = None) -> Self:
        """The model of a folder.

        keeper: takes charge of the model; by default it stays on the CPU.

        Raises ValueError for a folder that holds no such model, or not all of it.
        """
        model, processor = read(folder, cls.what, *cls.auto)
        return cls(Path(folder).name, model, processor, (keeper or on("cpu"))(model))

    def prepared(self, **given: Any) -> Any:
        """What the processor makes of pictures and texts, on the CPU."""
        with self.errors_named():
            return self.processor(**given, return_tensors="pt")

    def on_device(self, made: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A processor's tensors on the model's device, floating point ones in the model's dtype; the model is ready."""
        dtype = self.model.dtype
        cast = {key: value.to(dtype) if value.is_floating_point() else value for key, value in made.items()}
        device = self.ready(sum(value.nbytes for value in cast.values()))
        return {key: value.to(device) for key, value in cast.items()}

    @contextmanager
    def errors_named(self) -> Iterator[None]:
        """A block that calls transformers: settings that do not fit each other may raise anything there.

        Raises ValueError for it with a sentence for the user. A GPU's lack of memory stays what it is.
        """
        try:
            yield
        except OUT_OF_MEMORY:
            raise
        except Exception as error:
            raise ValueError(
                f"The {self.what} “{self.name}” fails ({reason_of(error)}): its settings do not fit its weights. "
                "Download its whole folder again."
            ) from error


def identity(folder: Path) -> str:
    """A text that identifies a model: its folder's name and a digest of its weights."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return f"{folder.resolve().name}, weights {digest.hexdigest()[:12]}"


def kind_of(folder: Path, what: str) -> str:
    """The model_type from a folder's config.json.

    what: the wanted model in words, for the error messages, such as "encoder".

    Raises ValueError for a folder without a readable config.json or without .safetensors weights.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"There is no {what} in {folder} (no config.json): name the local folder of a model in Hugging Face's "
            "layout, with config.json, preprocessor_config.json and .safetensors weights. Nothing is downloaded for "
            "you."
        )
    kind = str(check_settings(folder).get("model_type"))
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"The folder {folder} has no .safetensors weights; pickles (.bin) can run code and are not opened. "
            "Download the model.safetensors of the same model."
        )
    return kind


ATTENTION = (None, "eager", "sdpa")  # transformers' own; any other name may be fetched from a hub and run
LARGEST_JSON = 1 << 22  # bytes of a settings file; published ones have some kilobytes
MOST_LAYERS = 1000
LONGEST_SIDE = 4096  # pixels of a picture as a model sees it; published ones see at most 1333
_SIDES = ("shortest_edge", "longest_edge", "height", "width", "image_size", "size", "crop_size", "pad_size")


def check_settings(folder: Path) -> dict[str, Any]:
    """The settings in a folder's config.json, after all its settings files are found harmless.

    A settings file may name code: classes in the folder or on a hub, kernels for the attention or for quantised
    weights, a backbone to download. transformers is not asked to refuse what it offers to do.

    Raises ValueError for a file that is not readable JSON or names any of these.
    """
    if (folder / "adapter_config.json").exists():
        raise ValueError(f"The folder {folder} holds a PEFT adapter, which names another model: use a whole model.")
    for file in sorted(folder.glob("*config*.json")):
        _check_setting(_read_json(file), file)
    return _read_json(folder / "config.json")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        settings = parse_json(read_text(file, LARGEST_JSON))
        if not isinstance(settings, dict):
            raise ValueError("it holds no settings")
    except (ValueError, OSError) as error:
        raise ValueError(
            f"The file {brief(file, 300)} is not readable JSON ({brief(error)}): download the folder again."
        ) from error
    return settings


def _check_setting(value: Any, file: Path, name: str = "", depth: int = 0) -> None:
    why = ""
    if depth > 20:
        why = "is nested too deeply"
    elif name == "auto_map" and value:
        why = "names code to run"
    elif name.endswith("attn_implementation"):
        chosen = value.values() if isinstance(value, dict) else (value,)
        if not all(each is None or (isinstance(each, str) and each in ATTENTION) for each in chosen):
            why = "names another attention than eager or sdpa, which would be fetched"
    elif name == "quantization_config" and value:
        why = "asks for quantised weights, whose kernels would be fetched"
    elif name == "use_pretrained_backbone" and value:
        why = "names a backbone to download"
    elif "layers" in name and isinstance(value, int) and value > MOST_LAYERS:
        why = f"is {brief(value)}; no model has more than {MOST_LAYERS} layers"
    elif name in _SIDES and isinstance(value, int) and value > LONGEST_SIDE:
        why = f"is {brief(value)}; no model sees more than {LONGEST_SIDE} pixels"
    if why:
        raise ValueError(
            f"In {brief(file, 300)} the setting “{brief(name)}” {why}. Code from a model's folder never runs here: use "
            "the original folder of a CLIP, SigLIP, DINO, OWL or Grounding DINO model, or remove the setting."
        )
    if isinstance(value, dict):
        for key, each in value.items():
            _check_setting(each, file, key, depth + 1)
    elif isinstance(value, list):
        for each in value:
            _check_setting(each, file, "", depth + 1)


def reason_of(error: BaseException) -> str:
    """What a library raised, short and printable."""
    return f"{type(error).__name__}: {brief(' '.join(str(error).split()), 200)}"


def read(folder: str | os.PathLike[str], what: str, model: str, processor: str, unused: Sequence[str] = ()) -> Any:
    """Loads a model in eval mode, without gradients, and its processor: (model, processor).

    what: the wanted model in words, for the error messages.
    model, processor: names of transformers' Auto classes.
    unused: prefixes of keys that may be missing from the weights.

    Raises ValueError for a folder that holds no such model, or not all of it.
    """
    folder = Path(folder)
    kind = kind_of(folder, what)
    import transformers  # imported here because it takes seconds and only scores need it

    # False: code from the folder never runs. Unset, transformers would ask in a terminal that nobody sees.
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        made, loading = getattr(transformers, model).from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, **options
        )
        pieces = getattr(transformers, processor).from_pretrained(folder, **options)
    except Exception as error:  # a damaged file can raise anything in transformers, safetensors and tokenizers
        raise ValueError(
            f"The {what} in {folder} ({kind}) cannot be loaded ({reason_of(error)}). Download its whole "
            "folder: config.json, preprocessor_config.json, the tokenizer's files and the .safetensors weights."
        ) from error
    if missing := sorted(key for key in loading["missing_keys"] if not key.startswith(tuple(unused))):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ValueError(
            f"The weights in {folder} lack {', '.join(missing[:3])}{more}, which transformers would fill with random "
            "numbers. Download the folder again."
        )
    return made.eval().requires_grad_(False), pieces
