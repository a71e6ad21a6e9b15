"""Configs: what is read, what is refused, and in which words."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, model_validator

from circuits_over_time.edge_attribution_patching.choices import VARIANTS, Method
from circuits_over_time.utils.algorithms.keys import IoiConsistencyConfig
from circuits_over_time.utils.base.errors import UserError, is_out_of_memory
from circuits_over_time.utils.circuits.keys import CircuitsConfig
from circuits_over_time.utils.config.command_line import read_command_line, script
from circuits_over_time.utils.config.keys import (
    BaseConfig,
    Section,
    TaskConfig,
    execution,
    key,
    load_config,
    result_settings,
    task_and_method,
    variant_keys,
    variant_name,
)
from circuits_over_time.utils.config.strict_yaml import parse_override, read_yaml


class Eap(Section):
    ig_steps: int = Field(30, gt=0)
    sizes: list[int] = Field([10, 20])


class Search(Section):
    threshold: float = Field(0.8, ge=0, le=1)


class Circuits(TaskConfig):
    eap: Eap = Eap()
    search: Search | None = None
    export_json: bool = False
    plot: str = execution("none")
    rule: Literal["left", "gauss-legendre"] = "left"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes configs/c.yml, to be read by that relative path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()

    def write_text(text: str) -> Path:
        Path("configs/c.yml").write_text(text)
        return Path("configs/c.yml")

    return write_text


def errors_of(path: Path | None, *overrides: str, schema: type[BaseConfig] = Circuits) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_config(schema, path, list(overrides))
    return str(caught.value).split("\n")


START = "model: pythia-160m\ntask: ioi\n"


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(write: Any) -> None:
    path = write(START + "batch_size: 8\nseed: 3\neap: {ig_steps: 5, sizes: [1]}\n")
    config = load_config(Circuits, path, ["model=pythia-410m", "eap.ig_steps=7", "checkpoints=[1000,143000]"])
    assert (config.model, config.batch_size, config.seed, config.dtype) == ("pythia-410m", 8, 3, "float32")
    assert config.eap == Eap(ig_steps=7, sizes=[1])
    assert config.checkpoints == [1000, 143000]
    assert config.results_dir == Path("results")


def test_a_block_on_the_command_line_is_merged(write: Any) -> None:
    path = write(START + "eap: {ig_steps: 5, sizes: [1]}\n")
    assert load_config(Circuits, path, ["eap={ig_steps: 7}"]).eap == Eap(ig_steps=7, sizes=[1])
    assert load_config(Circuits, path, ["search.threshold=1"]).search == Search(threshold=1.0)
    assert load_config(Circuits, path, ["seed=1", "seed=2"]).seed == 2


def test_a_config_needs_no_file() -> None:
    assert load_config(TaskConfig, None, ["model=[a, b]", "task=ioi"]).models == ["a", "b"]


def test_an_empty_file_has_no_keys(write: Any) -> None:
    assert load_config(BaseConfig, write("# nothing\n"), ["model=a"]).models == ["a"]


def test_a_config_cannot_be_changed() -> None:
    config = load_config(BaseConfig, None, ["model=a"])
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("batch_sise: 3", "configs/c.yml: batch_sise: unknown key; did you mean 'batch_size'?"),
        ("eap: {ig_step: 3}", "configs/c.yml: eap.ig_step: unknown key; did you mean 'eap.ig_steps'?"),
        ("ig_steps: 3", "configs/c.yml: ig_steps: unknown key; did you mean 'eap.ig_steps'?"),
        ("eap: {zzz: 3}", "configs/c.yml: eap.zzz: unknown key; known: eap.ig_steps, eap.sizes"),
        ("batch_size: many", "configs/c.yml: batch_size: 'many' is not a whole number (default: 32)"),
        ("batch_size: '4'", "configs/c.yml: batch_size: '4' is not a whole number (default: 32)"),
        ("batch_size: 4.5", "configs/c.yml: batch_size: 4.5 is not a whole number (default: 32)"),
        ("batch_size: true", "configs/c.yml: batch_size: true is not a whole number (default: 32)"),
        ("batch_size: 0", "configs/c.yml: batch_size: 0 is not a number > 0 (default: 32)"),
        ("overwrite: yes", "configs/c.yml: overwrite: 'yes' is not true or false (default: false)"),
        ("overwrite: 1", "configs/c.yml: overwrite: 1 is not true or false (default: false)"),
        ("checkpoints: linaer", "configs/c.yml: checkpoints: 'linaer' is not a schedule; did you mean 'linear'?"),
        ("checkpoints: [1, two]", "configs/c.yml: checkpoints[1]: 'two' is not a whole number"),
        ("checkpoints: 1000", "configs/c.yml: checkpoints: 1000 is not text or a list (default: 'all')"),
        (
            "checkpoints: [-1]",
            "configs/c.yml: checkpoints: -1 is not a training step; steps are 0 or more",
        ),
        (
            "checkpoints: []",
            "configs/c.yml: checkpoints: the list of steps is empty",
        ),
        ("results_dir: 3", "configs/c.yml: results_dir: 3 is not text (default: 'results')"),
        ("search: {threshold: 2}", "configs/c.yml: search.threshold: 2 is not a number >= 0 and <= 1 (default: 0.8)"),
        ("search: {threshold: .nan}", "configs/c.yml: search.threshold: '.nan' is not a number (default: 0.8)"),
        (
            "search: {threshold: 1e999}",
            "configs/c.yml: search.threshold: Infinity is not a finite number (default: 0.8)",
        ),
        (
            "tasks: [ioi]",
            "configs/c.yml: tasks: defines tasks by name, in a block of keys; which to run stands in task",
        ),
        ("eap: 3", "configs/c.yml: eap: 3 is not a block of keys (default: a block of keys)"),
        (
            "dtype: float31",
            "configs/c.yml: dtype: 'float31' is not 'float32', 'bfloat16' or 'float16'; "
            "did you mean 'float32'? (default: 'float32')",
        ),
        (
            "rule: gaus-legendre",
            "configs/c.yml: rule: 'gaus-legendre' is not 'left' or 'gauss-legendre'; "
            "did you mean 'gauss-legendre'? (default: 'left')",
        ),
    ],
)
def test_a_refused_key_is_named_with_its_file_value_and_way_out(line: str, told: str, write: Any) -> None:
    assert errors_of(write(f"{START}{line}\n")) == [told]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("batch_sise=3", "command line: batch_sise: unknown key; did you mean 'batch_size'?"),
        ("eap.ig_steps=0", "command line: eap.ig_steps: 0 is not a number > 0 (default: 30)"),
        ("eap={ig_steps: 0}", "command line: eap.ig_steps: 0 is not a number > 0 (default: 30)"),
        ("checkpoints.x=3", "command line: checkpoints.x: checkpoints is 'all' and has no key 'x'"),
        ("seed", "command line: 'seed' is not an override; write it as key=value, for example seed=1"),
        ("=3", "command line: '=3' is not an override; write it as key=value, for example seed=1"),
        (
            "checkpoints=[1",
            "command line: checkpoints: line 1, column 3: not valid YAML (expected ',' or ']', but got '<stream end>')"
            "; check quotes, brackets, indents",
        ),
    ],
)
def test_a_refused_override_names_the_command_line(override: str, told: str, write: Any) -> None:
    assert errors_of(write(START + "checkpoints: all\n"), override) == [told]


def test_each_refused_key_has_its_own_line(write: Any) -> None:
    assert errors_of(write(START + "sede: 3\nbatch_size: 0\n"), "dtpye=float16") == [
        "configs/c.yml: batch_size: 0 is not a number > 0 (default: 32)",
        "configs/c.yml: sede: unknown key; did you mean 'seed'?",
        "command line: dtpye: unknown key; did you mean 'dtype'?",
    ]


def test_a_missing_key_says_where_to_write_it(write: Any) -> None:
    way_out = "missing; write it in the config or pass model=... on the command line"
    assert errors_of(write("task: ioi")) == [f"configs/c.yml: model: {way_out}"]
    assert errors_of(None, "task=ioi") == [f"command line: model: {way_out}"]


NOT_READ = "is not read; leave it out (text may stand in quotes)"
# Ten values, and lists of ten aliases of the list before.
BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in itertools.pairwise("abcdefgh")
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seed: 1\nmodel: a\nseed: 2\n", "configs/c.yml: seed: given twice (again on line 3); keep one"),
        ("eap:\n  sizes: [1]\n  sizes: [2]\n", "configs/c.yml: eap.sizes: given twice (again on line 3); keep one"),
        ("1: 3\n", "configs/c.yml: line 1: key 1 is not text; put it in quotes"),
        ("[a]: 3\n", "configs/c.yml: line 1: key [...] is not text; put it in quotes"),
        ("- a\n", "configs/c.yml: holds no keys; write lines like 'model: pythia-160m'"),
        (
            "a: b: c\n",
            "configs/c.yml: line 1, column 5: a: not valid YAML (mapping values are not allowed here); "
            "check quotes, brackets, indents",
        ),
        ("eap: {ig_steps: !!int 3}", f"configs/c.yml: eap.ig_steps: the tag !!int {NOT_READ}"),
        ("eap:\n  sizes: [1, !x 2]", f"configs/c.yml: eap.sizes[1]: the tag !x {NOT_READ}"),
        (f"seed: {'9' * 5000}", "configs/c.yml: a number has too many digits; write a smaller one"),
        (BOMB, "configs/c.yml: e[7]: more than 100,000 values, aliases written out; write fewer"),
        ("a: &x [*x]\n", "configs/c.yml: a[0]: an alias (*) is inside the value it names; write the value out"),
    ],
)
def test_a_file_that_is_no_config_is_refused(text: str, told: str, write: Any) -> None:
    assert errors_of(write(text)) == [told]


def test_tags_that_make_objects_are_refused(write: Any) -> None:
    (line,) = errors_of(write("model: !!python/object/apply:os.getcwd []\n"))
    assert line == f"configs/c.yml: model: the tag !!python/object/apply:os.getcwd {NOT_READ}"


def test_a_missing_file_suggests_a_neighbour(write: Any) -> None:
    write(START)
    Path("configs/ioi_160m.yml").write_text(START)
    assert errors_of(Path("configs/ioi_16m.yml")) == ["configs/ioi_16m.yml: no such file; did you mean 'ioi_160m.yml'?"]
    assert errors_of(Path("cfg/ioi.yml")) == ["cfg/ioi.yml: no such file; the folder cfg is missing too"]


def test_a_file_that_is_not_text_is_refused(write: Any) -> None:
    path = write("")
    path.write_bytes(b"model: \xff\xfe\n")
    assert errors_of(path) == ["configs/c.yml: not UTF-8 text; save it as UTF-8"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("5E2", 500.0),
        (".5", 0.5),
        ("012", 12),
        ("0x10", 16),
        ("143_000", 143_000),
        ("1:30", "1:30"),
        ("on", "on"),
        ("no", "no"),
        ("true", True),
        ("2024-01-01", "2024-01-01"),
        ("'12'", "12"),
        ("", None),
        ("null", None),
        ("[1, 2]", [1, 2]),
    ],
)
def test_yaml_values_have_the_types_of_yaml_1_2(text: str, value: Any) -> None:
    (name,), read = parse_override(f"key={text}")
    assert name == "key"
    assert read == value
    assert type(read) is type(value)


# JSON writes what lies beyond as two escapes, which YAML does not join.
TEXT = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]))
# YAML reads no key of more than 1,024 characters, and an escape is six.
KEYS = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=100)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(KEYS, values, max_size=3),
    max_leaves=8,
)


@given(PLAIN)
def test_every_plain_value_survives_an_override(value: Any) -> None:
    assert parse_override(f"key={json.dumps(value)}") == (("key",), value)


@given(st.dictionaries(st.text("abcdefgh_", min_size=1), st.integers() | st.text("xyz:,[]{}#'\" ", max_size=8)))
def test_what_pyyaml_writes_is_read_back(tmp_path_factory: pytest.TempPathFactory, value: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "written.yml"
    path.write_text(yaml.safe_dump(value))
    assert read_yaml(path) == value


def test_settings_leave_out_what_changes_no_result() -> None:
    config = load_config(Circuits, None, ["model=a", "task=ioi", "plot=all", "device=cpu", "eap.ig_steps=5"])
    assert result_settings(config.of_task("ioi")) == {
        "dtype": "float32",
        "seed": 0,
        "tokens_per_step": None,
        "revisions": None,
        "n_prompts": 100,
        "prepend_bos": "auto",  # only the config of one model knows
        "ioi_corruption": "swap",
        "prompt_set": "standard",
        "metric": None,
        "answers_as": "text",
        "eap.ig_steps": 5,
        "eap.sizes": [10, 20],
        "search": None,
        "export_json": False,
        "rule": "left",
    }


def test_a_name_with_a_method_is_the_tasks_with_it_and_others_are_whole() -> None:
    assert task_and_method("ioi") == ("ioi", "eap_ig")
    assert task_and_method("ioi@relp") == ("ioi", "relp")
    assert task_and_method("ioi@eap+mean") == ("ioi", "eap+mean")
    assert task_and_method("my@list@eap") == ("my@list", "eap")
    for name in ("my@list", "@eap", "ioi@", "ioi@eap_ig", "ioi@eap+relp"):
        assert task_and_method(name) == (name, "eap_ig")


def test_a_name_says_all_that_is_unusual_in_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "size", ("small", "large"))
    monkeypatch.setitem(VARIANTS, "twice", (False, True))
    keys = {"twice": True, "size": "large", "eap.method": "eap"}
    for some, name in (({}, ""), ({"size": "large"}, "large"), ({"twice": True}, "twice"), (keys, "eap+large+twice")):
        usual = {key: values[0] for key, values in VARIANTS.items()}
        assert variant_name(some) == variant_name(usual | some) == name
        assert task_and_method(f"ioi@{name}" if name else "ioi") == ("ioi", name or "eap_ig")
        assert variant_keys(name) == some
    for name in ("ioi@large+eap", "ioi@eap+small", "ioi@True", "ioi@size"):
        assert task_and_method(name) == (name, "eap_ig")


def test_what_a_task_has_by_default_may_be_written_out() -> None:
    given = ["model=a", "task=[ioi, x/own.csv]"]
    config, written = (load_config(TaskConfig, None, [*given, *more]) for more in ([], ["n_prompts=100"]))
    assert result_settings(config.of_task("ioi")) == result_settings(written.of_task("ioi"))
    own = result_settings(config.of_task("own"))
    assert (own["n_prompts"], own["metric"]) == (None, "logit_diff")
    assert own == result_settings(load_config(TaskConfig, None, [*given, "metric=logit_diff"]).of_task("own"))
    assert own != result_settings(written.of_task("own"))


def test_a_resolved_config_can_be_loaded_again(write: Any) -> None:
    config = load_config(Circuits, write(START), ["eap.ig_steps=5", "search={threshold: 0.5}"])
    again = write(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(Circuits, again, []) == config


@pytest.mark.parametrize(
    ("names", "told"), [("[]", "the name is empty"), ("''", "the name is empty"), ("[a, a]", "'a' is listed twice")]
)
def test_names_are_neither_empty_nor_repeated(names: str, told: str) -> None:
    assert errors_of(None, f"model={names}", "task=ioi") == [f"command line: model: {told}"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            "seed: 9223372036854775808",
            "seed: 9223372036854775808 is not a number >= 0 and <= 9223372036854775807 "
            "(default: 0); generators of random numbers take 63 bits",
        ),
        (
            "n_prompts: 1000000",
            "n_prompts: 1000000 is not a number > 0 and <= 100000 (default: null); more would take more "
            "memory or time than there is",
        ),
        ("checkpoints: [5, 5]", "checkpoints: 5 is listed twice"),
        ("stages: []", "stages: the list is empty"),
        ("device: gpu", "device: 'gpu' is not a device; write auto, cpu, cuda, cuda:1 or mps"),
        ("results_dir: ''", "results_dir: the name is empty; write . for the folder at hand"),
        ("results_dir: /", "results_dir: '/' is the root of the file system; name a folder in it"),
        (
            "results_dir: configs/c.yml/x",
            "results_dir: 'configs/c.yml/x': configs/c.yml is a file, not a folder; name another folder",
        ),
        (f"results_dir: {'a' * 300}", f"results_dir: '{'a' * 300}': file name too long; name another folder"),
        ("model: ~nobody_at_all/x", "model: '~nobody_at_all/x': there is no such home folder; write the path out"),
        ("workers: 3", "workers: has no effect with executor=local; it needs ray or slurm"),
        ("slurm: {minutes: 3}", "slurm: has no effect with executor=local; it needs slurm"),
        ("cpus_per_checkpoint: 1000", f"cpus_per_checkpoint: 1000 is more than the {os.cpu_count()} cores here"),
        ('seed: "\\ud800"', "seed: holds \\0 or half a character, which no name has; remove it"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_with_the_range_that_does(line: str, told: str, write: Any) -> None:
    name = line.partition(":")[0]
    lines = START.splitlines(keepends=True)
    path = write("".join(one for one in lines if not one.startswith(f"{name}:")) + line + "\n")
    assert errors_of(path) == [f"configs/c.yml: {told}"]


def test_a_home_folder_is_written_out_wherever_a_path_stands(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    path = write("model: [~/family, pythia-14m]\ntask: ~/rows.csv\nresults_dir: ~/results\n")
    config = load_config(TaskConfig, path, ["cache_dir=~/cache"])
    assert config.models == ["/home/ada/family", "pythia-14m"]
    assert config.task_names == ["/home/ada/rows.csv"]
    assert (config.results_dir, config.cache_dir) == (Path("/home/ada/results"), Path("/home/ada/cache"))


class Shape(Section):
    width: int = key(8, ge=1)
    heads: int = key(2, ge=1)
    rule: Literal["left", "right"] = "left"
    sharpness: float = key(1.0, only_with=("rule", "right"))

    @model_validator(mode="after")
    def _divides(self) -> Shape:
        if self.width % self.heads:
            raise ValueError(f"width: {self.width} is not a multiple of heads={self.heads}; make it one")
        return self


class Shaped(BaseConfig):
    shape: Shape = Shape()
    pair: tuple[float, float] = (0.9, 0.98)


def test_a_check_of_several_keys_names_one_with_its_block(write: Any) -> None:
    told = "shape.width: 9 is not a multiple of heads=2; make it one"
    assert errors_of(write("model: a\nshape: {width: 9}\n"), schema=Shaped) == [f"configs/c.yml: {told}"]
    assert errors_of(write("model: a\n"), "shape.width=9", schema=Shaped) == [f"command line: {told}"]


def test_a_pair_of_one_says_what_is_missing(write: Any) -> None:
    told = "configs/c.yml: pair[1]: missing; pair is a list of 2"
    assert errors_of(write("model: a\npair: [0.9]\n"), schema=Shaped) == [told]


def test_a_key_that_is_right_and_unread_is_said(write: Any, caplog: pytest.LogCaptureFixture) -> None:
    load_config(Shaped, write("model: a\nshape: {sharpness: 2.0}\n"), [])
    assert caplog.messages == ["shape.sharpness: is not read with rule=left; it needs right"]
    caplog.clear()
    load_config(Shaped, write("model: a\nshape: {sharpness: 2.0, rule: right}\n"), [])
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("schema", "overrides", "told"),
    [
        (Circuits, ["task=sva", "metric=prob_diff"], ["metric: is not read without a prompts CSV among the tasks"]),
        (Circuits, ["task=[sva, prompts/own.CSV]", "metric=prob_diff"], []),
        (Circuits, ["task=sva", "ioi_corruption=abc"], ["ioi_corruption: is not read without ioi among the tasks"]),
        (Circuits, ["task=[sva, ioi]", "ioi_corruption=abc"], []),
        (
            CircuitsConfig,
            ["task=ioi", "redraw_prompts=true", "search={grid: study, sizes: [5]}"],
            [
                "search.grid: is not read with sizes: exactly those are evaluated",
                "redraw_prompts: is not read without greater_than or sva among the tasks",
            ],
        ),
        (CircuitsConfig, ["task=[ioi, sva]", "redraw_prompts=true", "search.grid=study"], []),
        (
            IoiConsistencyConfig,
            ["definitions=frozen", "thresholds.negative_copy_score=20"],
            ["thresholds.negative_copy_score: is not read with definitions=frozen; it needs standard or study"],
        ),
        (IoiConsistencyConfig, ["thresholds.negative_copy_score=20"], []),
        (
            CircuitsConfig,
            ["task=ioi", "ablation=zero", "eap.tolerance=1"],
            [
                "eap.tolerance: is not read with eap.ig_steps=auto, which means 20 with this method, quadrature, "
                "accumulate or ablation"
            ],
        ),
        (CircuitsConfig, ["task=ioi", "eap.tolerance=1"], []),
        (CircuitsConfig, ["task=ioi", "eap.quadrature=midpoint"], []),
        (CircuitsConfig, ["task=ioi", "eap.ig_steps=auto"], []),
        (CircuitsConfig, ["task=ioi", "eap={method: eap, ig_steps: 7}"], ["eap.ig_steps: is not read with method=eap"]),
        *((CircuitsConfig, ["task=ioi", f"eap.method={method}"], []) for method in get_args(Method)),
    ],
)
def test_a_key_that_the_tasks_or_definitions_do_not_read_is_said(
    schema: Any, overrides: list[str], told: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    load_config(schema, None, ["model=a", *overrides])
    assert [message[: len(line)] for message, line in zip(caplog.messages, told, strict=True)] == told


def ends(path: Path, failure: BaseException, capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
    """What a script says that fails after its config was read."""

    @script
    def main() -> int:
        read_command_line("main.py", Circuits, ["-c", str(path), *overrides])
        raise failure

    assert main() == 2
    return capsys.readouterr().err


def test_an_error_of_later_names_the_file_that_the_key_comes_from(
    write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(START + "eap: {ig_steps: 7}\n")
    assert ends(path, UserError("eap.ig_steps: 7 is odd"), capsys) == "configs/c.yml: eap.ig_steps: 7 is odd\n"
    assert ends(path, UserError("eap.ig_steps: 9 is odd"), capsys, "eap.ig_steps=9") == "eap.ig_steps: 9 is odd\n"
    assert ends(path, UserError("seed: 0 is even"), capsys) == "seed: 0 is even\n"


def test_what_memory_or_files_refuse_is_one_line(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(START)
    assert ends(path, MemoryError(), capsys) == (
        "not enough memory (MemoryError); ask for less, or for smaller batches\n"
    )
    allocator = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    assert ends(path, allocator, capsys).startswith("not enough memory ([enforce fail] DefaultCPUAllocator")
    gone = FileNotFoundError(2, "No such file or directory", "/proc/x")
    assert ends(path, gone, capsys) == (
        "/proc/x: No such file or directory; name another file or folder, or put this right\n"
    )
    with pytest.raises(RuntimeError, match="a fault of ours"):
        ends(path, RuntimeError("a fault of ours"), capsys)


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "std::bad_alloc",
    ],
)
def test_what_runs_out_beside_the_allocator_is_memory_too(text: str) -> None:
    assert is_out_of_memory(RuntimeError(text))
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))


def test_names_of_models_stay_text_where_they_look_like_numbers() -> None:
    assert load_config(BaseConfig, None, ["model=[007, 1e5]"]).models == ["007", "1e5"]
    assert parse_override("seeds={a: [20240611]}")[1] == {"a": ["20240611"]}
    assert parse_override("model={n_layers: 4}")[1] == {"n_layers": 4}
