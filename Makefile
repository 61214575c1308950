# make install | demo | test | cuda | lint: everything goes into .venv
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
# Two workers of one thread each: tests are many small tensors, where threads cost more than they give.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
# Short histories and small batches: some minutes on two cores; README says how to train in earnest.
DEMO := --model=SIGMA --dataset=ml-100k --MAX_ITEM_LIST_LENGTH=10 --train_batch_size=512 --learning_rate=0.003 \
	--epochs=4 --use_gpu=False

.PHONY: install demo test cuda lint
install: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' || \
		{ echo "recbole-sigma needs Python 3.11 to 3.14: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

demo: install
	$(BIN)/python run_recbole_sigma.py $(DEMO)

test: install
	$(PYTEST)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# In the environment of BIN, which must have mamba-ssm and causal-conv1d: docs/cuda.md. Fails where there is no GPU.
cuda:
	RECBOLE_SIGMA_CUDA_TESTS_ON=cuda $(BIN)/python -m pytest tests/model/test_cuda.py tests/ops/test_cuda_kernels.py \
		tests/ops/test_cuda_dispatch.py tests/ops/test_conv.py tests/ops/test_gru.py tests/commands/test_environment.py
