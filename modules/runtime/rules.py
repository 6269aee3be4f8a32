"""Rules between parameters that both scripts have, as sentences; what each parameter takes for itself stands in the signatures."""

from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec

from data.processed import data_config, data_mistakes
from data.schemas import UserError
from modules.runtime.hub import check_push
from modules.runtime.spelling import did_you_mean


def shared_mistakes(settings: Mapping[str, object], pushed: str, shape: Callable[[Mapping[str, object]], object]) -> Iterator[str]:
    """A sentence for every such rule that does not hold.

    Args:
        settings: all parameters.
        pushed: what the script shares, "vae" or "decoder", as its parameters are named.
        shape: makes the model's config from the parameters, and refuses what cannot be.
    """
    yield from data_mistakes(data_config(settings), did_you_mean)
    if settings["amp"] and settings["mixed_precision_type"] == "fp16" and settings["device"] in ("cpu", "mps"):
        yield f"train.mixed_precision_type = 'fp16' is for CUDA and train.device is {settings['device']!r}; set it to 'bf16'"
    if settings["wandb_logging"] and find_spec("wandb") is None:
        yield 'train.wandb_logging needs wandb: pip install "wandb>=0.28.2", or set it to False'
    if settings[f"push_{pushed}_to_hf"]:
        name = settings[f"{pushed}_hf_model_name"]
        problem = check_push(None if name is None else str(name))
        if problem:
            yield f"train.{pushed}_hf_model_name: {problem}"
    try:
        shape(settings)
    except UserError as error:
        yield from error.args
