# SPDX-License-Identifier: GPL-3.0-or-later
# Works on Debian 12 and 13, as root or as a user who may use sudo. Packages that are missing are installed.

LAB := tests/lab
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup check units integration molecule test demo bench image shell clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: ## install what is needed: Debian packages, and a venv in the cache
	$(LAB)/setup

check: ## all fast checks: linters, types, sanity, unit tests on two Pythons
	tests/check

units: ## the unit tests alone, on every Python found, those with real servers among them
	tests/check units servers other_units

integration: ## tests of the collection against real servers on real LVM, in virtual machines; Molecule's scenarios among them
	$(LAB)/lab images bookworm bullseye trixie sid
	$(LAB)/lab exec -- pytest -n 2 --dist worksteal -p no:cacheprovider tests/integration $(PYTEST_ARGS)

molecule: ## the roles alone, rolled out to a Vagrant machine
	$(LAB)/lab exec --libvirt -- molecule test --no-command-borders

test: ## everything: check, units with real servers, integration
	tests/check all
	$(MAKE) integration

demo: ## a backup under load and a restore, before your eyes
	tests/demo/run

bench: ## measurements against the usual tools
	tests/bench/run

image: ## build the replica of ETrial and its saved states
	$(LAB)/lab states

shell: ## a shell on a replica of ETrial; it ends with the shell
	@$(LAB)/lab up shell
	@-$(LAB)/lab ssh shell
	@$(LAB)/lab down shell

clean: ## remove the cache: images, saved states, venvs
	@bash -c '. $(LAB)/common.sh && as_root rm -rf --one-file-system "$$STILLPOINT_CACHE"'
