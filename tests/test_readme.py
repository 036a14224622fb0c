"""What the README and the docs say is so: files, links, commands, options and file formats."""

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import yaml

import selfvox
from selfvox import errors, tasks
from selfvox.cli import main
from selfvox.settings.options import options, resolve

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    found = re.findall(
        rf"^( *)```{language}\n(.*?)^\1```",
        page.read_text(encoding="utf-8"),
        re.DOTALL | re.MULTILINE,
    )
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


def commands(page: Path) -> list[list[str]]:
    return [
        shlex.split(line, comments=True)
        for block in blocks(page, "bash")
        for line in block.splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]


def tree() -> dict[str, str]:
    """Path -> remark, of the README's tree."""
    found, folders = {}, []
    for line in blocks(README, "tree")[0].splitlines():
        indent, name, remark = re.fullmatch(r"( *)(\S+) *(.*)", line).groups()
        folders[len(indent) // 2 :] = [name]
        found["".join(folders)] = remark
    return found


def hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_file_in_the_tree_exists():
    assert [path for path in tree() if not (ROOT / path).exists()] == []
    assert [path for path in tree() if (ROOT / path).is_dir() != path.endswith("/")] == []


def test_every_source_file_is_in_the_tree_with_a_remark():
    there = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "src").rglob("*")
        if path.suffix in (".py", ".typed", ".mplstyle")
    }
    listed = tree()
    assert {path for path in listed if path.startswith("src/") and not path.endswith("/")} == there
    assert [
        path
        for path, remark in listed.items()
        if not remark and not path.endswith(("/", "__init__.py"))
    ] == []


@every_page
def test_every_link_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if ":" not in link and not (page.parent / link).exists()] == []


@every_page
def test_every_row_of_a_table_stands_below_its_heading(page):
    text = re.sub(
        r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert [table for table in tables if not re.match(r".*\n\|[-:| ]+\|\n", table)] == []


@every_page
def test_every_selfvox_command_is_accepted(page, capsys, monkeypatch, tmp_path):
    run = tmp_path / "runs" / "simclr"
    run.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for words in commands(page):
        if Path(words[0]).name != "selfvox":
            continue
        (run / "settings.yaml").write_text("task: simclr\n")  # for --config
        assert main([words[1], "--print-config", *words[2:]]) == 0, words
        resolved = yaml.safe_load(capsys.readouterr().out)
        if "task" in resolved:
            tasks.task_from_setting(resolved["task"])


@every_page
def test_every_make_target_and_script_is_there(page):
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in commands(page):
        if words[0] == "make":
            assert words[1] in targets
        elif Path(words[0]).name == "python" and words[1] != "-m":
            assert (ROOT / words[1]).exists()
        else:
            assert Path(words[0]).name in ("selfvox", "python", "ruff", "mypy")


@every_page
def test_every_python_call_takes_the_arguments_it_is_given(page):
    calls = [
        node
        for block in blocks(page, "python")
        if "import selfvox\n" in block
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Call)
    ]
    for call in calls:
        verb = getattr(selfvox, call.func.attr)
        names = [option.name for option in options(verb.settings) if option.positional]
        given = dict(zip(names, map(ast.literal_eval, call.args), strict=False))
        given |= {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        resolved = resolve(verb.settings, given)
        if hasattr(resolved, "task"):
            tasks.task_from_setting(resolved.task)


def test_the_readme_shows_the_shortest_workflow():
    said = {words[1] for words in commands(README) if Path(words[0]).name == "selfvox"}
    assert {"pretrain", "finetune", "predict", "evaluate"} <= said
    assert {words[1] for words in commands(README) if words[0] == "make"} == {"demo", "test"}


@pytest.mark.parametrize("name", tasks.task_names())
def test_every_task_has_a_page_with_its_options(name):
    page = ROOT / "docs" / "tasks" / f"{name}.md"
    shown = hooks().on_page_markdown(page.read_text(encoding="utf-8"))
    for option in options(tasks.find_task(name)):
        assert f"| `--task.{option.name.replace('_', '-')}` |" in shown
        assert option.help in shown
    assert f"tasks/{name}.md" in (ROOT / "mkdocs.yml").read_text()


@every_page
def test_no_insert_is_left_in_a_page(page):
    assert "<!-- insert" not in hooks().on_page_markdown(page.read_text(encoding="utf-8"))


def test_every_refusal_of_the_docs_is_one_of_the_code():
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    source = re.sub(r'"\n\s*f?"', "", source)  # literals that go on in the next line
    table = (
        (ROOT / "docs" / "how-to" / "own-scans.md")
        .read_text(encoding="utf-8")
        .split("| what it says |")[1]
    )
    said = [row.split("|")[1].strip() for row in table.split("\n\n")[0].splitlines()[2:]]
    assert len(said) > 5
    for words in said:
        assert re.search(".{1,99}?".join(map(re.escape, words.split(" ... "))), source), words


def test_the_exit_codes_of_the_docs_are_those_of_the_errors():
    shown = hooks().exit_codes("")
    for error in (errors.UsageError, errors.DataError, errors.WeightsError, errors.ResourceError):
        assert f"| {error.exit_code} | {error.__doc__.splitlines()[0]} |" in shown


def test_the_citation_names_this_version_and_both_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == selfvox.__version__
    assert [reference["authors"][0]["family-names"] for reference in citation["references"]] == [
        "Taleb",
        "Ali",
    ]
