"""Optional tracking with Weights & Biases: the figures of log.jsonl on a page, one page for a run and all its continuations.

A tracker never asks a question and never stops a training: without a key, or without the server, it writes to the run directory,
from where `wandb sync` uploads. wandb is imported only where tracking is on.
"""

import netrc
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, Protocol
from urllib.parse import urlsplit

from data.schemas import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OLDEST = "0.28.2"
"""Earlier releases of wandb wait for an unreachable server whatever timeout they are given."""

INIT_SECONDS = 30.0
"""How long a start may wait for the server."""

FINISH_SECONDS = 120.0
"""How long the end may wait for the upload; what is left then stays on disk."""


class Tracker:
    """Where figures go beside log.jsonl; the base class does nothing.

    Args:
        run_id: of the tracked run, to be kept with the checkpoints and handed to ``start_tracker`` when the run goes on.
    """

    def __init__(self, run_id: str | None = None) -> None:
        self.run_id = run_id

    def log(self, step: int, figures: Mapping[str, object]) -> None:
        """Records the figures of a training step; nested ones get names such as ``validation/recall@10`` and ``usage/0``."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Records a table."""

    def figure(self, name: str, picture: "Figure | Path") -> None:
        """Records a picture: a matplotlib figure or the path of a PNG file."""

    def finish(self, metrics: Mapping[str, object]) -> None:
        """Records the final figures and ends the run."""


class WandbSummary(Protocol):
    """The figures that wandb's table of runs shows."""

    def update(self, figures: dict[str, object], /) -> None: ...


class WandbRun(Protocol):
    """The part of wandb's run that is used here; wandb itself need not be installed for the types to be checked."""

    @property
    def id(self) -> str: ...

    @property
    def dir(self) -> str: ...

    @property
    def url(self) -> str | None: ...

    @property
    def summary(self) -> WandbSummary: ...

    def log(self, data: dict[str, object], /) -> None: ...

    def define_metric(self, name: str, /, *, step_metric: str | None = None) -> object: ...

    def finish(self) -> None: ...


class WandbTracker(Tracker):
    """Hands everything to a wandb run; once that fails, says so and does no more, for a training is worth more than its tracker."""

    def __init__(self, wandb: ModuleType, run: WandbRun) -> None:
        super().__init__(run.id)
        self._wandb, self._run, self._broken = wandb, run, False

    def log(self, step: int, figures: Mapping[str, object]) -> None:
        # The step is a figure like others: wandb's own counter only rises, so it would drop what a resumed run logs anew.
        self._attempt(lambda: self._run.log({"step": step, **flatten(figures)}))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        data = [list(row) for row in rows]
        self._attempt(lambda: self._run.log({name: self._wandb.Table(columns=list(columns), data=data, allow_mixed_types=True)}))

    def figure(self, name: str, picture: "Figure | Path") -> None:
        def record() -> None:
            with tempfile.TemporaryDirectory() as folder:
                path = picture if isinstance(picture, Path) else Path(folder) / "figure.png"
                if not isinstance(picture, Path):
                    picture.savefig(path, dpi=150)
                self._run.log({name: self._wandb.Image(str(path))})

        self._attempt(record)

    def finish(self, metrics: Mapping[str, object]) -> None:
        def end() -> None:
            self._run.summary.update(flatten(metrics))
            self._run.finish()

        self._attempt(end)

    def _attempt(self, action: Callable[[], None]) -> None:
        if self._broken:
            return
        try:
            action()
        except Exception as error:  # a dead service, a full disk, a late upload: wandb raises all sorts
            self._broken = True
            _say(f"W&B stopped ({_first_line(error)}); log.jsonl has every figure, {_sync_hint(self._run)} uploads what was recorded")


def start_tracker(
    enabled: bool, folder: Path, settings_text: str, settings: Mapping[str, object], name: str, project: str, run_id: str | None
) -> Tracker:
    """A tracker for a run directory; one that does nothing where tracking is off.

    Args:
        enabled: whether to track.
        folder: the run directory; wandb's files go below it.
        settings_text: the resolved config as gin text.
        settings: the same as values, the columns of wandb's run table.
        name: the run's display name.
        project: wandb's project.
        run_id: of the run to go on with, from ``Tracker.run_id``; None starts a new one.

    Raises:
        UserError: wandb is not installed, or too old.
    """
    if not enabled:
        return Tracker(run_id)
    cure = f'pip install "wandb>={OLDEST}", or set train.wandb_logging = False'
    try:
        import wandb
    except ImportError as error:
        raise UserError(f"train.wandb_logging needs wandb ({error}): {cure}") from error
    if _numbers(wandb.__version__) < _numbers(OLDEST):
        raise UserError(f"train.wandb_logging needs a newer wandb than {wandb.__version__}: {cure}")

    configured = wandb.setup().settings
    if configured.mode == "disabled":  # WANDB_MODE or `wandb disabled`
        return Tracker(run_id)
    offline = configured.mode in ("offline", "dryrun")
    reason = "as wandb is set" if offline else ""
    if not offline and not _has_key(wandb):
        offline, reason = True, "no key in WANDB_API_KEY, netrc or wandb's settings"

    def init(mode: Literal["offline"] | None) -> WandbRun:
        return wandb.init(
            project=project,
            name=name,
            id=run_id,
            resume="allow",
            dir=str(folder),
            config={**{key: _plain(value) for key, value in settings.items()}, "gin": settings_text},
            mode=mode,
            settings={
                "console": "off",
                "quiet": True,
                "silent": True,
                "init_timeout": INIT_SECONDS,
                "finish_timeout": FINISH_SECONDS,
                "finish_timeout_raises": True,
            },
        )

    if not offline:
        try:
            run = init(None)
        except Exception as error:  # no network, a revoked key, a project of others: none is worth the training
            offline, reason = True, f"wandb.init failed: {_first_line(error)}"
            wandb.teardown()  # or its service holds the run's id as taken
    if offline:
        run = init("offline")
        _say(f"W&B offline ({reason}); upload with: {_sync_hint(run)}")
    else:
        _say(f"W&B {run.url}")
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return WandbTracker(wandb, run)


def flatten(figures: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested mappings and lists as one level, names joined by a slash; None is left out."""
    flat: dict[str, object] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        elif isinstance(value, (list, tuple)):
            flat |= flatten({str(index): element for index, element in enumerate(value)}, f"{prefix}{name}/")
        elif value is not None:
            flat[prefix + str(name)] = value
    return flat


def _has_key(wandb: ModuleType) -> bool:
    """Would wandb find credentials without asking? Looked up here because wandb's own look-up prompts where there is a terminal."""
    settings = wandb.setup().settings
    if settings.api_key or os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    hosts = {urlsplit(settings.base_url).hostname}
    if settings.base_url == wandb.Settings().base_url:
        hosts.add("api.wandb.ai")  # the public server's old name, under which older logins are stored
    places = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    path = next((path for place in places if place and (path := Path(place).expanduser()).is_file()), None)
    try:
        return path is not None and any(host in netrc.netrc(path).hosts for host in hosts)
    except (OSError, netrc.NetrcParseError):
        return False


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def _plain(value: object) -> object:
    """A setting as wandb's config can hold it."""
    if isinstance(value, Enum):
        return value.name
    return list(value) if isinstance(value, tuple) else value


def _sync_hint(run: WandbRun) -> str:
    return f"wandb sync {Path(run.dir).parent}"


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _say(text: str) -> None:
    print(f"tracking {text}", flush=True)
