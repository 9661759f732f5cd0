# make course and make test are all a new reader needs; each sets up .venv first if it is missing.

PROFILE ?= cpu
PYTHON ?= python3
# The machine that a real profile is planned for, of data/machines.yaml; empty: the one at hand, or the profile's.
MACHINE ?=
# Extra words for the course runner, e.g. make course ARGS="--only 00 --set SEED=1"
ARGS ?=
# Installed first and alone: a torch that is already there is not replaced by a larger build.
TORCH ?= torch==2.13.0
# Processes that share the tests; each needs about 1.5 GB.
WORKERS ?= 2

BIN := .venv/bin
READY := .venv/ready

.DEFAULT_GOAL := help
.PHONY: help course plan dry-run reference test lab lint lock stamp clean

help:  ## Say what there is
	@echo "make course [PROFILE=cpu|smoke]   execute every notebook into runs/<profile>/"
	@echo "make test                         run the quick tests; make test ARGS=\"-m slow\" runs the others"
	@echo "make lab                          open JupyterLab"
	@echo "make lint                         check style (notebooks included), floors and types"
	@echo "make plan PROFILE=single_gpu [MACHINE=24gb]   does it fit, stage by stage, and how long does it take"
	@echo "make dry-run PROFILE=single_gpu   the same with a random model and local rows: no GPU, no download"
	@echo "make reference ARGS=\"02 qlora\"   make one of the runs behind the published numbers again"
	@echo "make stamp                        put the outputs of the last cpu run into notebooks/"
	@echo "make lock                         write the installed versions to requirements.lock"
	@echo "make clean                        remove .venv (runs/ is kept)"
	@echo "More options: $(BIN)/python -m lib.course --help, or make course ARGS=\"--only 00\""

course: $(READY)  ## Execute every notebook
	@$(BIN)/python -m lib.course --profile $(PROFILE) $(if $(MACHINE),--machine $(MACHINE)) $(ARGS)

plan: $(READY)
	@$(BIN)/python -m lib.studies.planner $(if $(filter cpu,$(PROFILE)),single_gpu,$(PROFILE)) \
		$(if $(MACHINE),--machine $(MACHINE)) $(ARGS)

dry-run: $(READY)
	@$(BIN)/python -m lib.course --profile $(if $(filter cpu,$(PROFILE)),single_gpu,$(PROFILE)) --dry-run $(ARGS)

reference: $(READY)
	@$(BIN)/python -m lib.studies.trainings $(ARGS)

test: $(READY)  ## Run the tests
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

lab: $(READY)
	@$(BIN)/jupyter lab --notebook-dir notebooks

lint: $(READY)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache --no-logo
	@$(BIN)/mypy

lock: $(READY)
	@{ echo "# The versions that this edition was tested with (Linux, CPython 3.11, torch for the CPU); make lock writes it."; \
	   echo "# pip install torch==2.13.0 && pip install -r requirements.lock && pip install --no-deps -e ."; \
	   $(BIN)/python -m pip freeze --exclude-editable | sed 's/+[a-z0-9]*$$//'; } > requirements.lock

stamp: $(READY)
	@$(BIN)/python -m lib.course --stamp

clean:
	rm -rf .venv

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with make PYTHON=python3.12 ..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Setting up .venv (once) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $(READY)
