PYTHON ?= python3
VENV := .venv
STAGES := faiss_01_pca_variance.py faiss_02_pca_reduce.py faiss_03_kmeans.py faiss_04_neighbor_search.py faiss_045_merge.py

.PHONY: run test check clean

run: $(VENV)/run  ## set up, then run the five scripts, on the example unless config.py says otherwise
	@for script in $(STAGES); do echo "== $$script"; $(VENV)/bin/python $$script || exit $$?; done

test: $(VENV)/dev  ## the quick tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/python -m pytest -n 2

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/run: requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

$(VENV)/dev: requirements-dev.txt requirements.txt | $(VENV)/bin/python
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@ $(VENV)/run

clean:  ## remove the environment and all results in work/
	rm -rf $(VENV) work
