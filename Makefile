PYTHON ?= python3
VENV := .venv
STAGES := faiss_01_pca_variance.py faiss_02_pca_reduce.py faiss_03_kmeans.py faiss_04_neighbor_search.py faiss_045_merge.py

.PHONY: run test soak bench clean

run: $(VENV)/run  ## set up, then run the five scripts, on the example unless config.py says otherwise
	@for script in $(STAGES); do echo "== $$script"; $(VENV)/bin/python $$script || exit $$?; done

test: $(VENV)/dev  ## the quick tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/python -m pytest -n 2 --ignore tests/soak

soak: $(VENV)/dev  ## the long tests, up to 20 minutes: killed, starved, fed garbage
	$(VENV)/bin/python -m pytest -n 2 --dist loadgroup -rP tests/soak

bench: $(VENV)/bench  ## the short benchmarks, under 10 minutes on 2 cores: JSON and plots in benchmarks/results/
	$(VENV)/bin/python benchmarks/kernel.py
	$(VENV)/bin/python benchmarks/generate.py work-benchmark/made 100000
	$(VENV)/bin/python benchmarks/search.py work-benchmark/made --threshold 0.98 --name short-search
	$(VENV)/bin/python benchmarks/thresholds.py --data work-benchmark/made --name short-thresholds
	$(VENV)/bin/python benchmarks/crowds.py --name short-crowds
	$(VENV)/bin/python benchmarks/pipeline.py --rows 100000 --name short-pipeline

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/run: requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

$(VENV)/dev: requirements-dev.txt requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@ $(VENV)/run

$(VENV)/bench: benchmarks/requirements.txt requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@ $(VENV)/run

clean:  ## remove the environment and all results in work/
	rm -rf $(VENV) work work-benchmark
