PYTHON ?= python3
VENV := .venv
VENV_IMAGES := .venv-images
STAGES := faiss_01_pca_variance.py faiss_02_pca_reduce.py faiss_03_kmeans.py faiss_04_neighbor_search.py faiss_045_merge.py

.PHONY: run demo-images test soak bench clean

run: $(VENV)/run  ## set up, then run the five scripts, on the example unless config.py says otherwise
	@for script in $(STAGES); do echo "== $$script"; $(VENV)/bin/python $$script || exit $$?; done

demo-images: $(VENV_IMAGES)/run work-images/icons  ## the same on pictures: the icons of a Debian package
	$(VENV_IMAGES)/bin/python examples/images/embed.py work-images/icons work-images/embeddings
	@NEARDUP_DATA_DIR=work-images/embeddings NEARDUP_WORK_DIR=work-images/results \
		NEARDUP_PREVIEW='work-images/icons/{id}' NEARDUP_THRESHOLD=0.95 NEARDUP_REPORT_THRESHOLD=0.90 \
		NEARDUP_N_CLUSTERS=None $(MAKE) --no-print-directory run
	@echo "groups of pictures: open work-images/results/045_merge/report.html in a browser"

test: $(VENV)/dev  ## the quick tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist worksteal -m "not long"

soak: $(VENV)/dev  ## the long tests, 10 to 30 minutes: killed, starved, fed garbage
	$(VENV)/bin/python -m pytest -n 2 --dist worksteal -rP --durations 12 -m long -o faulthandler_timeout=1800

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

$(VENV_IMAGES)/run: examples/images/requirements.txt
	$(PYTHON) -m venv $(VENV_IMAGES)
	$(VENV_IMAGES)/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

work-images/icons:
	@rm -rf $(@D)/package && mkdir -p $(@D)/package
	cd $(@D)/package && apt-get download oxygen-icon-theme \
		|| { echo "needs Debian or Ubuntu, and its list of packages: 'apt-get update' as root, then again"; exit 1; }
	dpkg-deb -x $(@D)/package/oxygen-icon-theme_*.deb $(@D)/package
	@mv $(@D)/package/usr/share/icons $@

clean:  ## remove the environments and all results in work/
	rm -rf $(VENV) $(VENV_IMAGES) work work-images work-benchmark
