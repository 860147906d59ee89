# A thin front of xtask. `make demo` and `make test` set up whatever they need.
ORDERS ?= 2000
SCENARIO ?= NORMAL
SEED ?= 1
REPORT ?=
XTASK = SQLX_OFFLINE=true cargo run --quiet --locked --package xtask --

.PHONY: demo test check up down prepare
demo:
	@$(XTASK) demo --orders $(ORDERS) --scenario $(SCENARIO) --seed $(SEED) $(if $(REPORT),--report $(REPORT))
test:
	@$(XTASK) test
check:
	@$(XTASK) check
up:
	@$(XTASK) up
down:
	@$(XTASK) down
prepare:
	@$(XTASK) prepare
