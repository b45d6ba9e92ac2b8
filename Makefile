# `make repro` runs the study, `make test` the tests, `make test-cluster` those with Slurm and two hosts (as root; what a
# machine cannot try is skipped), `make lint` the checks of style and types, `make bench` the measurements, `make mini`
# remakes the embedded models, `make experiments` lists experiments on one screen, `make paper` runs the paper's. All
# set up .venv first.

VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: repro test test-cluster lint bench mini experiments paper clean

# A dvc that is killed while it writes .dvc/tmp/rwlock leaves it empty, and no later one starts. It is removed here while
# no dvc writes it: who holds rwlock.lock may.
define UNLOCK
import fcntl, os
with open(".dvc/tmp/rwlock.lock", "a") as guard:
    fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if os.path.getsize(".dvc/tmp/rwlock") == 0:
        os.remove(".dvc/tmp/rwlock")
endef
export UNLOCK

repro: $(VENV)/ready
	@python -c "$$UNLOCK" 2>/dev/null || true
	dvc repro
	@echo
	@cat metrics/table.md

test: $(VENV)/ready
	pytest

test-cluster: $(VENV)/ready
	pytest -n 0 -q -rs -s --no-header -o faulthandler_timeout=0 tests/cluster/slurm.py tests/cluster/two_hosts.py

lint: $(VENV)/ready
	ruff check .
	ruff format --check .
	mypy

bench: $(VENV)/ready
	python benchmarks/speed.py --profile
	python benchmarks/growth.py

# With one thread, as the shipped models. The MALLOC_ variables make glibc keep freed memory: page faults cost much time.
mini: $(VENV)/ready
	cd mini/making && OMP_NUM_THREADS=1 MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=2147483647 dvc repro

# `dvc exp show` has a column for each parameter and each dependency. This leaves those that differ, and headline numbers.
experiments: $(VENV)/ready
	COLUMNS=$${COLUMNS:-200} dvc exp show --no-pager --only-changed --drop '.*/' --keep 'metrics/.*:(accuracy|after|held_out)$$'

# FIGURE=5 runs one figure of paper/catalogue.yaml, JOBS=2 two experiments at a time, MODEL=audioldm2-music real weights.
FIGURE :=
JOBS := 1
MODEL := mini
paper: $(VENV)/ready
	dvc repro fetch
	python paper/run.py --figure "$(FIGURE)" --jobs $(JOBS) --model $(MODEL)
	python paper/results.py $(MODEL)

clean:
	rm -rf $(VENV)

# The first Python 3.11 or 3.12 that there is; PYTHON=... names another.
$(VENV)/ready: requirements.txt pyproject.toml
	@python=$${PYTHON:-}; \
	for candidate in python3.11 python3.12 python3 python; do \
		[ -n "$$python" ] && break; \
		$$candidate -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null \
			&& python=$$candidate; \
	done; \
	[ -n "$$python" ] || { \
		echo "Error: Python 3.11 or 3.12 is needed; found $$(python3 --version 2>&1). Install one, or run" \
			"'make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)'." >&2; exit 1; }; \
	$$python -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else \
		f"Error: Python 3.11 or 3.12 is needed; {sys.executable} is {v[0]}.{v[1]}.")' && \
	rm -rf $(VENV) && $$python -m venv $(VENV) && \
	$(VENV)/bin/python -m pip install --disable-pip-version-check -r requirements.txt
	@touch $@
