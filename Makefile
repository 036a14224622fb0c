# make demo | make test are all a newcomer needs; each installs what it lacks into .venv
PYTHON ?= python3
# a module is compiled when it is first imported; to compile all 20 000 takes a minute
PIP = .venv/bin/python -m pip install --quiet --no-compile --constraint constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# what was compiled is kept, also where a container's image says otherwise: torch alone takes seconds each time
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test fast fuzz reliability check stub wheel docs docs-text benchmarks clean

demo: .venv/demo
	.venv/bin/selfvox demo --out demo

test: .venv/dev
	.venv/bin/python -m pytest -n 2 --dist worksteal

# the tests that train nothing, in under a minute on two cores
fast: .venv/dev
	.venv/bin/python -m pytest -n 2 -m fast

# damaged files, at random: so many of each kind, with other seeds each time; failures name theirs
EXAMPLES ?= 2500
fuzz: .venv/dev
	FUZZ_EXAMPLES=$(EXAMPLES) .venv/bin/python -m pytest tests/fuzz

# docs/reliability.md: inject every fault that has a test, and write what happened; minutes
reliability: .venv/dev
	.venv/bin/python docs/reliability.py

check: .venv/dev .venv/docs
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/python -m pytest -n 2 --dist worksteal
	.venv/bin/mkdocs build --strict --quiet

# what type checkers see of the public functions
stub: .venv/dev
	.venv/bin/python tools/write_stub.py

# a wheel and an sdist in dist/; to install it: pip install torch==2.13.0, then the wheel
wheel: .venv/dev
	.venv/bin/python -m build --outdir dist .

docs: .venv/docs
	.venv/bin/mkdocs serve

# rewrite the generated parts of the pages: options, exit codes, plans, file tree, layers, Python functions
docs-text: .venv/dev
	.venv/bin/python docs/generate.py

# a benchmark fails where it misses its goal or the machine was too busy; the others run all the same
benchmarks: .venv/benchmarks
	@failed=0; for name in reading step_overhead views weight_layout; do \
	    .venv/bin/python benchmarks/$$name.py || failed=1; \
	done; exit $$failed

.venv/bin/python:
	$(PYTHON) -m venv .venv

# torch by itself and first: an exact version is found in a local wheel folder, if there is one
.venv/core: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) $$(grep '^torch==' constraints.txt)
	$(PIP) --editable .
	touch $@

.venv/demo: .venv/core
	$(PIP) --editable '.[demo]'
	touch $@

.venv/dev: .venv/core
	$(PIP) --editable '.[demo,dev,cluster,tissues,jpeg,dicom-seg,onnx,monai]'
	touch $@

.venv/docs: .venv/dev
	$(PIP) --editable '.[docs]'
	touch $@

.venv/benchmarks: .venv/dev
	$(PIP) --editable '.[benchmarks]'
	touch $@

clean:
	rm -rf .venv demo site dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
