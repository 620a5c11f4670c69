"""Sources of settings and their precedence, `--help`, error messages and exit statuses of every command."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from distillery import Command, DistilleryError, Metavar, errors, main, plain, unknown

ROOT = Path(__file__).parents[1]


class Stage(BaseModel):
    model_config = ConfigDict(extra="forbid")
    epochs: int = Field(16, gt=0, description="passes over the training digits")
    learning_rate: float = Field(3e-3, description="peak of the schedule")
    channels: list[list[int]] = Field([], description="channels of each stage")

    @field_validator("epochs")
    @classmethod
    def _reject_13(cls, epochs: int) -> int:
        if epochs == 13:
            raise ValueError("epochs must be 12 or 14, not 13")
        return epochs


class OutputSettings(Command):
    group = "output"
    out: Annotated[Path, Metavar("DIR")] = Field(Path("runs"), description="folder of the runs")


class Train(OutputSettings):
    """Train something.

    Two paragraphs
    of help.
    """

    examples = ("tool --teacher.epochs 4",)

    fast: bool = Field(False, description="train less")
    threads: PositiveInt | None = Field(None, description="CPU threads; default: all cores")
    seeds: list[int] = Field([0, 1], description="seeds to train")
    device: Literal["cpu", "cuda"] = Field("cpu", description="where to train")
    teacher: Stage = Stage()
    student: Stage = Stage(epochs=2, channels=[[16], [32, 32]])

    @model_validator(mode="after")
    def _fast_is_short(self) -> "Train":
        if self.fast and self.teacher.epochs > 100:
            raise ValueError(f"{self.teacher.epochs} epochs are not fast")
        return self

    def run(self) -> None:
        print(self.teacher.epochs, self.teacher.learning_rate, self.fast)


class Fail(Command):
    """Fail with an error the user can fix."""

    how: str = Field("error", description="how to fail")

    def run(self) -> None:
        raise KeyboardInterrupt if self.how == "interrupt" else DistilleryError("3 is too many; use 2")


def call(*arguments: str) -> int:
    return main("tool", {"train": Train, "fail": Fail}, default="train", arguments=arguments)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text("fast = true\n[teacher]\nepochs = 2\nlearning_rate = 0.5\n")
    return path


# Sources


def test_defaults_of_the_class_apply_without_any_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert call() == 0
    assert capsys.readouterr().out == "16 0.003 False\n"


def test_options_override_environment_overrides_file(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILLERY_TEACHER__EPOCHS", "3")
    monkeypatch.setenv("DISTILLERY_TEACHER__LEARNING_RATE", "0.25")
    assert call("--config", str(file), "--teacher.epochs", "4") == 0
    assert capsys.readouterr().out == "4 0.25 True\n"


class Lists(Command):
    """Print lists."""

    names: list[str] = Field(["x"])
    sizes: list[int] | None = None
    shapes: list[list[int]] = Field([])

    def run(self) -> None:
        print(self.names, self.sizes, self.shapes)


@pytest.mark.parametrize(
    ("names", "sizes", "shapes", "printed"),
    [
        ("a,b", "1,16", "[[16],[32,32]]", "['a', 'b'] [1, 16] [[16], [32, 32]]"),
        (' a , "b" ', "8", "[]", "['a', '\"b\"'] [8] []"),
        ('["a,b", "c"]', " [2, 3]", "[[1]]", "['a,b', 'c'] [2, 3] [[1]]"),
        ("", "", "", "[] [] []"),
    ],
)
def test_lists_in_the_environment_are_separated_by_commas_or_are_json(
    names: str,
    sizes: str,
    shapes: str,
    printed: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"NAMES": names, "SIZES": sizes, "SHAPES": shapes}.items():
        monkeypatch.setenv(f"DISTILLERY_{name}", value)
    assert main("tool", {"lists": Lists}, default="lists", arguments=[]) == 0
    assert capsys.readouterr().out == f"{printed}\n"


def test_an_invalid_item_of_a_list_in_the_environment_is_an_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILLERY_SIZES", "1,many")
    assert main("tool", {"lists": Lists}, default="lists", arguments=[]) == 2
    assert "sizes.1: Input should be a valid integer" in capsys.readouterr().err


def test_the_environment_can_name_the_file(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILLERY_CONFIG", str(file))
    assert call("--no-fast") == 0
    assert capsys.readouterr().out == "2 0.5 False\n"


def test_a_preset_is_below_the_file_and_above_the_defaults(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Preset(Train):
        """Train with a preset."""

        preset: ClassVar[dict[str, Any]] = {"fast": False, "teacher": {"epochs": 5, "learning_rate": 1}}

    file.write_text("[teacher]\nepochs = 2\n")
    assert main("tool", {"p": Preset}, arguments=["p", "--config", str(file), "--fast"]) == 0
    assert capsys.readouterr().out == "2 1.0 True\n"


def test_a_file_of_defaults_is_below_all_other_sources(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = file.with_name("defaults.toml")
    defaults.write_text("fast = true\n[teacher]\nepochs = 7\nlearning_rate = 0.125\n")
    monkeypatch.setenv("DISTILLERY_DEFAULTS", str(defaults))
    file.write_text("[teacher]\nepochs = 2\n")
    assert call() == 0
    assert call("--config", str(file)) == 0
    monkeypatch.setenv("DISTILLERY_TEACHER__EPOCHS", "3")
    assert call("--config", str(file)) == 0
    assert call("--config", str(file), "--teacher.epochs", "4", "--no-fast") == 0
    assert capsys.readouterr().out.splitlines() == [
        "7 0.125 True",
        "2 0.125 True",
        "3 0.125 True",
        "4 0.125 False",
    ]
    monkeypatch.setenv("DISTILLERY_DEFAULTS", f"{defaults}.none")
    assert call() == 1
    assert "DISTILLERY_DEFAULTS: there is no file" in capsys.readouterr().err


class Listen(Command):
    """Listen."""

    port: int = Field(8000, description="port")
    grpc_port: int | None = Field(None, description="another")

    def run(self) -> None:
        print(self.port, self.grpc_port)


@pytest.mark.parametrize(
    "variables",
    [
        {"DISTILLERY_PORT": "tcp://10.0.0.1:8000"},
        {"DISTILLERY_PORT": "udp://10.0.0.1:53", "DISTILLERY_GRPC_PORT": "tcp://[fd00::1]:8001"},
        {"distillery_grpc_port": "TCP://[fd00::1]:8001"},
    ],
)
def test_service_links_of_kubernetes_are_ignored_and_named(
    variables: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    others = {  # of the same Service, but not of our settings
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT": "8000",
        "SERVICE_PORT_HTTP": "8000",
        "PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "PORT_8000_TCP_PROTO": "tcp",
        "PORT_8000_TCP_PORT": "8000",
        "PORT_8000_TCP_ADDR": "10.0.0.1",
    }
    for name, value in others.items():
        monkeypatch.setenv(f"DISTILLERY_{name}", value)
    assert main("tool", {"listen": Listen}, default="listen", arguments=["--port", "1"]) == 0
    output, errors = capsys.readouterr()
    assert output == "1 None\n"
    listed = ", ".join(f"{name}={value}" for name, value in sorted(variables.items()))
    assert errors.startswith(f"tool: ignored {listed}: set by Kubernetes")
    assert errors.count("\n") == 1
    assert main("tool", {"listen": Listen}, default="listen", arguments=[]) == 0
    assert capsys.readouterr().out == "8000 None\n"


@pytest.mark.parametrize("value", ["80a0", "tcp", "http://10.0.0.1:8000", ""])
def test_a_port_that_is_neither_a_number_nor_a_service_link_is_an_error(
    value: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILLERY_PORT", value)
    assert main("tool", {"listen": Listen}, default="listen", arguments=[]) == 2
    assert (
        f"port: Input should be a valid integer, unable to parse string as an integer (found {value!r})"
        in (capsys.readouterr().err)
    )


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ([], "from-environment"),
        (["--out", "a"], "a"),
        (["--out=a", "--fast", "--unheard-of", "3"], "a"),
        (["--out=a", "--out", "b"], "b"),
        (["--out-of=a"], "from-environment"),
    ],
)
def test_one_setting_can_be_read_before_the_others(
    arguments: list[str], value: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('out = "from-file"\nunheard_of = 3')
    assert Train.peek("out", ["--fast"]) == Path("runs")
    assert Train.peek("out", ["--config", str(file)]) == Path("from-file")
    monkeypatch.setenv("DISTILLERY_OUT", "from-environment")
    assert Train.peek("out", arguments) == Path(value)


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--teacher.epochs", "0"], "tool: teacher.epochs: Input should be greater than 0 (found '0')"),
        (["--teacher.learning-rate", "fast"], "tool: teacher.learning_rate: Input should be a valid number"),
        (["--seeds", "1,x"], "tool: seeds.1: Input should be a valid integer"),
        (["--device", "gpu"], "tool: device: Input should be 'cpu' or 'cuda' (found 'gpu')"),
        (
            ["--teacher.epoch", "3"],
            "tool: there is no option --teacher.epoch; did you mean --teacher.epochs?",
        ),
        (["--sedes=3"], "tool: there is no option --sedes; did you mean --seeds?"),
        (["--fast", "train"], "tool: unexpected argument 'train'"),
        (["--config"], "tool: argument --config: expected one argument"),
        (["tarin"], "tool: there is no command 'tarin'; known: train, fail; did you mean train?"),
        (["fail", "--who", "me"], "tool fail: there is no option --who; did you mean --how?"),
    ],
)
def test_an_invalid_argument_ends_with_status_2_and_names_the_nearest(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments) == 2
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith(message)
    assert last == f"See tool{' fail' if arguments[0] == 'fail' else ''} --help"


def test_a_validator_of_a_command_words_its_own_error(capsys: pytest.CaptureFixture[str]) -> None:
    """It may be given all settings, and alone knows which of them to name."""
    assert call("--teacher.epochs=13") == 2
    assert capsys.readouterr().err.startswith("tool: teacher.epochs: epochs must be 12 or 14, not 13\n")
    assert call("--teacher.epochs=101", "--fast") == 2
    assert capsys.readouterr().err.startswith("tool: 101 epochs are not fast\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[teacher]\nepoch = 3\n", "teacher.epoch: unknown setting; did you mean epochs?"),
        ("fsat = true\n", "fsat: unknown setting; did you mean fast?"),
        ("[zzz]\na = 1\n", "zzz: unknown setting\n"),
        ("fast = [1, 2]\n", "fast: Input should be a valid boolean (found 1,2)"),
        ("device = { a = 1 }\n", "device: Input should be 'cpu' or 'cuda' (found {\"a\": 1})"),
    ],
)
def test_an_invalid_setting_in_the_file_is_named(
    content: str, message: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(content)
    assert call("--config", str(file)) == 2
    assert message in capsys.readouterr().err


def test_a_missing_or_malformed_file_is_named(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--config", f"{file}.none") == 1
    assert "there is no file" in capsys.readouterr().err
    file.write_text("epochs =")
    assert call("--config", str(file)) == 1
    assert "is not valid TOML" in capsys.readouterr().err


def test_errors_and_interruptions_have_their_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("fail") == 1
    assert capsys.readouterr().err == "tool fail: 3 is too many; use 2\n"
    assert call("fail", "--how", "interrupt") == 130
    assert "interrupted; run the same command to continue" in capsys.readouterr().err


def test_an_unknown_name_lists_the_known_ones_and_suggests_the_nearest() -> None:
    message = "there is no recipe 'quik'; known: best, quick; did you mean quick?"
    assert unknown("recipe", "quik", ["best", "quick"]) == message
    assert unknown("model", "zzz", {"teacher": 1}) == "there is no model 'zzz'; known: teacher"
    assert unknown("model", "zzz", []) == "there is no model 'zzz'; known: none"


def test_unknown_settings_in_a_mapping_of_models_are_named() -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(dict[str, Stage]).validate_python({"small": {"epoch": 1}})
    assert errors(caught.value, dict[str, Stage]) == ["small.epoch: unknown setting; did you mean epochs?"]


@pytest.mark.parametrize("closed", ["1>&-", "0<&- 1>&- 2>&-"])
def test_closed_standard_streams_are_no_error(closed: str, tmp_path: Path) -> None:
    """A supervisor may start a program without them; a file opened later must not get their numbers."""
    code = (
        "import sys, pathlib, distillery\n"
        "class Opens(distillery.Command):\n"
        "    def run(self):\n"
        "        print('a line')\n"
        "        file = open(sys.argv[1], 'w')\n"
        "        assert file.fileno() > 2\n"
        "        distillery.notify('another')\n"
        "        file.write('done')\n"
        "sys.exit(distillery.main('tool', {'opens': Opens}, default='opens', arguments=[]))"
    )
    script = f'exec "$@" {closed}'
    command = ["sh", "-c", script, "sh", sys.executable, "-c", code, str(tmp_path / "file")]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == ("" if "1>&-" in closed else "a line\nanother\n")
    assert (tmp_path / "file").read_text() == "done"


PRINTS = (
    "import sys, distillery\n"
    "class Prints(distillery.Command):\n"
    "    def run(self):\n"
    "        [print('a line', flush=True) for _ in range(100_000)]\n"
    "sys.exit(distillery.main('tool', {'prints': Prints}, default='prints', arguments=[]))"
)


def test_output_that_cannot_be_written_is_one_line() -> None:
    command = [sys.executable, "-c", PRINTS]
    with open("/dev/full", "w") as full:  # noqa: PTH123
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=ROOT)
        silent = subprocess.run(command, stdout=full, stderr=full, check=False, cwd=ROOT)
    error = "tool: the output cannot be written: No space left on device; redirect it elsewhere\n"
    assert (run.returncode, run.stderr, silent.returncode) == (1, error, 1)


def test_a_reader_that_has_gone_ends_a_command_quietly() -> None:
    """`tool | head -1`."""
    command = [sys.executable, "-c", PRINTS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 141)


# Help

HELP = """\
Train something.

Usage: tool [OPTIONS]
       tool COMMAND [OPTIONS]

Two paragraphs of help.

Commands:
  fail  Fail with an error the user can fix.

Options:
  --[no-]fast               train less
  --threads N               CPU threads; default: all cores
  --seeds N,...             seeds to train (default: 0,1)
  --device {cpu,cuda}       where to train (default: cpu)

Output options:
  --out DIR                 folder of the runs (default: runs)

Stage options, for STAGE in teacher, student:
  --STAGE.epochs N          passes over the training digits (default: 16)
  --STAGE.learning-rate N   peak of the schedule (default: 0.003)
  --STAGE.channels [[N,...],...]
                            channels of each stage

Values that differ from these defaults:
  teacher
  student: epochs=2 channels=[[16],[32,32]]

General options:
  --config FILE             TOML file with values for any of these options
  -h, --help                print this help

Examples:
  tool --teacher.epochs 4

Every option is also an environment variable (--out: DISTILLERY_OUT) and a key
of the --config file (out). Options override variables, variables override the
file.
"""


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_shows_groups_placeholders_defaults_and_examples(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(flag) == 0
    assert capsys.readouterr().out == HELP


def test_a_nested_model_that_occurs_once_shows_its_own_name(capsys: pytest.CaptureFixture[str]) -> None:
    class Search(Command):
        """Search."""

        space: Stage | None = None

        def run(self) -> None: ...

    assert main("tool", {"search": Search}, arguments=["search", "-h"]) == 0
    assert "\nSpace options:\n  --space.epochs N " in capsys.readouterr().out


def test_a_program_without_a_default_command_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, status in ([], 2), (["--help"], 0), (["-h"], 0):
        assert main("tool", {"train": Train, "fail": Fail}, arguments=arguments) == status
        listed = capsys.readouterr().out
        assert "\n  train  Train something.\n  fail   Fail with an error the user can fix.\n" in listed


def test_shown_values_are_valid_arguments() -> None:
    for value, shown in (
        (True, "true"),
        (20.0, "20"),
        (0.003, "0.003"),
        ([1, 16], "1,16"),
        ([[16], [32, 32]], "[[16],[32,32]]"),
        (Path("a/b"), "a/b"),
    ):
        assert plain(value) == shown
    command = Train.parse(["--student.channels", "[[16],[32,32]]", "--seeds", "1,16"])
    assert isinstance(command, Train)
    assert (command.student.channels, command.seeds) == ([[16], [32, 32]], [1, 16])


def test_onnxruntime_sends_no_usage_data(tmp_path: Path) -> None:
    """It keeps its reports in the home folder; a session leaves none there."""
    home = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    code = "import serving.model.session, onnxruntime as ort; ort.get_available_providers(); ort.SessionOptions()"
    subprocess.run([sys.executable, "-c", code], env=home, cwd=ROOT, check=True)
    assert list(tmp_path.rglob("*onnxruntime*")) == []
