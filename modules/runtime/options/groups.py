"""The options that both scripts have, and the rules between them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Literal

from data.processed import DataConfig, RecDataset, data_mistakes
from data.schemas import UserError
from modules.runtime.config.declaration import Options, filled, option
from modules.runtime.config.suggest import did_you_mean
from modules.runtime.config.types import Count, Device, FolderName, Natural, NonNegative, Seed, Text
from modules.runtime.runs.hub_names import check_push

InputNorm = Literal["center_unit", "standardize", "none"]
Distance = Literal["l2", "cosine"]


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    """Which data, and what of it is kept."""

    dataset: RecDataset = option(RecDataset.AMAZON, "the source; docs/data.md says what each holds.")
    dataset_folder: Text = option(
        "dataset/amazon", "where raw files lie or are downloaded to (raw/) and caches are kept (processed/).", sets="folder", path=True
    )
    dataset_split: Text = option(
        "beauty",
        "the part of the source that is read, as docs/data.md names it; for CUSTOM the files' name. The run directory is named after it.",
        sets="split",
    )
    force_dataset_process: bool = option(False, "read the raw files again although a cache exists.", sets="force_process", may_differ=True)
    min_rating: NonNegative = option(0.0, "interactions rated lower are dropped; 0 keeps all.")
    k_core: Natural = option(0, "users and items with fewer interactions are dropped until all have so many; 0 keeps all.")
    max_history: Natural | None = option(
        None, "the most recent interactions of a user that are kept; 0 keeps all, None 200 for MovieLens and all elsewhere."
    )
    cold_items: bool | None = option(
        None, "items without interactions stay in the catalogue; None: yes, but not for Amazon's raw files, which list whole shops."
    )
    columns: tuple[Text, ...] = option(
        (), 'what your own files call things, such as ["user=uid", "item=sku", "text=brand"]; see python -m data.custom --help.'
    )
    unlisted_items: Literal["refuse", "drop", "keep"] = option(
        "refuse",
        "interactions of your own files with items that the file of items lacks: refuse them, drop them, or keep them and add the items, "
        "whose id is then all that is known of them.",
    )
    encoding: Text = option("utf-8", 'the encoding of your own text files, such as "cp1252"; UTF-16 is told by its mark.')

    @cached_property
    def data(self) -> DataConfig:
        """The data that these options describe."""
        return filled(DataConfig, self)

    def rules(self) -> Iterator[str]:
        """See Options."""
        yield from super().rules()
        yield from data_mistakes(self.data, did_you_mean)


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """How a run is kept, watched and placed on a machine."""

    run_name: FolderName | None = option(None, "the run directory's name in save_dir_root instead of the split's.", may_differ=True)
    resume: bool = option(True, "go on where this run directory stopped; False starts anew in a directory beside it.", may_differ=True)
    gradient_accumulate_every: Count = option(1, "batches a step.")
    split_batches: bool = option(
        True, "batch_size is that of all processes together, each of which takes its share; False makes it each one's own."
    )
    log_every: Count = option(100, "steps between lines of log.jsonl.")
    save_model_every: Count = option(1000, "steps between checkpoints; stage 2 writes one more before every validation.", may_differ=True)
    keep_checkpoints: Count = option(2, "how many checkpoints stay, the newest ones; the best weights stay besides.", may_differ=True)
    wandb_logging: bool = option(False, "show the run's figures on Weights & Biases too; offline where there is no key.", may_differ=True)
    wandb_project: Text = option("tiger", "its project there.", may_differ=True)
    amp: bool = option(True, "mixed precision where the device has instructions for it; False is fp32 on every machine.")
    mixed_precision_type: Literal["bf16", "fp16", "no"] = option(
        "bf16", "bf16 (where the device has instructions for it), fp16 (CUDA only, with loss scaling) or no."
    )
    device: Device = option("auto", "auto, cuda, mps or cpu.", may_differ=True)
    seed: Seed = option(0, "fixes everything random.")

    def rules(self) -> Iterator[str]:
        """See Options."""
        yield from super().rules()
        if self.amp and self.mixed_precision_type == "fp16" and self.device in ("cpu", "mps"):
            yield f"train.mixed_precision_type = 'fp16' is for CUDA and train.device is {self.device!r}; set it to 'bf16'"
        if self.wandb_logging and find_spec("wandb") is None:
            yield 'train.wandb_logging needs wandb: pip install "wandb>=0.28.2", or set it to False'


def refused(config: Callable[[], object]) -> Iterator[str]:
    """The sentences with which a config refuses its values; none where it can be made."""
    try:
        config()
    except UserError as error:
        yield from error.args


def hub_rule(pushes: bool, naming: str, name: str | None) -> Iterator[str]:
    """A sentence if the finished run is to be uploaded and could not be, under the ``name`` that the option ``naming`` gives."""
    if pushes and (problem := check_push(name)):
        yield f"train.{naming}: {problem}"
