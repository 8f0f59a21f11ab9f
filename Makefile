# Everything a newcomer or CI needs. `make help` lists it; each line below with `##` is its own documentation.
SHELL := /bin/bash
PYTHON := .venv/bin/python
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-full test-appkernel-suites test-critest test-oci-suites test-nested-kvm test-cgroup2
.PHONY: test-hypervisors test-nested-hypervisors test-interop fuzz-appkernel fuzz-vm lint format bench bench-quick clean

help: ## Show these targets
	@awk -F ':[^#]*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-23s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what is missing (Debian packages, .venv, native keeper); instant when nothing is
	@scripts/setup.sh

demo: setup ## Build the images `busybox` and `debian`, then show every main feature on them
	@scripts/demo.sh

test: ## Run every test (installs what the tests need first); PYTEST_ARGS="-k name" narrows it
	@scripts/setup.sh --tests
	@$(PYTHON) scripts/run-tests.py $(PYTEST_ARGS)

test-full: ## Run every test, also the long ones that `make test` skips by name; never timed as a whole
	@scripts/setup.sh --tests
	@DRUPE_TEST_FULL=1 DRUPE_TEST_INTEROP=1 DRUPE_TEST_FEATURES=all $(PYTHON) -m pytest $(PYTEST_ARGS)

test-cgroup2: ## Run the tests of limits in an emulated guest that has only cgroup v2 (minutes); TESTS="paths" for others
	@scripts/setup.sh --tests
	@scripts/test-cgroup2.sh $(TESTS)

test-hypervisors: ## Hold every hypervisor that is installed to the contract; says which are not found
	@scripts/setup.sh --tests
	@for program in qemu-system-x86_64 cloud-hypervisor firecracker stratovirt linux.uml; do \
		command -v $$program >/dev/null && echo "found $$program" || echo "not found: $$program"; done
	@$(PYTHON) -m pytest -rs tests/contract/test_*hypervisor*.py tests/contract/heavy_uml_vm.py

test-nested-hypervisors: ## The same with guests, on an emulated host whose KVM works (slow); GUEST_PATH=DIR has the programs
	@scripts/setup.sh --tests
	@GUEST_KVM=1 scripts/test-cgroup2.sh -rs tests/contract/test_installed_hypervisors.py

fuzz-appkernel: ## Throw nonsense at the application kernel: calls, programs, images, shared memory, packets; MINUTES=30 for each, JOBS=2 at a time
	@scripts/setup.sh --tests
	@scripts/fuzz.sh appkernel $(PYTEST_ARGS)

fuzz-vm: ## Throw nonsense at all that reads what machines send: MINUTES=30 for each target, JOBS=2 of them at a time
	@scripts/setup.sh --tests
	@scripts/fuzz.sh vm $(PYTEST_ARGS)

test-interop: ## Hold drupe to what containerd, Docker and Podman do with runc: also the cases that `make test` leaves out
	@scripts/setup.sh --tests
	@DRUPE_TEST_INTEROP=1 $(PYTHON) -m pytest tests/interop tests/conformance/test_oci.py $(PYTEST_ARGS)

test-appkernel-suites: ## Hold the application kernel to suites by others (busybox, CPython, LTP), on Linux first; SUITES="python:test_os" narrows it
	@scripts/setup.sh --tests
	@ls /usr/lib/python3.11/test/test_os.py >/dev/null 2>&1 || apt-get install -qq -y --no-install-recommends libpython3.11-testsuite
	@PYTHONPATH=tests $(PYTHON) -m tests.conformance.appkernel_suites --out docs/appkernel-suites.new.md $(SUITES)

test-oci-suites: ## Hold drupe-oci to runc's own suite (bats), by runc first; FACES=crun,runc,gvisor,appkernel,vm FILES="exec" narrow it
	@scripts/setup.sh --tests
	@apt-get install -qq -y --no-install-recommends bats jq gawk gcc libc6-dev libseccomp-dev pkg-config >/dev/null
	@PYTHONPATH=tests:. $(PYTHON) -m tests.conformance.oci_suites --out docs/oci-suites.new.md $(if $(FACES),--faces $(FACES)) $(FILES)

test-critest: ## Hold containerd with drupe to Kubernetes' CRI validation suite, on runc first; HANDLERS="drupe-vm", CRITEST="--focus networking" narrow it
	@scripts/setup.sh --tests
	@PYTHONPATH=tests $(PYTHON) -m tests.conformance.critest --out docs/critest.new.md $(CRITEST) $(HANDLERS)

test-nested-kvm: ## Try the application kernel's kvm platform on a KVM with an (emulated) processor's help, in a machine of QEMU's
	@scripts/setup.sh --tests
	@scripts/test-nested-kvm.sh $(TESTS)

lint: ## Run only the style tests: ruff, mypy --strict, layers, docs
	@scripts/setup.sh
	@$(PYTHON) -m pytest tests/style $(PYTEST_ARGS)

format: setup ## Rewrite the code in the project's format
	@$(PYTHON) -m ruff check --fix . ; $(PYTHON) -m ruff format .

bench-quick: ## Measure start, exec, stop, parallel starts and memory beside the peers, in a minute or two
	@scripts/setup.sh --tests
	@$(PYTHON) benchmarks/bench.py --quick

bench: ## Measure everything, with more samples and up to 100 pods
	@scripts/setup.sh --tests
	@$(PYTHON) benchmarks/bench.py

clean: ## Remove what was built or cached here; the image store and running pods stay
	rm -rf .venv build dist native/target src/drupe/_bin benchmarks/results
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
