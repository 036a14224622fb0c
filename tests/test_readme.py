"""README and docs agree with the code: links, commands, examples, generated parts, messages."""

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import yaml

import selfvox
from selfvox import errors, tasks
from selfvox.cli import VERBS, main
from selfvox.data import phantom
from selfvox.settings.options import options, resolve
from selfvox.settings.verbs import DEFAULT_TASK

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
DOCS = ROOT / "docs"
PAGES = [README, CONTRIBUTING, ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
TINY = ["--crop", "16,16,16", "--device", "cpu", "--steps", "2", "--batch", "2"]

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language, without their indentation."""
    matches = re.findall(
        rf"^( *)```{language}\n(.*?)^\1```",
        page.read_text(encoding="utf-8"),
        re.DOTALL | re.MULTILINE,
    )
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in matches]


def commands(page: Path) -> list[list[str]]:
    """The shell commands of a page as lists of words; a backslash continues a line."""
    return [
        shlex.split(line, comments=True)
        for block in blocks(page, "bash")
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]


def selfvox_commands(page: Path) -> list[list[str]]:
    """The selfvox commands of a page, without the word `selfvox`."""
    return [words[1:] for words in commands(page) if Path(words[0]).name == "selfvox"]


def generator():
    """The script docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@every_page
def test_generated_parts_equal_the_code(page):
    text = page.read_text(encoding="utf-8")
    assert generator().fill(text) == text, "run `make docs-text`"


def test_generating_replaces_a_text_that_differs_from_the_code():
    text = "before\n<!-- begin: exit-codes -->\noutdated\n<!-- end: exit-codes -->\nafter"
    filled = generator().fill(text)
    assert "outdated" not in filled
    assert filled.startswith("before\n")
    assert filled.endswith("\nafter")
    assert generator().fill(filled) == filled


def test_the_file_tree_lists_every_module_once():
    listed = generator().tree("")
    modules = [path.name for path in (ROOT / "src").rglob("*.py") if path.name != "__init__.py"]
    for name in set(modules):
        assert len(re.findall(rf"^ +{re.escape(name)}(?: |$)", listed, re.MULTILINE)) == (
            modules.count(name)
        )


def test_every_module_says_in_its_first_line_what_it_is_for():
    lines = generator().tree("").splitlines()[2:-1]
    alone = {line.strip() for line in lines if len(line.split(maxsplit=1)) < 2}
    # folders without modules, and the library of somebody else
    assert alone == {"presets/", "assets/", "templates/", "niivue/", "niivue.umd.js"}


def test_the_pages_contain_each_kind_of_generated_part():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert set(re.findall(r"<!-- begin: ([\w-]+)", text)) == set(generator().GENERATORS)


@every_page
def test_every_link_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if ":" not in link and not (page.parent / link).exists()] == []


@every_page
def test_every_row_of_a_table_follows_a_heading(page):
    text = re.sub(
        r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert [table for table in tables if not re.match(r".*\n\|[-:| ]+\|\n", table)] == []


@every_page
def test_every_selfvox_command_is_accepted(page, capsys, monkeypatch, tmp_path):
    run = tmp_path / "runs" / "pretrained"
    run.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for verb, *arguments in selfvox_commands(page):
        (run / "settings.yaml").write_text("task: simclr\n")  # for --config
        assert main([verb, "--print-config", *arguments]) == 0, [verb, *arguments]
        resolved = yaml.safe_load(capsys.readouterr().out)
        if "task" in resolved:
            tasks.task_from_setting(resolved["task"])


def test_the_first_commands_and_the_help_follow_the_default_task(capsys):
    first = [
        (verb, arguments)
        for verb, *arguments in selfvox_commands(ROOT / "README.md")
        if verb in ("pretrain", "preview")
    ]
    examples = [
        line.split()[1:]
        for verb in ("pretrain", "preview")
        for line in (VERBS[verb].__doc__ or "").splitlines()
        if line.strip().startswith("selfvox ")
    ]
    first += [(verb, arguments) for verb, *arguments in examples]
    assert [verb for verb, _ in first] == ["preview", "pretrain", "pretrain", "preview"]
    for verb, arguments in first:
        assert "--task" not in arguments
        assert main([verb, "--print-config", *arguments]) == 0
        assert yaml.safe_load(capsys.readouterr().out)["task"] == DEFAULT_TASK
    text = (DOCS / "how-to" / "choose-a-task.md").read_text(encoding="utf-8")
    assert f"use [{DEFAULT_TASK}](../tasks/{DEFAULT_TASK}.md)" in text


@every_page
def test_every_make_target_and_script_exists(page):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in commands(page):
        if words[0] == "make":
            assert words[1] in targets
        elif Path(words[0]).name == "python" and words[1] != "-m":
            assert (ROOT / words[1]).exists()
        else:
            assert Path(words[0]).name in ("selfvox", "python", "pip", "ruff", "mypy", "torchrun")


@every_page
def test_every_python_call_of_a_command_takes_its_arguments(page):
    calls = [
        node
        for block in blocks(page, "python")
        if "import selfvox\n" in block
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).removeprefix("selfvox.") in VERBS
        and ast.unparse(node.func).startswith("selfvox.")
    ]
    for call in calls:
        verb = VERBS[call.func.attr]
        names = [option.name for option in options(verb) if option.positional]
        arguments = dict(zip(names, map(ast.literal_eval, call.args), strict=False))
        arguments |= {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        resolved = resolve(verb, arguments)
        if hasattr(resolved, "task"):
            tasks.task_from_setting(resolved.task)


def test_the_commands_of_the_readme_run_from_scans_to_scores(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    phantom.write(tmp_path / "labelled", kind="shapes", count=4)
    (tmp_path / "scans").symlink_to(tmp_path / "labelled" / "images")
    (tmp_path / "new_scans").symlink_to(tmp_path / "labelled" / "images")
    (tmp_path / "truth").symlink_to(tmp_path / "labelled" / "labels")
    small = {"preview": TINY[:2], "pretrain": TINY, "finetune": TINY, "predict": TINY[2:4]}
    lines = [words for words in selfvox_commands(README) if words[0] in VERBS]
    five = [words for words in lines if words[0] != "study"]
    assert [words[0] for words in five] == [
        "preview",
        "pretrain",
        "finetune",
        "predict",
        "evaluate",
    ]
    for words in five:
        assert main([*words, *small.get(words[0], [])]) == 0, words
    assert len(list((tmp_path / "predictions").glob("*.nii.gz"))) == 4
    assert (tmp_path / "scores.csv").exists()
    assert {words[1] for words in commands(README) if words[0] == "make"} == {"demo", "test"}


def test_the_python_examples_of_the_library_page_run(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    phantom.write(tmp_path / "scans", kind="shapes", count=4)
    small = "crop=(16, 16, 16), device='cpu', steps=2)"
    smaller = {
        "range(100)": "range(2)",
        "(32, 32, 32)": "(16, 16, 16)",
        "steps=2000)": f"network={{'channels': [4, 8]}}, {small}",
        'encoder="runs/rotation")': f'encoder="runs/rotation", {small}',
    }
    names: dict[str, object] = {}
    for block in blocks(DOCS / "how-to" / "use-as-a-library.md", "python"):
        code = block
        for text, replacement in smaller.items():
            code = code.replace(text, replacement)
        exec(compile(code, "use-as-a-library.md", "exec"), names)
    assert "[4, 8]" in capsys.readouterr().out  # the card shows the channels of the run


@pytest.mark.parametrize("name", tasks.task_names())
def test_every_task_has_a_page_with_its_options(name):
    shown = (DOCS / "tasks" / f"{name}.md").read_text(encoding="utf-8")
    for option in options(tasks.find_task(name)):
        assert f"| `--task.{option.name.replace('_', '-')}` |" in shown
        assert option.help.replace("|", "\\|") in shown
    assert f"tasks/{name}.md" in (ROOT / "mkdocs.yml").read_text()


@pytest.mark.parametrize("name", tasks.task_names())
def test_every_page_of_a_task_has_the_same_order(name):
    text = (DOCS / "tasks" / f"{name}.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings == [
        "What it asks",
        "Options",
        "What is logged",
        "How it can cheat",
        "Good to know",
        "Source",
    ]


def test_every_message_of_the_docs_is_one_of_the_code():
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    source = re.sub(r'"\n\s*f?"', "", source)  # literals that continue in the next line
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    table = page.split("| message |")[1].split("\n\n")[0]
    messages = [row.split("|")[1].strip(" `") for row in table.splitlines()[2:]]
    assert len(messages) > 5
    missing = [
        message
        for message in messages
        if not re.search(".{1,99}?".join(map(re.escape, message.split(" ... "))), source)
    ]
    assert missing == []


def test_the_exit_codes_of_the_docs_are_those_of_the_errors():
    shown = generator().exit_codes("")
    for error in (errors.UsageError, errors.DataError, errors.WeightsError, errors.ResourceError):
        assert f"| {error.exit_code} | {error.__doc__.splitlines()[0]} |" in shown


def avoided_words() -> list[str]:
    """The words that CONTRIBUTING.md asks to avoid: the first column of its table."""
    table = CONTRIBUTING.read_text(encoding="utf-8").split("| avoid |")[1].split("\n\n")[0]
    cells = [row.split("|")[1] for row in table.splitlines()[2:]]
    return [word for cell in cells for word in re.findall(r"`([^`]+)`", cell)]


@every_page
def test_no_page_uses_a_word_to_avoid(page):
    words = avoided_words()
    assert len(words) >= 20
    text = page.read_text(encoding="utf-8").split("| avoid |")[0]
    text = re.sub(
        r"<!-- begin.*?<!-- end.*?-->", " ", text, flags=re.DOTALL
    )  # the code's own words
    text = re.sub(r"^ *```.*?^ *```", " ", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`\n]*`", " ", text)
    used = [word for word in words if re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE)]
    assert used == []


def test_the_citation_names_this_version_and_both_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == selfvox.__version__
    references = citation["references"]
    assert [reference["authors"][0]["family-names"] for reference in references] == ["Taleb", "Ali"]
    readme = README.read_text(encoding="utf-8")
    assert all(reference["url"] in readme for reference in references)
