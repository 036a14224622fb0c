"""Settings: values are converted and checked by name, and settings files contain values only."""

import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml

import selfvox
from selfvox.data.sources import source_names
from selfvox.errors import UsageError
from selfvox.functions import OBJECTS
from selfvox.models.build import encoder_names
from selfvox.settings import safe_yaml, verbs
from selfvox.settings.options import as_dict, options, resolve, to_yaml

PRETRAIN = {"scans": "s", "out": "o"}
FINETUNE = {"labelled": "s", "out": "o", "encoder": "none"}
PREDICT = {"run": "r", "scans": "s", "out": "o"}


@dataclass(frozen=True, kw_only=True)
class Toy:
    """Settings of a task that does not exist."""

    temperature: Annotated[float, "softness"] = 0.1
    channels: Annotated[tuple[int, ...], "widths"] = (1, 2)
    kind: Annotated[Literal["hard", "soft"], "which"] = "soft"
    flip: Annotated[bool, "mirror"] = False
    name: Annotated[str | None, "what it is called"] = "toy"


def test_text_becomes_the_type_of_the_option():
    toy = resolve(Toy, {"temperature": "1e-3", "channels": "16, 32", "flip": "yes", "name": "None"})
    assert toy == Toy(temperature=1e-3, channels=(16, 32), flip=True, name=None)
    assert resolve(Toy, {"channels": 8}).channels == (8,)
    assert resolve(Toy, {"channels": "8"}).channels == (8,)
    assert resolve(Toy, as_dict(toy)) == toy


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert resolve(verbs.Demo, {"out": "~/demo"}).out == Path("/home/someone/demo")


def test_a_run_that_python_returned_is_taken_wherever_its_name_is(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert resolve(verbs.Finetune, FINETUNE | {"encoder": Path("runs/a")}).encoder == "runs/a"
    assert resolve(verbs.Study, {"plan": Path("plan.yaml"), "out": "o"}).plan == "plan.yaml"
    for values in (Path("~/a"), [Path("~/a")], "~/a", ["~/a"]):
        assert resolve(verbs.Predict, PREDICT | {"ensemble": values}).ensemble == (
            Path("/home/someone/a"),
        )
    with pytest.raises(UsageError, match=r"^ensemble: is empty or not a path"):
        resolve(verbs.Predict, PREDICT | {"ensemble": "a,"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temprature": 1}, r"task\.temprature: no such setting; did you mean 'temperature'\?"),
        ({3: 1}, r"task\.3: no such setting"),
        ({"kind": "sofd"}, r"task\.kind: 'sofd' is not a choice; did you mean 'soft'\?"),
        ({"kind": False}, r"task\.kind: 'False' is not a choice; known: hard, soft"),
        (
            {"temperature": "warm"},
            r"task\.temperature: 'warm' should be a valid number \(softness\)",
        ),
        ({"temperature": True}, r"task\.temperature: takes a number, not yes"),
        ({"channels": "1,b"}, r"task\.channels: '1,b' should be a valid integer"),
        ({"temperature": [1, 2]}, r"task\.temperature: '\[1, 2\]' should be a valid number"),
        ({"flip": "perhaps"}, r"task\.flip: 'perhaps' should be a valid boolean"),
    ],
)
def test_a_refusal_names_the_option_and_what_it_takes(values, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        resolve(Toy, values, prefix="task.")


@pytest.mark.fault("C13", "numbers out of range in every verb", "refused by name")
@pytest.mark.parametrize(
    ("verb", "base", "values"),
    [
        *(
            (verbs.Pretrain, PRETRAIN, {name: 0})
            for name in ("steps", "batch", "accumulate", "save_every", "devices")
        ),
        *((verbs.Pretrain, PRETRAIN, {"learning_rate": rate}) for rate in (0, -1, "nan", "inf")),
        *((verbs.Pretrain, PRETRAIN, {"epochs": epochs}) for epochs in (0, -1, "nan", "inf")),
        *((verbs.Pretrain, PRETRAIN, {"seed": seed}) for seed in (-1, 2**63, 0.5)),
        *(
            (verbs.Pretrain, PRETRAIN, {"crop": crop})
            for crop in ("64,0", "64,-1,2", "1,2,3,4", "", "4.5,4")
        ),
        *(
            (verbs.Pretrain, PRETRAIN, {"spacing": mm})
            for mm in ("1,0,1", "1,nan,1", "-1,1,1", "inf,1")
        ),
        *((verbs.Pretrain, PRETRAIN, {"intensity": kind}) for kind in ("mri,tc", "", "MRI")),
        *((verbs.Finetune, FINETUNE, {"fraction": share}) for share in (0, 1.01, -0.5, "nan")),
        *((verbs.Finetune, FINETUNE, {"warmup": share}) for share in (-0.1, 1.1, "nan")),
        *((verbs.Finetune, FINETUNE, {name: 0}) for name in ("labels", "steps", "validate_every")),
        *((verbs.Predict, PREDICT, {"overlap": share}) for share in (-0.1, 1, "nan")),
        (verbs.Pretrain, PRETRAIN, {"weight_decay": -1}),
        (verbs.Pretrain, PRETRAIN, {"workers": -1}),
        (verbs.Prepare, PRETRAIN, {"test": -1}),
        (verbs.Pretrain, PRETRAIN, {"out": ""}),
        (verbs.Pretrain, PRETRAIN, {"scans": "a\0b"}),
    ],
)
def test_values_out_of_range_are_refused_by_name(verb, base, values):
    resolve(verb, base)
    with pytest.raises(UsageError, match=f"^{next(iter(values))}: "):
        resolve(verb, base | values)


@pytest.mark.parametrize(
    ("verb", "values"),
    [
        (
            verbs.Pretrain,
            PRETRAIN | {"steps": 1, "epochs": 0.5, "first": "steps", "second": "epochs"},
        ),
        (
            verbs.Pretrain,
            PRETRAIN | {"size": "9,9", "spacing": "1,1", "first": "size", "second": "spacing"},
        ),
        (
            verbs.Finetune,
            FINETUNE | {"labels": 3, "fraction": 0.5, "first": "labels", "second": "fraction"},
        ),
        (
            verbs.Finetune,
            FINETUNE | {"steps": 1, "epochs": 0.5, "first": "steps", "second": "epochs"},
        ),
        (
            verbs.Finetune,
            FINETUNE | {"size": "9,9", "spacing": "1,1", "first": "size", "second": "spacing"},
        ),
    ],
)
def test_two_options_for_one_thing_are_refused_together_and_accepted_alone(verb, values):
    first = values.pop("first")
    second = values.pop("second")
    with pytest.raises(UsageError, match=f"^{first} and {second}: give one of them, not both$"):
        resolve(verb, values)
    for omitted in (first, second):
        resolve(verb, {name: value for name, value in values.items() if name != omitted})


@pytest.mark.parametrize(
    ("freeze", "refused"),
    [
        ("warmup", ()),
        ("never", ("warmup", "schedule")),
        ("always", ("warmup", "schedule", "encoder_lr")),
        ("lora", ("warmup", "schedule", "encoder_lr")),
    ],
)
def test_rates_of_an_encoder_that_is_not_released_are_refused(freeze, refused):
    for name, value in {"warmup": 0.2, "schedule": "sawtooth", "encoder_lr": 0.3}.items():
        values = {**FINETUNE, "freeze": freeze, name: value}
        if name in refused:
            with pytest.raises(UsageError, match=f"^{name}: has no effect with --freeze {freeze}"):
                resolve(verbs.Finetune, values)
        else:
            assert resolve(verbs.Finetune, values).freeze == freeze


def test_settings_survive_yaml(tmp_path):
    original = resolve(
        verbs.Pretrain, PRETRAIN | {"crop": "8,8", "task": {"name": "simclr", "temperature": 0.1}}
    )
    (tmp_path / "settings.yaml").write_text(to_yaml(original))
    assert resolve(verbs.Pretrain, safe_yaml.read_yaml(tmp_path / "settings.yaml")) == original


@pytest.mark.fault("C14 X9", "tags that run code, anchors, bombs, nesting", "refused, nothing runs")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system ['touch canary']", "tag"),
        ("a: !!python/name:os.system", "tag"),
        ("a: &x [1]\nb: *x", "anchor"),
        ("<<: *x", "alias"),
        ("a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]", "anchor"),
        ("a: 1\na: 2", "'a' is given twice"),
        ("[1, 2]", "contains no settings"),
        ("", "contains no settings"),
        ("a: [", "not plain YAML"),
        ("a: " + "[" * 100_000, "nested too deeply"),
        ("a: " + "9" * 5000, "not plain YAML"),
        ("a: 2020-13-45", "not plain YAML"),
        ("a\0b: 1", "not plain YAML"),
        ("? [a]\n: b", "not plain YAML"),
    ],
)
def test_yaml_that_is_more_than_values_is_refused_in_one_line(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("settings.yaml").write_text(text)
    with pytest.raises(UsageError, match=message) as refusal:
        safe_yaml.read_yaml(Path("settings.yaml"))
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).startswith("settings.yaml: ")
    assert not Path("canary").exists()


@pytest.mark.fault("C14m", "YAML of megabytes, other encodings", "refused")
def test_a_settings_file_is_utf8_of_bounded_size(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_bytes(b"\xef\xbb\xbfout: \xc3\xa4\r\nseed: 1\r\n")
    assert safe_yaml.read_yaml(file) == {"out": "ä", "seed": 1}
    file.write_bytes("out: ä".encode("utf-16"))
    with pytest.raises(UsageError, match="cannot be read"):
        safe_yaml.read_yaml(file)
    file.write_bytes(b"a: " + b"x" * safe_yaml.MAX_BYTES)
    with pytest.raises(UsageError, match="larger than"):
        safe_yaml.read_yaml(file)
    with pytest.raises(UsageError, match="cannot be read"):
        safe_yaml.read_yaml(tmp_path)


@pytest.mark.fault("X9", "`_target_`, `class_path`, `$import`", "refused as unknown")
@pytest.mark.parametrize(
    "hostile",
    [
        "{_target_: os.system}",
        "{out: o, class_path: os.system}",
        "{$import: os}",
        "{scans: s, out: o, _target_: x}",
    ],
)
def test_keys_that_would_run_code_elsewhere_are_unknown_here(hostile, tmp_path):
    (tmp_path / "settings.yaml").write_text(hostile)
    with pytest.raises(UsageError, match="no such setting"):
        resolve(verbs.Pretrain, safe_yaml.read_yaml(tmp_path / "settings.yaml"))


@pytest.mark.fault("X9", "`${oc.env:SECRET}` and others", "taken literally")
def test_nothing_is_looked_up_in_the_environment(monkeypatch):
    monkeypatch.setenv("SECRET", "canary")
    for text in ("${oc.env:SECRET}", "$SECRET", "${SECRET}"):
        assert str(resolve(verbs.Demo, {"out": text}).out) == text


@pytest.mark.parametrize("name", verbs.VERBS)
def test_a_public_function_has_the_arguments_and_defaults_of_its_settings(name):
    verb = getattr(selfvox, name)
    by_name = {option.name: option for option in options(verb.settings)}
    parameters = inspect.signature(verb).parameters
    objects = OBJECTS.get(name, {})  # which Python alone takes
    assert list(parameters) == [*by_name, *objects]
    for parameter in list(parameters.values())[: len(by_name)]:
        option = by_name[parameter.name]
        assert not isinstance(parameter.annotation, str)
        if option.required:
            assert parameter.default is inspect.Parameter.empty
        else:
            assert parameter.default == option.default


def test_a_public_function_refuses_before_it_imports():
    with pytest.raises(UsageError, match="did you mean 'batch'"):
        selfvox.pretrain("s", out="o", bacth=3)
    with pytest.raises(UsageError, match="out: is required"):
        selfvox.pretrain("s")
    with pytest.raises(TypeError):
        selfvox.pretrain("s", "o")
    with pytest.raises(TypeError):
        selfvox.pretrain("s", scans="s", out="o")


def test_printed_yaml_has_the_help_of_each_setting():
    shown = to_yaml(resolve(verbs.Predict, PREDICT))
    assert yaml.safe_load(shown) == as_dict(resolve(verbs.Predict, PREDICT))
    for option in options(verbs.Predict):
        assert f"  # {option.help}\n" in shown


@pytest.mark.parametrize(
    "text", ["4/4", "5/4", "-1/4", "1", "1/", "/4", "1/2/3", "a/b", "", "0/0", "0.5/2"]
)
def test_a_shard_is_a_number_below_a_count(text):
    with pytest.raises(UsageError, match=r"^shard: invalid shard '.*'; use I/N"):
        resolve(verbs.Study, {"plan": "p", "out": "o", "shard": text})
    assert verbs.parse_shard("3/4") == (3, 4)
    assert resolve(verbs.Study, {"plan": "p", "out": "o", "shard": "0/1"}).shard == "0/1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2-5", "invalid fold '2-5'; use K/N"),
        ("0/5", "invalid fold '0/5'; use K/N"),
        ("6/5", "6/5 is beyond the last fold; use 1/5 to 5/5"),
    ],
)
def test_a_fold_is_one_of_its_count(text, message):
    with pytest.raises(UsageError, match=f"^fold: {message}"):
        resolve(verbs.Finetune, FINETUNE | {"fold": text})
    assert resolve(verbs.Finetune, FINETUNE | {"fold": "5/5"}).fold == "5/5"


def test_the_help_lists_every_source():
    text = next(option.help for option in options(verbs.Prepare) if option.name == "source")
    listed = re.sub(r" \(or [^)]*\)", "", text.partition(": ")[2]).replace(" or ", ", ").split(", ")
    assert listed == ["auto", *source_names()]


def test_the_help_lists_every_encoder_and_map():
    by_name = {option.name: option.help for option in options(verbs.Predict)}
    assert by_name["maps"].endswith(": " + ", ".join(verbs.MAPS))
    network = next(option.help for option in options(verbs.Pretrain) if option.name == "network")
    for name in encoder_names():
        assert name in network


def test_the_defaults_of_a_single_pass_are_accepted_when_spelled_out():
    spelled_out = {"encoder_dropout": None, "decoder_dropout": None, "dropout_kind": None}
    assert resolve(verbs.Predict, PREDICT | spelled_out) == resolve(verbs.Predict, PREDICT)


def test_none_is_a_choice_where_it_is_one_and_else_the_default():
    required = {"labelled": "scans", "out": "run", "encoder": "none"}
    assert resolve(verbs.Finetune, {**required, "augment": "none"}).augment == "none"
    assert resolve(verbs.Finetune, {**required, "slices": "none"}).slices is None
