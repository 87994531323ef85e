# `make demo` shows the main job, `make test` passes the tests; both set up .venv themselves.
PYTHON ?= python3
VENV := .venv

.PHONY: demo test check bench clean

demo: $(VENV)/demo-ready
	$(VENV)/bin/clipglot demo

test: $(VENV)/dev-ready
	scripts/test

check: $(VENV)/dev-ready
	scripts/check

bench: $(VENV)/dev-ready
	scripts/bench

$(VENV)/demo-ready: pyproject.toml
	scripts/install ".[report,serve]"
	touch $@

$(VENV)/dev-ready: pyproject.toml
	scripts/install ".[dev]"
	touch $@ $(VENV)/demo-ready

clean:
	rm -rf $(VENV) build dist site clipglot.egg-info .pytest_cache .mypy_cache .ruff_cache \
		.hypothesis .benchmarks
