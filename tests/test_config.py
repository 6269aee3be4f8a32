"""The scripts' front door, run directories and devices: mistakes become sentences."""

import pytest

from data.processed import RecDataset
from data.schemas import UserError
from modules.quantize import QuantizeForwardMode
from modules.runtime.config import ABSENT, coerce, parameter_docs, resolve, run_script

SEEN: dict[str, object] = {}
MANUAL = "A manual.\n\n    python script.py CONFIG"


def train(
    iterations: int = 100,
    learning_rate: float = 1e-3,
    vae_hidden_dims: tuple[int, ...] = (8, 4),
    dataset: RecDataset = RecDataset.AMAZON,
    vae_codebook_mode: QuantizeForwardMode = QuantizeForwardMode.STE,
    save_dir_root: str = "out",
    pretrained: str | None = None,
    amp: bool = True,
) -> None:
    """A script's entry.

    Args:
        iterations: how many updates,
            on two lines.
        learning_rate: of the optimizer.
        vae_hidden_dims: widths.
        dataset: which source.
        vae_codebook_mode: gradient estimator.
        save_dir_root: where runs go.
        pretrained: a run, or None.
        amp: mixed precision.
    """
    SEEN.clear()
    SEEN.update(locals())


def defaults() -> dict[str, object]:
    train()
    return dict(SEEN)


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
        (True, bool, True),
    ],
)
def test_values_become_what_the_hint_asks_for(value, hint, expected):
    got = coerce(value, hint)
    assert got == expected
    assert type(got) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "word"),
    [
        (True, int, "must be int"),
        (True, float, "must be float"),
        (1, bool, "must be bool"),
        (1.5, int, "must be int"),
        ("7", int, "must be int"),
        (None, int, "must be int"),
        (5, str | None, "must be str"),
        (512, tuple[int, ...], "must be a list"),
        ([True], tuple[int, ...], "must be int"),
        ("SET", QuantizeForwardMode, "%modules.quantize.QuantizeForwardMode.STE"),
    ],
)
def test_values_of_another_type_are_refused_with_what_is_allowed(value, hint, word):
    with pytest.raises(TypeError) as error:
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
    expected = defaults() | expected
    assert run_script(train, MANUAL, [path, *overrides]) == 0
    assert expected == SEEN


def test_one_run_leaves_nothing_to_the_next(config):
    assert resolve(train, [config("train.iterations = 7")])["iterations"] == 7
    assert resolve(train, [config("")]) == defaults()


def test_a_misspelled_parameter_is_answered_with_the_nearest(config):
    with pytest.raises(UserError, match=r"no parameter train\.iteratoins: did you mean 'iterations'\?"):
        resolve(train, [config("train.iteratoins = 5")])


def test_several_mistakes_come_in_one_message(config):
    with pytest.raises(UserError) as error:
        resolve(train, [config("train.iteratoins = 5\ntrain.amp = 3\ntrain.learning_rate = 'high'\n"), "vae_hf_model_name=me/model"])
    for part in ("several mistakes", "iteratoins", "train.amp must be bool", "train.learning_rate must be float", "hub"):
        assert part in str(error.value)


def test_a_missing_file_is_answered_with_the_nearest(config):
    path = config("", "rqvae_amazon.gin")
    with pytest.raises(UserError, match=r"did you mean .*rqvae_amazon\.gin"):
        resolve(train, [path.replace("amazon", "amazn")])


@pytest.mark.parametrize(
    "text", ["train.save_dir_root = out/run", "train.iterations 5", "import no.such.module", "train.dataset = %RecDataset.NONE"]
)
def test_a_file_that_gin_cannot_read_is_one_sentence(config, capsys, text):
    assert run_script(train, MANUAL, [config(text)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error


def test_an_override_without_equals_is_answered(config):
    with pytest.raises(UserError, match="name=value"):
        resolve(train, [config(), "iterations"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("wandb_logging", True),
        ("vae_codebook_normalize", True),
        ("vae_sim_vq", True),
        ("push_vae_to_hf", True),
        ("train_data_subsample", True),
        ("vae_n_cat_feats", 18),
        ("gradient_accumulate_every", 8),
        ("vae_hf_model_name", "me/model"),
    ],
)
def test_names_of_other_tiger_code_that_ask_for_something_absent_are_answered(config, name, value):
    with pytest.raises(UserError) as error:
        resolve(train, [config(f"train.{name} = {value!r}")])
    assert ABSENT[name] in str(error.value)


@pytest.mark.parametrize("value", ["False", "None", "0"])
def test_names_of_other_tiger_code_that_are_switched_off_pass(config, value):
    assert resolve(train, [config("".join(f"train.{name} = {value}\n" for name in ABSENT))]) == defaults()


def test_a_users_mistake_is_exit_code_2_and_one_line(config, capsys):
    def refusing(iterations: int = 1) -> None:
        raise UserError("the data is not there")

    assert run_script(refusing, MANUAL, [config()]) == 2
    assert capsys.readouterr().err == "error: the data is not there\n"


def test_real_bugs_keep_their_traceback_and_ctrl_c_is_130(config):
    def broken(iterations: int = 1) -> None:
        raise ZeroDivisionError

    def interrupted(iterations: int = 1) -> None:
        raise KeyboardInterrupt

    with pytest.raises(ZeroDivisionError):
        run_script(broken, MANUAL, [config()])
    assert run_script(interrupted, MANUAL, [config()]) == 130


def test_the_printed_config_gives_the_same_run(config, capsys):
    arguments = [config("train.iterations = 1e4"), "vae_hidden_dims=[3,2]", "save_dir_root=it's here", "vae_codebook_mode=ROTATION_TRICK"]
    assert run_script(train, MANUAL, [*arguments, "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert resolve(train, [config(printed, "again.gin")]) == resolve(train, arguments)


def test_print_config_without_a_file_is_a_users_mistake():
    assert run_script(train, MANUAL, ["--print-config"]) == 2


def test_help_shows_the_manual_and_every_parameter(capsys):
    assert run_script(train, MANUAL, ["--help"]) == 0
    shown = capsys.readouterr().out
    assert "A manual." in shown
    for name, meaning in parameter_docs(train).items():
        assert name in shown
        assert meaning in shown
    assert "how many updates, on two lines." in shown
    assert run_script(train, MANUAL, []) == 2


def test_an_undocumented_parameter_is_a_bug():
    def bare(iterations: int = 1) -> None:
        """Nothing."""

    with pytest.raises(ValueError, match="iterations"):
        parameter_docs(bare)
