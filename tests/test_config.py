"""The scripts' front door, run directories and devices: mistakes become sentences."""

import contextlib
import subprocess
import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.processed import RecDataset
from data.schemas import UserError
from modules.quantize import QuantizeForwardMode
from modules.runtime.config.aliases import ABSENT
from modules.runtime.config.declaration import Options, declared_options, hints_of, option
from modules.runtime.config.main import ROOT, config_text, resolve, run_script
from modules.runtime.config.types import Count, Natural, Positive, Text, coerce
from modules.runtime.options.decoder import DecoderOptions
from modules.runtime.options.rqvae import RqVaeOptions
from modules.tokenizer.registry import kind_of

SEEN: list[Options] = []
MANUAL = "A manual.\n\n    python script.py CONFIG"


@dataclass(frozen=True, kw_only=True)
class Toy(Options):
    """The options of a script."""

    iterations: Count = option(100, "how many updates, in a longer text.")
    learning_rate: Positive = option(1e-3, "of the optimizer.")
    vae_hidden_dims: tuple[Count, ...] = option((8, 4), "widths.")
    dataset: RecDataset = option(RecDataset.AMAZON, "which source.")
    vae_codebook_mode: QuantizeForwardMode = option(QuantizeForwardMode.STE, "gradient estimator.")
    save_dir_root: Text = option("out", "where runs go.")
    pretrained: Text | None = option(None, "a run, or None.")
    schedule: Literal["cosine", "constant"] = option("cosine", "of the rate.")
    amp: bool = option(True, "mixed precision.")


@dataclass(frozen=True, kw_only=True)
class Bare(Options):
    """One option."""

    iterations: int = option(1, "how many updates.")


def train(options: Toy) -> None:
    """A script's entry."""
    SEEN.append(options)


@pytest.fixture
def config(tmp_path):
    """Writes a config file and gives its path."""

    def write(text: str = "", name: str = "run.gin") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1e4, int, 10_000),
        (3, float, 3.0),
        ([512, 256.0], tuple[int, ...], (512, 256)),
        ("STE", QuantizeForwardMode, QuantizeForwardMode.STE),
        ("QuantizeForwardMode.STE", QuantizeForwardMode, QuantizeForwardMode.STE),
        (RecDataset.AMAZON, RecDataset, RecDataset.AMAZON),
        (None, str | None, None),
        ("a", str | None, "a"),
        ("", Text | None, None),
        ("None", Text | None, None),
        ("None", int | None, None),
        (True, bool, True),
        ("false", bool, False),
        ("512,256", tuple[int, ...], (512, 256)),
        (256, Count | tuple[Count, ...], 256),
        ([512, 256], Count | tuple[Count, ...] | None, (512, 256)),
        (None, Count | tuple[Count, ...] | None, None),
        (1e2, Count, 100),
        ("constant", Literal["cosine", "constant"], "constant"),
    ],
)
def test_values_become_what_the_hint_asks_for(value, hint, expected):
    got = coerce(value, hint)
    assert got == expected
    assert type(got) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "word"),
    [
        (True, int, "a whole number"),
        (True, float, "a number"),
        (1, bool, "True or False"),
        (1.5, int, "a whole number"),
        ("7", int, "a whole number"),
        (None, int, "a whole number"),
        (5, str | None, "text, or None"),
        (512, tuple[int, ...], "a list such as"),
        ([True], tuple[int, ...], "each a whole number"),
        ("SET", QuantizeForwardMode, "%modules.quantize.QuantizeForwardMode.STE"),
        ("ste", QuantizeForwardMode, "did you mean 'STE'"),
        (0, Count, "a whole number, at least 1"),
        (0, Count | tuple[Count, ...], "a whole number, at least 1, or a list such as [512, 256], each a whole number, at least 1"),
        (None, Count | tuple[Count, ...], "a whole number, at least 1, or a list"),
        (-1, Natural | None, "a whole number, at least 0, or None"),
        (float("nan"), Positive, "a number, above 0"),
        (float("inf"), Positive, "a number, above 0"),
        (" ", Text, "text that is not empty"),
        ("cosin", Literal["cosine", "constant"], "'cosine' or 'constant'; did you mean 'cosine'?"),
        ("high", Literal["cosine", "constant"], "'cosine' or 'constant'"),
    ],
)
def test_values_that_are_not_allowed_are_refused_with_what_is(value, hint, word):
    with pytest.raises(ValueError, match=r"^is ") as error:
        coerce(value, hint)
    assert word in str(error.value)


def test_file_and_overrides_reach_train(config):
    path = config(
        "import data.processed\nimport modules.quantize\ntrain.iterations = 1e4\ntrain.vae_hidden_dims = [16]\ntrain.amp = False\n"
    )
    overrides = [
        "iterations=20",
        "train.save_dir_root=out/some-run",
        "vae_codebook_mode=%modules.quantize.QuantizeForwardMode.ROTATION_TRICK",
    ]
    expected = {
        "iterations": 20,
        "vae_hidden_dims": (16,),
        "amp": False,
        "save_dir_root": "out/some-run",
        "vae_codebook_mode": QuantizeForwardMode.ROTATION_TRICK,
    }
    assert run_script(train, MANUAL, [path, *overrides]) == 0
    assert Toy(**expected) == SEEN[-1]


def test_one_run_leaves_nothing_to_the_next(config):
    assert resolve(Toy, [config("train.iterations = 7")]).iterations == 7
    assert resolve(Toy, [config("")]) == Toy()


@pytest.mark.parametrize(
    ("override", "name", "expected"),
    [
        ("save_dir_root=2024", "save_dir_root", "2024"),
        ("save_dir_root='a b'", "save_dir_root", "a b"),
        ("pretrained=None", "pretrained", None),
        ("pretrained=", "pretrained", None),
        ("amp=false", "amp", False),
        ("vae_hidden_dims=[3,2]", "vae_hidden_dims", (3, 2)),
        ("vae_hidden_dims=3,2", "vae_hidden_dims", (3, 2)),
        ("iterations=1e4", "iterations", 10_000),
        ("dataset=CUSTOM", "dataset", RecDataset.CUSTOM),
        ("save_dir_root=%PLACE", "save_dir_root", "out/there"),
    ],
)
def test_the_command_line_needs_no_quotes(config, override, name, expected):
    assert resolve(Toy, [config('PLACE = "out/there"\ntrain.pretrained = %PLACE\n'), override]).settings()[name] == expected


def test_the_last_of_two_overrides_counts(config):
    assert resolve(Toy, [config("train.iterations = 1\n"), "iterations=2", "train.iterations=3"]).iterations == 3


def test_includes_are_found_beside_the_file_in_the_working_directory_and_in_the_repository(config, tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config("train.iterations = 5\n", "deep/beside.gin")
    config("train.amp = False\n", "elsewhere/here.gin")
    path = config('include "beside.gin"\ninclude "here.gin"\ntrain.learning_rate = 1.0\n', "deep/run.gin")
    resolved = resolve(Toy, [path])
    assert (resolved.iterations, resolved.amp, resolved.learning_rate) == (5, False, 1.0)
    text = 'include "configs/rqvae_amazon.gin"\ntrain.iterations = 7000\n'
    assert resolve(RqVaeOptions, [config(text)]).iterations == 7000


def test_an_including_file_overrides_and_a_common_file_may_define_more_macros_than_are_used(config):
    config("SMALL = 8\nLARGE = 9\ntrain.iterations = 5\n", "base.gin")
    assert resolve(Toy, [config('include "base.gin"\ntrain.iterations = %SMALL\n')]).iterations == 8


def test_a_block_of_bindings_keeps_its_other_lines_when_one_cannot_be_read(config):
    text = "train:\n  # widths\n  iterations = 0\n  save_dir_root = out/run\n  amp = 3\n"
    with pytest.raises(UserError) as error:
        resolve(Toy, [config(text)])
    told = str(error.value)
    assert told.count("\n  - ") == 3
    for words in ("line 3: train.iterations is 0", "line 4: cannot read", "line 5: train.amp is 3"):
        assert words in told


def test_a_file_with_a_byte_order_mark_and_foreign_line_ends_is_read(tmp_path):
    (tmp_path / "run.gin").write_bytes(b"\xef\xbb\xbftrain.iterations = 5\r\ntrain.amp = False\r\n")
    resolved = resolve(Toy, [str(tmp_path / "run.gin")])
    assert (resolved.iterations, resolved.amp) == (5, False)


@given(st.text(alphabet=st.sampled_from("train.seed =%@[](){}'\"\n\t#:/\\0x$\0"), max_size=60))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_text_makes_the_front_door_raise_anything_but_a_user_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.gin").write_text(text)
    with contextlib.suppress(UserError):
        resolve(Toy, [str(tmp_path / "run.gin"), *text.split()])


def test_rules_between_parameters_come_with_the_other_mistakes_but_not_about_a_faulty_value(config):
    class Ruled(Toy):
        def rules(self) -> Iterator[str]:
            yield f"train.iterations = {self.iterations} does not go with train.amp"
            yield "train.learning_rate is too high"

    with pytest.raises(UserError) as error:
        resolve(Ruled, [config("train.iterations = 0\n")])
    assert [word in str(error.value) for word in ("train.iterations is 0", "does not go with", "too high")] == [True, False, True]


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (RqVaeOptions, {"iterations": 0}),
        (RqVaeOptions, {"iterations": 300}),
        (DecoderOptions, {"lr_schedule": "linear"}),
        (DecoderOptions, {"beam_size": 5}),
        (DecoderOptions, {"attn_heads": 7}),
    ],
)
def test_options_made_in_python_are_refused_like_a_config(kind, wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        kind(**wrong)


def test_options_made_in_python_are_converted_like_a_config():
    assert RqVaeOptions(iterations=1e3, vae_hidden_dims=[16.0], vae_codebook_mode="STE") == RqVaeOptions(
        iterations=1000, vae_hidden_dims=(16,), vae_codebook_mode=QuantizeForwardMode.STE
    )


def test_mistakes_come_in_the_order_of_the_lines(config):
    with pytest.raises(UserError) as error:
        resolve(Toy, [config("train.amp = 3\ntrian.amp = True\ntrain.epochs = 5\ntrain.save_dir_root = out/x\n"), "--fast"])
    told = str(error.value).splitlines()
    assert [line.partition("run.gin, ")[2][:6] for line in told[1:5]] == ["line 1", "line 2", "line 3", "line 4"]
    assert "--fast" in told[5]


@pytest.mark.parametrize("name", ABSENT)
def test_names_of_other_tiger_code_that_ask_for_something_absent_are_answered(config, name):
    with pytest.raises(UserError) as error:
        resolve(Toy, [config(f"train.{name} = 'something'")])
    assert ABSENT[name] in str(error.value)


@pytest.mark.parametrize("value", ["False", "None", "0"])
def test_names_of_other_tiger_code_that_are_switched_off_pass(config, value):
    assert resolve(Toy, [config("".join(f"train.{name} = {value}\n" for name in ABSENT))]) == Toy()


def test_a_users_mistake_is_exit_code_2_and_one_line(config, capsys):
    def refusing(options: Bare) -> None:
        raise UserError("the data is not there")

    assert run_script(refusing, MANUAL, [config()]) == 2
    assert capsys.readouterr().err == "error: the data is not there\n"


def test_real_bugs_keep_their_traceback_and_ctrl_c_is_130(config):
    def broken(options: Bare) -> None:
        raise ZeroDivisionError

    def interrupted(options: Bare) -> None:
        raise KeyboardInterrupt

    with pytest.raises(ZeroDivisionError):
        run_script(broken, MANUAL, [config()])
    assert run_script(interrupted, MANUAL, [config()]) == 130


def test_the_printed_config_gives_the_same_run(config, capsys):
    arguments = [config("train.iterations = 1e4"), "vae_hidden_dims=[3,2]", "save_dir_root=it's here", "vae_codebook_mode=ROTATION_TRICK"]
    assert run_script(train, MANUAL, [*arguments, "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert resolve(Toy, [config(printed, "again.gin")]) == resolve(Toy, arguments)


def anything(hint: object) -> st.SearchStrategy[object]:
    """Values that a hint allows."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return anything(arguments[0]).filter(lambda value: all(rule.holds(value) for rule in arguments[1:]))
    if origin is tuple:
        return st.lists(anything(arguments[0]), max_size=3).map(tuple)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is not None:
        return st.none() | anything(arguments[0])
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(list(hint))
    return {int: st.integers(0, 10**6), float: st.floats(0, 1, exclude_min=True, exclude_max=True), bool: st.booleans(), str: st.text()}[
        hint
    ]


HINTS = hints_of(Toy)


@given(st.fixed_dictionaries({name: anything(hint) for name, hint in HINTS.items()}))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_config_in_a_run_directory_gives_the_same_settings(tmp_path: Path, given_settings: dict[str, object]) -> None:
    (tmp_path / "config.gin").write_text(config_text(given_settings), encoding="utf-8")
    assert resolve(Toy, [str(tmp_path / "config.gin")]).settings() == given_settings


@pytest.mark.parametrize("kind", [RqVaeOptions, DecoderOptions])
def test_the_defaults_of_both_scripts_are_allowed_and_come_back(kind, config):
    resolved = resolve(kind, [config()])
    assert resolve(kind, [config(config_text(resolved.settings()))]) == resolved


@pytest.mark.parametrize("config", [RqVaeOptions().model, RqVaeOptions(tokenizer="rqkmeans").model, DecoderOptions().decoder])
def test_a_config_of_the_model_alone_has_the_defaults_of_the_options(config):
    assert config == type(config)()


def test_what_stage_two_checks_of_stage_one_has_the_same_types_and_is_read_by_its_tokenizer():
    first, second = hints_of(RqVaeOptions), hints_of(DecoderOptions)
    given = {name: default for name, default in RqVaeOptions().settings().items() if name in second and name.startswith("vae_")}
    assert len(given) == 11
    assert all(second[name] == first[name] | None for name in given)
    assert given.keys() <= kind_of("rqvae").options
    assert DecoderOptions(**given).repeated() == given


def test_print_config_without_a_file_is_a_users_mistake():
    assert run_script(train, MANUAL, ["--print-config"]) == 2


def test_help_shows_the_manual_and_every_parameter(capsys):
    assert run_script(train, MANUAL, ["--help"]) == 0
    shown = capsys.readouterr().out
    assert "A manual." in shown
    for name, declared in declared_options(Toy).items():
        assert name in shown
        assert declared.metadata["meaning"] in shown
    assert "iterations = 100" in shown
    assert "Takes a whole number, at least 1." in shown
    assert "Takes 'cosine' or 'constant'." in shown
    assert "how many updates, in a longer text." in shown
    assert run_script(train, MANUAL, []) == 2


@pytest.mark.parametrize("kind", [RqVaeOptions, DecoderOptions])
def test_every_option_says_what_it_means(kind):
    assert [name for name, declared in declared_options(kind).items() if len(declared.metadata["meaning"]) < 10] == []


@pytest.mark.parametrize("script", ["train_rqvae", "train_decoder"])
def test_printing_a_config_loads_no_data_library_and_looks_for_no_file(script, tmp_path):
    heavy = ["sentence_transformers", "torch_geometric", "polars", "pandas", "wandb", "matplotlib", "accelerate"]
    code = (
        f"import sys, {script}; from modules.runtime.config.main import run_script\n"
        f"code = run_script({script}.train, '', ['configs/{script.removeprefix('train_')}_amazon.gin', '--print-config'])\n"
        f"print(code, [name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "0 []"
    (tmp_path / "again.gin").write_text(done.stdout)
    kind = {"train_rqvae": RqVaeOptions, "train_decoder": DecoderOptions}[script]
    assert resolve(kind, [str(tmp_path / "again.gin")]).dataset_split == "beauty"


def test_a_file_that_may_not_be_read_is_a_users_mistake(config, monkeypatch):
    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    path = config()
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        resolve(Toy, [path])


def test_a_reader_that_stops_reading_ends_the_printing_in_silence():
    command = f"{sys.executable} train_rqvae.py --help | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
